//! The wgpu devices that are known, and the plans made on them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use burn::backend::{CubeDevice, DispatchDevice};
use burn::tensor::{DType, Device, DeviceKind, wgpu::WgpuSetup};
use wgpu_batchnorm::{Activation, Gpu, Layout, OneValue, Options, Plan, Shape, wgpu};

use crate::RunningVariance;

/// What can go wrong when a device is opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// burn could not open its default wgpu device: there is none, or it was in use already, so that
    /// its handles are lost. The message is burn's.
    Open(String),
    /// The device is not one of burn's wgpu runtime.
    NotWgpu(String),
    /// The device does less than the kernels need.
    Device(wgpu_batchnorm::Error),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open(message) => write!(
                f,
                "burn's wgpu device could not be opened: {message}; open it before its first \
                 tensor, or give the handles of one opened elsewhere to `register`"
            ),
            Self::NotWgpu(device) => write!(f, "{device} is not a wgpu device"),
            Self::Device(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Device(error) => Some(error),
            _ => None,
        }
    }
}

/// For how many shapes with their options plans are kept, for each device: the last used. Each holds a
/// workspace of some values per channel and a few KiB of uniforms.
const PLANS: usize = 256;

/// The devices that are known, by burn's name for them.
static SITES: Mutex<Vec<(CubeDevice, Arc<Site>)>> = Mutex::new(Vec::new());

/// A device that is known.
pub(crate) struct Site {
    gpu: Gpu,
    plans: Mutex<Plans>,
}

#[derive(Default)]
struct Plans {
    made: HashMap<Key, (Arc<Inner>, u64)>,
    /// Counts the uses.
    clock: u64,
}

/// What a plan depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    dims: Vec<usize>,
    dtype: wgpu_batchnorm::DType,
    settings: Settings,
}

/// The options of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Settings {
    /// The bits of the numbers, so that they can be compared.
    eps: u64,
    momentum: u64,
    pub(crate) relu: bool,
    running_variance: RunningVariance,
    /// Whether the statistics are constants: the running ones, which stay as they are.
    pub(crate) frozen: bool,
}

impl Settings {
    pub(crate) fn new(
        eps: f64,
        momentum: f64,
        relu: bool,
        running_variance: RunningVariance,
        frozen: bool,
    ) -> Self {
        Self {
            eps: eps.to_bits(),
            // Constants do not move.
            momentum: if frozen { 0.0 } else { momentum }.to_bits(),
            relu,
            running_variance,
            frozen,
        }
    }

    /// As the plan takes them.
    pub(crate) fn options(self) -> Options {
        Options::default()
            .eps(f64::from_bits(self.eps))
            .momentum(f64::from_bits(self.momentum))
            .running_variance(self.running_variance.into())
            .frozen_statistics(self.frozen)
            // As in burn, where it is no error.
            .one_value(OneValue::GiveBeta)
            .activation(if self.relu {
                Activation::Relu
            } else {
                Activation::Identity
            })
    }
}

/// An operation as it is planned, with what it needs on burn's tensors besides.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    shared: Arc<Inner>,
    /// How the tensors of a forward pass lay in memory, for its backward pass.
    layout: Arc<OnceLock<Layout>>,
}

#[derive(Debug)]
struct Inner {
    gpu: Gpu,
    /// For tensors with the channels first in memory, and last.
    plans: [Plan; 2],
    settings: Settings,
    /// The running mean and variance of the operation that runs, f32 each.
    running: wgpu::Buffer,
}

impl Inner {
    fn new(gpu: &Gpu, key: &Key) -> Result<Self, wgpu_batchnorm::Error> {
        let plan = |dims: &[usize], layout| {
            let shape = Shape::new(dims, layout)?;
            Plan::new(gpu, &shape, key.dtype, &key.settings.options())
        };
        let [batch, channels, space @ ..] = key.dims.as_slice() else {
            unreachable!("a module takes [batch, channels, …]");
        };
        let last: Vec<_> = [batch]
            .into_iter()
            .chain(space)
            .chain([channels])
            .copied()
            .collect();
        let plans = [
            plan(&key.dims, Layout::ChannelsFirst)?,
            plan(&last, Layout::ChannelsLast)?,
        ];
        let running = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("batch_norm.running"),
            size: 2 * vector_stride(gpu, *channels),
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Ok(Self {
            gpu: gpu.clone(),
            plans,
            settings: key.settings,
            running,
        })
    }
}

impl Planned {
    pub(crate) fn gpu(&self) -> &Gpu {
        &self.shared.gpu
    }

    /// The plan for tensors that lie like this.
    pub(crate) fn plan(&self, layout: Layout) -> &Plan {
        let [first, last] = &self.shared.plans;
        match layout {
            Layout::ChannelsFirst => first,
            Layout::ChannelsLast => last,
        }
    }

    /// Of the forward pass: how its tensors lie.
    pub(crate) fn keep_layout(&self, layout: Layout) {
        self.layout.get_or_init(|| layout);
    }

    /// Of the backward pass: how the tensors of its forward pass lay.
    pub(crate) fn kept_layout(&self) -> Layout {
        *self.layout.get().expect("a forward pass came before")
    }

    pub(crate) fn relu(&self) -> bool {
        self.shared.settings.relu
    }

    pub(crate) fn frozen(&self) -> bool {
        self.shared.settings.frozen
    }

    /// How many u32 hold the mask of either plan.
    pub(crate) fn mask_words(&self) -> usize {
        let [first, last] = &self.shared.plans;
        (first.mask_bytes().max(last.mask_bytes()) / 4) as usize
    }

    /// How many f32 go from the forward to the backward pass, in either layout.
    pub(crate) fn saved_values(&self) -> usize {
        (self.shared.plans[0].saved_bytes() / 4) as usize
    }

    /// Where the running mean and variance lie while the operation runs.
    pub(crate) fn running(&self) -> [wgpu::BufferSlice<'_>; 2] {
        let channels = self.shared.plans[0].shape().channels();
        let stride = vector_stride(self.gpu(), channels);
        [0, stride].map(|start| {
            self.shared
                .running
                .slice(start..start + 4 * channels as u64)
        })
    }
}

/// How far two vectors lie apart that can both be bound.
fn vector_stride(gpu: &Gpu, channels: usize) -> u64 {
    let alignment = gpu.limits().min_storage_buffer_offset_alignment;
    (4 * channels as u64).next_multiple_of(alignment.into())
}

impl Site {
    /// An operation on tensors of this shape and type; its plans are made at first use.
    ///
    /// # Panics
    /// If the device cannot do it, with the reason.
    pub(crate) fn plan(
        &self,
        dims: &[usize],
        dtype: wgpu_batchnorm::DType,
        settings: Settings,
    ) -> Planned {
        let mut plans = unpoisoned(&self.plans);
        let key = Key {
            dims: dims.to_vec(),
            dtype,
            settings,
        };
        plans.clock += 1;
        let now = plans.clock;
        let planned = |shared: &Arc<Inner>| Planned {
            shared: Arc::clone(shared),
            layout: Arc::default(),
        };
        if let Some((shared, used)) = plans.made.get_mut(&key) {
            *used = now;
            return planned(shared);
        }
        let shared =
            Inner::new(&self.gpu, &key).unwrap_or_else(|error| panic!("FusedBatchNorm: {error}"));
        let shared = Arc::new(shared);
        if plans.made.len() >= PLANS {
            let oldest = plans.made.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                plans.made.remove(&oldest);
            }
        }
        let planned = planned(&shared);
        plans.made.insert(key, (shared, now));
        planned
    }
}

/// Opens burn's default wgpu device, so that [`crate::FusedBatchNorm`] can work on it.
///
/// Call it once, before the first tensor on that device: it is then what
/// `burn::tensor::Device::wgpu(Default::default())` names, too. Later calls return the same device, as
/// does the first one after [`register`] of that device.
/// Not in a browser, where opening cannot wait: there, give [`register`] the handles of burn's
/// `init_with_setup_async`.
///
/// # Errors
/// [`Error::Open`] if there is no such device, or if it was opened already without us;
/// [`Error::Device`] if it does less than the kernels need.
#[cfg(not(target_family = "wasm"))]
pub fn device() -> Result<Device, Error> {
    static OPENING: Mutex<()> = Mutex::new(());
    let _opening = unpoisoned(&OPENING);
    let default = Device::wgpu(DeviceKind::default());
    if cube_device(default.as_dispatch()).is_some_and(|name| known(name).is_some()) {
        return Ok(default);
    }
    let (device, setup) = Device::wgpu_options()
        .init_with_setup()
        .map_err(|error| Error::Open(error.to_string()))?;
    register(&device, &setup)?;
    Ok(device)
}

/// Makes a device known that was opened elsewhere, with the handles that belong to it: those that
/// burn's `init_with_setup` returned, or those that were given to burn's `setup`.
///
/// ```no_run
/// use burn::tensor::Device;
///
/// let (device, setup) = Device::wgpu_options().tasks_max(32).init_with_setup()?;
/// wgpu_batchnorm_burn::register(&device, &setup)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Handles of another device are a mistake that wgpu reports when the first module runs, by a panic.
///
/// # Errors
/// [`Error::NotWgpu`] for a device of another backend; [`Error::Device`] if the device does less
/// than the kernels need.
pub fn register(device: &Device, setup: &WgpuSetup) -> Result<(), Error> {
    let Some(name @ CubeDevice::Wgpu(_)) = cube_device(device.as_dispatch()) else {
        return Err(Error::NotWgpu(format!("{device:?}")));
    };
    let gpu = Gpu::from_device(setup.device.clone(), setup.queue.clone()).map_err(Error::Device)?;
    let site = Arc::new(Site {
        gpu,
        plans: Mutex::default(),
    });
    let mut sites = unpoisoned(&SITES);
    sites.retain(|(known, _)| known != name);
    sites.push((name.clone(), site));
    Ok(())
}

/// Where the work of a tensor on `device` runs: `None` where burn's own must do, also while burn
/// records a graph, which would not hold ours.
///
/// # Panics
/// For a wgpu device that is not known.
pub(crate) fn site(device: &Device, dtype: DType) -> Option<(Arc<Site>, wgpu_batchnorm::DType)> {
    let name @ CubeDevice::Wgpu(_) = cube_device(device.as_dispatch())? else {
        return None;
    };
    let dtype = match dtype {
        DType::F32 => wgpu_batchnorm::DType::F32,
        DType::F16 => wgpu_batchnorm::DType::F16,
        DType::BF16 => wgpu_batchnorm::DType::Bf16,
        _ => return None,
    };
    let site = known(name).unwrap_or_else(|| {
        panic!(
            "FusedBatchNorm does not know the queue of {device:?}: open the device by \
             `wgpu_batchnorm_burn::device()`, or make it known by `wgpu_batchnorm_burn::register`"
        )
    });
    (!name.client().is_capturing()).then_some((site, dtype))
}

/// The device of that name, if it is known.
fn known(name: &CubeDevice) -> Option<Arc<Site>> {
    let sites = unpoisoned(&SITES);
    let found = sites.iter().find(|(known, _)| known == name);
    found.map(|(_, site)| Arc::clone(site))
}

/// The device below the wrappers.
fn cube_device(device: &DispatchDevice) -> Option<&CubeDevice> {
    match device {
        DispatchDevice::Autodiff(inner) => cube_device(inner),
        DispatchDevice::Cube(device) => Some(device),
        #[allow(unreachable_patterns, reason = "other backends may be built in")]
        _ => None,
    }
}

/// What a poisoned lock guards is whole: nothing here panics half-way.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether or not there is such an adapter: its name alone opens nothing.
    #[test]
    #[should_panic(expected = "does not know the queue")]
    fn a_device_that_is_not_known_is_refused() {
        let _ = site(&Device::wgpu(DeviceKind::DiscreteGpu(7)), DType::F32);
    }
}
