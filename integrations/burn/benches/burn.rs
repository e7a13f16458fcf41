//! burn's batch norm and ours in one run, on one device, over the same tensors.
//!
//! `cargo bench -p wgpu-batchnorm-burn [-- REPETITIONS]` prints the table of the README, made by
//! medians of wall time from the first call to the end of the work on the GPU. Repetitions alternate,
//! and so does who goes first. As a test it runs once over tiny tensors.

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

/// Runs all operations once and notes what they took.
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
    // The gradient of Σ(y·dy) by y is dy: burn's own operations that come before are not timed,
    // but for one product, in both.
    let loss = (y.clone() * dy.clone()).sum();
    let (backward, gradients) = timed(device, || loss.backward())?;
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

fn largest_difference(a: Tensor<4>, b: Tensor<4>) -> Result<f32, Failure> {
    Ok((a - b).abs().max().into_data().try_to_vec::<f32>()?[0])
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
    println!("| N×C×H×W | operation | burn | ours | ratio | burn, least–most | ours, least–most |");
    println!("|---|---|---|---|---|---|---|");
    for &dims in shapes {
        let x = tensor(dims, 0x9e37_79b9, &device).require_grad();
        let dy = tensor(dims, 0x7f4a_7c15, &device);
        let theirs = BatchNormConfig::new(dims[1]).init(&device);
        let ours = FusedBatchNormConfig::new(dims[1]).init(&device);
        let (their_evaluation, our_evaluation) = (theirs.valid(), ours.valid());
        let mut their_times = Times::default();
        let mut our_times = Times::default();
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
            // Both computed the same.
            if repetition == 0 {
                for (found, expected) in found.into_iter().zip(expected) {
                    let differs = largest_difference(found, expected)?;
                    if differs.is_nan() || differs > 1e-4 {
                        return Err(format!("{dims:?}: they differ by {differs}").into());
                    }
                }
            }
        }
        let name = dims.map(|size| size.to_string()).join("×");
        let total = |times: &Times| -> Vec<f64> {
            times[0].iter().zip(&times[2]).map(|(a, b)| a + b).collect()
        };
        let [forward, inference, backward] =
            [0, 1, 2].map(|index| (their_times[index].clone(), our_times[index].clone()));
        for (operation, (burn, ours)) in [
            ("forward", forward),
            ("inference", inference),
            ("backward", backward),
            (
                "forward + backward",
                (total(&their_times), total(&our_times)),
            ),
        ] {
            let spread = |times: &[f64]| {
                let times = sorted(times);
                format!("{:.1}–{:.1}", times[0], times[times.len() - 1])
            };
            println!(
                "| {name} | {operation} | {:.1} | {:.1} | {:.1} | {} | {} |",
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
