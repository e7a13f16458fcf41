//! How far results are from f64, as the data moves away from zero: ours and PyTorch's.
//!
//! `cargo run --release --example accuracy` prints the table in README; `-- --all` prints it for
//! σ = 1e-2 and 1e3 too. PyTorch's figures are read from `tests/data/pytorch_accuracy.csv`, which the
//! script beside it makes; there, the variance's error is in units of variance plus eps.

use ndarray::ArrayD;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, StandardNormal};
use wgpu_batchnorm::{
    BatchNorm, Error, Extra, Gpu, Layout, Options, RunningVariance, Tensor, Tuning, Valid, cpu,
};

const EPS: f64 = 1e-5;

/// The largest errors of one training step with γ = 1, β = 0.
#[derive(Clone, Copy, Debug)]
pub struct Errors {
    /// Of y, in units of `max(1, |y|)`.
    pub y: f64,
    /// Of the variance, in its own units; one of 0 must be exact.
    pub var: f64,
    /// Of dx, in units of its largest magnitude.
    pub dx: f64,
    /// Of dγ, in units of its largest magnitude.
    pub dgamma: f64,
}

/// Measures a forward and a backward pass against the CPU path in f64. `valid` is the mask of the positions that count.
pub fn measure(
    gpu: &Gpu,
    x: &ArrayD<f32>,
    dy: &ArrayD<f32>,
    valid: Option<&ArrayD<bool>>,
    layout: Layout,
    tuning: Option<Tuning>,
) -> Result<Errors, Error> {
    // With momentum 1 the running variance is the batch's.
    let mut options = Options::default()
        .eps(EPS)
        .momentum(1.0)
        .running_variance(RunningVariance::Population);
    if let Some(tuning) = tuning {
        options = options.tuning(tuning);
    }
    let x_tensor = Tensor::from_array(gpu, x, layout)?;
    let mut layer = BatchNorm::new(gpu, x_tensor.shape().channels(), options)?;
    let mask = valid
        .map(|valid| Valid::from_mask(gpu, valid))
        .transpose()?;
    let extra = Extra {
        residual: None,
        valid: mask.as_ref(),
    };
    let y = layer.forward_with(&x_tensor, extra)?.to_array_blocking()?;
    let dy_tensor = Tensor::from_array(gpu, dy, layout)?;
    let dx = layer.backward(&dy_tensor)?.to_array_blocking()?;
    let state = layer.state_blocking()?;
    let found = layer.gradients_blocking()?;

    let (x, dy) = (x.mapv(f64::from), dy.mapv(f64::from));
    let affine = cpu::Affine::new(&state, layer.options());
    let gamma = &affine.gamma;
    let batch = cpu::moments(&x, layout, valid)?.statistics();
    let y64 = cpu::normalize(&x, layout, &batch, &affine, None)?;
    let gradients = cpu::gradients(&x, &dy, layout, &batch, EPS, valid)?;
    let dx64 = cpu::input_gradient(&x, &dy, layout, &batch, EPS, gamma, &gradients, valid)?;

    let dx_largest = largest(&dx64);
    let dgamma_largest = largest(&gradients.gamma);
    Ok(Errors {
        y: worst(&y, &y64, |y| y.abs().max(1.0)),
        var: worst(&state.running_var, &batch.var, |var| {
            var.max(f64::MIN_POSITIVE)
        }),
        dx: worst(&dx, &dx64, |_| dx_largest),
        dgamma: worst(&found.gamma, &gradients.gamma, |_| dgamma_largest),
    })
}

/// The largest difference in a unit that may depend on the exact value; NaN if there is one.
fn worst<'a>(
    found: impl IntoIterator<Item = &'a f32>,
    exact: impl IntoIterator<Item = &'a f64>,
    unit: impl Fn(f64) -> f64,
) -> f64 {
    found
        .into_iter()
        .zip(exact)
        .map(|(&found, &exact)| (f64::from(found) - exact).abs() / unit(exact))
        .fold(0.0, |worst: f64, error| {
            if error.is_nan() || error > worst {
                error
            } else {
                worst
            }
        })
}

fn largest<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    values
        .into_iter()
        .fold(f64::MIN_POSITIVE, |largest, value| largest.max(value.abs()))
}

/// Values of N(mean, deviation²), rounded to f32; the same for the same seed.
pub fn normal(dims: &[usize], mean: f64, deviation: f64, seed: u64) -> ArrayD<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    ArrayD::from_shape_simple_fn(dims, || {
        let noise: f64 = StandardNormal.sample(&mut random);
        (mean + deviation * noise) as f32
    })
}

/// A line of PyTorch's table: layout, σ, offset and the errors.
struct Theirs {
    rows: bool,
    sigma: f64,
    offset: f64,
    errors: Errors,
}

fn theirs() -> Result<Vec<Theirs>, Box<dyn std::error::Error>> {
    let text = include_str!("../tests/data/pytorch_accuracy.csv");
    let lines = text.lines().filter(|line| !line.starts_with('#')).skip(1);
    lines
        .map(|line| {
            let (layout, numbers) = line.split_once(',').ok_or("a line without a comma")?;
            let numbers: Vec<f64> = numbers
                .split(',')
                .map(str::parse)
                .collect::<Result<_, _>>()?;
            let &[sigma, offset, y, var, dx, dgamma] = numbers.as_slice() else {
                return Err(format!("unexpected line: {line}").into());
            };
            Ok(Theirs {
                rows: layout == "rows",
                sigma,
                offset,
                errors: Errors { y, var, dx, dgamma },
            })
        })
        .collect()
}

#[allow(dead_code, reason = "the tests use the rest of this file")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let gpu = Gpu::open_blocking()?;
    let all = std::env::args().any(|argument| argument == "--all");
    let source = include_str!("../tests/data/pytorch_accuracy.csv");
    println!("Ours: {}", gpu.name());
    let theirs_on = source.lines().next().unwrap_or_default();
    println!("PyTorch's: {}\n", theirs_on.trim_start_matches("# "));
    println!("| layout | σ | offset | y | PyTorch | var | PyTorch | dx | PyTorch | dγ | PyTorch |");
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for theirs in theirs()?
        .into_iter()
        .filter(|theirs| all || theirs.sigma == 1.0)
    {
        let (name, dims, layout) = match theirs.rows {
            false => ("planes", [8, 16, 32, 32], Layout::ChannelsFirst),
            true => ("rows", [8, 32, 32, 16], Layout::ChannelsLast),
        };
        let x = normal(&dims, theirs.offset, theirs.sigma, 1);
        let dy = normal(&dims, 0.0, 1.0, 2);
        let ours = measure(&gpu, &x, &dy, None, layout, None)?;
        let Theirs {
            sigma,
            offset,
            errors: theirs,
            ..
        } = theirs;
        println!(
            "| {name} | {sigma:e} | {offset:e} | {:.0e} | {:.0e} | {:.0e} | {:.0e} | {:.0e} | {:.0e} | {:.0e} | {:.0e} |",
            ours.y, theirs.y, ours.var, theirs.var, ours.dx, theirs.dx, ours.dgamma, theirs.dgamma
        );
    }
    Ok(())
}
