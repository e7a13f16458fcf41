//! A batch-normalization layer on the CPU.

use ndarray::{Array1, ArrayBase, ArrayD, Data, Dimension};

use super::collect::{self, Source};
use super::{Affine, Element, ParameterGradients, Statistics, Valid, Values};
use super::{backward, moments, normalize, update_running};
use crate::layer::check_channels;
use crate::{
    Error, Gradients, Layout, Mode, OneValue, Options, Parameter, Shape, State, Stored, Wanted,
};

/// A batch-normalization layer on the CPU: the twin of [`crate::BatchNorm`], on arrays of f32, f16
/// or bf16.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    options: Options,
    mode: Mode,
    state: State,
    /// Of the last forward pass, if that was in training.
    last: Option<Box<Last>>,
    last_gradients: Option<ParameterGradients>,
}

/// What a forward pass leaves for the backward pass.
#[derive(Clone, Debug)]
struct Last {
    x: ArrayD<f32>,
    residual: Option<ArrayD<f32>>,
    valid: Option<ArrayD<bool>>,
    layout: Layout,
    statistics: Statistics,
}

/// What a forward pass takes beside its input. The default is nothing.
#[derive(Clone, Copy, Debug)]
pub struct Extra<'a, T> {
    /// What is added before the activation. It is like the input.
    pub residual: Option<&'a ArrayD<T>>,
    /// Which positions count in the batch's statistics, as in [`super::moments`]. All positions are
    /// normalized. Where running statistics are used, it has no part.
    pub valid: Option<&'a ArrayD<bool>>,
}

impl<T> Default for Extra<'_, T> {
    fn default() -> Self {
        Self {
            residual: None,
            valid: None,
        }
    }
}

/// The gradients of what went into a forward pass, as far as they were wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct InputGradients<T> {
    /// That of the input.
    pub dx: Option<ArrayD<T>>,
    /// That of the residual, if there was one.
    pub residual: Option<ArrayD<T>>,
}

impl BatchNorm {
    /// A new layer in training mode: γ = 1, β = 0, running mean 0, running variance 1.
    ///
    /// # Errors
    /// [`Error::ZeroChannels`], [`Error::InvalidParameter`] for options out of range,
    /// [`Error::Conflict`] for two that collide.
    pub fn new(channels: usize, options: Options) -> Result<Self, Error> {
        options.validate()?;
        Shape::new(&[1, channels], Layout::ChannelsFirst)?;
        Ok(Self {
            options,
            mode: Mode::default(),
            state: State::new(channels),
            last: None,
            last_gradients: None,
        })
    }

    /// How many channels the layer normalizes.
    pub fn channels(&self) -> usize {
        self.state.gamma.len()
    }

    /// The options that the layer was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether [`BatchNorm::forward`] trains or evaluates.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Switches between training and evaluation.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// What the layer has learned. Without running statistics, these are those of a new layer.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Replaces all that the layer has learned. Without running statistics, those of the given
    /// state are left out.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] names the vector that does not have one value per channel,
    /// [`Error::Conflict`] a γ other than 1, or a β other than 0, that is absent.
    pub fn set_state(&mut self, state: &State) -> Result<(), Error> {
        state.check(self.channels())?;
        state.check_absent(&self.options)?;
        self.state = match self.options.running_statistics {
            true => state.clone(),
            false => State {
                gamma: state.gamma.clone(),
                beta: state.beta.clone(),
                ..State::new(self.channels())
            },
        };
        Ok(())
    }

    /// [`BatchNorm::forward_with`], with nothing beside `x`.
    ///
    /// # Errors
    /// As [`BatchNorm::forward_with`]; the layer is then as it was.
    pub fn forward<T: Stored, S: Data<Elem = T>, D: Dimension>(
        &mut self,
        x: &ArrayBase<S, D>,
        layout: Layout,
    ) -> Result<ArrayD<T>, Error> {
        self.forward_with(x, layout, Extra::default())
    }

    /// Normalizes `x` as the mode says, scales and shifts it, adds the residual and activates it.
    ///
    /// Training takes the batch's statistics, over the positions that are valid, and moves the
    /// running ones towards them; with frozen statistics it takes the running ones and leaves them.
    /// Evaluation takes the running statistics, or the batch's where there are no running ones.
    ///
    /// # Errors
    /// As [`crate::BatchNorm::forward_with`]: where the batch's statistics are taken,
    /// [`Error::EmptyBatch`] and, unless the options allow it or there is a mask,
    /// [`Error::OneValuePerChannel`]; [`Error::ShapeMismatch`] names what does not have the shape
    /// that it should. The layer is then as it was.
    pub fn forward_with<T: Stored, S: Data<Elem = T>, D: Dimension>(
        &mut self,
        x: &ArrayBase<S, D>,
        layout: Layout,
        extra: Extra<'_, T>,
    ) -> Result<ArrayD<T>, Error> {
        let shape = Shape::new(x.shape(), layout)?;
        check_channels("x", &shape, self.channels())?;
        Valid::new(extra.valid, &shape)?;
        let of_batch = match self.mode {
            Mode::Train => !self.options.frozen_statistics,
            Mode::Eval => !self.options.running_statistics,
        };
        if of_batch && extra.valid.is_some() {
            self.options.check_masked()?;
        }
        let statistics = match of_batch {
            true => self.batch_statistics(x, &shape, extra.valid)?,
            false => Statistics::constant(
                self.state.running_mean.mapv(f64::from),
                self.state.running_var.mapv(f64::from),
            ),
        };
        let affine = Affine::new(&self.state, &self.options);
        let y = normalize(x, layout, &statistics, &affine, extra.residual)?;
        let last = match self.mode {
            Mode::Train => Some(Box::new(Last {
                x: kept(x, layout)?,
                residual: extra
                    .residual
                    .map(|residual| kept(residual, layout))
                    .transpose()?,
                valid: extra.valid.filter(|_| of_batch).cloned(),
                layout,
                statistics: statistics.clone(),
            })),
            Mode::Eval => None,
        };
        // In evaluation only a layer without running statistics takes the batch's.
        if of_batch && self.options.running_statistics {
            let State {
                running_mean,
                running_var,
                num_batches_tracked: batches,
                ..
            } = &mut self.state;
            let options = &self.options;
            update_running(running_mean, running_var, &statistics, options, *batches)?;
            // What did not enter does not count.
            *batches = batches.saturating_add(u64::from(statistics.count >= 2.0));
        }
        self.last = last;
        Ok(y)
    }

    /// The statistics of a batch, if it has enough values.
    fn batch_statistics<T: Element, S: Data<Elem = T>, D: Dimension>(
        &self,
        x: &ArrayBase<S, D>,
        shape: &Shape,
        valid: Option<&ArrayD<bool>>,
    ) -> Result<Statistics, Error> {
        let one_may_do = self.options.one_value == OneValue::GiveBeta || valid.is_some();
        match shape.check_trainable() {
            Err(Error::OneValuePerChannel { .. }) if one_may_do => {}
            other => other?,
        }
        Ok(moments(x, shape.layout(), valid)?.statistics())
    }

    /// [`BatchNorm::backward_with`] all gradients; returns that of the input.
    ///
    /// # Errors
    /// As [`BatchNorm::backward_with`]; the layer is then as it was.
    pub fn backward<T: Stored, S: Data<Elem = T>, D: Dimension>(
        &mut self,
        dy: &ArrayBase<S, D>,
    ) -> Result<ArrayD<T>, Error> {
        // What is wanted is there.
        let found = self.backward_with(dy, &Wanted::default())?;
        found.dx.ok_or(Error::NoForward)
    }

    /// Propagates the gradient `dy` of the loss with respect to the output of the last forward
    /// pass, which must have been in training, and returns the gradients with respect to what went
    /// into it, as far as they are wanted; those of the parameters [`BatchNorm::gradients`] tells.
    /// γ and β enter as they are now.
    ///
    /// # Errors
    /// As [`crate::BatchNorm::backward_with`]; the layer is then as it was.
    pub fn backward_with<T: Stored, S: Data<Elem = T>, D: Dimension>(
        &mut self,
        dy: &ArrayBase<S, D>,
        wanted: &Wanted,
    ) -> Result<InputGradients<T>, Error> {
        let Last {
            x,
            residual,
            valid,
            layout,
            statistics,
        } = self.last.as_deref().ok_or(Error::NoForward)?;
        let learned = |parameter| parameter == Parameter::Learned;
        let wanted = Wanted {
            gamma: wanted.gamma && learned(self.options.gamma),
            beta: wanted.beta && learned(self.options.beta),
            ..*wanted
        };
        let affine = Affine::new(&self.state, &self.options);
        let (residual, valid) = (residual.as_ref(), valid.as_ref());
        let (found, parameters) = backward(
            x, dy, *layout, statistics, &affine, residual, valid, &wanted,
        )?;
        self.last_gradients = Some(parameters);
        Ok(found)
    }

    /// The gradients of γ and β of the last backward pass; zeros before the first, and for what is
    /// frozen, absent or was not wanted.
    pub fn gradients(&self) -> Gradients {
        match &self.last_gradients {
            Some(found) => Gradients {
                gamma: found.gamma.mapv(|value| value as f32),
                beta: found.beta.mapv(|value| value as f32),
            },
            None => Gradients {
                gamma: Array1::zeros(self.channels()),
                beta: Array1::zeros(self.channels()),
            },
        }
    }

    pub(super) fn has_gradients(&self) -> bool {
        self.last_gradients.is_some()
    }

    pub(super) fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

/// A copy in f32, which holds all that a tensor may hold.
fn kept<T: Stored, S: Data<Elem = T>, D: Dimension>(
    array: &ArrayBase<S, D>,
    layout: Layout,
) -> Result<ArrayD<f32>, Error> {
    let array = Values::new(array, layout)?;
    array.like(collect::in_order(
        array.values.len(),
        &Converted(&array.values),
    ))
}

/// The same values in f32.
struct Converted<'a, T>(&'a [T]);

impl<T: Stored> Source for Converted<'_, T> {
    type Value = f32;

    #[inline(always)]
    fn fill(&self, index: usize, out: &mut [f32]) {
        for (out, value) in out.iter_mut().zip(&self.0[index..]) {
            *out = value.to_f64() as f32;
        }
    }
}
