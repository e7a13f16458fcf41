//! The upper level: a batch-normalization layer that owns its parameters.

use std::collections::VecDeque;
use std::sync::Arc;

use ndarray::Array1;

use crate::kernels::statistics::SAVED_ROWS;
use crate::plan::{BackwardBuffers, ForwardBuffers, InferenceBuffers};
use crate::{Error, Gpu, Options, Plan, Shape, Tensor};

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

/// The gradients of a layer's parameters, one value per channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// `dγ = Σdy·x̂`.
    pub gamma: Array1<f32>,
    /// `dβ = Σdy`.
    pub beta: Array1<f32>,
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
#[derive(Debug)]
pub struct BatchNorm {
    gpu: Gpu,
    options: Options,
    channels: usize,
    mode: Mode,
    gamma: wgpu::Buffer,
    beta: wgpu::Buffer,
    running_mean: wgpu::Buffer,
    running_var: wgpu::Buffer,
    dgamma: wgpu::Buffer,
    dbeta: wgpu::Buffer,
    saved: wgpu::Buffer,
    num_batches_tracked: u64,
    /// Of the last shapes seen, the latest first.
    plans: VecDeque<Arc<Plan>>,
    /// The input of the last forward pass, if that was in training: `saved` belongs to it.
    last_input: Option<Tensor>,
    has_gradients: bool,
}

impl BatchNorm {
    /// A new layer in training mode: γ = 1, β = 0, running mean 0, running variance 1.
    ///
    /// # Errors
    /// [`Error::ZeroChannels`], [`Error::InvalidParameter`] for options out of range,
    /// [`Error::TooLarge`] or [`Error::OutOfMemory`] if the parameters do not fit.
    pub fn new(gpu: &Gpu, channels: usize, options: Options) -> Result<Self, Error> {
        options.validate()?;
        let shape = Shape::new(&[1, channels], crate::Layout::ChannelsFirst)?;
        // The largest buffer first: what does not fit is found before anything is filled.
        let saved = gpu.vector_buffer("batch_norm.saved", SAVED_ROWS * shape.bytes())?;
        let constant = |name: &str, value| {
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
            last_input: None,
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

    /// Normalizes `x`, as the mode says: in training by the batch's own statistics, with a step of
    /// the running ones; in evaluation by the running statistics.
    ///
    /// In training the layer keeps `x` for the backward pass, without a copy: memory of the caller's
    /// ([`Tensor::from_buffer`]) must stay as it is until then.
    ///
    /// # Shapes
    /// `x` and the result: any rank from 2 on, either layout, with the layer's channels.
    ///
    /// # Accuracy
    /// As [`Plan::bind_forward`] and [`Plan::bind_inference`].
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for other channels, [`Error::EmptyBatch`] or
    /// [`Error::OneValuePerChannel`] in training, [`Error::OtherDevice`], [`Error::DeviceLost`], and
    /// those of [`Plan::new`]. The layer is then as it was.
    pub fn forward(&mut self, x: &Tensor) -> Result<Tensor, Error> {
        match self.mode {
            Mode::Train => self.forward_training(x),
            Mode::Eval => self.forward_inference(x),
        }
    }

    fn forward_training(&mut self, x: &Tensor) -> Result<Tensor, Error> {
        self.check_input("x", x)?;
        x.shape().check_trainable()?;
        let plan = self.plan(x.shape())?;
        let y = Tensor::zeros(&self.gpu, x.shape())?;
        let commands = plan.bind_forward(&ForwardBuffers {
            x: x.range(),
            gamma: self.gamma.slice(..),
            beta: self.beta.slice(..),
            y: y.range(),
            running_mean: self.running_mean.slice(..),
            running_var: self.running_var.slice(..),
            saved: self.saved.slice(..),
        })?;
        self.gpu.submit(|encoder| commands.record(encoder))?;
        self.num_batches_tracked = self.num_batches_tracked.saturating_add(1);
        self.last_input = Some(x.clone());
        Ok(y)
    }

    fn forward_inference(&mut self, x: &Tensor) -> Result<Tensor, Error> {
        self.check_input("x", x)?;
        let y = Tensor::zeros(&self.gpu, x.shape())?;
        if x.shape().is_empty() {
            self.last_input = None;
            return Ok(y);
        }
        let plan = self.plan(x.shape())?;
        let commands = plan.bind_inference(&InferenceBuffers {
            x: x.range(),
            gamma: self.gamma.slice(..),
            beta: self.beta.slice(..),
            running_mean: self.running_mean.slice(..),
            running_var: self.running_var.slice(..),
            y: y.range(),
        })?;
        self.gpu.submit(|encoder| commands.record(encoder))?;
        self.last_input = None;
        Ok(y)
    }

    /// Propagates the gradient `dy` of the loss with respect to the output of the last forward
    /// pass, which must have been in training, and returns the gradient with respect to its input.
    ///
    /// The gradients of γ and β replace those of the pass before; see [`BatchNorm::gradients`].
    /// γ enters as it is now, so change it (by an optimizer's step, say) after the backward pass,
    /// not before.
    ///
    /// # Accuracy
    /// As [`Plan::bind_backward`].
    ///
    /// # Errors
    /// [`Error::NoForward`] if the last forward pass was not in training; [`Error::ShapeMismatch`] or
    /// [`Error::LayoutMismatch`] if `dy` is not like that pass's input; [`Error::OtherDevice`];
    /// [`Error::DeviceLost`].
    /// The layer is then as it was.
    pub fn backward(&mut self, dy: &Tensor) -> Result<Tensor, Error> {
        let x = self.last_input.clone().ok_or(Error::NoForward)?;
        check_like("dy", dy.shape(), x.shape())?;
        dy.check_gpu(&self.gpu, "dy")?;
        let plan = self.plan(x.shape())?;
        let dx = Tensor::zeros(&self.gpu, x.shape())?;
        let commands = plan.bind_backward(&BackwardBuffers {
            x: x.range(),
            dy: dy.range(),
            gamma: self.gamma.slice(..),
            saved: self.saved.slice(..),
            dx: dx.range(),
            dgamma: self.dgamma.slice(..),
            dbeta: self.dbeta.slice(..),
        })?;
        self.gpu.submit(|encoder| commands.record(encoder))?;
        self.has_gradients = true;
        Ok(dx)
    }

    /// Reads the gradients of γ and β of the last backward pass; zeros before the first.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], or [`Error::Readback`] if the values cannot be read.
    pub async fn gradients(&self) -> Result<Gradients, Error> {
        Ok(Gradients {
            gamma: self.read(&self.dgamma).await?,
            beta: self.read(&self.dbeta).await?,
        })
    }

    /// Reads what the layer has learned.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], or [`Error::Readback`] if the values cannot be read.
    pub async fn state(&self) -> Result<State, Error> {
        Ok(State {
            gamma: self.read(&self.gamma).await?,
            beta: self.read(&self.beta).await?,
            running_mean: self.read(&self.running_mean).await?,
            running_var: self.read(&self.running_var).await?,
            num_batches_tracked: self.num_batches_tracked,
        })
    }

    /// Replaces all that the layer has learned. The last forward pass and the gradients stay, as
    /// they do when PyTorch loads a state.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] names the vector that does not have one value per channel; the
    /// layer is then as it was.
    pub fn set_state(&mut self, state: &State) -> Result<(), Error> {
        state.check(self.channels)?;
        self.gpu.caught(|| {
            for (buffer, values) in [
                (&self.gamma, &state.gamma),
                (&self.beta, &state.beta),
                (&self.running_mean, &state.running_mean),
                (&self.running_var, &state.running_var),
            ] {
                let values = values.to_vec();
                let bytes = bytemuck::cast_slice(&values);
                self.gpu.queue().write_buffer(buffer, 0, bytes);
            }
        })?;
        self.gpu.check_alive()?;
        self.num_batches_tracked = state.num_batches_tracked;
        Ok(())
    }

    /// γ and β, each with its gradient, for an optimizer.
    pub(crate) fn parameters(&self) -> Result<[(&wgpu::Buffer, &wgpu::Buffer); 2], Error> {
        if self.has_gradients {
            Ok([(&self.gamma, &self.dgamma), (&self.beta, &self.dbeta)])
        } else {
            Err(Error::NoBackward)
        }
    }

    /// The input that the next backward pass goes through.
    pub(crate) fn last_input(&self) -> Option<&Tensor> {
        self.last_input.as_ref()
    }

    fn check_input(&self, name: &'static str, x: &Tensor) -> Result<(), Error> {
        check_channels(name, x.shape(), self.channels)?;
        x.check_gpu(&self.gpu, name)
    }

    /// The plan for a shape: one of the last few, or a new one.
    fn plan(&mut self, shape: &Shape) -> Result<Arc<Plan>, Error> {
        let known = self.plans.iter().position(|plan| plan.shape() == shape);
        let plan = match known.and_then(|index| self.plans.remove(index)) {
            Some(plan) => plan,
            None => Arc::new(Plan::new(&self.gpu, shape, &self.options)?),
        };
        self.plans.push_front(Arc::clone(&plan));
        self.plans.truncate(PLANS_KEPT);
        Ok(plan)
    }

    async fn read(&self, buffer: &wgpu::Buffer) -> Result<Array1<f32>, Error> {
        Ok(Array1::from(self.gpu.download(buffer.slice(..)).await?))
    }
}

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
    let axis = match shape.layout() {
        crate::Layout::ChannelsFirst => 1,
        crate::Layout::ChannelsLast => expected.len() - 1,
    };
    expected[axis] = channels;
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
