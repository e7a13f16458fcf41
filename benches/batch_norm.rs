//! GPU against CPU: forward and backward in training, and inference.
//!
//! `cargo bench`. Set `WGPU_BACKEND` or `WGPU_ADAPTER_NAME` to choose an adapter. Every case is
//! checked against the CPU path before it is timed. What is timed on the GPU is the wall time from
//! submission to completion of one operation on buffers that stay on the device; throughput counts
//! the bytes that the operation must move at least: 2 tensors for inference, 3 for forward
//! training and 5 for backward.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::ArrayD;
use wgpu_batchnorm::verify::Checked;
use wgpu_batchnorm::{
    BackwardBuffers, BatchNorm, Commands, DType, Error, ForwardBuffers, Gpu, Layout, Mode, Options,
    Plan, Shape, Tensor, cpu, wgpu,
};

/// Batch-norm shapes of ResNet-50 with a batch of 32, from its first and last stages.
const SHAPES: &[(&str, &[usize], Layout)] = &[
    ("32x64x56x56", &[32, 64, 56, 56], Layout::ChannelsFirst),
    ("32x256x14x14", &[32, 256, 14, 14], Layout::ChannelsFirst),
    ("32x2048x7x7", &[32, 2048, 7, 7], Layout::ChannelsFirst),
    ("32x56x56x64", &[32, 56, 56, 64], Layout::ChannelsLast),
    ("32x7x7x2048", &[32, 7, 7, 2048], Layout::ChannelsLast),
];

fn values(shape: &Shape) -> ArrayD<f32> {
    let mut next = 0_u32;
    ArrayD::from_shape_simple_fn(shape.dims(), || {
        // Weyl's sequence: evenly spread in -1 … 1.
        next = next.wrapping_add(0x9e37_79b9);
        (next as i32) as f32 / 2_147_483_648.0
    })
}

/// All of a tensor's buffer.
fn whole(tensor: &Tensor) -> wgpu::BufferSlice<'_> {
    tensor.buffer().slice(..)
}

/// A plan with all its operations bound to buffers of its own.
struct Bound {
    forward: Commands,
    backward: Commands,
    inference: Commands,
}

impl Bound {
    fn new(gpu: &Gpu, x: &Tensor) -> Result<Self, Error> {
        let shape = x.shape();
        let plan = Plan::new(gpu, shape, DType::F32, &Options::default())?;
        let dy = Tensor::from_array(gpu, &values(shape), shape.layout())?;
        let zeros = || Tensor::zeros(gpu, shape, DType::F32);
        let (y, dx) = (zeros()?, zeros()?);
        let vector = || {
            let shape = Shape::new(&[1, shape.channels()], Layout::ChannelsFirst)?;
            Tensor::zeros(gpu, &shape, DType::F32)
        };
        let (gamma, beta, dgamma, dbeta) = (vector()?, vector()?, vector()?, vector()?);
        let (mean, var) = (vector()?, vector()?);
        let saved = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: plan.saved_bytes(),
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let evaluated = ForwardBuffers::new(whole(x), whole(&y))
            .gamma(whole(&gamma))
            .beta(whole(&beta))
            .running_mean(whole(&mean))
            .running_var(whole(&var));
        let backward = BackwardBuffers::new(whole(x), whole(&dy), saved.slice(..))
            .gamma(whole(&gamma))
            .dx(whole(&dx))
            .dgamma(whole(&dgamma))
            .dbeta(whole(&dbeta));
        Ok(Self {
            inference: plan.bind_inference(&evaluated)?,
            forward: plan.bind_forward(&evaluated.saved(saved.slice(..)))?,
            backward: plan.bind_backward(&backward)?,
        })
    }
}

fn run(gpu: &Gpu, commands: &Commands) {
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    commands.record(&mut encoder);
    gpu.queue().submit([encoder.finish()]);
    gpu.device()
        .poll(wgpu::PollType::wait_indefinitely())
        .expect("the device is there");
}

/// The three operations on the GPU, compared with the CPU path.
fn check(gpu: &Gpu, x: &Tensor) -> Result<(), Error> {
    let mut layer = BatchNorm::new(gpu, x.shape().channels(), Options::default())?;
    let mut checked = Checked::new(&mut layer);
    checked.forward_blocking(x)?;
    checked.backward_blocking(x)?;
    layer.set_mode(Mode::Eval);
    Checked::new(&mut layer).forward_blocking(x)?;
    Ok(())
}

fn batch_norm(criterion: &mut Criterion) {
    let gpu = match Gpu::open_blocking() {
        Ok(gpu) => gpu,
        Err(error) => {
            eprintln!("nothing to compare: {error}");
            return;
        }
    };
    println!("GPU: {}", gpu.name());
    for &(name, dims, layout) in SHAPES {
        if let Err(error) = case(criterion, &gpu, name, dims, layout) {
            panic!("{name}: {error}");
        }
    }
}

fn case(
    criterion: &mut Criterion,
    gpu: &Gpu,
    name: &str,
    dims: &[usize],
    layout: Layout,
) -> Result<(), Error> {
    let shape = Shape::new(dims, layout)?;
    let array = values(&shape);
    let x = Tensor::from_array(gpu, &array, layout)?;
    check(gpu, &x)?;
    let bound = Bound::new(gpu, &x)?;

    let mut training = cpu::BatchNorm::new(shape.channels(), Options::default())?;
    let mut trained = training.clone();
    trained.set_mode(Mode::Eval);
    training.forward(&array, layout)?;
    let mut forward = training.clone();

    // Each row: tensor passes, the GPU's commands, the CPU's work.
    type Work<'a> = Box<dyn FnMut() -> Result<ArrayD<f32>, Error> + 'a>;
    let operations: [(&str, u64, &Commands, Work<'_>); 3] = [
        (
            "forward",
            3,
            &bound.forward,
            Box::new(|| forward.forward(&array, layout)),
        ),
        (
            "backward",
            5,
            &bound.backward,
            Box::new(|| training.backward(&array)),
        ),
        (
            "inference",
            2,
            &bound.inference,
            Box::new(|| trained.forward(&array, layout)),
        ),
    ];
    for (operation, passes, commands, mut work) in operations {
        let mut group = criterion.benchmark_group(operation);
        group.throughput(Throughput::Bytes(passes * shape.bytes(DType::F32)));
        group.bench_function(BenchmarkId::new("gpu", name), |bencher| {
            bencher.iter(|| run(gpu, commands));
        });
        group.bench_function(BenchmarkId::new("cpu", name), |bencher| {
            bencher.iter(|| work().expect("the shape fits"));
        });
        group.finish();
    }
    Ok(())
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = batch_norm
}
criterion_main!(benches);
