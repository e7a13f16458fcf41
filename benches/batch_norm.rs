//! GPU against CPU, and both against what the memory allows.
//!
//! `cargo bench --bench batch_norm`. `WGPU_BACKEND` or `WGPU_ADAPTER_NAME` chooses an adapter; a word
//! behind `--` only the cases that have it in their name, as `channels-last/f16`. Each case is checked
//! against the CPU path before it is timed.
//!
//! Timed on the GPU is one operation on buffers that stay there, by the device's own clock where it
//! has one. Its tensors are taken in turn from sets of 128 MiB together, which few caches hold; those
//! of less than 1 MiB from 64 sets. What follows one another on different sets may overlap on a GPU, but for passes
//! of several dispatches, which share a plan's workspace. Beside it stand a copy shader over the same
//! tensors, measured just before, and the CPU path on all cores, which has its tensors in its caches,
//! as far as they go, and allocates its results.
//!
//! Without `--bench`, as `cargo test` runs it, every case is tiny and runs once.
//!
//! With `WGPU_BATCHNORM_RECORD=FOLDER`, and no word behind `--`, the medians go to a file in that folder, named after the
//! adapter: see `scripts/bench.sh`.

mod common;

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use common::operations::Operation;
use common::record::{Record, Row};
use common::{Copy, Meter};
use criterion::{Criterion, SamplingMode, Throughput};
use ndarray::ArrayD;
use rayon::prelude::*;
use wgpu_batchnorm::{
    Activation, BackwardBuffers, Commands, DType, Error, ForwardBuffers, Gpu, Layout, Options,
    Plan, Shape, State, Stored, Tensor, Wanted, cpu, half, wgpu,
};

/// The batch-norm shapes of ResNet-50 with a batch of 32, channels first.
const RESNET_50: &[[usize; 4]] = &[
    [32, 64, 112, 112],
    [32, 64, 56, 56],
    [32, 128, 56, 56],
    [32, 256, 56, 56],
    [32, 128, 28, 28],
    [32, 256, 28, 28],
    [32, 512, 28, 28],
    [32, 256, 14, 14],
    [32, 512, 14, 14],
    [32, 1024, 14, 14],
    [32, 512, 7, 7],
    [32, 2048, 7, 7],
];

/// A large one, of 256 MiB in f32; a tiny one; an awkward one, of no whole packs in any layout.
const OTHERS: &[[usize; 4]] = &[[64, 64, 128, 128], [2, 8, 4, 4], [32, 123, 7, 7]];

/// What the test suite runs.
const TINY: &[[usize; 4]] = &[[2, 8, 4, 4], [2, 3, 7, 7]];

/// Samples of each time, of which the median is recorded.
const SAMPLES: usize = 10;

/// How often criterion draws from them anew, for its intervals: its default takes longer than the
/// samples themselves.
const RESAMPLES: usize = 1000;

/// Bytes that few caches hold: what goes round in a case.
const ROTATED: u64 = 128 << 20;

/// Values that a core compares at a time.
const PART: usize = 1 << 16;

/// The most sets of buffers that go round.
const SETS_MAX: u64 = 64;

fn main() {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'))
        .unwrap_or_default();
    let meter = match Meter::open() {
        Ok(meter) => meter,
        Err(error) => {
            println!("nothing to compare: {error}");
            return;
        }
    };
    let kind = if meter.is_software() {
        ", a software adapter: a CPU that plays a GPU"
    } else {
        ""
    };
    println!("{}{kind}; {}", meter.gpu.name(), meter.clock());
    // In milliseconds: a GPU runs an operation many times in the shorter ones, too.
    let [warm_up, measurement] = match meter.is_software() {
        true => [50, 200],
        false => [10, 20],
    };
    let mut criterion = Criterion::default()
        .sample_size(SAMPLES)
        .nresamples(RESAMPLES)
        .warm_up_time(Duration::from_millis(warm_up))
        .measurement_time(Duration::from_millis(measurement))
        .configure_from_args();
    let shapes: Vec<_> = match is_bench {
        true => RESNET_50.iter().chain(OTHERS).collect(),
        false => TINY.iter().collect(),
    };
    // Software adapters are slow, and bf16 is like f16 to them.
    let mut dtypes = vec![DType::F32, DType::F16];
    if !meter.is_software() {
        dtypes.push(DType::Bf16);
    }
    let mut record = Record::new(&meter);
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        for &&nchw in &shapes {
            for &dtype in &dtypes {
                let name = name(nchw, layout, dtype);
                if !name.contains(&filter) {
                    continue;
                }
                let run = match dtype {
                    DType::F32 => bench::<f32>,
                    DType::F16 => bench::<half::f16>,
                    DType::Bf16 => bench::<half::bf16>,
                };
                let done = run(&mut criterion, &meter, &mut record, nchw, layout);
                match done {
                    Ok(()) => {}
                    // A device may have less memory than the large case takes.
                    Err(Error::TooLarge { .. } | Error::OutOfMemory { .. }) => {
                        println!("{name}: larger than this device allows");
                    }
                    Err(error) => panic!("{name}: {error}"),
                }
            }
        }
    }
    criterion.final_summary();
    if let (Ok(folder), true) = (std::env::var("WGPU_BATCHNORM_RECORD"), filter.is_empty()) {
        let path = record
            .write(folder.as_ref())
            .expect("the folder can be written");
        println!("recorded in {}", path.display());
    }
}

fn dims(nchw: [usize; 4], layout: Layout) -> [usize; 4] {
    let [n, c, h, w] = nchw;
    match layout {
        Layout::ChannelsFirst => nchw,
        Layout::ChannelsLast => [n, h, w, c],
    }
}

fn name(nchw: [usize; 4], layout: Layout, dtype: DType) -> String {
    let layout_name = match layout {
        Layout::ChannelsFirst => "channels-first",
        Layout::ChannelsLast => "channels-last",
    };
    let dims = dims(nchw, layout).map(|dim| dim.to_string()).join("x");
    format!("{layout_name}/{dtype:?}/{dims}").to_lowercase()
}

/// A shape's tensors on the CPU, and what they should give.
struct Case<T> {
    shape: Shape,
    options: Options,
    affine: cpu::Affine,
    x: ArrayD<T>,
    dy: ArrayD<T>,
    /// With ReLU, where it is fused.
    residual: Option<ArrayD<T>>,
    /// Of x.
    statistics: cpu::Statistics,
}

impl<T: Stored> Case<T> {
    /// Batch norm alone.
    fn plain(shape: Shape) -> Result<Self, Error> {
        let options = Options::default();
        let x = tensor(&shape, 1);
        Ok(Self {
            affine: cpu::Affine::new(&State::new(shape.channels()), &options),
            options,
            dy: tensor(&shape, 1 << 30),
            residual: None,
            statistics: cpu::statistics(&x, shape.layout())?,
            x,
            shape,
        })
    }

    /// Fuses ReLU and a residual to it. The residual moves where the activation's argument is so near
    /// its edge that rounding may decide what is cut: one value more or less changes all gradients of
    /// its channel.
    fn fuse(&mut self) -> Result<(), Error> {
        self.residual = Some(tensor(&self.shape, 3 << 29));
        let z = self.normalized(&self.statistics)?;
        let residual = self.residual.as_mut().and_then(ArrayD::as_slice_mut);
        let residual = residual.expect("it is in order");
        let both = residual.par_iter_mut().zip(slice(&z));
        both.for_each(|(residual, z)| {
            if z.to_f64().abs() < 1.0 / 32.0 {
                *residual = T::from_f64(residual.to_f64() + 0.125);
            }
        });
        self.options = self.options.clone().activation(Activation::Relu);
        self.affine.activation = Activation::Relu;
        Ok(())
    }

    fn normalized(&self, statistics: &cpu::Statistics) -> Result<ArrayD<T>, Error> {
        let (layout, residual) = (self.shape.layout(), self.residual.as_ref());
        cpu::normalize(&self.x, layout, statistics, &self.affine, residual)
    }

    fn gradients(&self) -> Result<InputGradientsOf<T>, Error> {
        let (x, dy, layout) = (&self.x, &self.dy, self.shape.layout());
        let (statistics, affine, residual) =
            (&self.statistics, &self.affine, self.residual.as_ref());
        let wanted = Wanted::default();
        cpu::backward(x, dy, layout, statistics, affine, residual, None, &wanted)
            .map(|(found, _)| found)
    }
}

/// Weyl's sequence: evenly spread in -1 … 1.
fn tensor<T: Stored>(shape: &Shape, seed: u32) -> ArrayD<T> {
    let value = |index: usize| {
        let bits = seed.wrapping_add(0x9e37_79b9_u32.wrapping_mul(index as u32 + 1));
        T::from_f64(f64::from(bits as i32) / 2_147_483_648.0)
    };
    let values: Vec<T> = (0..shape.len()).into_par_iter().map(value).collect();
    ArrayD::from_shape_vec(shape.dims(), values).expect("as many as the shape has")
}

/// The values of an array that lie one after another.
fn slice<T>(array: &ArrayD<T>) -> &[T] {
    array.as_slice().expect("it is in order")
}

type InputGradientsOf<T> = cpu::InputGradients<T>;

/// What the operations of a case read, on the GPU.
struct Inputs {
    x: Tensor,
    dy: Tensor,
    residual: Option<Tensor>,
}

impl Inputs {
    fn upload<T: Stored>(gpu: &Gpu, case: &Case<T>) -> Result<Self, Error> {
        let upload = |array| Tensor::from_array(gpu, array, case.shape.layout());
        Ok(Self {
            x: upload(&case.x)?,
            dy: upload(&case.dy)?,
            residual: case.residual.as_ref().map(upload).transpose()?,
        })
    }

    /// Others with the same values.
    fn copied(&self, gpu: &Gpu) -> Result<Self, Error> {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let mut copy = |from: &Tensor| {
            let to = Tensor::zeros(gpu, from.shape(), from.dtype())?;
            encoder.copy_buffer_to_buffer(from.buffer(), 0, to.buffer(), 0, None);
            Ok::<Tensor, Error>(to)
        };
        let copied = Self {
            x: copy(&self.x)?,
            dy: copy(&self.dy)?,
            residual: self.residual.as_ref().map(copy).transpose()?,
        };
        gpu.queue().submit([encoder.finish()]);
        Ok(copied)
    }
}

/// The tensors of an operation on the GPU, with all operations bound to them.
struct Set {
    inputs: Inputs,
    y: Tensor,
    dx: Tensor,
    copy: Copy,
    /// In the order of [`Operation::ALL`].
    commands: [Commands; 3],
}

impl Set {
    fn new(meter: &Meter, plan: &Plan, inputs: Inputs) -> Result<Self, Error> {
        let gpu = &meter.gpu;
        let Inputs { x, dy, residual } = &inputs;
        let zeros = || Tensor::zeros(gpu, plan.shape(), plan.dtype());
        let (y, dx) = (zeros()?, zeros()?);
        let d_residual = residual.as_ref().map(|_| zeros()).transpose()?;
        let ones = vec![1.0_f32; plan.shape().channels()];
        let vector = || meter.buffer_of(bytemuck::cast_slice(&ones));
        let [gamma, running_var, dgamma, dbeta] = [(); 4].map(|()| vector());
        let zero_vector = || meter.buffer(4 * ones.len() as u64);
        let (beta, running_mean) = (zero_vector(), zero_vector());
        let saved = meter.buffer(plan.saved_bytes());
        let mask = meter.buffer(plan.mask_bytes());

        let mut forward = ForwardBuffers::new(whole(x), whole(&y))
            .gamma(gamma.slice(..))
            .beta(beta.slice(..))
            .running_mean(running_mean.slice(..))
            .running_var(running_var.slice(..));
        let mut backward = BackwardBuffers::new(whole(x), whole(dy), saved.slice(..))
            .gamma(gamma.slice(..))
            .beta(beta.slice(..))
            .dx(whole(&dx))
            .dgamma(dgamma.slice(..))
            .dbeta(dbeta.slice(..));
        if let Some(residual) = residual {
            forward = forward.residual(whole(residual));
        }
        let inference = plan.bind_inference(&forward)?;
        if let Some(d_residual) = &d_residual {
            forward = forward.mask(mask.slice(..));
            backward = backward
                .mask(mask.slice(..))
                .residual_gradient(whole(d_residual));
        }
        Ok(Self {
            copy: Copy::new(meter, x.buffer(), y.buffer()),
            commands: [
                inference,
                plan.bind_forward(&forward.saved(saved.slice(..)))?,
                plan.bind_backward(&backward)?,
            ],
            inputs,
            y,
            dx,
        })
    }

    fn run(&self, meter: &Meter, operation: Operation) {
        meter.time(1, |pass, _| {
            self.commands[operation as usize].record_into(pass)
        });
    }
}

/// All of a tensor's buffer.
fn whole(tensor: &Tensor) -> wgpu::BufferSlice<'_> {
    tensor.buffer().slice(..)
}

/// The bytes of the passes that an operation makes over tensors: each once where it takes one dispatch,
/// and what is read for the statistics or the sums a second time where it takes more.
fn least_bytes(operation: Operation, plan: &Plan, fused: bool, set: &Set) -> u64 {
    let again = u64::from(set.commands[operation as usize].dispatches() > 1);
    let (tensors, masks) = match operation {
        Operation::Inference => (2, 0),
        Operation::Forward => (2 + again, 1),
        // A mask is read as often as dy.
        Operation::Backward => (3 + 2 * again, 1 + again),
    };
    let tensor = plan.shape().bytes(plan.dtype());
    // A residual or its gradient comes on top.
    tensors * tensor + u64::from(fused) * (tensor + masks * plan.mask_bytes())
}

/// What lies in a tensor's buffer, as words: to take 16-bit values out of them is work for all cores.
fn words(tensor: &Tensor) -> Result<ArrayD<f32>, Error> {
    let count = tensor.shape().bytes(tensor.dtype()) as usize / size_of::<f32>();
    let shape = Shape::new(&[count, 1], Layout::ChannelsFirst)?;
    Tensor::from_buffer(tensor.gpu(), tensor.buffer(), 0, &shape, DType::F32)?.to_array_blocking()
}

/// Runs a case on both, and compares.
fn check<T: Stored>(meter: &Meter, set: &Set, case: &Case<T>) -> Result<(), Error> {
    let zeros = ndarray::Array1::zeros(case.shape.channels());
    let running = cpu::Statistics::constant(zeros.clone(), zeros + 1.0);
    // Rounded once in 16 bits, on both; in f32 as the docs promise.
    let [of_y, of_gradients] = match T::DTYPE {
        DType::F32 => [2e-6, 1e-5],
        DType::F16 => [2e-3, 2e-3],
        DType::Bf16 => [1e-2, 1e-2],
    };
    let compare = |what, found: &Tensor, expected: &ArrayD<T>, allowed: f64| {
        let words = words(found)?;
        let found: &[T] = bytemuck::cast_slice(slice(&words));
        let expected = slice(expected);
        let magnitudes = expected.par_iter().map(|value| value.to_f64().abs());
        let largest = magnitudes.reduce(|| 1.0, f64::max);
        let parts = found.par_chunks(PART).zip(expected.par_chunks(PART));
        let far = parts.find_map_first(|(found, expected)| {
            let mut pairs = found.iter().zip(expected);
            pairs.find(|(found, expected)| {
                let close = (found.to_f64() - expected.to_f64()).abs() <= allowed * largest;
                // What is not a number is not close either.
                !close
            })
        });
        if let Some((found, expected)) = far {
            let (found, expected) = (found.to_f64(), expected.to_f64());
            panic!("{what} is {found} on the GPU, {expected} on the CPU");
        }
        Ok::<(), Error>(())
    };
    set.run(meter, Operation::Inference);
    compare("y of inference", &set.y, &case.normalized(&running)?, of_y)?;
    set.run(meter, Operation::Forward);
    compare("y", &set.y, &case.normalized(&case.statistics)?, of_y)?;
    set.run(meter, Operation::Backward);
    let dx = case.gradients()?.dx.expect("it is wanted");
    compare("dx", &set.dx, &dx, of_gradients)
}

/// Benches a shape in a layout and a storage type, plain and fused.
fn bench<T: Stored>(
    criterion: &mut Criterion,
    meter: &Meter,
    record: &mut Record,
    nchw: [usize; 4],
    layout: Layout,
) -> Result<(), Error> {
    let shape = Shape::new(&dims(nchw, layout), layout)?;
    let tensor_bytes = shape.bytes(T::DTYPE);
    let mut case = Case::<T>::plain(shape)?;
    for fused in [false, true] {
        if fused {
            case.fuse()?;
        }
        let plan = Plan::new(&meter.gpu, &case.shape, T::DTYPE, &case.options)?;
        let first = Set::new(meter, &plan, Inputs::upload(&meter.gpu, &case)?)?;
        check(meter, &first, &case)?;
        let mut sets = vec![first];
        for _ in 1..ROTATED.div_ceil(2 * tensor_bytes).min(SETS_MAX) {
            let inputs = sets[0].inputs.copied(&meter.gpu)?;
            sets.push(Set::new(meter, &plan, inputs)?);
        }

        let name = name(nchw, layout, T::DTYPE);
        let name = format!("{name}{}", if fused { "/relu+residual" } else { "" });
        let mut group = criterion.benchmark_group(name);
        group.sampling_mode(SamplingMode::Flat);
        let round = Cell::new(0);
        // The commands of the next set, each time.
        let next = || {
            round.set(round.get() + 1);
            &sets[round.get() % sets.len()]
        };
        // Criterion tells nobody what it found: every sample is kept here too.
        let mut timed = |id: &str, bytes: u64, time: &mut dyn FnMut(u64) -> Duration| {
            let samples = RefCell::new(Vec::new());
            group.throughput(Throughput::Bytes(bytes));
            group.bench_function(id, |bencher| {
                bencher.iter_custom(|iterations| {
                    let total = time(iterations);
                    let each = total.as_secs_f64() / iterations as f64;
                    samples.borrow_mut().push(each);
                    total
                });
            });
            // The first calls are its warm-up.
            let mut samples = samples.into_inner();
            let counted = samples.split_off(samples.len().saturating_sub(SAMPLES));
            median(counted)
        };
        let copy = timed("copy shader", 2 * tensor_bytes, &mut |iterations| {
            meter.time(iterations, |pass, _| next().copy.record_into(pass))
        });
        let on_gpu = Operation::ALL.map(|operation| {
            let bytes = least_bytes(operation, &plan, fused, &sets[0]);
            let id = format!("{}/gpu", operation.name());
            timed(&id, bytes, &mut |iterations| {
                meter.time(iterations, |pass, _| {
                    next().commands[operation as usize].record_into(pass);
                })
            })
        });
        for operation in Operation::ALL {
            let bytes = least_bytes(operation, &plan, fused, &sets[0]);
            let id = format!("{}/cpu", operation.name());
            let cpu = timed(&id, bytes, &mut |iterations| {
                let start = Instant::now();
                for _ in 0..iterations {
                    run_on_cpu(&case, operation).expect("the shapes fit");
                }
                start.elapsed()
            });
            // What a filter leaves out has no time.
            if let (Some(copy), Some(gpu), Some(cpu)) = (copy, on_gpu[operation as usize], cpu) {
                record.push(Row {
                    layout,
                    dtype: T::DTYPE,
                    nchw,
                    operation: operation.name().to_owned(),
                    fused,
                    dispatches: sets[0].commands[operation as usize].dispatches(),
                    bytes,
                    copied_bytes: 2 * tensor_bytes,
                    copy_seconds: copy,
                    gpu_seconds: gpu,
                    cpu_seconds: cpu,
                });
            }
        }
        group.finish();
    }
    Ok(())
}

fn run_on_cpu<T: Stored>(case: &Case<T>, operation: Operation) -> Result<(), Error> {
    match operation {
        Operation::Inference => {
            std::hint::black_box(case.normalized(&case.statistics)?);
        }
        Operation::Forward => {
            let statistics = cpu::statistics(&case.x, case.shape.layout())?;
            std::hint::black_box(case.normalized(&statistics)?);
        }
        Operation::Backward => {
            std::hint::black_box(case.gradients()?);
        }
    }
    Ok(())
}

fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}
