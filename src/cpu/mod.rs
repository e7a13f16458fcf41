//! The CPU path: the same operations on ndarray's arrays, with sums in f64.
//!
//! It is the yardstick that the GPU is checked against, and what runs where there is no GPU. It
//! shares no code with the shaders: it walks the array in the order of memory, twice where they
//! go once, and needs no pivot, since f64 has the digits. Every function takes f32 or f64 arrays
//! of any memory order.
//!
//! Results are those of f64 arithmetic, rounded once to the arrays' type: within 1e-11 of the largest
//! magnitude against PyTorch in f64 (`tests/cpu.rs`).
//!
//! [`BatchNorm`] and [`Optimizer`] are the twins of the crate's own, with the same names.
//!
//! ```
//! use ndarray::array;
//! use wgpu_batchnorm::{Layout, Options, cpu};
//!
//! let mut layer = cpu::BatchNorm::new(1, Options::default())?;
//! let y = layer.forward(&array![[1.0, 3.0]].insert_axis(ndarray::Axis(0)), Layout::ChannelsFirst)?;
//! assert!((y[[0, 0, 1]] - 1.0).abs() < 1e-5);
//! # Ok::<(), wgpu_batchnorm::Error>(())
//! ```

mod gradients;
mod input_gradient;
mod layer;
mod normalize;
mod optimizer;
mod statistics;

pub use gradients::{ParameterGradients, gradients};
pub use input_gradient::input_gradient;
pub use layer::BatchNorm;
pub use normalize::normalize;
pub use optimizer::Optimizer;
pub use statistics::{Statistics, statistics, update_running};

use std::borrow::Cow;

use ndarray::{ArrayBase, ArrayD, Data, Dimension};

use crate::{Error, Layout, Shape, View};

/// A number that the CPU path takes: f32 or f64.
pub trait Element: Copy + Send + Sync + 'static {
    /// The same number in f64.
    fn to_f64(self) -> f64;
    /// The nearest number of this type.
    fn from_f64(value: f64) -> Self;
}

impl Element for f32 {
    fn to_f64(self) -> f64 {
        self.into()
    }

    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl Element for f64 {
    fn to_f64(self) -> f64 {
        self
    }

    fn from_f64(value: f64) -> Self {
        value
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
            values: match array.as_slice() {
                Some(values) => Cow::Borrowed(values),
                None => Cow::Owned(array.iter().copied().collect()),
            },
        })
    }

    /// The runs of neighbouring values of one channel, each with its channel, in the order of
    /// memory.
    fn runs(&self) -> impl Iterator<Item = (usize, &[T])> {
        let View {
            channels, inner, ..
        } = self.shape.view();
        (0..channels)
            .cycle()
            .zip(self.values.chunks_exact(inner.max(1)))
    }

    /// The tensor with every run changed in place by `change(channel, run)`; the runs come in the
    /// order of [`Values::runs`].
    fn changed(self, mut change: impl FnMut(usize, &mut [T])) -> Result<ArrayD<T>, Error> {
        let View {
            channels, inner, ..
        } = self.shape.view();
        let mut values = self.values.into_owned();
        let runs = values.chunks_exact_mut(inner.max(1));
        for (channel, run) in (0..channels).cycle().zip(runs) {
            change(channel, run);
        }
        let found = vec![values.len()];
        ArrayD::from_shape_vec(self.shape.dims(), values).map_err(|_| Error::ShapeMismatch {
            tensor: "the result",
            expected: self.shape.dims().to_vec(),
            found,
        })
    }
}
