//! The CPU path: the same operations on ndarray's arrays, with sums in f64.
//!
//! It is the yardstick that the GPU is checked against, and what runs where there is no GPU. It
//! shares no code with the shaders, and needs no pivot, since f64 has the digits: moments are those
//! of parts of the batch, each taken in two passes while it lies in a core's cache, and merged.
//! Every function takes arrays of f64, f32, f16 or bf16; memory in another order than the dimensions
//! is copied once.
//!
//! Results are those of f64 arithmetic, rounded once to the arrays' type: within 1e-11 of the largest
//! magnitude against PyTorch in f64 (`tests/cpu.rs`). They have the same bits from run to run and on
//! any number of threads (`tests/cpu_division.rs`).
//!
//! It is also fast: `scripts/cpu_pytorch.py` times it beside PyTorch's CPU kernels. All of rayon's
//! threads take part once a tensor has 32,768 values, in loops that are compiled for several kinds of
//! processor and chosen at run time. `RAYON_NUM_THREADS`, or a `rayon::ThreadPool` of the caller's,
//! sets their number. Forward reads x twice and writes y; [`backward`] reads x and dy twice,
//! where a channel fits in the processor's caches once from memory, and writes dx.
//!
//! [`BatchNorm`] keeps a copy of x in f32 for its backward pass. Who owns x, and keeps it, needs none:
//! the functions take what they read.
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
mod backward;
mod collect;
mod cut;
mod element;
mod gradients;
mod input_gradient;
mod layer;
mod normalize;
mod optimizer;
mod statistics;
mod walk;

pub use activation_gradient::activation_gradient;
pub use backward::backward;
pub use element::Element;
pub use gradients::{ParameterGradients, gradients};
pub use input_gradient::{input_gradient, input_gradient_in_place};
pub use layer::{BatchNorm, Extra, InputGradients};
pub use normalize::{Affine, normalize, normalize_in_place};
pub use optimizer::Optimizer;
pub use statistics::{Moments, Statistics, moments, statistics, update_running};

use std::borrow::Cow;

use ndarray::{ArrayBase, ArrayD, Data, Dimension};

use crate::{Error, Layout, Shape};
use walk::Walk;

/// An array's values in the order of its dimensions, copied only where its memory has another order.
fn in_order<T: Copy, S: Data<Elem = T>, D: Dimension>(array: &ArrayBase<S, D>) -> Cow<'_, [T]> {
    match array.as_slice() {
        Some(values) => Cow::Borrowed(values),
        None => Cow::Owned(array.iter().copied().collect()),
    }
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
            values: in_order(array),
        })
    }

    /// How the work on it is divided.
    fn walk<'v>(&self, valid: &'v Valid) -> Walk<'v> {
        Walk::new(self.shape.view(), valid.as_deref())
    }

    /// A tensor of the same shape.
    fn like<U>(&self, values: Vec<U>) -> Result<ArrayD<U>, Error> {
        let found = vec![values.len()];
        ArrayD::from_shape_vec(self.shape.dims(), values).map_err(|_| Error::ShapeMismatch {
            tensor: "the result",
            expected: self.shape.dims().to_vec(),
            found,
        })
    }
}

/// Which positions of a tensor count.
struct Valid<'a>(Option<Cow<'a, [bool]>>);

impl<'a> Valid<'a> {
    /// All do.
    const ALL: Self = Self(None);

    /// Fails unless the mask has the dimensions of `shape` without that of the channels. No mask:
    /// all positions count.
    fn new(valid: Option<&'a ArrayD<bool>>, shape: &Shape) -> Result<Self, Error> {
        let Some(valid) = valid else {
            return Ok(Self(None));
        };
        crate::valid::check_positions(valid.shape(), shape)?;
        Ok(Self(Some(in_order(valid))))
    }

    fn as_deref(&self) -> Option<&[bool]> {
        self.0.as_deref()
    }
}
