//! Checks of the GPU against the CPU path: [`Checked`] for a program's own operations,
//! [`self_check`] for an adapter.

use std::fmt;

use ndarray::{Array1, ArrayD};

use crate::cpu::{self, Statistics};
use crate::{
    Adam, Algorithm, BatchNorm, Error, Gpu, Layout, Mode, Optimizer, Options, RmsProp, Sgd, Shape,
    State, Tensor, View,
};

/// The first of the values by which the two paths differ most, beyond the tolerance.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{tensor}[{index}] (channel {channel}) is {gpu:e} on the GPU and {cpu:e} on the CPU, {} apart with {allowed:e} allowed, on {adapter}", difference(*gpu, *cpu))]
pub struct Mismatch {
    /// The tensor's name.
    pub tensor: &'static str,
    /// The channel of the value.
    pub channel: usize,
    /// The value's flat index, in the order of memory.
    pub index: usize,
    /// The GPU's value.
    pub gpu: f64,
    /// The CPU path's value.
    pub cpu: f64,
    /// The difference that the tolerance allows there.
    pub allowed: f64,
    /// The adapter, as [`Gpu::name`] gives it.
    pub adapter: String,
}

fn difference(gpu: f64, cpu: f64) -> String {
    format!("{:e}", (gpu - cpu).abs())
}

/// How far the GPU's values may be from those of the CPU path in f64. What is not above 0 allows
/// nothing.
///
/// Where the CPU's value is not finite, the GPU's must not be either; which of the two infinities
/// or NaN it is may differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Tolerance {
    /// `y`: in units of `max(|γ|, |y − β|) + |β|`. Default: 1e-6.
    pub y: f64,
    /// `dx`, `dγ`, `dβ`: in units of the tensor's largest magnitude, plus a tenth of it in units of
    /// the terms that may cancel, each of which carries up to nine roundings (5.4e-7 in f32) that
    /// add up like a random walk. Default: 1e-5.
    pub gradients: f64,
    /// The running statistics: in units of `|old| + |new|` plus, for the mean, the standard
    /// deviation of the batch. Default: 1e-6.
    pub running: f64,
    /// γ and β after an optimizer's step: in units of their magnitude plus ten times that of the
    /// step. Default: 1e-6.
    pub parameters: f64,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self {
            y: 1e-6,
            gradients: 1e-5,
            running: 1e-6,
            parameters: 1e-6,
        }
    }
}

/// The result of comparing one tensor.
#[derive(Clone, Debug)]
struct Comparison {
    tensor: &'static str,
    view: View,
    /// The largest difference in units of what is allowed.
    worst: f64,
    /// Where that is, with the two values and what is allowed.
    index: usize,
    gpu: f64,
    cpu: f64,
    allowed: f64,
}

impl Comparison {
    /// Compares values in the order of memory; `allowed` says how far they may be apart at an
    /// index.
    fn new<'a>(
        tensor: &'static str,
        view: View,
        gpu: impl IntoIterator<Item = &'a f32>,
        cpu: impl IntoIterator<Item = f64>,
        allowed: impl Fn(usize) -> f64,
    ) -> Self {
        let mut comparison = Self {
            tensor,
            view,
            worst: 0.0,
            index: 0,
            gpu: 0.0,
            cpu: 0.0,
            allowed: 0.0,
        };
        for (index, (&gpu, cpu)) in gpu.into_iter().zip(cpu).enumerate() {
            let gpu = f64::from(gpu);
            #[cfg(test)]
            let gpu = gpu + tests::corruption(tensor, index);
            let allowed = allowed(index).max(0.0);
            let excess = match (gpu.is_finite(), (cpu as f32).is_finite()) {
                (true, true) if gpu == cpu => 0.0,
                (true, true) => (gpu - cpu).abs() / allowed,
                (false, false) => 0.0,
                _ => f64::INFINITY,
            };
            // An allowance that is no number allows nothing.
            let excess = if excess.is_nan() {
                f64::INFINITY
            } else {
                excess
            };
            if excess > comparison.worst {
                comparison = Self {
                    worst: excess,
                    index,
                    gpu,
                    cpu,
                    allowed,
                    ..comparison
                };
            }
        }
        comparison
    }

    fn check(&self, gpu: &Gpu) -> Result<(), Error> {
        if self.worst <= 1.0 {
            return Ok(());
        }
        Err(Error::Mismatch(Box::new(Mismatch {
            tensor: self.tensor,
            channel: self.view.channel_of(self.index),
            index: self.index,
            gpu: self.gpu,
            cpu: self.cpu,
            allowed: self.allowed,
            adapter: gpu.name(),
        })))
    }
}

/// Checked mode: runs a layer's operations on the GPU and on the CPU path, and fails where they
/// differ by more than the tolerance.
///
/// Every operation reads back what it needs, so it is slow; results are those of the GPU. After a
/// mismatch the layer is as the GPU left it.
///
/// ```
/// use ndarray::array;
/// use wgpu_batchnorm::verify::{Checked, Tolerance};
/// use wgpu_batchnorm::{BatchNorm, Error, Gpu, Layout, Options, Tensor};
///
/// let gpu = Gpu::open_blocking()?;
/// let mut layer = BatchNorm::new(&gpu, 2, Options::default())?;
/// let x = array![[1.0, 10.0], [2.0, 50.0], [4.0, 30.0]];
/// let x = Tensor::from_array(&gpu, &x, Layout::ChannelsFirst)?;
/// let y = Checked::new(&mut layer).forward_blocking(&x)?;
/// assert_eq!(y.shape(), x.shape());
///
/// // With no tolerance at all, roundings show.
/// let none = Tolerance { y: 0.0, ..Tolerance::default() };
/// let error = Checked::new(&mut layer).tolerance(none).forward_blocking(&x);
/// assert!(matches!(error, Err(Error::Mismatch(_))));
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct Checked<'a> {
    layer: &'a mut BatchNorm,
    tolerance: Tolerance,
}

impl<'a> Checked<'a> {
    /// Checks the operations of `layer` with the default [`Tolerance`].
    pub fn new(layer: &'a mut BatchNorm) -> Self {
        Self {
            layer,
            tolerance: Tolerance::default(),
        }
    }

    /// Sets how far the two paths may differ.
    pub fn tolerance(mut self, tolerance: Tolerance) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// [`BatchNorm::forward`], with `y` and the running statistics checked.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where the two paths differ; those of [`BatchNorm::forward`] and
    /// [`Tensor::to_array`].
    pub async fn forward(&mut self, x: &Tensor) -> Result<Tensor, Error> {
        let (y, comparisons) = self.compare_forward(x).await?;
        self.check(&comparisons)?;
        Ok(y)
    }

    /// [`BatchNorm::backward`], with `dx`, dγ and dβ checked.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where the two paths differ; those of [`BatchNorm::backward`] and
    /// [`Tensor::to_array`].
    pub async fn backward(&mut self, dy: &Tensor) -> Result<Tensor, Error> {
        let (dx, comparisons) = self.compare_backward(dy).await?;
        self.check(&comparisons)?;
        Ok(dx)
    }

    /// [`Optimizer::step`], with γ and β checked.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where the two paths differ; those of [`Optimizer::step`].
    pub async fn step(&mut self, optimizer: &mut Optimizer) -> Result<(), Error> {
        let comparisons = self.compare_step(optimizer).await?;
        self.check(&comparisons)
    }

    fn check(&self, comparisons: &[Comparison]) -> Result<(), Error> {
        comparisons
            .iter()
            .try_for_each(|comparison| comparison.check(self.layer.gpu()))
    }

    async fn compare_forward(&mut self, x: &Tensor) -> Result<(Tensor, Vec<Comparison>), Error> {
        let x_values = x.to_array().await?.mapv(f64::from);
        let before = self.layer.state().await?;
        let y = self.layer.forward(x)?;
        let after = self.layer.state().await?;
        let y_gpu = y.to_array().await?;

        let layout = x.shape().layout();
        let view = x.shape().view();
        let options = self.layer.options();
        let gamma = before.gamma.mapv(f64::from);
        let beta = before.beta.mapv(f64::from);
        let mut running_mean = before.running_mean.mapv(f64::from);
        let mut running_var = before.running_var.mapv(f64::from);
        let statistics = match self.layer.mode() {
            Mode::Train => cpu::statistics(&x_values, layout)?,
            Mode::Eval => Statistics {
                mean: running_mean.clone(),
                var: running_var.clone(),
            },
        };
        if self.layer.mode() == Mode::Train {
            let count = x.shape().values_per_channel();
            let (mean, var) = (&mut running_mean, &mut running_var);
            cpu::update_running(mean, var, &statistics, count, options)?;
        }
        let y_cpu = cpu::normalize(&x_values, layout, &statistics, options.eps, &gamma, &beta)?;

        let y_allowed: Vec<f64> = y_cpu
            .iter()
            .enumerate()
            .map(|(index, y)| {
                let channel = view.channel_of(index);
                let (gamma, beta) = (gamma[channel], beta[channel]);
                self.tolerance.y * (gamma.abs().max((y - beta).abs()) + beta.abs())
            })
            .collect();
        let moved = |old: &Array1<f32>, new: &Array1<f64>, channel: usize| {
            f64::from(old[channel].abs()) + new[channel].abs()
        };
        let tolerance = self.tolerance.running;
        let comparisons = vec![
            Comparison::new("y", view, &y_gpu, y_cpu, |index| y_allowed[index]),
            Comparison::new(
                "running_mean",
                per_channel(view),
                &after.running_mean,
                running_mean.iter().copied(),
                |channel| {
                    let moved = moved(&before.running_mean, &statistics.mean, channel);
                    tolerance * (moved + statistics.var[channel].sqrt())
                },
            ),
            Comparison::new(
                "running_var",
                per_channel(view),
                &after.running_var,
                running_var.iter().copied(),
                |channel| tolerance * moved(&before.running_var, &statistics.var, channel),
            ),
        ];
        Ok((y, comparisons))
    }

    async fn compare_backward(&mut self, dy: &Tensor) -> Result<(Tensor, Vec<Comparison>), Error> {
        let x = self.layer.last_input().ok_or(Error::NoForward)?;
        let x_values = x.to_array().await?.mapv(f64::from);
        let dy_values = dy.to_array().await?.mapv(f64::from);
        let layout = x.shape().layout();
        let view = x.shape().view();
        let dx = self.layer.backward(dy)?;
        let state = self.layer.state().await?;
        let found = self.layer.gradients().await?;
        let dx_gpu = dx.to_array().await?;

        let eps = self.layer.options().eps;
        let gamma = state.gamma.mapv(f64::from);
        let statistics = cpu::statistics(&x_values, layout)?;
        let expected = cpu::gradients(&x_values, &dy_values, layout, &statistics, eps)?;
        let dx_cpu = cpu::input_gradient(
            &x_values,
            &dy_values,
            layout,
            &statistics,
            eps,
            &gamma,
            &expected,
        )?;

        // The magnitudes of what is summed: where a sum cancels, no f32 can do better than these.
        let terms = Terms::new(&x_values, &dy_values, view, &statistics, eps);
        let tolerance = self.tolerance.gradients;
        let allowed = |largest: f64, terms: f64| tolerance * (largest + 0.1 * terms);
        let dx_largest = largest(&dx_cpu);
        let gamma_largest = largest(&expected.gamma);
        let beta_largest = largest(&expected.beta);
        let comparisons = vec![
            Comparison::new(
                "dgamma",
                per_channel(view),
                &found.gamma,
                expected.gamma.iter().copied(),
                |channel| {
                    let terms = terms.product_norm[channel] + terms.sum_dy[channel].abs();
                    allowed(gamma_largest, terms)
                },
            ),
            Comparison::new(
                "dbeta",
                per_channel(view),
                &found.beta,
                expected.beta.iter().copied(),
                |channel| allowed(beta_largest, terms.dy_norm[channel]),
            ),
            Comparison::new("dx", view, &dx_gpu, dx_cpu, |index| {
                let channel = view.channel_of(index);
                let scale = (gamma[channel] * terms.inv_std[channel]).abs();
                let cancelling = terms.largest_dy[channel]
                    + terms.largest_x_hat[channel] * terms.mean_product[channel];
                allowed(dx_largest, scale * cancelling)
            }),
        ];
        Ok((dx, comparisons))
    }

    async fn compare_step(&mut self, optimizer: &mut Optimizer) -> Result<Vec<Comparison>, Error> {
        let before = self.layer.state().await?;
        let gradients = self.layer.gradients().await?;
        let mut twin = optimizer.twin().await?;
        optimizer.step(self.layer)?;
        let after = self.layer.state().await?;
        let mut expected = before.clone();
        twin.update(&mut expected, &gradients)?;

        let view = View {
            outer: 1,
            channels: self.layer.channels(),
            inner: 1,
        };
        let [gamma_condition, beta_condition] = twin.condition();
        let tolerance = self.tolerance.parameters;
        let compare = |tensor, pick: fn(&State) -> &Array1<f32>, condition: &[f64]| {
            let (old, new) = (pick(&before), pick(&expected));
            Comparison::new(
                tensor,
                view,
                pick(&after),
                new.iter().copied().map(f64::from),
                |channel| {
                    let (old, new) = (f64::from(old[channel]), f64::from(new[channel]));
                    let step = (new - old).abs() * condition[channel].abs();
                    tolerance * (old.abs() + new.abs() + 10.0 * step)
                },
            )
        };
        Ok(vec![
            compare("gamma", |state| &state.gamma, &gamma_condition),
            compare("beta", |state| &state.beta, &beta_condition),
        ])
    }
}

/// The view of a vector with one value per channel.
fn per_channel(view: View) -> View {
    View {
        outer: 1,
        inner: 1,
        ..view
    }
}

/// The largest finite magnitude: one poisoned channel must not excuse the others.
fn largest<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    values
        .into_iter()
        .filter(|value| value.is_finite())
        .fold(0.0, |largest, value| value.abs().max(largest))
}

/// Per channel, the magnitudes of the terms that a backward pass adds up.
///
/// The roundings of M terms add up like a random walk, to the root of the sum of their squares.
struct Terms {
    inv_std: Array1<f64>,
    /// √Σ(dy·x̂)²
    product_norm: Array1<f64>,
    /// Σ|dy·x̂| / M
    mean_product: Array1<f64>,
    /// √Σdy²
    dy_norm: Array1<f64>,
    /// Σdy, which an error of the mean is multiplied by
    sum_dy: Array1<f64>,
    largest_dy: Array1<f64>,
    largest_x_hat: Array1<f64>,
}

impl Terms {
    fn new(
        x: &ArrayD<f64>,
        dy: &ArrayD<f64>,
        view: View,
        statistics: &Statistics,
        eps: f64,
    ) -> Self {
        let zeros = || Array1::zeros(view.channels);
        let mut terms = Self {
            inv_std: statistics.var.mapv(|var| 1.0 / (var + eps).sqrt()),
            product_norm: zeros(),
            mean_product: zeros(),
            dy_norm: zeros(),
            sum_dy: zeros(),
            largest_dy: zeros(),
            largest_x_hat: zeros(),
        };
        let count = (view.outer * view.inner) as f64;
        for (index, (x, dy)) in x.iter().zip(dy).enumerate() {
            let channel = view.channel_of(index);
            let x_hat = (x - statistics.mean[channel]) * terms.inv_std[channel];
            terms.product_norm[channel] += (dy * x_hat).powi(2);
            terms.mean_product[channel] += (dy * x_hat).abs() / count;
            terms.dy_norm[channel] += dy.powi(2);
            terms.sum_dy[channel] += dy;
            terms.largest_dy[channel] = terms.largest_dy[channel].max(dy.abs());
            terms.largest_x_hat[channel] = terms.largest_x_hat[channel].max(x_hat.abs());
        }
        terms.product_norm.mapv_inplace(f64::sqrt);
        terms.dy_norm.mapv_inplace(f64::sqrt);
        terms
    }
}

/// What [`self_check`] found. Its `Display` is made to be pasted into a bug report.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The adapter, as [`Gpu::name`] gives it.
    pub adapter: String,
    /// What wgpu says of the adapter.
    pub info: wgpu::AdapterInfo,
    /// The cases, in the order in which they ran.
    pub cases: Vec<Case>,
}

/// One case of a [`Report`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Case {
    /// What was run.
    pub name: String,
    /// The largest difference of any tensor, in units of what the tolerance allows, and the
    /// tensor's name.
    pub worst: (f64, &'static str),
    /// The error, if it failed.
    pub error: Option<Error>,
}

impl Report {
    /// Whether every case passed.
    pub fn passed(&self) -> bool {
        self.cases.iter().all(|case| case.error.is_none())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wgpu::AdapterInfo {
            device_type,
            vendor,
            device,
            driver,
            ..
        } = &self.info;
        writeln!(f, "wgpu-batchnorm {} self-check", env!("CARGO_PKG_VERSION"))?;
        writeln!(f, "adapter: {}", self.adapter)?;
        writeln!(
            f,
            "{device_type:?}, vendor {vendor:#06x}, device {device:#06x}, driver {driver:?}"
        )?;
        for case in &self.cases {
            let verdict = if case.error.is_none() { "ok  " } else { "FAIL" };
            let (worst, tensor) = case.worst;
            write!(f, "{verdict} {:<58}", case.name)?;
            match &case.error {
                None => writeln!(f, " {:3.0} % of the tolerance ({tensor})", 100.0 * worst)?,
                Some(error) => writeln!(f, " {error}")?,
            }
        }
        let passed = self.cases.iter().filter(|case| case.error.is_none());
        write!(f, "{} of {} passed", passed.count(), self.cases.len())
    }
}

/// Runs a short set of cases on an adapter and compares each with the CPU path: what one runs
/// before trusting a driver.
///
/// ```
/// # use wgpu_batchnorm::{Error, Gpu, verify::self_check_blocking};
/// let gpu = Gpu::open_blocking()?;
/// let report = self_check_blocking(&gpu);
/// println!("{report}");
/// assert!(report.passed());
/// # Ok::<(), Error>(())
/// ```
pub async fn self_check(gpu: &Gpu) -> Report {
    use Layout::{ChannelsFirst, ChannelsLast};
    let cases: [(&[usize], Layout, f32); 10] = [
        (&[64, 10], ChannelsFirst, 0.0),
        (&[33, 64], ChannelsFirst, 1e3),
        (&[4, 3, 50], ChannelsFirst, 0.0),
        (&[8, 16, 14, 14], ChannelsFirst, 0.0),
        (&[8, 5, 7, 7], ChannelsFirst, 1e5),
        (&[2, 1, 181, 183], ChannelsFirst, 1e7),
        (&[2, 3, 4, 6, 6], ChannelsFirst, -10.0),
        (&[8, 14, 14, 16], ChannelsLast, 1e4),
        (&[4, 9, 9, 3], ChannelsLast, 0.0),
        (&[2, 3, 4, 5, 6], ChannelsLast, 1e2),
    ];
    let mut report = Report {
        adapter: gpu.name(),
        info: gpu.info().clone(),
        cases: Vec::new(),
    };
    for (seed, (dims, layout, offset)) in cases.into_iter().enumerate() {
        let algorithm: Algorithm = match seed % 3 {
            0 => Sgd {
                lr: 0.1,
                momentum: 0.9,
                ..Sgd::default()
            }
            .into(),
            1 => RmsProp::default().into(),
            _ => Adam::default().into(),
        };
        let mut comparisons = Vec::new();
        let error = self_check_case(gpu, dims, layout, offset, algorithm, &mut comparisons)
            .await
            .and_then(|()| comparisons.iter().try_for_each(|found| found.check(gpu)))
            .err();
        let worst = comparisons
            .iter()
            .map(|found| (found.worst, found.tensor))
            .fold((0.0, "-"), |a, b| if b.0 > a.0 { b } else { a });
        report.cases.push(Case {
            name: format!("{layout:?} {dims:?}, mean {offset:e}"),
            worst,
            error,
        });
    }
    report
}

/// Two training steps and an evaluation.
async fn self_check_case(
    gpu: &Gpu,
    dims: &[usize],
    layout: Layout,
    offset: f32,
    algorithm: Algorithm,
    comparisons: &mut Vec<Comparison>,
) -> Result<(), Error> {
    let shape = Shape::new(dims, layout)?;
    let mut noise = Noise(dims.iter().fold(1, |seed, &dim| seed * 31 + dim as u64));
    let mut array = |offset: f32| ArrayD::from_shape_simple_fn(dims, || offset + noise.next());
    let mut layer = BatchNorm::new(gpu, shape.channels(), Options::default())?;
    let mut optimizer = Optimizer::new(&layer, algorithm)?;
    let mut checked = Checked::new(&mut layer);
    for _ in 0..2 {
        let x = Tensor::from_array(gpu, &array(offset), layout)?;
        let dy = Tensor::from_array(gpu, &array(0.1), layout)?;
        comparisons.extend(checked.compare_forward(&x).await?.1);
        comparisons.extend(checked.compare_backward(&dy).await?.1);
        comparisons.extend(checked.compare_step(&mut optimizer).await?);
    }
    let x = Tensor::from_array(gpu, &array(offset), layout)?;
    checked.layer.set_mode(Mode::Eval);
    comparisons.extend(checked.compare_forward(&x).await?.1);
    Ok(())
}

/// Roughly normal numbers, the same on every machine.
struct Noise(u64);

impl Noise {
    /// The sum of twelve uniform numbers: mean 0, standard deviation 1.
    fn next(&mut self) -> f32 {
        let sum: f64 = (0..12)
            .map(|_| {
                // Knuth's 64-bit linear congruential generator; its upper bits are the good ones.
                self.0 = self
                    .0
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (self.0 >> 32) as f64 / f64::from(u32::MAX)
            })
            .sum();
        (sum - 6.0) as f32
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod blocking {
    use super::*;

    impl Checked<'_> {
        /// [`Checked::forward`], waiting.
        ///
        /// # Errors
        /// As [`Checked::forward`].
        pub fn forward_blocking(&mut self, x: &Tensor) -> Result<Tensor, Error> {
            pollster::block_on(self.forward(x))
        }

        /// [`Checked::backward`], waiting.
        ///
        /// # Errors
        /// As [`Checked::backward`].
        pub fn backward_blocking(&mut self, dy: &Tensor) -> Result<Tensor, Error> {
            pollster::block_on(self.backward(dy))
        }

        /// [`Checked::step`], waiting.
        ///
        /// # Errors
        /// As [`Checked::step`].
        pub fn step_blocking(&mut self, optimizer: &mut Optimizer) -> Result<(), Error> {
            pollster::block_on(self.step(optimizer))
        }
    }

    /// [`self_check`], waiting.
    pub fn self_check_blocking(gpu: &Gpu) -> Report {
        pollster::block_on(self_check(gpu))
    }
}

#[cfg(not(target_arch = "wasm32"))]
pub use blocking::self_check_blocking;

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// What is added to one value of one tensor when it is compared.
        static CORRUPTION: Cell<(&'static str, usize, f64)> = const { Cell::new(("", 0, 0.0)) };
    }

    pub(super) fn corruption(tensor: &str, index: usize) -> f64 {
        let (corrupted, at, amount) = CORRUPTION.get();
        if (corrupted, at) == (tensor, index) {
            amount
        } else {
            0.0
        }
    }

    /// A training step with an optimizer, checked.
    fn checked_step(gpu: &Gpu) -> Result<(), Error> {
        let mut noise = Noise(1);
        let mut array = || ArrayD::from_shape_simple_fn(vec![8, 3, 25], || noise.next());
        let x = Tensor::from_array(gpu, &array(), Layout::ChannelsFirst)?;
        let dy = Tensor::from_array(gpu, &array(), Layout::ChannelsFirst)?;
        let mut layer = BatchNorm::new(gpu, 3, Options::default())?;
        let mut optimizer = Optimizer::new(&layer, Adam::default())?;
        let mut checked = Checked::new(&mut layer);
        checked.forward_blocking(&x)?;
        checked.backward_blocking(&dy)?;
        checked.step_blocking(&mut optimizer)
    }

    /// A small error in any value of any tensor is caught, by its tensor and index.
    #[test]
    fn corrupted_results_are_caught() {
        let gpu = Gpu::open_blocking().unwrap();
        checked_step(&gpu).unwrap();
        // All are of the order of 1, but for dγ and dβ, which sum 200 values.
        for (tensor, length, amount) in [
            ("y", 600, 1e-5),
            ("dx", 600, 1e-4),
            ("running_mean", 3, 1e-5),
            ("running_var", 3, 1e-5),
            ("dgamma", 3, 1e-3),
            ("dbeta", 3, 1e-3),
            ("gamma", 3, 1e-5),
            ("beta", 3, 1e-5),
        ] {
            for index in [0, length / 2, length - 1] {
                for amount in [amount, -amount, f64::NAN] {
                    CORRUPTION.set((tensor, index, amount));
                    let found = checked_step(&gpu);
                    CORRUPTION.set(("", 0, 0.0));
                    match found {
                        Err(Error::Mismatch(found)) => {
                            assert_eq!((found.tensor, found.index), (tensor, index));
                        }
                        other => panic!("{amount:e} in {tensor}[{index}]: {other:?}"),
                    }
                }
            }
        }
    }

    const VIEW: View = View {
        outer: 2,
        channels: 3,
        inner: 2,
    };
    const CPU: [f64; 12] = [0.0, 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11.];

    /// Compares `CPU` with a copy that has one value replaced.
    fn compared(index: usize, value: f32) -> Comparison {
        let mut gpu = CPU.map(|value| value as f32);
        gpu[index] = value;
        Comparison::new("y", VIEW, &gpu, CPU, |_| 0.5)
    }

    #[test]
    fn equal_and_close_values_pass() {
        assert_eq!(compared(0, 0.0).worst, 0.0);
        assert_eq!(compared(5, 5.25).worst, 0.5);
        assert_eq!(compared(5, 5.5).worst, 1.0);
    }

    #[test]
    fn every_corrupted_copy_is_caught() {
        for index in 0..CPU.len() {
            for value in [-1.0, 20.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let found = compared(index, value);
                assert!(found.worst > 1.0, "{value} at {index}");
                assert_eq!(found.index, index);
            }
        }
    }

    #[test]
    fn the_worst_value_is_named_with_its_channel() {
        let mut gpu = CPU.map(|value| value as f32);
        gpu[3] += 1.0;
        gpu[10] += 2.0;
        let found = Comparison::new("y", VIEW, &gpu, CPU, |_| 0.5);
        assert_eq!((found.index, found.worst), (10, 4.0));
        // Flat index 10 is in the second outer slice, channel 2.
        assert_eq!(VIEW.channel_of(found.index), 2);
    }

    #[test]
    fn not_finite_passes_only_where_the_cpu_is_not_finite_either() {
        let cpu = [f64::NAN, f64::INFINITY, 1e300, 1.0];
        let worst = |gpu: [f32; 4]| Comparison::new("y", VIEW, &gpu, cpu, |_| 1e-6).worst;
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        assert_eq!(worst([inf, nan, inf, 1.0]), 0.0);
        assert_eq!(worst([0.0, nan, inf, 1.0]), inf.into());
        assert_eq!(worst([nan, 0.0, inf, 1.0]), inf.into());
        assert_eq!(worst([nan, inf, f32::MAX, 1.0]), inf.into());
        assert_eq!(worst([nan, inf, inf, nan]), inf.into());
    }

    #[test]
    fn an_allowance_of_nothing_allows_only_equality() {
        for allowed in [f64::NAN, 0.0, -1.0] {
            let worst = |gpu: f32| Comparison::new("y", VIEW, &[gpu], [1.0], |_| allowed).worst;
            assert_eq!(worst(1.0), 0.0);
            assert_eq!(worst(1.5), f64::INFINITY);
        }
    }
}
