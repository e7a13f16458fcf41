//! An activation as a loop over many values takes it: without a branch.

use crate::Activation;

/// Where an activation cuts, and what it makes of what lies below. An edge that it does not have is
/// no number, so that nothing lies beyond it.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    low: f64,
    high: f64,
    /// Below `low`, whether the output is `slope·z`; else it is `low`.
    bent: bool,
    slope: f64,
}

/// What comes after normalization, or what it does to gradients.
pub(super) trait Bend: Copy + Sync {
    /// [`Activation::apply`].
    fn apply(self, z: f64) -> f64;
    /// [`Activation::gradient`].
    fn gradient(self, dy: f64, z: f64) -> f64;
}

/// [`Activation::Identity`].
#[derive(Clone, Copy)]
pub(super) struct Straight;

impl Bend for Straight {
    #[inline(always)]
    fn apply(self, z: f64) -> f64 {
        z
    }

    #[inline(always)]
    fn gradient(self, dy: f64, _: f64) -> f64 {
        dy
    }
}

/// Chooses the loop of an activation, with a residual or without: `body` is compiled for each, with
/// the constant `ADD` and the [`Bend`] under the names given.
macro_rules! choose {
    ($activation:expr, $residual:expr, |$add:ident, $bend:ident| $body:expr) => {
        match ($crate::cpu::cut::Cut::new($activation), $residual) {
            (None, false) => {
                const $add: bool = false;
                let $bend = $crate::cpu::cut::Straight;
                $body
            }
            (None, true) => {
                const $add: bool = true;
                let $bend = $crate::cpu::cut::Straight;
                $body
            }
            (Some($bend), false) => {
                const $add: bool = false;
                $body
            }
            (Some($bend), true) => {
                const $add: bool = true;
                $body
            }
        }
    };
}
pub(super) use choose;

impl Cut {
    /// None where nothing is cut.
    pub(super) fn new(activation: Activation) -> Option<Self> {
        let (low, high, slope) = match activation {
            Activation::Identity => return None,
            Activation::Relu => (0.0, f64::NAN, None),
            Activation::LeakyRelu { slope } => (0.0, f64::NAN, Some(slope)),
            Activation::Clamp { min, max } => (min, max, None),
        };
        Some(Self {
            low,
            high,
            bent: slope.is_some(),
            slope: slope.unwrap_or(0.0),
        })
    }
}

impl Bend for Cut {
    #[inline(always)]
    fn apply(self, z: f64) -> f64 {
        let below = if self.bent { self.slope * z } else { self.low };
        let above = if z >= self.high { self.high } else { z };
        if z <= self.low { below } else { above }
    }

    #[inline(always)]
    fn gradient(self, dy: f64, z: f64) -> f64 {
        let below = if self.bent { self.slope * dy } else { 0.0 };
        let above = if z >= self.high { 0.0 } else { dy };
        if z <= self.low { below } else { above }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_activation() {
        let clamp = Activation::Clamp {
            min: -1.0,
            max: 2.0,
        };
        let leaky = Activation::LeakyRelu { slope: -0.5 };
        let numbers = [0.0, -0.0, 0.5, -0.5, -1.0, 2.0, 3.0, -3.0];
        let limits = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        let numbers = [&numbers[..], &limits[..]].concat();
        assert!(Cut::new(Activation::Identity).is_none());
        for activation in [Activation::Relu, leaky, clamp, Activation::RELU6] {
            let cut = Cut::new(activation).expect("it cuts");
            for &z in &numbers {
                let (found, expected) = (cut.apply(z), activation.apply(z));
                let same = found.to_bits() == expected.to_bits();
                assert!(
                    same || found.is_nan() && expected.is_nan(),
                    "{activation:?} of {z}"
                );
                for &dy in &numbers {
                    let (found, expected) = (cut.gradient(dy, z), activation.gradient(dy, z));
                    let same = found.to_bits() == expected.to_bits();
                    assert!(
                        same || found.is_nan() && expected.is_nan(),
                        "{activation:?} of {dy} at {z}"
                    );
                }
            }
        }
    }
}
