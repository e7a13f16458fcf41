//! The numbers that the CPU path takes.

/// A number that the CPU path takes: f64, or one that a GPU's tensor may hold ([`crate::Stored`]).
pub trait Element: Copy + Send + Sync + 'static {
    /// The same number in f64.
    fn to_f64(self) -> f64;
    /// The nearest number of this type; of two, the even one.
    fn from_f64(value: f64) -> Self;
}

macro_rules! element {
    ($type:ty, $to_f64:expr, $from_f64:expr) => {
        impl Element for $type {
            #[inline(always)]
            fn to_f64(self) -> f64 {
                $to_f64(self)
            }

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                $from_f64(value)
            }
        }
    };
}

// `half` rounds an f64 to f32 on the way, or drops its last digits, and so rounds twice; and it
// converts one number at a time, which no compiler turns into vectors.
element!(f64, |value| value, |value| value);
element!(f32, f64::from, |value| value as f32);
element!(
    half::f16,
    |value: Self| f64::from(f16_to_f32(value.to_bits())),
    |value| Self::from_bits(f16_from_f32(to_odd(value)))
);
element!(
    half::bf16,
    |value: Self| f64::from(f32::from_bits(u32::from(value.to_bits()) << 16)),
    |value| Self::from_bits(bf16_from_f32(to_odd(value)))
);

/// The number itself if f32 holds it, else the one of its two neighbours in f32 whose last bit
/// is 1. Rounded to a type with fewer digits, that gives what the number itself gives: it is never
/// halfway between two of them by accident. (Boldo & Melquiond 2008.)
#[inline(always)]
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let beyond = f64::from(nearest).abs() > value.abs();
    let odd = f32::from_bits((nearest.to_bits() - u32::from(beyond)) | 1);
    if f64::from(nearest) == value {
        nearest
    } else {
        odd
    }
}

/// The exponent of an f16 is biased by 15, that of an f32 by 127: a product with 2¹¹² makes one of
/// the other, also below the normal numbers.
#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    const INFINITE: u32 = 0x7c00 << 13;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * f32::from_bits((112 + 127) << 23)).to_bits();
    let magnitude = if magnitude < INFINITE {
        finite
    } else {
        magnitude | 0xff << 23
    };
    f32::from_bits(magnitude | u32::from(bits & 0x8000) << 16)
}

/// To nearest, of two the even one.
#[inline(always)]
fn f16_from_f32(value: f32) -> u16 {
    const INFINITE: u32 = 0xff << 23;
    /// 2¹⁶, from which on all is infinite; what lies between the largest number and this is rounded.
    const TOO_LARGE: u32 = (16 + 127) << 23;
    /// 2⁻¹⁴, the least normal number.
    const NORMAL: u32 = (127 - 14) << 23;
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // Half a unit less one, and one where the last digit that stays is odd.
    let half = 0xfff + (magnitude >> 13 & 1);
    let normal = magnitude.wrapping_add(half).wrapping_sub((127 - 15) << 23) >> 13;
    // In a sum with 1/2 the last digit is worth 2⁻²⁴, as below the normal numbers.
    let subnormal = (f32::from_bits(magnitude) + 0.5)
        .to_bits()
        .wrapping_sub(0.5_f32.to_bits());
    let rounded = if magnitude > INFINITE {
        0x7e00
    } else if magnitude >= TOO_LARGE {
        0x7c00
    } else if magnitude < NORMAL {
        subnormal
    } else {
        normal
    };
    (rounded | bits >> 16 & 0x8000) as u16
}

/// To nearest, of two the even one.
#[inline(always)]
fn bf16_from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    let half = 0x7fff + (bits >> 16 & 1);
    let rounded = if value.is_nan() {
        bits | 0x40 << 16
    } else {
        bits.wrapping_add(half)
    };
    (rounded >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Around every number and every halfway point, f64 is rounded to the nearest, of two to the
    /// even one.
    fn rounds_once<T: Element>(largest: u16, from_bits: fn(u16) -> T) {
        for bits in 0..largest {
            let [low, high] = [from_bits(bits), from_bits(bits + 1)].map(T::to_f64);
            let even = if bits % 2 == 0 { low } else { high };
            let half = (low + high) / 2.0;
            for (value, expected) in [
                (low, low),
                (half.next_down(), low),
                (half, even),
                (half.next_up(), high),
                (high, high),
            ] {
                for sign in [1.0, -1.0] {
                    let found = T::from_f64(sign * value).to_f64();
                    assert_eq!(found.to_bits(), (sign * expected).to_bits(), "{value:e}");
                }
            }
        }
        // Beyond halfway from the largest number to the next power of two there is infinity.
        let [below, last] = [from_bits(largest - 1), from_bits(largest)].map(T::to_f64);
        let overflow = last + (last - below) / 2.0;
        assert_eq!(T::from_f64(overflow.next_down()).to_f64(), last);
        for value in [overflow, 1e300, f64::INFINITY] {
            assert_eq!(T::from_f64(value).to_f64(), f64::INFINITY);
            assert_eq!(T::from_f64(-value).to_f64(), f64::NEG_INFINITY);
        }
        assert!(T::from_f64(f64::NAN).to_f64().is_nan());
    }

    #[test]
    fn numbers_are_rounded_once() {
        rounds_once(half::f16::MAX.to_bits(), half::f16::from_bits);
        rounds_once(half::bf16::MAX.to_bits(), half::bf16::from_bits);
    }

    #[test]
    fn all_of_sixteen_bits_are_read() {
        for bits in 0..=u16::MAX {
            let (f16, bf16) = (half::f16::from_bits(bits), half::bf16::from_bits(bits));
            for (found, expected) in [
                (Element::to_f64(f16), f16.to_f64()),
                (Element::to_f64(bf16), bf16.to_f64()),
            ] {
                let same = found.to_bits() == expected.to_bits();
                assert!(same || found.is_nan() && expected.is_nan(), "{bits:x}");
            }
        }
    }
}
