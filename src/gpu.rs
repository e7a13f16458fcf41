//! The device: opening it, the pipelines compiled on it, and reading back from it.

use std::collections::HashMap;
#[cfg(not(target_arch = "wasm32"))]
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use futures_intrusive::channel::shared::{OneshotReceiver, oneshot_channel};

use crate::kernels::{PipelineKey, Variant};
use crate::{Error, NativeF16, native_f16};

/// A GPU: a wgpu device and queue, with the pipelines compiled on it so far.
///
/// Clones share the device and the pipelines. Only clones are equal: wgpu does not tell whether two
/// devices are the same one, so open a device once and clone the `Gpu`.
///
/// ```
/// use wgpu_batchnorm::{Error, Gpu};
///
/// match Gpu::open_blocking() {
///     Ok(gpu) => println!("running on {}", gpu.name()),
///     Err(Error::NoAdapter { reason }) => println!("no GPU here: {reason}"),
///     Err(other) => return Err(other),
/// }
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone)]
pub struct Gpu {
    shared: Arc<Shared>,
}

struct Shared {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    limits: wgpu::Limits,
    /// What the device's own conversions of f16 are good for, once it was asked.
    native_f16: OnceLock<NativeF16>,
    pipelines: Mutex<Pipelines>,
}

#[derive(Default)]
struct Pipelines {
    compiled: HashMap<PipelineKey, wgpu::ComputePipeline>,
    /// What others are compiled through.
    cache: Option<wgpu::PipelineCache>,
}

/// The usages of a buffer that holds a vector or a tensor.
const STORAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::COPY_SRC)
    .union(wgpu::BufferUsages::COPY_DST);

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Gpu").field(&self.name()).finish()
    }
}

impl PartialEq for Gpu {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Gpu {
    /// Opens the best adapter with all the limits that it has.
    ///
    /// wgpu's environment variables are honoured: `WGPU_BACKEND` (such as `vulkan` or `gl`),
    /// `WGPU_ADAPTER_NAME` (a part of the name, in any case) and `WGPU_POWER_PREF` (`low` or
    /// `high`, the default here).
    ///
    /// # Errors
    /// [`Error::NoAdapter`] or [`Error::NoDevice`] if there is none to open,
    /// [`Error::DeviceLimit`] if its limits are too low.
    pub async fn open() -> Result<Self, Error> {
        Self::open_with(wgpu::Features::empty()).await
    }

    /// [`Gpu::open`], with those of `features` that the adapter has: no kernel needs any, but a
    /// caller may, for timestamps say. `gpu.device().features()` tells which there are.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub async fn open_with(features: wgpu::Features) -> Result<Self, Error> {
        let instance =
            wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let adapter = match std::env::var("WGPU_ADAPTER_NAME") {
            Ok(name) => adapter_named(&instance, &name).await?,
            Err(_) => best_adapter(&instance).await?,
        };
        Self::from_adapter_with(&adapter, features).await
    }

    /// Every adapter that wgpu finds here, for [`Gpu::from_adapter`].
    pub async fn adapters() -> Vec<wgpu::Adapter> {
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
            .enumerate_adapters(wgpu::Backends::all())
            .await
    }

    /// Opens an adapter with all the limits that it has.
    ///
    /// # Errors
    /// [`Error::NoDevice`] if the adapter refuses, [`Error::DeviceLimit`] if its limits are too
    /// low.
    pub async fn from_adapter(adapter: &wgpu::Adapter) -> Result<Self, Error> {
        Self::from_adapter_with(adapter, wgpu::Features::empty()).await
    }

    /// [`Gpu::from_adapter`], with those of `features` that the adapter has.
    ///
    /// # Errors
    /// As [`Gpu::from_adapter`].
    pub async fn from_adapter_with(
        adapter: &wgpu::Adapter,
        features: wgpu::Features,
    ) -> Result<Self, Error> {
        let mut features = features;
        let info = adapter.get_info();
        // lavapipe. Direct3D's has not been tried.
        if info.device_type == wgpu::DeviceType::Cpu && info.backend == wgpu::Backend::Vulkan {
            features |= wgpu::Features::SHADER_INT64;
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("batch_norm"),
            required_features: features & adapter.features(),
            required_limits: adapter.limits(),
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        match adapter.request_device(&descriptor).await {
            Ok((device, queue)) => Self::from_device(device, queue),
            Err(error) => Err(Error::NoDevice {
                adapter: adapter.get_info().name,
                reason: error.to_string(),
            }),
        }
    }

    /// Works on a device of the caller's, within the limits it was opened with and with no
    /// feature at all. `queue` must be that device's: wgpu panics on another.
    ///
    /// # Errors
    /// [`Error::DeviceLimit`] if its limits are too low.
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self, Error> {
        let limits = device.limits();
        let needs = [
            (
                "max_storage_buffers_per_shader_stage",
                7,
                limits.max_storage_buffers_per_shader_stage.into(),
            ),
            (
                "max_uniform_buffers_per_shader_stage",
                2,
                limits.max_uniform_buffers_per_shader_stage.into(),
            ),
            (
                "max_compute_invocations_per_workgroup",
                1,
                limits.max_compute_invocations_per_workgroup.into(),
            ),
            (
                "max_compute_workgroups_per_dimension",
                1,
                limits.max_compute_workgroups_per_dimension.into(),
            ),
            (
                "max_storage_buffer_binding_size",
                4096,
                limits.max_storage_buffer_binding_size,
            ),
        ];
        for (limit, needed, found) in needs {
            if found < needed {
                return Err(Error::DeviceLimit {
                    limit,
                    needed,
                    found,
                });
            }
        }
        Ok(Self {
            shared: Arc::new(Shared {
                info: device.adapter_info(),
                limits,
                device,
                queue,
                native_f16: OnceLock::new(),
                pipelines: Mutex::default(),
            }),
        })
    }

    /// The wgpu device.
    pub fn device(&self) -> &wgpu::Device {
        &self.shared.device
    }

    /// The wgpu queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.shared.queue
    }

    /// The limits that the device was opened with.
    pub fn limits(&self) -> &wgpu::Limits {
        &self.shared.limits
    }

    /// What wgpu says of the adapter.
    pub fn info(&self) -> &wgpu::AdapterInfo {
        &self.shared.info
    }

    /// What the device's own conversions of f16 are good for. The first call asks it, and waits; a device that
    /// cannot answer now may be asked again.
    pub(crate) fn native_f16(&self) -> NativeF16 {
        let known = &self.shared.native_f16;
        if let Some(found) = known.get() {
            return *found;
        }
        // Nobody waits for somebody else's question: two threads may both ask.
        match native_f16::of_device(self) {
            Ok(found) => *known.get_or_init(|| found),
            Err(_) => NativeF16::Never,
        }
    }

    /// Whether the device was opened with words of 64 bits.
    pub(crate) fn wide_words(&self) -> bool {
        let features = self.device().features();
        features.contains(wgpu::Features::SHADER_INT64)
    }

    /// The adapter in words: back end, name and driver, as `Vulkan/llvmpipe (LLVM 15.0.6, 256
    /// bits)/Mesa 22.3.6`.
    pub fn name(&self) -> String {
        let wgpu::AdapterInfo {
            backend,
            name,
            driver_info,
            ..
        } = self.info();
        format!("{backend:?}/{name}/{driver_info}")
    }

    /// The pipeline of a kernel's variant, compiled at its first use on this device.
    pub(crate) fn pipeline(&self, variant: Variant) -> Result<wgpu::ComputePipeline, Error> {
        let mut pipelines = self.pipelines();
        if let Some(pipeline) = pipelines.compiled.get(&variant.key()) {
            return Ok(pipeline.clone());
        }
        let cache = pipelines.cache.as_ref();
        let pipeline = self.caught(|| variant.compile(self.device(), cache))?;
        pipelines.compiled.insert(variant.key(), pipeline.clone());
        Ok(pipeline)
    }

    fn pipelines(&self) -> MutexGuard<'_, Pipelines> {
        // A poisoned lock means that a compilation panicked; the map itself is whole.
        let pipelines = self.shared.pipelines.lock();
        pipelines.unwrap_or_else(PoisonError::into_inner)
    }

    /// Compiles pipelines through a cache of the caller's from now on: for engines that have one.
    /// All clones share it. On native targets `load_pipeline_cache` makes one.
    ///
    /// The cache must be of this device. wgpu reports one of another when a pipeline is compiled
    /// ([`Error::Wgpu`]), but cannot tell one of another `wgpu::Instance`, and may panic on it.
    pub fn set_pipeline_cache(&self, cache: wgpu::PipelineCache) {
        self.pipelines().cache = Some(cache);
    }

    /// What pipelines are compiled through.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn pipeline_cache(&self) -> Option<wgpu::PipelineCache> {
        self.pipelines().cache.clone()
    }

    /// A buffer for a tensor or vector, filled with `values`, and as far as these do not fill the
    /// last word, with zeros.
    pub(crate) fn upload<T: bytemuck::Pod>(
        &self,
        label: &str,
        values: &[T],
    ) -> Result<wgpu::Buffer, Error> {
        let bytes = size_of_val(values).next_multiple_of(4) as u64;
        check_size(label, bytes, self.limits().max_buffer_size)?;
        self.buffer(label, bytes, STORAGE, bytemuck::cast_slice(values))
    }

    /// A buffer for a tensor, of zeros.
    pub(crate) fn tensor_buffer(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer, Error> {
        check_size(label, bytes, self.limits().max_buffer_size)?;
        self.buffer(label, bytes, STORAGE, &[])
    }

    /// A buffer for vectors with a value per channel, of zeros, to be bound as a whole.
    pub(crate) fn vector_buffer(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer, Error> {
        let limits = self.limits();
        let limit = limits
            .max_buffer_size
            .min(limits.max_storage_buffer_binding_size);
        check_size(label, bytes, limit)?;
        self.buffer(label, bytes, STORAGE, &[])
    }

    /// A uniform buffer with these bytes.
    pub(crate) fn uniform_buffer(&self, label: &str, bytes: &[u8]) -> Result<wgpu::Buffer, Error> {
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        self.buffer(label, bytes.len() as u64, usage, bytes)
    }

    /// A buffer that starts with these bytes and goes on with zeros. Never empty, even for 0 bytes.
    fn buffer(
        &self,
        label: &str,
        size: u64,
        usage: wgpu::BufferUsages,
        contents: &[u8],
    ) -> Result<wgpu::Buffer, Error> {
        self.caught(|| {
            let buffer = self.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: size.max(4),
                usage,
                mapped_at_creation: false,
            });
            // Also of nothing: it shows whether the buffer is one. See `check_alive`.
            // In whole words.
            let (words, rest) = contents.split_at(contents.len() / 4 * 4);
            self.queue().write_buffer(&buffer, 0, words);
            if !rest.is_empty() {
                let mut word = [0; 4];
                word[..rest.len()].copy_from_slice(rest);
                self.queue()
                    .write_buffer(&buffer, words.len() as u64, &word);
            }
            buffer
        })
    }

    /// Records commands and submits them.
    pub(crate) fn submit(
        &self,
        record: impl FnOnce(&mut wgpu::CommandEncoder),
    ) -> Result<(), Error> {
        self.caught(|| {
            let mut encoder = self.device().create_command_encoder(&Default::default());
            record(&mut encoder);
            self.queue().submit([encoder.finish()]);
        })?;
        // A lost device takes work without a word and does none of it.
        self.check_alive()
    }

    /// Runs calls to wgpu and turns what it would report as an uncaptured error into ours.
    ///
    /// Native wgpu knows of an error at once. In a browser it comes later: there, errors go to the
    /// device's own handler.
    pub(crate) fn caught<T>(&self, calls: impl FnOnce() -> T) -> Result<T, Error> {
        if cfg!(target_arch = "wasm32") {
            return Ok(calls());
        }
        let (result, error) = self.scoped(calls);
        match error {
            None => Ok(result),
            Some(wgpu::Error::OutOfMemory { source }) => Err(Error::OutOfMemory {
                message: source.to_string(),
            }),
            Some(error) => {
                self.check_alive()?;
                Err(Error::Wgpu {
                    message: error.to_string(),
                })
            }
        }
    }

    /// Runs calls to wgpu, with the first error that they caused.
    fn scoped<T>(&self, calls: impl FnOnce() -> T) -> (T, Option<wgpu::Error>) {
        let device = self.device();
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let result = calls();
        // Memory first: what was not made for lack of it is invalid in the calls after.
        let errors = [
            known_now(memory.pop()),
            known_now(internal.pop()),
            known_now(validation.pop()),
        ];
        (result, errors.into_iter().flatten().flatten().next())
    }

    /// Fails if the device is lost or destroyed.
    ///
    /// wgpu tells of a loss by a callback of the device, which belongs to whoever opened it. But a
    /// lost device makes only invalid buffers: so we see whether a new one can be written, be it
    /// with nothing.
    pub(crate) fn check_alive(&self) -> Result<(), Error> {
        if cfg!(target_arch = "wasm32") {
            return Ok(());
        }
        let ((), error) = self.scoped(|| {
            let probe = self.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("batch_norm.probe"),
                size: 4,
                usage: wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            self.queue().write_buffer(&probe, 0, &[]);
        });
        match error {
            Some(wgpu::Error::Validation { .. }) => Err(Error::DeviceLost),
            _ => Ok(()),
        }
    }

    /// Reads a range of a buffer that has the usage `COPY_SRC`, after all work submitted so far.
    pub(crate) async fn download<T: bytemuck::Pod>(
        &self,
        range: wgpu::BufferSlice<'_>,
    ) -> Result<Vec<T>, Error> {
        let values = self.read_back(&[range], Polling::Waiting)?.finish().await?;
        Ok(values.into_iter().next().unwrap_or_default())
    }

    /// Starts to read ranges of buffers that have the usage `COPY_SRC`, as they are after all work
    /// submitted so far, whatever is submitted later.
    pub(crate) fn read_back(
        &self,
        ranges: &[wgpu::BufferSlice<'_>],
        polling: Polling,
    ) -> Result<Readback, Error> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        // What is mapped starts at multiples of 8.
        let mut size = 0;
        let mut parts = Vec::new();
        for range in ranges {
            parts.push(size..size + range.size());
            size = (size + range.size()).next_multiple_of(wgpu::MAP_ALIGNMENT);
        }
        let staging = self.buffer("batch_norm.readback", size, usage, &[])?;
        self.submit(|encoder| {
            for (range, part) in ranges.iter().zip(&parts) {
                let (buffer, offset, size) = (range.buffer(), range.offset(), range.size());
                encoder.copy_buffer_to_buffer(buffer, offset, &staging, part.start, Some(size));
            }
        })?;
        let (sender, receiver) = oneshot_channel();
        let sender = Arc::new(sender);
        let on_mapped = Arc::clone(&sender);
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        self.caught(|| {
            staging.map_async(wgpu::MapMode::Read, .., move |result| {
                done.store(true, Ordering::Release);
                // The receiver is gone if the caller dropped the future: nobody wants to know.
                let _ = on_mapped.send(result.map_err(|error| error.to_string()));
            });
        })?;
        // A browser polls by itself. Elsewhere someone must, and the caller's thread may not be
        // blocked by an `await`.
        #[cfg(not(target_arch = "wasm32"))]
        {
            let device = self.device().clone();
            let poll = move || {
                // wgpu panics where a device is lost while it waits: that must not leave the
                // caller waiting.
                let poll = || polling.until(&device, &is_done);
                let failure = match std::panic::catch_unwind(AssertUnwindSafe(poll)) {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "the device was lost while it worked".to_owned(),
                };
                let _ = sender.send(Err(failure));
            };
            std::thread::Builder::new()
                .name("batch_norm.readback".to_owned())
                .spawn(poll)
                .map_err(|error| Error::Readback {
                    message: error.to_string(),
                })?;
        }
        Ok(Readback {
            gpu: self.clone(),
            staging,
            parts,
            receiver,
        })
    }
}

/// How a thread of its own sees to it that a readback comes to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Polling {
    /// It waits on the device. wgpu holds a lock meanwhile, on which other threads' calls may have
    /// to wait.
    Waiting,
    /// It looks every millisecond, and holds no lock in between.
    Gentle,
}

#[cfg(not(target_arch = "wasm32"))]
impl Polling {
    fn until(self, device: &wgpu::Device, done: &AtomicBool) -> Result<(), wgpu::PollError> {
        match self {
            Self::Waiting => {
                device.poll(wgpu::PollType::wait_indefinitely())?;
            }
            Self::Gentle => {
                while !done.load(Ordering::Acquire) {
                    device.poll(wgpu::PollType::Poll)?;
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
        }
        Ok(())
    }
}

/// Values on their way from the GPU.
pub(crate) struct Readback {
    gpu: Gpu,
    staging: wgpu::Buffer,
    /// Where each range lies there.
    parts: Vec<std::ops::Range<u64>>,
    receiver: OneshotReceiver<Result<(), String>>,
}

impl Readback {
    /// The values of each range.
    pub(crate) async fn finish<T: bytemuck::Pod>(self) -> Result<Vec<Vec<T>>, Error> {
        let failed = |message| match self.gpu.check_alive() {
            Err(lost) => lost,
            Ok(()) => Error::Readback { message },
        };
        self.receiver
            .receive()
            .await
            .ok_or_else(|| failed("the device is gone".to_owned()))?
            .map_err(failed)?;
        self.parts
            .into_iter()
            .map(|part| {
                let bytes = self.staging.slice(part).get_mapped_range();
                let bytes = bytes.map_err(|error| failed(error.to_string()))?;
                Ok(bytemuck::pod_collect_to_vec(&bytes))
            })
            .collect()
    }
}

/// Fails if something would have more bytes than allowed.
pub(crate) fn check_size(what: &str, bytes: u64, limit: u64) -> Result<(), Error> {
    if bytes <= limit {
        return Ok(());
    }
    Err(Error::TooLarge {
        what: what.to_owned(),
        bytes,
        limit,
    })
}

/// The result of a future that needs no waiting; `None` if it does.
fn known_now<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

async fn adapter_named(instance: &wgpu::Instance, name: &str) -> Result<wgpu::Adapter, Error> {
    let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
    let names: Vec<_> = adapters.iter().map(|a| a.get_info().name).collect();
    adapters
        .into_iter()
        .find(|adapter| {
            let found = adapter.get_info().name.to_lowercase();
            found.contains(&name.to_lowercase())
        })
        .ok_or_else(|| Error::NoAdapter {
            reason: format!("WGPU_ADAPTER_NAME={name} matches none of {names:?}"),
        })
}

async fn best_adapter(instance: &wgpu::Instance) -> Result<wgpu::Adapter, Error> {
    instance
        .request_adapter(&wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::from_env()
                .unwrap_or(wgpu::PowerPreference::HighPerformance),
            ..Default::default()
        })
        .await
        .map_err(|error| Error::NoAdapter {
            reason: match std::env::var("WGPU_BACKEND") {
                Ok(backend) => format!("with WGPU_BACKEND={backend}: {error}"),
                Err(_) => error.to_string(),
            },
        })
}

#[cfg(not(target_arch = "wasm32"))]
mod blocking {
    use super::*;

    impl Gpu {
        /// [`Gpu::open`], waiting.
        ///
        /// # Errors
        /// As [`Gpu::open`].
        pub fn open_blocking() -> Result<Self, Error> {
            pollster::block_on(Self::open())
        }

        /// [`Gpu::open_with`], waiting.
        ///
        /// # Errors
        /// As [`Gpu::open`].
        pub fn open_with_blocking(features: wgpu::Features) -> Result<Self, Error> {
            pollster::block_on(Self::open_with(features))
        }

        /// [`Gpu::adapters`], waiting.
        pub fn adapters_blocking() -> Vec<wgpu::Adapter> {
            pollster::block_on(Self::adapters())
        }

        /// [`Gpu::from_adapter`], waiting.
        ///
        /// # Errors
        /// As [`Gpu::from_adapter`].
        pub fn from_adapter_blocking(adapter: &wgpu::Adapter) -> Result<Self, Error> {
            pollster::block_on(Self::from_adapter(adapter))
        }

        /// [`Gpu::from_adapter_with`], waiting.
        ///
        /// # Errors
        /// As [`Gpu::from_adapter`].
        pub fn from_adapter_with_blocking(
            adapter: &wgpu::Adapter,
            features: wgpu::Features,
        ) -> Result<Self, Error> {
            pollster::block_on(Self::from_adapter_with(adapter, features))
        }
    }
}
