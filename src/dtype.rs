//! How the values of a tensor are stored.

/// The type in which `x`, `y`, `dy`, `dx` and the residual are stored.
///
/// Arithmetic, statistics and parameters are f32 whatever it is; a result is rounded once, to
/// nearest even, when it is stored. No GPU feature is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    #[default]
    F32,
    /// IEEE 754 half precision: 11 significant bits, up to 65504.
    F16,
    /// The upper half of an f32: 8 significant bits, the range of f32.
    Bf16,
}

impl DType {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Half a unit in the last place at `value`: how far rounding to this type may move it.
    pub(crate) fn half_ulp(self, value: f64) -> f64 {
        let (digits, least): (i32, i32) = match self {
            Self::F32 => (24, -126),
            Self::F16 => (11, -14),
            Self::Bf16 => (8, -126),
        };
        let exponent = value.abs().log2().floor().max(f64::from(least));
        if exponent.is_finite() {
            (exponent - f64::from(digits)).exp2()
        } else {
            0.0
        }
    }

    /// Whether rounding to this type leaves `value` finite.
    pub(crate) fn holds(self, value: f64) -> bool {
        // From halfway between the largest number and the next power of two on, it rounds up.
        let overflow = match self {
            Self::F32 => return (value as f32).is_finite(),
            Self::F16 => 65520.0,
            Self::Bf16 => (2.0 - 2.0_f64.powi(-8)) * 2.0_f64.powi(127),
        };
        value.abs() < overflow
    }
}

/// A number that a tensor on the GPU may hold: `f32`, [`half::f16`] or [`half::bf16`].
pub trait Stored: crate::cpu::Element + bytemuck::Pod {
    /// Its name among the types of tensors.
    const DTYPE: DType;
}

impl Stored for f32 {
    const DTYPE: DType = DType::F32;
}

impl Stored for half::f16 {
    const DTYPE: DType = DType::F16;
}

impl Stored for half::bf16 {
    const DTYPE: DType = DType::Bf16;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_units_and_limits() {
        assert_eq!(DType::F16.half_ulp(1.0), 2.0_f64.powi(-11));
        assert_eq!(DType::F16.half_ulp(-1.99), 2.0_f64.powi(-11));
        assert_eq!(DType::F16.half_ulp(0.0), 2.0_f64.powi(-25));
        assert_eq!(DType::Bf16.half_ulp(2.0), 2.0_f64.powi(-7));
        assert_eq!(DType::F32.half_ulp(1.0), 2.0_f64.powi(-24));
        assert!(DType::F16.holds(65519.9) && !DType::F16.holds(65520.0));
        assert!(DType::Bf16.holds(3.3895e38) && !DType::Bf16.holds(3.4e38));
        assert!(!DType::F32.holds(f64::NAN) && !DType::F16.holds(f64::NAN));
    }
}
