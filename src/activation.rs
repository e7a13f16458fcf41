//! The activation that is fused into normalization.

use crate::Error;

/// What is applied to `z = γ·x̂ + β [+ residual]`, in the same pass over memory.
///
/// All of these cut: their derivative is 1 where a value passes and a constant where it is cut. So
/// one bit per value is all that a backward pass needs, and without a residual not even that.
///
/// To add one: a file in `shaders/lib/activation/` that says in WGSL what the two methods here say
/// in f64, a variant, and its line in each `match` on this type; the compiler finds them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// `y = z`.
    #[default]
    Identity,
    /// `y = max(z, 0)`. Its derivative at 0 is 0, as in PyTorch.
    Relu,
    /// `y = z` above 0, else `slope·z`. Its derivative at 0 is `slope`.
    LeakyRelu {
        /// Finite in f32. PyTorch's default is 0.01.
        slope: f64,
    },
    /// `y = min(max(z, min), max)`. Its derivative at both ends is 0. PyTorch's `hardtanh`.
    Clamp {
        /// The least output, finite in f32.
        min: f64,
        /// The largest output, finite in f32, above `min`.
        max: f64,
    },
}

impl Activation {
    /// `y = min(max(z, 0), 6)`.
    pub const RELU6: Self = Self::Clamp { min: 0.0, max: 6.0 };

    /// The output for `z`. Not a number stays so.
    pub fn apply(self, z: f64) -> f64 {
        match self {
            Self::Identity => z,
            Self::Relu if z <= 0.0 => 0.0,
            Self::LeakyRelu { slope } if z <= 0.0 => slope * z,
            Self::Clamp { min, .. } if z <= min => min,
            Self::Clamp { max, .. } if z >= max => max,
            _ => z,
        }
    }

    /// The gradient with respect to `z`, of a loss whose gradient with respect to the output for
    /// `z` is `dy`.
    pub fn gradient(self, dy: f64, z: f64) -> f64 {
        match self {
            Self::Relu if z <= 0.0 => 0.0,
            Self::LeakyRelu { slope } if z <= 0.0 => slope * dy,
            Self::Clamp { min, max } if z <= min || z >= max => 0.0,
            _ => dy,
        }
    }

    /// Fails where a number is not finite in f32 or the range is empty.
    pub(crate) fn validate(self) -> Result<(), Error> {
        let finite = |name, value: f64| {
            if (value as f32).is_finite() {
                return Ok(());
            }
            Err(Error::InvalidParameter {
                name,
                expected: "finite in f32",
                value,
            })
        };
        match self {
            Self::Identity | Self::Relu => Ok(()),
            Self::LeakyRelu { slope } => finite("activation.slope", slope),
            Self::Clamp { min, max } => {
                finite("activation.min", min)?;
                finite("activation.max", max)?;
                if (min as f32) < max as f32 {
                    return Ok(());
                }
                Err(Error::InvalidParameter {
                    name: "activation.max",
                    expected: "above activation.min",
                    value: max,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_those_of_pytorch() {
        let leaky = Activation::LeakyRelu { slope: 0.5 };
        for (activation, z, y, derivative) in [
            (Activation::Identity, -2.0, -2.0, 1.0),
            (Activation::Relu, -2.0, 0.0, 0.0),
            (Activation::Relu, 0.0, 0.0, 0.0),
            (Activation::Relu, 2.0, 2.0, 1.0),
            (leaky, -2.0, -1.0, 0.5),
            (leaky, 0.0, 0.0, 0.5),
            (leaky, 2.0, 2.0, 1.0),
            (Activation::RELU6, 0.0, 0.0, 0.0),
            (Activation::RELU6, 5.0, 5.0, 1.0),
            (Activation::RELU6, 6.0, 6.0, 0.0),
            (Activation::RELU6, 7.0, 6.0, 0.0),
        ] {
            assert_eq!(activation.apply(z), y, "{activation:?} of {z}");
            assert_eq!(activation.gradient(1.0, z), derivative);
            assert!(activation.apply(f64::NAN).is_nan());
        }
        assert_eq!(Activation::Relu.apply(f64::NEG_INFINITY), 0.0);
        // What is cut takes no part, not even a gradient that is no number.
        assert_eq!(Activation::Relu.gradient(f64::NAN, -1.0), 0.0);
    }
}
