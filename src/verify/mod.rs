//! Checks of the GPU against the CPU path: [`Checked`] for a program's own operations,
//! [`self_check`] for an adapter.

mod self_check;

#[cfg(not(target_arch = "wasm32"))]
pub use self_check::self_check_blocking;
pub use self_check::{Case, Report, self_check};

use ndarray::{Array1, ArrayD};

use crate::cpu::{self, Affine, Statistics};
use crate::{
    Activation, BatchNorm, DType, Error, Extra, Gpu, InputGradients, Layout, Mode, Optimizer,
    State, Tensor, Valid, View, Wanted,
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
/// Tensors stored in 16 bits may be off by half a unit in the last place more. Where the CPU's value
/// is not finite, the GPU's must not be either; which of the two infinities or NaN it is may differ.
/// What lies so near to an edge of the activation that roundings decide may be cut or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Tolerance {
    /// `y`: in units of `max(|γ|, |γ·x̂|) + |β| + |residual|`, times the slope of an activation that is
    /// steeper than 1. Default: 1e-6.
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
    /// Compares values in the order of memory, stored in f32; `allowed` says how far they may be
    /// apart at an index.
    fn new<'a>(
        tensor: &'static str,
        view: View,
        gpu: impl IntoIterator<Item = &'a f32>,
        cpu: impl IntoIterator<Item = f64>,
        allowed: impl Fn(usize) -> f64,
    ) -> Self {
        Self::of_dtype(DType::F32, tensor, view, gpu, cpu, allowed)
    }

    /// The same of values stored otherwise.
    fn of_dtype<'a>(
        dtype: DType,
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
            // Half a unit in the last place of f32 is a part of what is allowed.
            let rounding = match dtype {
                DType::F32 => 0.0,
                _ => dtype.half_ulp(cpu),
            };
            let allowed = allowed(index).max(0.0) + rounding;
            let excess = match (gpu.is_finite(), dtype.holds(cpu)) {
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
    /// The residual of the last forward pass, which the layer itself does not keep.
    residual: Option<Tensor>,
}

impl<'a> Checked<'a> {
    /// Checks the operations of `layer` with the default [`Tolerance`].
    pub fn new(layer: &'a mut BatchNorm) -> Self {
        Self {
            layer,
            tolerance: Tolerance::default(),
            residual: None,
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
        self.forward_with(x, Extra::default()).await
    }

    /// [`BatchNorm::forward_with`], with `y` and the running statistics checked.
    ///
    /// # Errors
    /// As [`Checked::forward`].
    pub async fn forward_with(&mut self, x: &Tensor, extra: Extra<'_>) -> Result<Tensor, Error> {
        let (y, comparisons) = self.compare_forward(x, extra).await?;
        self.check(&comparisons)?;
        Ok(y)
    }

    /// [`BatchNorm::backward`], with `dx`, dγ and dβ checked.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where the two paths differ; those of [`BatchNorm::backward`] and
    /// [`Tensor::to_array`].
    pub async fn backward(&mut self, dy: &Tensor) -> Result<Tensor, Error> {
        let found = self.backward_with(dy, &Wanted::default()).await?;
        found.dx.ok_or(Error::NoForward)
    }

    /// [`BatchNorm::backward_with`], with all gradients checked that are wanted.
    ///
    /// # Errors
    /// As [`Checked::backward`]; [`Error::Conflict`] after a forward pass with a residual and an
    /// activation that this `Checked` did not check.
    pub async fn backward_with(
        &mut self,
        dy: &Tensor,
        wanted: &Wanted,
    ) -> Result<InputGradients, Error> {
        let (found, comparisons) = self.compare_backward(dy, wanted).await?;
        self.check(&comparisons)?;
        Ok(found)
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

    async fn compare_forward(
        &mut self,
        x: &Tensor,
        extra: Extra<'_>,
    ) -> Result<(Tensor, Vec<Comparison>), Error> {
        let before = self.layer.state().await?;
        let mode = self.layer.mode();
        let pass = Pass::new(self.layer, mode, &before, x, extra.residual, extra.valid).await?;
        let y = self.layer.forward_with(x, extra)?;
        self.residual = extra.residual.cloned();
        let after = self.layer.state().await?;
        let y_gpu = y.to_array().await?;

        let options = self.layer.options();
        let mut running_mean = before.running_mean.mapv(f64::from);
        let mut running_var = before.running_var.mapv(f64::from);
        let of_batch = pass.statistics.count.is_finite();
        if self.layer.mode() == Mode::Train && of_batch && options.running_statistics {
            let (mean, var) = (&mut running_mean, &mut running_var);
            let batches = before.num_batches_tracked;
            cpu::update_running(mean, var, &pass.statistics, options, batches)?;
        }
        let residual = pass.residual.as_ref();
        let (layout, view) = (pass.layout, pass.view);
        let y_cpu = cpu::normalize(&pass.x, layout, &pass.statistics, &pass.affine, residual)?;

        let uncertain = pass.uncertainty(self.tolerance.y)?;
        let steepest = steepest(options.activation);
        let moved = |old: &Array1<f32>, new: &Array1<f64>, channel: usize| {
            f64::from(old[channel].abs()) + new[channel].abs()
        };
        let tolerance = self.tolerance.running;
        let comparisons = vec![
            Comparison::of_dtype(x.dtype(), "y", view, &y_gpu, y_cpu, |index| {
                uncertain[index] * steepest
            }),
            Comparison::new(
                "running_mean",
                per_channel(view),
                &after.running_mean,
                running_mean.iter().copied(),
                |channel| {
                    let moved = moved(&before.running_mean, &pass.statistics.mean, channel);
                    tolerance * (moved + pass.statistics.var[channel].sqrt())
                },
            ),
            Comparison::new(
                "running_var",
                per_channel(view),
                &after.running_var,
                running_var.iter().copied(),
                |channel| tolerance * moved(&before.running_var, &pass.statistics.var, channel),
            ),
        ];
        Ok((y, comparisons))
    }

    async fn compare_backward(
        &mut self,
        dy: &Tensor,
        wanted: &Wanted,
    ) -> Result<(InputGradients, Vec<Comparison>), Error> {
        let last = self.layer.last().cloned().ok_or(Error::NoForward)?;
        let state = self.layer.state().await?;
        if last.residual
            && self.residual.is_none()
            && self.layer.options().activation != Activation::Identity
        {
            return Err(Error::Conflict {
                first: "a checked backward pass",
                second: "a forward pass with a residual that was not checked",
                reason: "the layer keeps what was cut, but not the residual",
            });
        }
        // What is kept is a pass in training, whatever the mode is now.
        let (x, mode, residual) = (&last.x, Mode::Train, self.residual.as_ref());
        let residual = residual.filter(|_| last.residual);
        let pass = Pass::new(self.layer, mode, &state, x, residual, last.valid.as_ref()).await?;
        let dy_values = dy.to_array().await?.mapv(f64::from);
        let found = self.layer.backward_with(dy, wanted)?;
        let parameters = self.layer.gradients().await?;

        let Pass {
            x,
            residual,
            valid,
            layout,
            view,
            statistics,
            affine,
        } = &pass;
        let (layout, view, eps) = (*layout, *view, affine.eps);
        let (residual, valid) = (residual.as_ref(), valid.as_ref());
        let g = cpu::activation_gradient(x, &dy_values, layout, statistics, affine, residual)?;
        let expected = cpu::gradients(x, &g, layout, statistics, eps, valid)?;
        let gamma = &affine.gamma;
        let dx_cpu = cpu::input_gradient(x, &g, layout, statistics, eps, gamma, &expected, valid)?;

        // The magnitudes of what is summed: where a sum cancels, no f32 can do better than these.
        let terms = Terms::new(x, &g, view, statistics, eps);
        let edges = pass.edges(&dy_values, &terms, self.tolerance.y)?;
        let tolerance = self.tolerance.gradients;
        let allowed = |largest: f64, terms: f64| tolerance * (largest + 0.1 * terms);
        let learned = |how| how == crate::Parameter::Learned;
        let options = self.layer.options();
        let mut comparisons = Vec::new();
        if wanted.gamma && learned(options.gamma) {
            let largest = largest(&expected.gamma);
            comparisons.push(Comparison::new(
                "dgamma",
                per_channel(view),
                &parameters.gamma,
                expected.gamma.iter().copied(),
                |channel| {
                    let terms = terms.product_norm[channel] + terms.sum_dy[channel].abs();
                    allowed(largest, terms) + edges.product[channel]
                },
            ));
        }
        if wanted.beta && learned(options.beta) {
            let largest = largest(&expected.beta);
            comparisons.push(Comparison::new(
                "dbeta",
                per_channel(view),
                &parameters.beta,
                expected.beta.iter().copied(),
                |channel| allowed(largest, terms.dy_norm[channel]) + edges.dy[channel],
            ));
        }
        let dtype = dy.dtype();
        if let Some(dx) = &found.dx {
            let largest = largest(&dx_cpu);
            let dx = dx.to_array().await?;
            comparisons.push(Comparison::of_dtype(
                dtype,
                "dx",
                view,
                &dx,
                dx_cpu,
                |index| {
                    let channel = view.channel_of(index);
                    let scale = (gamma[channel] * terms.inv_std[channel]).abs();
                    // What flows through the statistics, in every term of which there may be
                    // cancellation.
                    let (cancelling, of_edges) = match through_statistics(statistics) {
                        Some(share) => (
                            terms.largest_dy[channel]
                                + terms.largest_x_hat[channel] * terms.products[channel] * share,
                            edges.dy[channel] * share
                                + terms.largest_x_hat[channel] * edges.product[channel] * share,
                        ),
                        None => (0.0, 0.0),
                    };
                    let of_edges = edges.at[index] + of_edges;
                    allowed(largest, scale * cancelling) + scale * of_edges
                },
            ));
        }
        if let Some(residual) = &found.residual {
            let residual = residual.to_array().await?;
            let magnitudes: Vec<f64> = dy_values.iter().map(|dy| dy.abs()).collect();
            let allowed = |index: usize| tolerance * magnitudes[index] + edges.at[index];
            comparisons.push(Comparison::of_dtype(
                dtype,
                "residual_gradient",
                view,
                &residual,
                g.iter().copied(),
                allowed,
            ));
        }
        Ok((found, comparisons))
    }

    async fn compare_step(&mut self, optimizer: &mut Optimizer) -> Result<Vec<Comparison>, Error> {
        let before = self.layer.state().await?;
        let gradients = self.layer.gradients().await?;
        let mut twin = optimizer.twin().await?.for_options(self.layer.options());
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

/// The share of one value in statistics, `1/M`, if they depend on any.
fn through_statistics(statistics: &Statistics) -> Option<f64> {
    let count = statistics.count;
    (count > 0.0 && count.is_finite()).then(|| 1.0 / count)
}

/// The largest slope of an activation.
fn steepest(activation: Activation) -> f64 {
    match activation {
        Activation::LeakyRelu { slope } => slope.abs().max(1.0),
        _ => 1.0,
    }
}

/// A forward pass in f64: all that goes into it.
struct Pass {
    x: ArrayD<f64>,
    residual: Option<ArrayD<f64>>,
    /// Which positions count, where the batch's statistics are taken.
    valid: Option<ArrayD<bool>>,
    layout: Layout,
    view: View,
    statistics: Statistics,
    affine: Affine,
}

impl Pass {
    async fn new(
        layer: &BatchNorm,
        mode: Mode,
        state: &State,
        x: &Tensor,
        residual: Option<&Tensor>,
        valid: Option<&Valid>,
    ) -> Result<Self, Error> {
        let options = layer.options();
        let of_batch = match mode {
            Mode::Train => !options.frozen_statistics,
            Mode::Eval => !options.running_statistics,
        };
        let layout = x.shape().layout();
        let x_values = x.to_array().await?.mapv(f64::from);
        let residual = match residual {
            Some(residual) => Some(residual.to_array().await?.mapv(f64::from)),
            None => None,
        };
        let valid = match valid {
            Some(valid) if of_batch => Some(valid.to_mask().await?),
            _ => None,
        };
        let statistics = match of_batch {
            true => cpu::moments(&x_values, layout, valid.as_ref())?.statistics(),
            false => Statistics::constant(
                state.running_mean.mapv(f64::from),
                state.running_var.mapv(f64::from),
            ),
        };
        Ok(Self {
            x: x_values,
            residual,
            valid,
            layout,
            view: x.shape().view(),
            statistics,
            affine: Affine::new(state, options),
        })
    }

    /// What enters the activation, but for the residual.
    fn normalized(&self) -> Result<ArrayD<f64>, Error> {
        let affine = Affine {
            activation: Activation::Identity,
            ..self.affine.clone()
        };
        cpu::normalize(&self.x, self.layout, &self.statistics, &affine, None)
    }

    /// How uncertain f32 leaves what enters the activation, value by value.
    fn uncertainty(&self, tolerance: f64) -> Result<Vec<f64>, Error> {
        let mut residual = self.residual.iter().flatten();
        Ok(self
            .normalized()?
            .iter()
            .enumerate()
            .map(|(index, z)| {
                let channel = self.view.channel_of(index);
                let (gamma, beta) = (self.affine.gamma[channel], self.affine.beta[channel]);
                let residual = residual.next().map_or(0.0, |residual| residual.abs());
                tolerance * (gamma.abs().max((z - beta).abs()) + beta.abs() + residual)
            })
            .collect())
    }

    /// What the values add to the gradients that are too near to an edge of the activation to be
    /// told on which side they are.
    fn edges(&self, dy: &ArrayD<f64>, terms: &Terms, tolerance: f64) -> Result<Edges, Error> {
        let activation = self.affine.activation;
        let mut edges = Edges {
            at: vec![0.0; self.x.len()],
            dy: Array1::zeros(self.view.channels),
            product: Array1::zeros(self.view.channels),
        };
        let uncertain = self.uncertainty(tolerance)?;
        let mut residual = self.residual.iter().flatten();
        let normalized = self.normalized()?;
        for (index, ((z, x), dy)) in normalized.iter().zip(&self.x).zip(dy).enumerate() {
            let z = z + residual.next().unwrap_or(&0.0);
            // Both edges of a clamp at once would be a range of almost nothing.
            let gradient = |z| activation.gradient(*dy, z);
            let jump = gradient(z + uncertain[index]) - gradient(z - uncertain[index]);
            let channel = self.view.channel_of(index);
            let x_hat = (x - self.statistics.mean[channel]) * terms.inv_std[channel];
            edges.at[index] = jump.abs();
            edges.dy[channel] += jump.abs();
            if jump != 0.0 {
                edges.product[channel] += (jump * x_hat).abs();
            }
        }
        Ok(edges)
    }
}

/// How much gradients may differ for values at the edges of an activation.
struct Edges {
    /// |g|, by flat index.
    at: Vec<f64>,
    /// Σ|g|, by channel.
    dy: Array1<f64>,
    /// Σ|g·x̂|, by channel.
    product: Array1<f64>,
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
    /// Σ|dy·x̂|
    products: Array1<f64>,
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
            products: zeros(),
            dy_norm: zeros(),
            sum_dy: zeros(),
            largest_dy: zeros(),
            largest_x_hat: zeros(),
        };
        for (index, (x, dy)) in x.iter().zip(dy).enumerate() {
            let channel = view.channel_of(index);
            let x_hat = (x - statistics.mean[channel]) * terms.inv_std[channel];
            // Where there is no gradient, x may be anything.
            let product = if *dy == 0.0 { 0.0 } else { dy * x_hat };
            terms.product_norm[channel] += product.powi(2);
            terms.products[channel] += product.abs();
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

        /// [`Checked::forward_with`], waiting.
        ///
        /// # Errors
        /// As [`Checked::forward_with`].
        pub fn forward_with_blocking(
            &mut self,
            x: &Tensor,
            extra: Extra<'_>,
        ) -> Result<Tensor, Error> {
            pollster::block_on(self.forward_with(x, extra))
        }

        /// [`Checked::backward_with`], waiting.
        ///
        /// # Errors
        /// As [`Checked::backward_with`].
        pub fn backward_with_blocking(
            &mut self,
            dy: &Tensor,
            wanted: &Wanted,
        ) -> Result<InputGradients, Error> {
            pollster::block_on(self.backward_with(dy, wanted))
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
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::self_check::Noise;
    use super::*;
    use crate::{Adam, Options};

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

    /// The same behind an activation and a residual, where some values lie near an edge, and in 16
    /// bits.
    #[test]
    fn corrupted_results_of_fused_operations_are_caught() {
        let gpu = Gpu::open_blocking().unwrap();
        for half in [false, true] {
            let step = || {
                let mut noise = Noise(1);
                let mut tensor = || {
                    let array = ArrayD::from_shape_simple_fn(vec![8, 3, 25], || noise.next());
                    match half {
                        true => {
                            let array = array.mapv(half::f16::from_f32);
                            Tensor::from_array(&gpu, &array, Layout::ChannelsFirst)
                        }
                        false => Tensor::from_array(&gpu, &array, Layout::ChannelsFirst),
                    }
                };
                let (x, residual, dy) = (tensor()?, tensor()?, tensor()?);
                let options = Options::default().activation(Activation::Relu);
                let mut layer = BatchNorm::new(&gpu, 3, options)?;
                let extra = Extra {
                    residual: Some(&residual),
                    valid: None,
                };
                let mut checked = Checked::new(&mut layer);
                checked.forward_with_blocking(&x, extra)?;
                checked.backward_with_blocking(&dy, &Wanted::default())
            };
            step().unwrap();
            // In 16 bits a unit in the last place is 1e-3 of the value.
            let coarse = if half { 30.0 } else { 1.0 };
            for (tensor, length, amount) in [
                ("y", 600, 1e-4 * coarse),
                ("dx", 600, 1e-4 * coarse),
                ("residual_gradient", 600, 1e-4 * coarse),
                ("dgamma", 3, 1e-3),
                ("dbeta", 3, 1e-3),
            ] {
                for index in [0, length / 2, length - 1] {
                    for amount in [amount, -amount, f64::NAN] {
                        CORRUPTION.set((tensor, index, amount));
                        let found = step();
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
        assert_eq!(worst([0.0, nan, inf, 1.0]), f64::INFINITY);
        assert_eq!(worst([nan, 0.0, inf, 1.0]), f64::INFINITY);
        assert_eq!(worst([nan, inf, f32::MAX, 1.0]), f64::INFINITY);
        assert_eq!(worst([nan, inf, inf, nan]), f64::INFINITY);
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
