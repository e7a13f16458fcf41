//! Devices: the caller's own, with low limits, several at once.

use libtest_mimic::Trial;
use ndarray::array;
use wgpu_batchnorm::{
    Activation, BatchNorm, Checked, DType, Error, Extra, ForwardBuffers, Gpu, Layout, Mode,
    Optimizer, Options, Plan, Sgd, Shape, Tensor, Tuning, Valid, Wanted, wgpu,
};

use crate::common::{Adapter, Outcome, normal};
use crate::ensure;
use crate::modes::upload;

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    vec![
        adapter.trial(
            "a device of the caller's, on wgpu's default limits",
            default_limits,
        ),
        adapter.trial("tensors larger than a binding are sliced", small_bindings),
        adapter.trial("limits below the kernels' needs are an error", low_limits),
        adapter.trial(
            "tensors and buffers of another device are errors",
            other_device,
        ),
        adapter.trial("the name says back end and adapter", |gpu| {
            let name = gpu.name();
            ensure!(name.contains(&gpu.info().name), "{name}");
            ensure!(
                name.contains(&format!("{:?}", gpu.info().backend)),
                "{name}"
            );
            Ok(())
        }),
    ]
}

/// The adapter of `gpu`, found anew.
pub fn adapter_of(gpu: &Gpu) -> Result<wgpu::Adapter, Box<dyn std::error::Error>> {
    let found = Gpu::adapters_blocking()
        .into_iter()
        .find(|adapter| adapter.get_info() == *gpu.info());
    Ok(found.ok_or("the adapter is gone")?)
}

/// A device of its own on the adapter of `gpu`, with other limits.
pub fn open(gpu: &Gpu, limits: wgpu::Limits) -> Result<Gpu, Box<dyn std::error::Error>> {
    let adapter = adapter_of(gpu)?;
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        required_limits: limits,
        ..Default::default()
    }))?;
    Ok(Gpu::from_device(device, queue)?)
}

fn default_limits(gpu: &Gpu) -> Outcome {
    let gpu = open(gpu, wgpu::Limits::default())?;
    for tuning in [Tuning::gpu(), Tuning::cpu()] {
        let mut layer = BatchNorm::new(&gpu, 16, Options::default().tuning(tuning))?;
        let x = normal(&[8, 16, 14, 14], 3.0, 1.0, 1);
        let x = Tensor::from_array(&gpu, &x, Layout::ChannelsFirst)?;
        let mut checked = Checked::new(&mut layer);
        checked.forward_blocking(&x)?;
        checked.backward_blocking(&x)?;
    }
    // A buffer may have 256 MiB.
    let shape = Shape::new(&[(1 << 26) + 1, 1], Layout::ChannelsFirst)?;
    match Plan::new(&gpu, &shape, DType::F32, &Options::default()) {
        Err(Error::TooLarge { bytes, limit, .. }) => {
            ensure!(
                bytes == (1 << 28) + 4 && limit == 1 << 28,
                "{bytes} {limit}"
            );
        }
        other => return Err(format!("{other:?}").into()),
    }
    Ok(())
}

/// With an activation and a residual, where only some positions count: each slice finds its part of
/// both masks.
fn fused_in_slices(
    gpu: &Gpu,
    dims: &[usize],
    layout: Layout,
    dtype: DType,
    tuning: &Tuning,
) -> Outcome {
    let options = Options::default()
        .activation(Activation::Relu)
        .tuning(tuning.clone());
    let tensor = |seed| upload(gpu, &normal(dims, 0.5, 1.0, seed), layout, dtype);
    let (x, residual, dy) = (tensor(1)?, tensor(2)?, tensor(3)?);
    let mut positions = dims.to_vec();
    positions.remove(match layout {
        Layout::ChannelsFirst => 1,
        Layout::ChannelsLast => dims.len() - 1,
    });
    let mask = normal(&positions, 0.5, 1.0, 4).mapv(|value| value > 0.0);
    let valid = Valid::from_mask(gpu, &mask)?;
    let extra = Extra {
        residual: Some(&residual),
        valid: Some(&valid),
    };
    let mut layer = BatchNorm::new(gpu, x.shape().channels(), options)?;
    // The mask itself is bound whole.
    if x.shape().len() > 100_000 {
        let refused = layer.forward_with(&x, extra).err();
        ensure!(
            matches!(refused, Some(Error::TooLarge { .. })),
            "{refused:?}"
        );
        return Ok(());
    }
    let mut checked = Checked::new(&mut layer);
    checked.forward_with_blocking(&x, extra)?;
    checked.backward_with_blocking(&dy, &Wanted::default())?;
    Ok(())
}

/// Bindings so small that every tensor is cut into slices, in each of the ways it can be cut.
fn small_bindings(gpu: &Gpu) -> Outcome {
    let limits = wgpu::Limits {
        max_storage_buffer_binding_size: 16_384,
        ..wgpu::Limits::default()
    };
    let gpu = open(gpu, limits)?;
    for (dims, layout) in [
        // Whole outer blocks, of sizes that fall on no alignment.
        (&[160, 3, 15][..], Layout::ChannelsFirst),
        (&[160, 3, 16], Layout::ChannelsFirst),
        (&[2800, 7], Layout::ChannelsFirst),
        (&[1200, 4, 5, 8], Layout::ChannelsLast),
        (&[300, 72], Layout::ChannelsFirst),
        // Whole columns.
        (&[3, 30, 401], Layout::ChannelsFirst),
        (&[3, 30, 400], Layout::ChannelsFirst),
        (&[2, 100, 5, 9], Layout::ChannelsFirst),
        // Parts of a plane.
        (&[3, 2, 10_001], Layout::ChannelsFirst),
        (&[2, 5, 10_000], Layout::ChannelsFirst),
        (&[1, 1, 200, 200], Layout::ChannelsFirst),
    ] {
        for tuning in [Tuning::gpu(), Tuning::cpu()] {
            for dtype in [DType::F32, DType::F16] {
                fused_in_slices(&gpu, dims, layout, dtype, &tuning)
                    .map_err(|error| format!("{layout:?} {dims:?} {dtype:?} fused: {error}"))?;
            }
            let shape = Shape::new(dims, layout)?;
            let options = Options::default().tuning(tuning);
            let mut layer = BatchNorm::new(&gpu, shape.channels(), options)?;
            let x = Tensor::from_array(&gpu, &normal(dims, 1e4, 1.0, 1), layout)?;
            let dy = Tensor::from_array(&gpu, &normal(dims, 0.1, 1.0, 2), layout)?;
            let mut checked = Checked::new(&mut layer);
            let run = |checked: &mut Checked<'_>| {
                // Twice: nothing of the first run may be left in the second.
                for _ in 0..2 {
                    checked.forward_blocking(&x)?;
                    checked.backward_blocking(&dy)?;
                }
                Ok::<(), Error>(())
            };
            run(&mut checked).map_err(|error| format!("{layout:?} {dims:?}: {error}"))?;
            layer.set_mode(Mode::Eval);
            Checked::new(&mut layer).forward_blocking(&x)?;
        }
    }
    Ok(())
}

fn low_limits(gpu: &Gpu) -> Outcome {
    let limits = wgpu::Limits {
        max_storage_buffers_per_shader_stage: 6,
        ..wgpu::Limits::default()
    };
    let error = open(gpu, limits).err().map(|error| error.to_string());
    let error = error.unwrap_or_default();
    ensure!(
        error.contains("max_storage_buffers_per_shader_stage"),
        "{error}"
    );

    // wgpu's downlevel limits allow too few storage buffers; all else in them is enough.
    let downlevel = wgpu::Limits::downlevel_defaults();
    let error = open(gpu, downlevel.clone()).err();
    ensure!(error.is_some(), "downlevel limits should be refused");
    let gpu_downlevel = open(
        gpu,
        wgpu::Limits {
            max_storage_buffers_per_shader_stage: 7,
            ..downlevel
        },
    )?;
    for (dims, layout) in [
        ([8, 16, 14, 14], Layout::ChannelsFirst),
        ([8, 14, 15, 16], Layout::ChannelsLast),
        ([2, 65_537, 2, 2], Layout::ChannelsFirst),
    ] {
        let x = Tensor::from_array(&gpu_downlevel, &normal(&dims, 3.0, 1.0, 1), layout)?;
        let channels = x.shape().channels();
        let options = Options::default().tuning(Tuning::gpu());
        let mut layer = BatchNorm::new(&gpu_downlevel, channels, options)?;
        let mut checked = Checked::new(&mut layer);
        checked.forward_blocking(&x)?;
        checked.backward_blocking(&x)?;
    }

    // Workgroups shrink to what the device takes, and grids are folded.
    let limits = wgpu::Limits {
        max_compute_invocations_per_workgroup: 16,
        max_compute_workgroup_size_x: 16,
        max_compute_workgroups_per_dimension: 16,
        ..wgpu::Limits::default()
    };
    let gpu = open(gpu, limits)?;
    let mut layer = BatchNorm::new(&gpu, 3, Options::default().tuning(Tuning::gpu()))?;
    let x = normal(&[8, 3, 14, 15], 3.0, 1.0, 1);
    let x = Tensor::from_array(&gpu, &x, Layout::ChannelsFirst)?;
    let mut checked = Checked::new(&mut layer);
    checked.forward_blocking(&x)?;
    checked.backward_blocking(&x)?;
    let mut optimizer = Optimizer::new(
        &BatchNorm::new(&gpu, 3, Options::default())?,
        Sgd::default(),
    )?;
    checked.step_blocking(&mut optimizer)?;
    Ok(())
}

fn other_device(gpu: &Gpu) -> Outcome {
    let adapter = adapter_of(gpu)?;
    let gpu = &Gpu::from_adapter_blocking(&adapter)?;
    let other = Gpu::from_adapter_blocking(&adapter)?;
    let x = Tensor::from_array(&other, &array![[1.0], [2.0]], Layout::ChannelsFirst)?;
    let mut layer = BatchNorm::new(gpu, 1, Options::default())?;
    let found = layer.forward(&x).err();
    ensure!(
        matches!(found, Some(Error::OtherDevice { tensor: "x", .. })),
        "{found:?}"
    );
    let mine = Tensor::from_array(gpu, &array![[1.0], [2.0]], Layout::ChannelsFirst)?;
    layer.forward(&mine)?;
    let found = layer.backward(&x).err();
    ensure!(
        matches!(found, Some(Error::OtherDevice { tensor: "dy", .. })),
        "{found:?}"
    );
    layer.backward(&mine)?;
    let foreign = BatchNorm::new(&other, 1, Options::default())?;
    let found = Optimizer::new(&foreign, Sgd::default())?
        .step(&mut layer)
        .err();
    ensure!(
        matches!(found, Some(Error::OtherDevice { .. })),
        "{found:?}"
    );

    // A bare buffer does not say whose it is; wgpu does.
    let plan = Plan::new(gpu, mine.shape(), DType::F32, &Options::default())?;
    let vector = |gpu: &Gpu| {
        gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 16,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    let (a, b, c, foreign) = (vector(gpu), vector(gpu), vector(gpu), vector(&other));
    let saved = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: plan.saved_bytes(),
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let y = Tensor::zeros(gpu, mine.shape(), DType::F32)?;
    let buffers = ForwardBuffers::new(mine.buffer().slice(..8), y.buffer().slice(..8))
        .gamma(foreign.slice(..4))
        .beta(a.slice(..4))
        .running_mean(b.slice(..4))
        .running_var(c.slice(..4))
        .saved(saved.slice(..));
    let found = plan.bind_forward(&buffers);
    ensure!(matches!(found, Err(Error::Wgpu { .. })), "{found:?}");
    // The device is none the worse for it.
    layer.forward(&mine)?.to_array_blocking()?;
    Ok(())
}
