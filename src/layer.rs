//! The upper level: a batch-normalization layer that owns its parameters.

use std::collections::VecDeque;
use std::sync::Arc;

use ndarray::Array1;

use crate::gpu::Polling;
use crate::kernels::statistics::SAVED_ROWS;
use crate::plan::{BackwardBuffers, ForwardBuffers};
use crate::{
    Activation, DType, Error, Gpu, Momentum, Options, Parameter, Plan, Shape, Tensor, Valid,
};

/// Whether a layer normalizes by the batch or by its running statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// By the batch's statistics; the running ones follow.
    #[default]
    Train,
    /// By the running statistics, which stay as they are.
    Eval,
}

/// All that a layer has learned. The vectors have one value per channel.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// γ, the scale. PyTorch's `weight`.
    pub gamma: Array1<f32>,
    /// β, the shift. PyTorch's `bias`.
    pub beta: Array1<f32>,
    /// The running mean.
    pub running_mean: Array1<f32>,
    /// The running variance.
    pub running_var: Array1<f32>,
    /// How many batches entered the running statistics.
    pub num_batches_tracked: u64,
}

impl State {
    /// The state of a new layer: γ = 1, β = 0, running mean 0, running variance 1.
    pub fn new(channels: usize) -> Self {
        Self {
            gamma: Array1::ones(channels),
            beta: Array1::zeros(channels),
            running_mean: Array1::zeros(channels),
            running_var: Array1::ones(channels),
            num_batches_tracked: 0,
        }
    }

    /// Fails unless every vector has `channels` values.
    pub(crate) fn check(&self, channels: usize) -> Result<(), Error> {
        check_length("gamma", self.gamma.len(), channels)?;
        check_length("beta", self.beta.len(), channels)?;
        check_length("running_mean", self.running_mean.len(), channels)?;
        check_length("running_var", self.running_var.len(), channels)
    }

    /// Fails where a parameter that is absent has other values than a new layer's.
    pub(crate) fn check_absent(&self, options: &Options) -> Result<(), Error> {
        let is = |values: &Array1<f32>, absent: f32| values.iter().all(|&value| value == absent);
        if options.gamma == Parameter::Absent && !is(&self.gamma, 1.0) {
            return Err(Error::Conflict {
                first: "gamma(Parameter::Absent)",
                second: "a state with γ other than 1",
                reason: "a γ that is absent counts as 1",
            });
        }
        if options.beta == Parameter::Absent && !is(&self.beta, 0.0) {
            return Err(Error::Conflict {
                first: "beta(Parameter::Absent)",
                second: "a state with β other than 0",
                reason: "a β that is absent counts as 0",
            });
        }
        Ok(())
    }
}

/// Fails unless a vector has one value per channel.
pub(crate) fn check_length(
    tensor: &'static str,
    found: usize,
    channels: usize,
) -> Result<(), Error> {
    if found == channels {
        return Ok(());
    }
    Err(Error::ShapeMismatch {
        tensor,
        expected: vec![channels],
        found: vec![found],
    })
}

/// The gradients of a layer's parameters, one value per channel; zeros for a parameter that is
/// frozen or absent, or whose gradient was not [`Wanted`].
///
/// `g` is the gradient with respect to what the activation is applied to; without one it is `dy`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// `dγ = Σg·x̂`.
    pub gamma: Array1<f32>,
    /// `dβ = Σg`.
    pub beta: Array1<f32>,
}

/// Which gradients a backward pass computes. By default all: what is not wanted saves time.
///
/// Those of parameters that are frozen or absent, and that of a residual where there was none, are
/// not computed in any case. To an optimizer the gradient of a parameter that is learned but was not
/// wanted is 0, so that momentum and weight decay still move it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// That of the input.
    pub x: bool,
    /// That of the residual.
    pub residual: bool,
    /// That of γ.
    pub gamma: bool,
    /// That of β.
    pub beta: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            x: true,
            residual: true,
            gamma: true,
            beta: true,
        }
    }
}

/// What a forward pass takes beside its input. The default is nothing.
///
/// ```
/// use ndarray::array;
/// use wgpu_batchnorm::{Activation, BatchNorm, Error, Extra, Gpu, Layout, Options, Tensor};
///
/// // The end of a residual block: y = relu(bn(x) + residual).
/// let gpu = Gpu::open_blocking()?;
/// let mut layer = BatchNorm::new(&gpu, 1, Options::default().activation(Activation::Relu))?;
/// let x = Tensor::from_array(&gpu, &array![[1.0], [3.0]], Layout::ChannelsFirst)?;
/// let residual = Tensor::from_array(&gpu, &array![[4.0], [-4.0]], Layout::ChannelsFirst)?;
/// let extra = Extra { residual: Some(&residual), ..Extra::default() };
/// let y = layer.forward_with(&x, extra)?.to_array_blocking()?;
/// assert!((y[[0, 0]] - 3.0).abs() < 1e-4 && y[[1, 0]] == 0.0);
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Extra<'a> {
    /// What is added before the activation: of the shape, layout and storage type of the input.
    pub residual: Option<&'a Tensor>,
    /// Which positions count in the batch's statistics. Where running statistics are used, it has
    /// no part.
    pub valid: Option<&'a Valid>,
}

/// The gradients of what went into a forward pass, as far as they were wanted.
#[derive(Clone, Debug)]
pub struct InputGradients {
    /// That of the input.
    pub dx: Option<Tensor>,
    /// That of the residual, if there was one. It may be the memory of `dy` itself.
    pub residual: Option<Tensor>,
}

/// How many plans a layer keeps: for the batch sizes and image sizes that take turns.
const PLANS_KEPT: usize = 8;

/// A batch-normalization layer on the GPU.
///
/// It owns γ, β and the running statistics, and keeps what the backward pass needs of the forward
/// pass. Nothing is read back until it is asked for: `forward` and `backward` submit their work
/// and return.
///
/// # Example
/// ```
/// use ndarray::array;
/// use wgpu_batchnorm::{BatchNorm, Error, Gpu, Layout, Options, Tensor};
///
/// let gpu = Gpu::open_blocking()?;
/// let mut layer = BatchNorm::new(&gpu, 2, Options::default())?;
///
/// // The backward pass needs a forward pass.
/// let dy = Tensor::from_array(&gpu, &array![[1.0, 0.0], [0.0, 0.0]], Layout::ChannelsFirst)?;
/// assert_eq!(layer.backward(&dy).unwrap_err(), Error::NoForward);
///
/// let x = Tensor::from_array(&gpu, &array![[1.0, 10.0], [3.0, 30.0]], Layout::ChannelsFirst)?;
/// let y = layer.forward(&x)?.to_array_blocking()?;
/// assert!((y[[0, 0]] + 1.0).abs() < 1e-5 && (y[[1, 1]] - 1.0).abs() < 1e-5);
/// let dx = layer.backward(&dy)?;
/// assert_eq!(layer.gradients_blocking()?.beta, array![1.0, 0.0]);
/// # Ok::<(), Error>(())
/// ```
pub struct BatchNorm {
    pub(crate) gpu: Gpu,
    pub(crate) options: Options,
    channels: usize,
    mode: Mode,
    gamma: wgpu::Buffer,
    beta: wgpu::Buffer,
    running_mean: wgpu::Buffer,
    running_var: wgpu::Buffer,
    dgamma: wgpu::Buffer,
    dbeta: wgpu::Buffer,
    pub(crate) saved: wgpu::Buffer,
    num_batches_tracked: u64,
    /// Of the last shapes and storage types seen, the latest first.
    plans: VecDeque<Arc<Plan>>,
    /// Of the last forward pass, if that was in training: `saved` belongs to it.
    last: Option<Last>,
    has_gradients: bool,
}

impl std::fmt::Debug for BatchNorm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchNorm")
            .field("gpu", &self.gpu)
            .field("channels", &self.channels)
            .field("options", &self.options)
            .field("mode", &self.mode)
            .field("num_batches_tracked", &self.num_batches_tracked)
            .finish_non_exhaustive()
    }
}

/// What a forward pass in training leaves for the backward pass.
#[derive(Clone, Debug)]
pub(crate) struct Last {
    pub(crate) x: Tensor,
    /// Whether there was a residual.
    pub(crate) residual: bool,
    /// What the activation cut, where there was a residual.
    pub(crate) mask: Option<wgpu::Buffer>,
    pub(crate) valid: Option<Valid>,
    /// How often `x` had been written over when it was read.
    x_writes: u64,
    /// Whether the statistics are those of several shards.
    synchronized: bool,
}

impl Last {
    pub(crate) fn new(x: &Tensor, extra: Extra<'_>, mask: Option<wgpu::Buffer>) -> Self {
        Self {
            x: x.clone(),
            residual: extra.residual.is_some(),
            mask,
            valid: extra.valid.cloned(),
            x_writes: x.writes(),
            synchronized: false,
        }
    }
}

impl BatchNorm {
    /// A new layer in training mode: γ = 1, β = 0, running mean 0, running variance 1.
    ///
    /// # Errors
    /// [`Error::ZeroChannels`], [`Error::InvalidParameter`] for options out of range,
    /// [`Error::Conflict`] for two that collide, [`Error::TooLarge`] or [`Error::OutOfMemory`] if
    /// the parameters do not fit.
    pub fn new(gpu: &Gpu, channels: usize, options: Options) -> Result<Self, Error> {
        options.validate()?;
        let shape = Shape::new(&[1, channels], crate::Layout::ChannelsFirst)?;
        // The largest buffer first: what does not fit is found before anything is filled.
        let saved_bytes = SAVED_ROWS * shape.bytes(DType::F32);
        let saved = gpu.vector_buffer("batch_norm.saved", saved_bytes)?;
        let constant = |name: &str, value: f32| {
            gpu.upload(
                &format!("batch_norm.{name}"),
                &vec![value; shape.channels()],
            )
        };
        Ok(Self {
            gamma: constant("gamma", 1.0)?,
            beta: constant("beta", 0.0)?,
            running_mean: constant("running_mean", 0.0)?,
            running_var: constant("running_var", 1.0)?,
            dgamma: constant("dgamma", 0.0)?,
            dbeta: constant("dbeta", 0.0)?,
            saved,
            gpu: gpu.clone(),
            options,
            channels,
            mode: Mode::default(),
            num_batches_tracked: 0,
            plans: VecDeque::new(),
            last: None,
            has_gradients: false,
        })
    }

    /// The GPU that the layer lives on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// How many channels the layer normalizes.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The options that the layer was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether [`BatchNorm::forward`] trains or evaluates.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// How many batches entered the running statistics.
    pub fn num_batches_tracked(&self) -> u64 {
        self.num_batches_tracked
    }

    /// Switches between training and evaluation.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// [`BatchNorm::forward_with`], with nothing beside `x`.
    ///
    /// # Errors
    /// As [`BatchNorm::forward_with`]. The layer is then as it was.
    pub fn forward(&mut self, x: &Tensor) -> Result<Tensor, Error> {
        self.forward_with(x, Extra::default())
    }

    /// Normalizes `x` as the mode says, scales and shifts it, adds the residual and activates it.
    ///
    /// Training takes the batch's statistics, over the positions that are valid, and moves the
    /// running ones towards them; with frozen statistics it takes the running ones and leaves them.
    /// Evaluation takes the running statistics, or the batch's where there are no running ones.
    ///
    /// In training the layer keeps `x` for the backward pass, without a copy: memory of the caller's
    /// ([`Tensor::from_buffer`]) must stay as it is until then.
    ///
    /// # Shapes
    /// `x` and the result: any rank from 2 on, either layout, with the layer's channels; any storage
    /// type, the result of the same.
    ///
    /// # Accuracy
    /// As [`Plan::bind_forward`] and [`Plan::bind_inference`].
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`], [`Error::LayoutMismatch`] or [`Error::DTypeMismatch`] names the
    /// tensor that is not as it should be. Where the batch's statistics are taken,
    /// [`Error::EmptyBatch`] and, unless the options allow it or there is a mask,
    /// [`Error::OneValuePerChannel`].
    /// [`Error::OtherDevice`], [`Error::DeviceLost`], and those of [`Plan::new`]. The layer is then
    /// as it was.
    pub fn forward_with(&mut self, x: &Tensor, extra: Extra<'_>) -> Result<Tensor, Error> {
        self.check_input(x, extra)?;
        let y = Tensor::zeros(&self.gpu, x.shape(), x.dtype())?;
        self.forward_into(x, extra, &y)?;
        Ok(y)
    }

    /// The same, with the output written over `x` and its clones: for evaluation, without a second
    /// tensor. After it there is no backward pass through this layer, nor through another that
    /// was given the same `x` before.
    ///
    /// # Errors
    /// As [`BatchNorm::forward_with`]; both the layer and `x` are then as they were.
    pub fn forward_in_place(&mut self, x: &Tensor, extra: Extra<'_>) -> Result<(), Error> {
        self.check_input(x, extra)?;
        self.forward_into(x, extra, x)
    }

    fn forward_into(&mut self, x: &Tensor, extra: Extra<'_>, y: &Tensor) -> Result<(), Error> {
        let training = self.mode == Mode::Train;
        let frozen = self.options.frozen_statistics;
        let by_running = !training && self.options.running_statistics;
        if by_running && x.shape().is_empty() {
            self.last = None;
            return Ok(());
        }
        let plan = self.plan(x)?;
        // Evaluation keeps nothing, and constants do not ask which positions count.
        let valid = extra.valid.filter(|_| !by_running && !frozen);
        let mask = match extra.residual {
            Some(_) if !by_running => self.mask(&plan)?,
            _ => None,
        };
        let mut buffers = self.with_running(self.forward_buffers(x, extra, y, mask.as_ref()));
        if let Some(valid) = valid {
            buffers = buffers.valid(valid.range());
        }
        let commands = if by_running {
            plan.bind_inference(&buffers)?
        } else {
            plan.bind_forward(&buffers.saved(self.saved.slice(..)))?
        };
        self.tell_batches(&plan)?;
        self.gpu.submit(|encoder| commands.record(encoder))?;
        if training && !frozen {
            self.count_batch(match valid {
                Some(valid) => valid.count(),
                None => x.shape().values_per_channel() as u64,
            });
        }
        let extra = Extra { valid, ..extra };
        self.last = training.then(|| Last::new(x, extra, mask));
        if x.is_same(y) {
            x.count_write();
        }
        Ok(())
    }

    /// A new buffer for what the activation cuts, if it cuts anything.
    pub(crate) fn mask(&self, plan: &Plan) -> Result<Option<wgpu::Buffer>, Error> {
        if self.options.activation == Activation::Identity {
            return Ok(None);
        }
        let bytes = plan.mask_bytes();
        self.gpu.vector_buffer("batch_norm.mask", bytes).map(Some)
    }

    /// Tells the plan how many batches came before, where that matters.
    pub(crate) fn tell_batches(&self, plan: &Plan) -> Result<(), Error> {
        let Options {
            momentum_mean,
            momentum_var,
            ..
        } = self.options;
        if [momentum_mean, momentum_var].contains(&Momentum::Cumulative) {
            plan.set_batches_tracked(self.num_batches_tracked)?;
        }
        Ok(())
    }

    /// Counts a batch with so many values of each channel. With fewer than two it has not entered the
    /// running statistics.
    pub(crate) fn count_batch(&mut self, values: u64) {
        if self.options.running_statistics && values >= 2 {
            self.num_batches_tracked = self.num_batches_tracked.saturating_add(1);
        }
    }

    /// What every forward pass binds.
    pub(crate) fn forward_buffers<'a>(
        &'a self,
        x: &'a Tensor,
        extra: Extra<'a>,
        y: &'a Tensor,
        mask: Option<&'a wgpu::Buffer>,
    ) -> ForwardBuffers<'a> {
        let mut buffers = ForwardBuffers::new(x.range(), y.range());
        if self.options.gamma != Parameter::Absent {
            buffers = buffers.gamma(self.gamma.slice(..));
        }
        if self.options.beta != Parameter::Absent {
            buffers = buffers.beta(self.beta.slice(..));
        }
        if let Some(residual) = extra.residual {
            buffers = buffers.residual(residual.range());
        }
        if let Some(mask) = mask {
            buffers = buffers.mask(mask.slice(..));
        }
        buffers
    }

    fn with_running<'a>(&'a self, buffers: ForwardBuffers<'a>) -> ForwardBuffers<'a> {
        match self.running() {
            Some([mean, var]) => buffers.running_mean(mean).running_var(var),
            None => buffers,
        }
    }

    /// The ranges of the running statistics, if there are any.
    pub(crate) fn running(&self) -> Option<[wgpu::BufferSlice<'_>; 2]> {
        let vectors = [self.running_mean.slice(..), self.running_var.slice(..)];
        self.options.running_statistics.then_some(vectors)
    }

    /// [`BatchNorm::backward_with`] all gradients; returns that of the input.
    ///
    /// # Errors
    /// As [`BatchNorm::backward_with`]. The layer is then as it was.
    pub fn backward(&mut self, dy: &Tensor) -> Result<Tensor, Error> {
        // What is wanted is there.
        let found = self.backward_with(dy, &Wanted::default())?;
        found.dx.ok_or(Error::NoForward)
    }

    /// Propagates the gradient `dy` of the loss with respect to the output of the last forward
    /// pass, which must have been in training, and returns the gradients with respect to what went
    /// into it, as far as they are wanted.
    ///
    /// The gradients of γ and β replace those of the pass before; see [`BatchNorm::gradients`].
    /// γ and β enter as they are now, so change them (by an optimizer's step, say) after the
    /// backward pass, not before.
    ///
    /// # Accuracy
    /// As [`Plan::bind_backward`].
    ///
    /// # Errors
    /// [`Error::NoForward`] if the last forward pass was not in training, [`Error::Overwritten`] if
    /// its input was written over since, [`Error::Conflict`] if it was a synchronized one; [`Error::ShapeMismatch`], [`Error::LayoutMismatch`] or
    /// [`Error::DTypeMismatch`] if `dy` is not like that pass's input; [`Error::OtherDevice`];
    /// [`Error::DeviceLost`]. The layer is then as it was.
    pub fn backward_with(&mut self, dy: &Tensor, wanted: &Wanted) -> Result<InputGradients, Error> {
        let last = self.last_for(dy, false)?;
        let dx = match self.needs_dx(&last, wanted) {
            true => Some(Tensor::zeros(&self.gpu, dy.shape(), dy.dtype())?),
            false => None,
        };
        self.backward_into(last, dy, wanted, dx)
    }

    /// The same, with the gradient of the input, if it is wanted, written over `dy` and its clones:
    /// without a second tensor. (If only that of the residual is wanted, behind an activation, `dy` is
    /// written over too.)
    ///
    /// # Errors
    /// As [`BatchNorm::backward_with`]; both the layer and `dy` are then as they were.
    pub fn backward_in_place(
        &mut self,
        dy: &Tensor,
        wanted: &Wanted,
    ) -> Result<InputGradients, Error> {
        let last = self.last_for(dy, false)?;
        let dx = self.needs_dx(&last, wanted).then(|| dy.clone());
        let writes = dx.is_some();
        let found = self.backward_into(last, dy, wanted, dx)?;
        if writes {
            dy.count_write();
        }
        Ok(found)
    }

    /// The last forward pass, if `dy` can be the gradient of its output.
    pub(crate) fn last_for(&self, dy: &Tensor, synchronized: bool) -> Result<Last, Error> {
        let last = self.last.clone().ok_or(Error::NoForward)?;
        self.check_like("dy", dy, &last.x)?;
        if last.x_writes != last.x.writes() {
            return Err(Error::Overwritten);
        }
        if last.synchronized != synchronized {
            let [first, second] = match synchronized {
                true => [
                    "a synchronized backward pass",
                    "a forward pass of one device",
                ],
                false => [
                    "a backward pass of one device",
                    "a synchronized forward pass",
                ],
            };
            return Err(Error::Conflict {
                first,
                second,
                reason: "the gradient flows through the statistics of all shards, or of none other",
            });
        }
        Ok(last)
    }

    /// The kernel that writes the gradient of the residual writes that of x too.
    fn needs_dx(&self, last: &Last, wanted: &Wanted) -> bool {
        wanted.x || (wanted.residual && last.mask.is_some())
    }

    fn backward_into(
        &mut self,
        last: Last,
        dy: &Tensor,
        wanted: &Wanted,
        dx: Option<Tensor>,
    ) -> Result<InputGradients, Error> {
        let plan = self.plan(&last.x)?;
        let in_place = dx.as_ref().is_some_and(|dx| dx.is_same(dy));
        let residual = self.residual_gradient(&last, dy, wanted.residual, in_place)?;
        let buffers = self.backward_buffers(&last, dy);
        let buffers = with_input_gradients(buffers, dy, dx.as_ref(), residual.as_ref());
        let (buffers, unwanted) = self.with_parameter_gradients(buffers, wanted);
        let commands = plan.bind_backward(&buffers)?;
        self.gpu.submit(|encoder| {
            clear(encoder, &unwanted);
            commands.record(encoder);
        })?;
        self.has_gradients = true;
        Ok(InputGradients {
            dx: dx.filter(|_| wanted.x),
            residual,
        })
    }

    /// Where the gradient of the residual goes, if it is wanted and there was one: without an
    /// activation it is `dy`, unless that is overwritten.
    pub(crate) fn residual_gradient(
        &self,
        last: &Last,
        dy: &Tensor,
        wanted: bool,
        in_place: bool,
    ) -> Result<Option<Tensor>, Error> {
        if !wanted || !last.residual {
            Ok(None)
        } else if last.mask.is_none() && !in_place {
            Ok(Some(dy.clone()))
        } else {
            Tensor::zeros(&self.gpu, dy.shape(), dy.dtype()).map(Some)
        }
    }

    /// What every backward pass binds, but for what it writes.
    pub(crate) fn backward_buffers<'a>(
        &'a self,
        last: &'a Last,
        dy: &'a Tensor,
    ) -> BackwardBuffers<'a> {
        let saved = self.saved.slice(..);
        let mut buffers = BackwardBuffers::new(last.x.range(), dy.range(), saved);
        if self.options.gamma != Parameter::Absent {
            buffers = buffers.gamma(self.gamma.slice(..));
        }
        if self.options.beta != Parameter::Absent {
            buffers = buffers.beta(self.beta.slice(..));
        }
        if let Some(mask) = &last.mask {
            buffers = buffers.mask(mask.slice(..));
        }
        if let Some(valid) = &last.valid {
            buffers = buffers.valid(valid.range());
        }
        buffers
    }

    /// Adds the gradients of γ and β, as far as they are wanted and learned; the others are to be
    /// cleared.
    pub(crate) fn with_parameter_gradients<'a>(
        &'a self,
        mut buffers: BackwardBuffers<'a>,
        wanted: &Wanted,
    ) -> (BackwardBuffers<'a>, Vec<&'a wgpu::Buffer>) {
        let mut unwanted = Vec::new();
        if wanted.gamma && self.options.gamma == Parameter::Learned {
            buffers = buffers.dgamma(self.dgamma.slice(..));
        } else {
            unwanted.push(&self.dgamma);
        }
        if wanted.beta && self.options.beta == Parameter::Learned {
            buffers = buffers.dbeta(self.dbeta.slice(..));
        } else {
            unwanted.push(&self.dbeta);
        }
        (buffers, unwanted)
    }

    /// Reads the gradients of γ and β of the last backward pass; zeros before the first, and for
    /// what is frozen, absent or was not wanted.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], or [`Error::Readback`] if the values cannot be read.
    pub async fn gradients(&self) -> Result<Gradients, Error> {
        let [gamma, beta] = self.read([&self.dgamma, &self.dbeta]).await?;
        Ok(Gradients { gamma, beta })
    }

    /// Reads what the layer has learned. What it does not have is as in a new layer.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], or [`Error::Readback`] if the values cannot be read.
    pub async fn state(&self) -> Result<State, Error> {
        let Self {
            gamma,
            beta,
            running_mean,
            running_var,
            ..
        } = self;
        let num_batches_tracked = self.num_batches_tracked;
        let vectors = [gamma, beta, running_mean, running_var];
        let [gamma, beta, running_mean, running_var] = self.read(vectors).await?;
        Ok(State {
            gamma,
            beta,
            running_mean,
            running_var,
            num_batches_tracked,
        })
    }

    /// Replaces all that the layer has learned. The last forward pass and the gradients stay, as
    /// they do when PyTorch loads a state. Without running statistics, those of the given state are
    /// left out.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] names the vector that does not have one value per channel,
    /// [`Error::Conflict`] a γ other than 1, or a β other than 0, that is absent; the layer is then
    /// as it was.
    pub fn set_state(&mut self, state: &State) -> Result<(), Error> {
        state.check(self.channels)?;
        state.check_absent(&self.options)?;
        let mut vectors = vec![(&self.gamma, &state.gamma), (&self.beta, &state.beta)];
        if self.options.running_statistics {
            vectors.push((&self.running_mean, &state.running_mean));
            vectors.push((&self.running_var, &state.running_var));
        }
        self.gpu.caught(|| {
            for (buffer, values) in vectors {
                let values = values.to_vec();
                let bytes = bytemuck::cast_slice(&values);
                self.gpu.queue().write_buffer(buffer, 0, bytes);
            }
        })?;
        self.gpu.check_alive()?;
        if self.options.running_statistics {
            self.num_batches_tracked = state.num_batches_tracked;
        }
        Ok(())
    }

    /// γ and β, each with its gradient, for an optimizer; none for what is not learned.
    pub(crate) fn parameters(&self) -> Result<[Option<ParameterBuffers<'_>>; 2], Error> {
        if !self.has_gradients {
            return Err(Error::NoBackward);
        }
        let learned = |how, buffers| (how == Parameter::Learned).then_some(buffers);
        Ok([
            learned(self.options.gamma, (&self.gamma, &self.dgamma)),
            learned(self.options.beta, (&self.beta, &self.dbeta)),
        ])
    }

    pub(crate) fn set_has_gradients(&mut self) {
        self.has_gradients = true;
    }

    /// What the next backward pass goes through.
    pub(crate) fn last(&self) -> Option<&Last> {
        self.last.as_ref()
    }

    pub(crate) fn set_synchronized(
        &mut self,
        x: &Tensor,
        extra: Extra<'_>,
        mask: Option<wgpu::Buffer>,
    ) {
        self.last = Some(Last {
            synchronized: true,
            ..Last::new(x, extra, mask)
        });
    }

    pub(crate) fn check_input(&self, x: &Tensor, extra: Extra<'_>) -> Result<(), Error> {
        check_channels("x", x.shape(), self.channels)?;
        x.check_gpu(&self.gpu, "x")?;
        if let Some(residual) = extra.residual {
            self.check_like("residual", residual, x)?;
        }
        if let Some(valid) = extra.valid {
            valid.check(&self.gpu, x.shape())?;
        }
        Ok(())
    }

    /// Fails unless a tensor is of this device, and of the shape, layout and storage type of `x`.
    fn check_like(&self, name: &'static str, tensor: &Tensor, x: &Tensor) -> Result<(), Error> {
        check_like(name, tensor.shape(), x.shape())?;
        if tensor.dtype() != x.dtype() {
            return Err(Error::DTypeMismatch {
                tensor: name,
                expected: x.dtype(),
                found: tensor.dtype(),
            });
        }
        tensor.check_gpu(&self.gpu, name)
    }

    /// The plan for tensors like one: one of the last few, or a new one.
    pub(crate) fn plan(&mut self, x: &Tensor) -> Result<Arc<Plan>, Error> {
        let known = self
            .plans
            .iter()
            .position(|plan| plan.shape() == x.shape() && plan.dtype() == x.dtype());
        let plan = match known.and_then(|index| self.plans.remove(index)) {
            Some(plan) => plan,
            None => {
                let plan = Plan::new(&self.gpu, x.shape(), x.dtype(), &self.options)?;
                Arc::new(plan)
            }
        };
        self.plans.push_front(Arc::clone(&plan));
        self.plans.truncate(PLANS_KEPT);
        Ok(plan)
    }

    /// γ's buffer.
    pub(crate) fn gamma(&self) -> &wgpu::Buffer {
        &self.gamma
    }

    /// Reads vectors, at once.
    async fn read<const N: usize>(
        &self,
        vectors: [&wgpu::Buffer; N],
    ) -> Result<[Array1<f32>; N], Error> {
        let ranges = vectors.map(|vector| vector.slice(..));
        let readback = self.gpu.read_back(&ranges, Polling::Waiting)?;
        let values: Vec<_> = readback
            .finish()
            .await?
            .into_iter()
            .map(Array1::from)
            .collect();
        values.try_into().map_err(|_| Error::Readback {
            message: "a range is missing".to_owned(),
        })
    }
}

/// Adds the gradients of what went into the forward pass; that of the residual only where it is not
/// `dy` itself.
pub(crate) fn with_input_gradients<'a>(
    mut buffers: BackwardBuffers<'a>,
    dy: &Tensor,
    dx: Option<&'a Tensor>,
    residual: Option<&'a Tensor>,
) -> BackwardBuffers<'a> {
    if let Some(dx) = dx {
        buffers = buffers.dx(dx.range());
    }
    if let Some(residual) = residual.filter(|residual| !residual.is_same(dy)) {
        buffers = buffers.residual_gradient(residual.range());
    }
    buffers
}

/// Sets gradients that are not wanted to 0.
pub(crate) fn clear(encoder: &mut wgpu::CommandEncoder, unwanted: &[&wgpu::Buffer]) {
    for gradient in unwanted {
        encoder.clear_buffer(gradient, 0, None);
    }
}

/// A parameter and its gradient.
type ParameterBuffers<'a> = (&'a wgpu::Buffer, &'a wgpu::Buffer);

/// Fails unless a tensor has `channels` channels.
pub(crate) fn check_channels(
    tensor: &'static str,
    shape: &Shape,
    channels: usize,
) -> Result<(), Error> {
    if shape.channels() == channels {
        return Ok(());
    }
    let mut expected = shape.dims().to_vec();
    expected[shape.channel_axis()] = channels;
    Err(Error::ShapeMismatch {
        tensor,
        expected,
        found: shape.dims().to_vec(),
    })
}

/// Fails unless a tensor has the dimensions and the layout of another.
pub(crate) fn check_like(
    tensor: &'static str,
    found: &Shape,
    expected: &Shape,
) -> Result<(), Error> {
    if found.dims() != expected.dims() {
        return Err(Error::ShapeMismatch {
            tensor,
            expected: expected.dims().to_vec(),
            found: found.dims().to_vec(),
        });
    }
    if found.layout() != expected.layout() {
        return Err(Error::LayoutMismatch {
            tensor,
            expected: expected.layout(),
            found: found.layout(),
        });
    }
    Ok(())
}

#[cfg(not(target_arch = "wasm32"))]
mod blocking {
    use super::*;

    impl BatchNorm {
        /// [`BatchNorm::gradients`], waiting.
        ///
        /// # Errors
        /// As [`BatchNorm::gradients`].
        pub fn gradients_blocking(&self) -> Result<Gradients, Error> {
            pollster::block_on(self.gradients())
        }

        /// [`BatchNorm::state`], waiting.
        ///
        /// # Errors
        /// As [`BatchNorm::state`].
        pub fn state_blocking(&self) -> Result<State, Error> {
            pollster::block_on(self.state())
        }
    }
}
