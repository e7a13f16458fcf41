//! A batch-normalization layer on the CPU.

use ndarray::{ArrayBase, ArrayD, Data, Dimension};

use super::{ParameterGradients, Statistics};
use super::{gradients, input_gradient, normalize, statistics, update_running};
use crate::layer::{check_channels, check_like};
use crate::{Error, Gradients, Layout, Mode, Options, Shape, State};

/// A batch-normalization layer on the CPU: the twin of [`crate::BatchNorm`], on arrays of f32.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    options: Options,
    mode: Mode,
    state: State,
    /// The input of the last forward pass, if that was in training, with its statistics.
    last: Option<(ArrayD<f32>, Layout, Statistics)>,
    last_gradients: Option<ParameterGradients>,
}

impl BatchNorm {
    /// A new layer in training mode: γ = 1, β = 0, running mean 0, running variance 1.
    ///
    /// # Errors
    /// [`Error::ZeroChannels`], [`Error::InvalidParameter`] for options out of range.
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

    /// What the layer has learned.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Replaces all that the layer has learned.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] names the vector that does not have one value per channel.
    pub fn set_state(&mut self, state: &State) -> Result<(), Error> {
        state.check(self.channels())?;
        self.state = state.clone();
        Ok(())
    }

    /// Normalizes `x`, as the mode says.
    ///
    /// # Errors
    /// As [`crate::BatchNorm::forward`]; the layer is then as it was.
    pub fn forward<S: Data<Elem = f32>, D: Dimension>(
        &mut self,
        x: &ArrayBase<S, D>,
        layout: Layout,
    ) -> Result<ArrayD<f32>, Error> {
        let shape = Shape::new(x.shape(), layout)?;
        check_channels("x", &shape, self.channels())?;
        let statistics = match self.mode {
            Mode::Train => statistics(x, layout)?,
            Mode::Eval => Statistics {
                mean: self.state.running_mean.mapv(f64::from),
                var: self.state.running_var.mapv(f64::from),
            },
        };
        let State { gamma, beta, .. } = &self.state;
        let y = normalize(x, layout, &statistics, self.options.eps, gamma, beta)?;
        if self.mode == Mode::Train {
            update_running(
                &mut self.state.running_mean,
                &mut self.state.running_var,
                &statistics,
                shape.values_per_channel(),
                &self.options,
            )?;
            let count = &mut self.state.num_batches_tracked;
            *count = count.saturating_add(1);
        }
        self.last = match self.mode {
            Mode::Train => Some((x.to_owned().into_dyn(), layout, statistics)),
            Mode::Eval => None,
        };
        Ok(y)
    }

    /// Propagates the gradient `dy` of the loss with respect to the output of the last forward
    /// pass, which must have been in training, and returns the gradient with respect to its input.
    ///
    /// # Errors
    /// As [`crate::BatchNorm::backward`]; the layer is then as it was.
    pub fn backward<S: Data<Elem = f32>, D: Dimension>(
        &mut self,
        dy: &ArrayBase<S, D>,
    ) -> Result<ArrayD<f32>, Error> {
        let (x, layout, statistics) = self.last.as_ref().ok_or(Error::NoForward)?;
        let shape = Shape::new(x.shape(), *layout)?;
        check_like("dy", &Shape::new(dy.shape(), *layout)?, &shape)?;
        let eps = self.options.eps;
        let found = gradients(x, dy, *layout, statistics, eps)?;
        let gamma = &self.state.gamma;
        let dx = input_gradient(x, dy, *layout, statistics, eps, gamma, &found)?;
        self.last_gradients = Some(found);
        Ok(dx)
    }

    /// The gradients of γ and β of the last backward pass; zeros before the first.
    pub fn gradients(&self) -> Gradients {
        match &self.last_gradients {
            Some(found) => Gradients {
                gamma: found.gamma.mapv(|value| value as f32),
                beta: found.beta.mapv(|value| value as f32),
            },
            None => Gradients {
                gamma: ndarray::Array1::zeros(self.channels()),
                beta: ndarray::Array1::zeros(self.channels()),
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
