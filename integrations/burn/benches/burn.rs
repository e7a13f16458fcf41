//! burn's batch norm and ours in one run, on one device, over the same tensors.
//!
//! `cargo bench -p wgpu-batchnorm-burn [-- REPETITIONS]` prints the table of the README, made by
//! medians of wall time from the first call to the end of the work on the GPU. Repetitions alternate,
//! and so does who goes first. Errors are the largest of y, or dx, against f64; ours fail the bench where
//! they are more than rounding. As a test it runs once over tiny tensors.

use std::time::Instant;

use burn::module::Module;
use burn::nn::BatchNormConfig;
use burn::tensor::{Device, Tensor, TensorData};
use wgpu_batchnorm_burn::FusedBatchNormConfig;

type Failure = Box<dyn std::error::Error>;

const SHAPES: [[usize; 4]; 4] = [
    [32, 64, 56, 56],
    [32, 256, 14, 14],
    [32, 2048, 7, 7],
    [8, 64, 112, 112],
];
const TINY: [[usize; 4]; 1] = [[2, 4, 5, 5]];
/// Compiling, and choosing among kernels: burn's autotune.
const WARM_UP: usize = 3;
/// burn's default.
const EPS: f64 = 1e-5;

/// Weyl's sequence, evenly spread in -1 … 1.
fn tensor(dims: [usize; 4], step: u32, device: &Device) -> Tensor<4> {
    let mut next = 0_u32;
    let values: Vec<f32> = std::iter::repeat_with(|| {
        next = next.wrapping_add(step);
        (next as i32) as f32 / 2_147_483_648.0
    })
    .take(dims.iter().product())
    .collect();
    Tensor::from_data(TensorData::new(values, dims), device)
}

fn values(tensor: &Tensor<4>) -> Result<Vec<f32>, Failure> {
    Ok(tensor.clone().into_data().try_to_vec::<f32>()?)
}

/// Milliseconds from the first call to the end of the work; what it gave is dropped after that.
fn timed<T>(device: &Device, work: impl FnOnce() -> T) -> Result<(f64, T), Failure> {
    device.sync()?;
    let start = Instant::now();
    let made = work();
    device.sync()?;
    Ok((start.elapsed().as_secs_f64() * 1e3, made))
}

/// What each operation took, in order: forward in training, inference, backward.
type Times = [Vec<f64>; 3];

/// Runs all operations once. Where the times count, the backward pass is that of y itself, whose dy
/// is 1 everywhere: so there is none of burn's other operations in it, but for one that fills dy. Else it
/// is that of Σ(y·dy).
fn run(
    device: &Device,
    x: &Tensor<4>,
    dy: &Tensor<4>,
    training: &dyn Fn(Tensor<4>) -> Tensor<4>,
    evaluation: &dyn Fn(Tensor<4>) -> Tensor<4>,
    times: Option<&mut Times>,
) -> Result<[Tensor<4>; 3], Failure> {
    let (forward, y) = timed(device, || training(x.clone()))?;
    let (inference, y_eval) = timed(device, || evaluation(x.clone().inner()))?;
    let (backward, gradients) = match times {
        Some(_) => timed(device, || y.clone().backward())?,
        None => timed(device, || (y.clone() * dy.clone()).sum().backward())?,
    };
    let dx = x.grad(&gradients).ok_or("no gradient of x")?;
    if let Some(times) = times {
        for (times, time) in times.iter_mut().zip([forward, inference, backward]) {
            times.push(time);
        }
    }
    Ok([y.inner(), y_eval, dx])
}

fn sorted(times: &[f64]) -> Vec<f64> {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times
}

fn median(times: &[f64]) -> f64 {
    sorted(times)[times.len() / 2]
}

/// y in training, y by the initial running statistics, and dx, in f64, for γ = 1 and β = 0.
fn exact(dims: [usize; 4], x: &[f32], dy: &[f32]) -> [Vec<f64>; 3] {
    let [batch, channels, height, width] = dims;
    let plane = height * width;
    let count = (batch * plane) as f64;
    let mut found = [(); 3].map(|()| vec![0.0; x.len()]);
    for channel in 0..channels {
        let indices = || (0..batch).flat_map(|n| (0..plane).map(move |i| (n, i)));
        let indices = || indices().map(|(n, i)| (n * channels + channel) * plane + i);
        let (x, dy) = (|i: usize| f64::from(x[i]), |i: usize| f64::from(dy[i]));
        let mean = indices().map(x).sum::<f64>() / count;
        let var = indices().map(|i| (x(i) - mean).powi(2)).sum::<f64>() / count;
        let inv_std = 1.0 / (var + EPS).sqrt();
        let normal = |i| (x(i) - mean) * inv_std;
        let dbeta = indices().map(dy).sum::<f64>();
        let dgamma = indices().map(|i| dy(i) * normal(i)).sum::<f64>();
        for i in indices() {
            found[0][i] = normal(i);
            found[1][i] = x(i) / (1.0 + EPS).sqrt();
            found[2][i] = inv_std * (dy(i) - dbeta / count - normal(i) * dgamma / count);
        }
    }
    found
}

/// The largest error.
fn error(found: Tensor<4>, exact: &[f64]) -> Result<f64, Failure> {
    let found = found.into_data().try_to_vec::<f32>()?;
    let errors = found.iter().zip(exact);
    let errors = errors.map(|(found, exact)| (f64::from(*found) - exact).abs());
    Ok(errors.fold(0.0, |most, next| {
        if next >= most || next.is_nan() {
            next
        } else {
            most
        }
    }))
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let is_test = !arguments.iter().any(|argument| argument == "--bench");
    let repetitions = arguments.iter().find_map(|argument| argument.parse().ok());
    let repetitions = if is_test {
        1
    } else {
        repetitions.unwrap_or(11)
    };
    let shapes: &[[usize; 4]] = if is_test { &TINY } else { &SHAPES };

    let (inner, setup) = Device::wgpu_options().init_with_setup()?;
    wgpu_batchnorm_burn::register(&inner, &setup)?;
    let device = inner.clone().autodiff();
    let adapter = setup.device.adapter_info();
    println!(
        "{:?}/{}/{}, burn 0.22 with {}; f32; medians of {repetitions} in ms\n",
        adapter.backend,
        adapter.name,
        adapter.driver_info,
        match (cfg!(feature = "fusion"), cfg!(feature = "autotune")) {
            (true, true) => "fusion and autotune, its defaults",
            (true, false) => "fusion, no autotune",
            (false, true) => "autotune, no fusion",
            (false, false) => "neither fusion nor autotune",
        },
    );
    println!(
        "| N×C×H×W | operation | burn | ours | ratio | burn, least–most | ours, least–most | \
         burn's error | our error |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for &dims in shapes {
        let x = tensor(dims, 0x9e37_79b9, &device).require_grad();
        let dy = tensor(dims, 0x7f4a_7c15, &device);
        let theirs = BatchNormConfig::new(dims[1]).init(&device);
        let ours = FusedBatchNormConfig::new(dims[1]).init(&device);
        let (their_evaluation, our_evaluation) = (theirs.valid(), ours.valid());
        let mut their_times = Times::default();
        let mut our_times = Times::default();
        let mut errors = Vec::new();
        for repetition in 0..WARM_UP + repetitions {
            let counts = repetition >= WARM_UP;
            let mut of_burn = || {
                let (training, evaluation) =
                    (|x| theirs.forward(x), |x| their_evaluation.forward(x));
                let times = counts.then_some(&mut their_times);
                run(&device, &x, &dy, &training, &evaluation, times)
            };
            let mut of_us = || {
                let (training, evaluation) = (|x| ours.forward(x), |x| our_evaluation.forward(x));
                let times = counts.then_some(&mut our_times);
                run(&device, &x, &dy, &training, &evaluation, times)
            };
            let (expected, found) = if repetition % 2 == 0 {
                let expected = of_burn()?;
                (expected, of_us()?)
            } else {
                let found = of_us()?;
                (of_burn()?, found)
            };
            // After burn has chosen among its kernels.
            if repetition + 1 == WARM_UP {
                let exact = exact(dims, &values(&x)?, &values(&dy)?);
                for (index, exact) in exact.iter().enumerate() {
                    errors.push([
                        error(expected[index].clone(), exact)?,
                        error(found[index].clone(), exact)?,
                    ]);
                }
            }
        }
        if let Some([_, ours]) = errors
            .iter()
            .find(|[_, ours]| ours.is_nan() || *ours >= 1e-5)
        {
            return Err(format!("{dims:?}: our error is {ours}").into());
        }
        let name = dims.map(|size| size.to_string()).join("×");
        let total = |times: &Times| -> Vec<f64> {
            times[0].iter().zip(&times[2]).map(|(a, b)| a + b).collect()
        };
        let [forward, inference, backward] =
            [0, 1, 2].map(|index| (their_times[index].clone(), our_times[index].clone()));
        let errors_of = |index: usize| {
            let [burn, ours]: [f64; 2] = errors[index];
            format!("{burn:.0e} | {ours:.0e}")
        };
        let both = (total(&their_times), total(&our_times));
        for (operation, (burn, ours), errors) in [
            ("forward", forward, errors_of(0)),
            ("inference", inference, errors_of(1)),
            ("backward", backward, errors_of(2)),
            ("forward + backward", both, "|".to_owned()),
        ] {
            let spread = |times: &[f64]| {
                let times = sorted(times);
                format!("{:.1}–{:.1}", times[0], times[times.len() - 1])
            };
            println!(
                "| {name} | {operation} | {:.1} | {:.1} | {:.1} | {} | {} | {errors} |",
                median(&burn),
                median(&ours),
                median(&burn) / median(&ours),
                spread(&burn),
                spread(&ours),
            );
        }
    }
    Ok(())
}
