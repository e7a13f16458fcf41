//! The options of a batch normalization, shared by both levels of the crate and the CPU path.

use crate::{Error, Tuning};

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

/// The options of a batch normalization. The defaults are PyTorch's.
///
/// ```
/// use wgpu_batchnorm::{Options, RunningVariance};
///
/// let keras = Options::default()
///     .eps(1e-3)
///     .momentum(0.01) // Keras calls this 0.99
///     .running_variance(RunningVariance::Population);
/// assert!(keras.validate().is_ok());
/// assert!(Options::default().eps(-1.0).validate().is_err());
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Options {
    /// See [`Options::eps`].
    pub eps: f64,
    /// See [`Options::momentum_mean`].
    pub momentum_mean: f64,
    /// See [`Options::momentum_var`].
    pub momentum_var: f64,
    /// See [`Options::running_variance`].
    pub running_variance: RunningVariance,
    /// See [`Options::tuning`].
    pub tuning: Option<Tuning>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            eps: 1e-5,
            momentum_mean: 0.1,
            momentum_var: 0.1,
            running_variance: RunningVariance::default(),
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

    /// The weight `m` of the new batch in the running statistics,
    /// `running ← (1 − m)·running + m·batch`, in 0 … 1. Default: 0.1.
    ///
    /// This is PyTorch's convention. ONNX and Keras weigh the old value: their momentum is `1 − m`.
    pub fn momentum(mut self, momentum: f64) -> Self {
        self.momentum_mean = momentum;
        self.momentum_var = momentum;
        self
    }

    /// The weight of the new batch in the running mean alone.
    pub fn momentum_mean(mut self, momentum: f64) -> Self {
        self.momentum_mean = momentum;
        self
    }

    /// The weight of the new batch in the running variance alone.
    pub fn momentum_var(mut self, momentum: f64) -> Self {
        self.momentum_var = momentum;
        self
    }

    /// Which variance enters the running variance. Default: the unbiased one.
    pub fn running_variance(mut self, running_variance: RunningVariance) -> Self {
        self.running_variance = running_variance;
        self
    }

    /// How work is divided on the GPU, in place of what is chosen for the kind of device.
    pub fn tuning(mut self, tuning: Tuning) -> Self {
        self.tuning = Some(tuning);
        self
    }

    /// Fails where a number is not finite or out of its range.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] names the parameter, its value and what it should be.
    pub fn validate(&self) -> Result<(), Error> {
        not_negative("eps", self.eps)?;
        if self.eps > 0.0 && self.eps < f64::from(f32::MIN_POSITIVE) {
            return Err(Error::InvalidParameter {
                name: "eps",
                expected: "0 or at least 1.2e-38, the smallest normal f32",
                value: self.eps,
            });
        }
        fraction("momentum_mean", self.momentum_mean)?;
        fraction("momentum_var", self.momentum_var)?;
        self.tuning.as_ref().map_or(Ok(()), Tuning::validate)
    }

    /// What the population variance of `values_per_channel` values is multiplied by before it
    /// enters the running variance.
    pub(crate) fn variance_correction(&self, values_per_channel: usize) -> f64 {
        let count = values_per_channel as f64;
        match self.running_variance {
            RunningVariance::Unbiased => count / (count - 1.0),
            RunningVariance::Population => 1.0,
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
