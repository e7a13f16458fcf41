//! The CPU path: the same operations on ndarray's arrays, with sums in f64.
//!
//! It is the yardstick that the GPU is checked against, and what runs where there is no GPU. It
//! shares no code with the shaders: it walks the array in the order of memory, twice where they
//! go once, and needs no pivot, since f64 has the digits. Every function takes arrays of f64, f32,
//! f16 or bf16 in any memory order.
//!
//! Results are those of f64 arithmetic, rounded once to the arrays' type: within 1e-11 of the largest
//! magnitude against PyTorch in f64 (`tests/cpu.rs`).
//!
//! Where a second tensor would be too much, [`normalize_in_place`] and [`input_gradient_in_place`] write
//! over the one they are given.
//!
//! [`BatchNorm`] and [`Optimizer`] are the twins of the crate's own, with the same names.
//!
//! ```
//! use ndarray::array;
//! use wgpu_batchnorm::{Layout, Options, cpu};
//!
//! let mut layer = cpu::BatchNorm::new(1, Options::default())?;
//! let y = layer.forward(&array![[[1.0_f32, 3.0]]], Layout::ChannelsFirst)?;
//! assert!((y[[0, 0, 1]] - 1.0).abs() < 1e-5);
//! # Ok::<(), wgpu_batchnorm::Error>(())
//! ```
//!
//! The functions are the steps of such a layer. Statistics that are gathered in parts, on several
//! devices say, are merged between them:
//!
//! ```
//! use ndarray::array;
//! use wgpu_batchnorm::{Layout, cpu};
//!
//! let parts = [
//!     cpu::moments(&array![[1.0], [2.0]], Layout::ChannelsFirst, None)?,
//!     cpu::moments(&array![[6.0]], Layout::ChannelsFirst, None)?,
//! ];
//! let whole = cpu::Moments::merge(&parts)?.statistics();
//! assert_eq!(whole.mean, array![3.0]);
//! # Ok::<(), wgpu_batchnorm::Error>(())
//! ```

mod activation_gradient;
mod gradients;
mod input_gradient;
mod layer;
mod normalize;
mod optimizer;
mod statistics;

pub use activation_gradient::activation_gradient;
pub use gradients::{ParameterGradients, gradients};
pub use input_gradient::{input_gradient, input_gradient_in_place};
pub use layer::{BatchNorm, Extra, InputGradients};
pub use normalize::{Affine, normalize, normalize_in_place};
pub use optimizer::Optimizer;
pub use statistics::{Moments, Statistics, moments, statistics, update_running};

use std::borrow::Cow;

use ndarray::{ArrayBase, ArrayD, Data, Dimension};

use crate::{Error, Layout, Shape, View};

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
            fn to_f64(self) -> f64 {
                $to_f64(self)
            }

            fn from_f64(value: f64) -> Self {
                $from_f64(value)
            }
        }
    };
}

element!(f64, |value| value, |value| value);
element!(f32, f64::from, |value| value as f32);
// `half` rounds an f64 to f32 on the way, or drops its last digits, and so rounds twice.
element!(half::f16, half::f16::to_f64, |value| half::f16::from_f32(
    to_odd(value)
));
element!(half::bf16, half::bf16::to_f64, |value| {
    half::bf16::from_f32(to_odd(value))
});

/// The number itself if f32 holds it, else the one of its two neighbours in f32 whose last bit
/// is 1. Rounded to a type with fewer digits, that gives what the number itself gives: it is never
/// halfway between two of them by accident. (Boldo & Melquiond 2008.)
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value {
        return nearest;
    }
    let beyond = f64::from(nearest).abs() > value.abs();
    f32::from_bits((nearest.to_bits() - u32::from(beyond)) | 1)
}

/// A tensor's values in the order of its dimensions, copied only where its memory has another
/// order.
struct Values<'a, T: Element> {
    values: Cow<'a, [T]>,
    shape: Shape,
}

impl<'a, T: Element> Values<'a, T> {
    fn new<S: Data<Elem = T>, D: Dimension>(
        array: &'a ArrayBase<S, D>,
        layout: Layout,
    ) -> Result<Self, Error> {
        Ok(Self {
            shape: Shape::new(array.shape(), layout)?,
            values: match array.as_slice() {
                Some(values) => Cow::Borrowed(values),
                None => Cow::Owned(array.iter().copied().collect()),
            },
        })
    }

    /// The runs of neighbouring values of one channel, in the order of memory.
    fn runs(&self) -> impl Iterator<Item = Run<&[T]>> {
        let view = self.shape.view();
        let runs = self.values.chunks_exact(view.inner.max(1));
        runs.enumerate()
            .map(move |(number, values)| Run::new(number, view, values))
    }

    /// The tensor with every run changed.
    fn changed(self, change: impl FnMut(Run<&mut [T]>)) -> Result<ArrayD<T>, Error> {
        let mut values = self.values.into_owned();
        change_runs(&mut values, self.shape.view(), change);
        let found = vec![values.len()];
        ArrayD::from_shape_vec(self.shape.dims(), values).map_err(|_| Error::ShapeMismatch {
            tensor: "the result",
            expected: self.shape.dims().to_vec(),
            found,
        })
    }
}

/// Changes the runs of neighbouring values of one channel, in the order of memory.
fn change_runs<T>(values: &mut [T], view: View, mut change: impl FnMut(Run<&mut [T]>)) {
    let runs = values.chunks_exact_mut(view.inner.max(1));
    for (number, values) in runs.enumerate() {
        change(Run::new(number, view, values));
    }
}

/// Neighbouring values of one channel.
struct Run<V> {
    channel: usize,
    /// The flat index of the first of them in the tensor.
    start: usize,
    /// The position of the first of them. A position is a place in the batch and its spatial
    /// dimensions, which all channels share, counted in the order of memory.
    position: usize,
    values: V,
}

impl<V> Run<V> {
    /// The run with a number, counted in the order of memory.
    fn new(number: usize, view: View, values: V) -> Self {
        Self {
            channel: number % view.channels,
            start: number * view.inner,
            position: number / view.channels * view.inner,
            values,
        }
    }
}

/// Which positions of a tensor count.
struct Valid(Option<Vec<bool>>);

impl Valid {
    /// Fails unless the mask has the dimensions of `shape` without that of the channels. No mask:
    /// all positions count.
    fn new(valid: Option<&ArrayD<bool>>, shape: &Shape) -> Result<Self, Error> {
        let Some(valid) = valid else {
            return Ok(Self(None));
        };
        crate::valid::check_positions(valid.shape(), shape)?;
        Ok(Self(Some(valid.iter().copied().collect())))
    }

    /// Whether a position counts.
    fn at(&self, position: usize) -> bool {
        match &self.0 {
            Some(flags) => flags[position],
            None => true,
        }
    }
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
}
