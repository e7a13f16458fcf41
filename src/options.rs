//! The options of a batch normalization, shared by both levels of the crate and the CPU path.

use crate::{Activation, Error, Tuning};

/// Which variance of a batch enters the running variance.
///
/// Normalization itself always uses the population variance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunningVariance {
    /// `Σ(x − mean)² / (M − 1)`: PyTorch's, and the default.
    #[default]
    Unbiased,
    /// `Σ(x − mean)² / M`: that of ONNX, Keras and burn.
    Population,
}

/// The weight of the new batch in a running statistic: `running ← (1 − m)·running + m·batch`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Momentum {
    /// `m`, in 0 … 1: PyTorch's and burn's momentum. The default is 0.1.
    OfNew(f64),
    /// `1 − m`, in 0 … 1: the momentum of Keras, Flax and ONNX, which weighs the old value.
    OfOld(f64),
    /// `m = 1/n` for the batch number `n`, the first being 1: the plain average of all batches.
    /// PyTorch's `momentum=None`.
    Cumulative,
}

impl Default for Momentum {
    fn default() -> Self {
        Self::OfNew(0.1)
    }
}

impl From<f64> for Momentum {
    /// As PyTorch takes it: [`Momentum::OfNew`].
    fn from(m: f64) -> Self {
        Self::OfNew(m)
    }
}

impl Momentum {
    /// The weight of the batch that comes after `batches` others.
    pub(crate) fn weight(self, batches: u64) -> f64 {
        match self {
            Self::OfNew(m) => m,
            Self::OfOld(m) => 1.0 - m,
            Self::Cumulative => 1.0 / (batches as f64 + 1.0),
        }
    }

    fn validate(self, name: &'static str) -> Result<(), Error> {
        match self {
            Self::OfNew(m) | Self::OfOld(m) => fraction(name, m),
            Self::Cumulative => Ok(()),
        }
    }
}

/// What becomes of γ or β.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parameter {
    /// It is learned: it has a gradient, and an optimizer changes it.
    #[default]
    Learned,
    /// It is there, but stays as it is: it has no gradient.
    Frozen,
    /// It is not there: γ counts as 1, β as 0.
    Absent,
}

/// What training does with a batch that has one value per channel, whose variance is always 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OneValue {
    /// It is refused with [`Error::OneValuePerChannel`], as in PyTorch.
    #[default]
    Refuse,
    /// `y` is β (and what is fused with it), the running statistics stay as they are.
    GiveBeta,
}

/// The options of a batch normalization. The defaults are PyTorch's.
///
/// ```
/// use wgpu_batchnorm::{Activation, Error, Momentum, Options, Parameter, RunningVariance};
///
/// let keras = Options::default()
///     .eps(1e-3)
///     .momentum(Momentum::OfOld(0.99))
///     .running_variance(RunningVariance::Population);
/// assert!(keras.validate().is_ok());
///
/// // As it stands in most networks: followed by a ReLU, which is fused.
/// let usual = Options::default().activation(Activation::Relu);
/// // For the layer before a softmax that has its own bias.
/// let no_shift = Options::default().beta(Parameter::Absent);
///
/// assert!(Options::default().eps(-1.0).validate().is_err());
/// // Frozen statistics are the running ones: there must be some.
/// let torn = Options::default().frozen_statistics(true).running_statistics(false);
/// assert!(matches!(torn.validate(), Err(Error::Conflict { .. })));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Options {
    /// See [`Options::eps`].
    pub eps: f64,
    /// See [`Options::momentum_mean`].
    pub momentum_mean: Momentum,
    /// See [`Options::momentum_var`].
    pub momentum_var: Momentum,
    /// See [`Options::running_variance`].
    pub running_variance: RunningVariance,
    /// See [`Options::running_statistics`].
    pub running_statistics: bool,
    /// See [`Options::frozen_statistics`].
    pub frozen_statistics: bool,
    /// See [`Options::one_value`].
    pub one_value: OneValue,
    /// See [`Options::gamma`].
    pub gamma: Parameter,
    /// See [`Options::beta`].
    pub beta: Parameter,
    /// See [`Options::activation`].
    pub activation: Activation,
    /// See [`Options::tuning`].
    pub tuning: Option<Tuning>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            eps: 1e-5,
            momentum_mean: Momentum::default(),
            momentum_var: Momentum::default(),
            running_variance: RunningVariance::default(),
            running_statistics: true,
            frozen_statistics: false,
            one_value: OneValue::default(),
            gamma: Parameter::default(),
            beta: Parameter::default(),
            activation: Activation::default(),
            tuning: None,
        }
    }
}

impl Options {
    /// What is added to a variance before its square root is taken, in units of `x²`;
    /// finite and not negative, and no smaller than f32 can hold (1.2e-38) unless 0. Default: 1e-5.
    pub fn eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }

    /// What a batch weighs in the running statistics. Default: 0.1 for the new batch.
    ///
    /// A plain number is PyTorch's convention, where it weighs the new batch. That of ONNX, Keras
    /// and Flax weighs the old value: [`Momentum::OfOld`].
    pub fn momentum(self, momentum: impl Into<Momentum>) -> Self {
        let momentum = momentum.into();
        self.momentum_mean(momentum).momentum_var(momentum)
    }

    /// What a batch weighs in the running mean alone.
    pub fn momentum_mean(mut self, momentum: impl Into<Momentum>) -> Self {
        self.momentum_mean = momentum.into();
        self
    }

    /// What a batch weighs in the running variance alone.
    pub fn momentum_var(mut self, momentum: impl Into<Momentum>) -> Self {
        self.momentum_var = momentum.into();
        self
    }

    /// Which variance enters the running variance. Default: the unbiased one.
    pub fn running_variance(mut self, running_variance: RunningVariance) -> Self {
        self.running_variance = running_variance;
        self
    }

    /// Whether there are running statistics. Default: true. Without, evaluation normalizes by the
    /// batch's own statistics, as PyTorch's `track_running_stats=False`.
    pub fn running_statistics(mut self, running_statistics: bool) -> Self {
        self.running_statistics = running_statistics;
        self
    }

    /// Whether training too normalizes by the running statistics, which then stay as they are, and
    /// takes gradients through them as constants: for fine-tuning. Default: false.
    pub fn frozen_statistics(mut self, frozen_statistics: bool) -> Self {
        self.frozen_statistics = frozen_statistics;
        self
    }

    /// What training does with one value per channel. Default: refuse it.
    pub fn one_value(mut self, one_value: OneValue) -> Self {
        self.one_value = one_value;
        self
    }

    /// Whether γ is learned (the default), frozen or absent.
    pub fn gamma(mut self, gamma: Parameter) -> Self {
        self.gamma = gamma;
        self
    }

    /// Whether β is learned (the default), frozen or absent.
    pub fn beta(mut self, beta: Parameter) -> Self {
        self.beta = beta;
        self
    }

    /// The activation that is fused behind normalization. Default: none.
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// How work is divided on the GPU, in place of what is chosen for the kind of device.
    pub fn tuning(mut self, tuning: Tuning) -> Self {
        self.tuning = Some(tuning);
        self
    }

    /// Fails where a number is not finite or out of its range, or two options collide.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] names the parameter, its value and what it should be,
    /// [`Error::Conflict`] the two options.
    pub fn validate(&self) -> Result<(), Error> {
        not_negative("eps", self.eps)?;
        if self.eps > 0.0 && self.eps < f64::from(f32::MIN_POSITIVE) {
            return Err(Error::InvalidParameter {
                name: "eps",
                expected: "0 or at least 1.2e-38, the smallest normal f32",
                value: self.eps,
            });
        }
        self.momentum_mean.validate("momentum_mean")?;
        self.momentum_var.validate("momentum_var")?;
        self.activation.validate()?;
        if self.frozen_statistics && !self.running_statistics {
            return Err(Error::Conflict {
                first: "frozen_statistics(true)",
                second: "running_statistics(false)",
                reason: "the running statistics are what is frozen",
            });
        }
        if self.one_value == OneValue::GiveBeta && self.eps == 0.0 {
            return Err(Error::Conflict {
                first: "one_value(OneValue::GiveBeta)",
                second: "eps(0.0)",
                reason: "the variance of one value is 0, so eps is all there is to divide by",
            });
        }
        self.tuning.as_ref().map_or(Ok(()), Tuning::validate)
    }
}

impl Options {
    /// Fails where a batch of which only some positions count could not be normalized: it may turn out
    /// that one counts.
    pub(crate) fn check_masked(&self) -> Result<(), Error> {
        if self.eps > 0.0 {
            return Ok(());
        }
        Err(Error::Conflict {
            first: "valid",
            second: "eps(0.0)",
            reason: "where one position counts the variance is 0, so eps is all there is to divide by",
        })
    }
}

impl RunningVariance {
    /// What is taken off the number of values before the sum of squares is divided by it.
    pub(crate) fn degrees_lost(self) -> f64 {
        match self {
            Self::Unbiased => 1.0,
            Self::Population => 0.0,
        }
    }
}

/// Fails unless `value` is finite and at least 0, also once it is rounded to f32.
pub(crate) fn not_negative(name: &'static str, value: f64) -> Result<(), Error> {
    if (value as f32).is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::InvalidParameter {
        name,
        expected: "at least 0 and finite in f32",
        value,
    })
}

/// Fails unless `value` lies in 0 … 1.
pub(crate) fn fraction(name: &'static str, value: f64) -> Result<(), Error> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::InvalidParameter {
        name,
        expected: "between 0 and 1",
        value,
    })
}
