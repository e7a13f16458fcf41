//! Which positions of a padded batch count.

use ndarray::{ArrayBase, Data, Dimension};

use crate::plan::valid_words;
use crate::{Error, Gpu, Shape};

/// Which positions of a batch count: the others, its padding, do not enter the statistics.
///
/// A position is a place that has a value of every channel: one of N times the spatial sizes. The
/// output is computed at all of them, by the statistics of those that count, and gradients of all
/// of them enter those of γ and β, as in Flax and Keras; a loss leaves padding out by a `dy` of 0
/// there. What `x` holds at padding makes no difference to the others, even if it is no number.
/// At padding the gradient of `x` is `γ/√(var + eps)` times that of `y`, since the statistics do not
/// depend on it.
///
/// With one position that counts, or none, the variance is 0: `y` is β there, large at padding that
/// differs, and the running statistics stay as they are. That is no error even where
/// [`crate::OneValue::Refuse`] is chosen.
///
/// Not to be confused with a plan's `mask`, which tells what an activation cut.
///
/// Clones share the memory.
///
/// ```
/// use ndarray::array;
/// use wgpu_batchnorm::{BatchNorm, Error, Extra, Gpu, Layout, Options, Shape, Tensor, Valid};
///
/// // Two sequences of one channel, padded to three steps.
/// let gpu = Gpu::open_blocking()?;
/// let x = array![[[1.0], [5.0], [f32::NAN]], [[3.0], [0.0], [0.0]]];
/// let x = Tensor::from_array(&gpu, &x, Layout::ChannelsLast)?;
/// let valid = Valid::from_lengths(&gpu, x.shape(), &[2, 1])?;
///
/// let mut layer = BatchNorm::new(&gpu, 1, Options::default())?;
/// let y = layer.forward_with(&x, Extra { valid: Some(&valid), ..Extra::default() })?;
/// // The mean of 1, 5 and 3.
/// assert!(y.to_array_blocking()?[[1, 0, 0]].abs() < 1e-6);
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Valid {
    gpu: Gpu,
    buffer: wgpu::Buffer,
    /// Of the batch, without its channels.
    dims: Vec<usize>,
    /// How many positions count.
    count: u64,
}

impl Valid {
    /// Uploads a mask: `mask` has the dimensions of the batch without its channels, and is true
    /// where a position counts.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond the device's limits, [`Error::OutOfMemory`] if it does not fit.
    pub fn from_mask<S, D>(gpu: &Gpu, mask: &ArrayBase<S, D>) -> Result<Self, Error>
    where
        S: Data<Elem = bool>,
        D: Dimension,
    {
        let mut words = vec![0_u32; mask.len().div_ceil(32).max(1)];
        for (position, &valid) in mask.iter().enumerate() {
            words[position / 32] |= u32::from(valid) << (position % 32);
        }
        Ok(Self {
            gpu: gpu.clone(),
            buffer: gpu.upload("batch_norm.valid", &words)?,
            dims: mask.shape().to_vec(),
            count: mask.iter().filter(|&&valid| valid).count() as u64,
        })
    }

    /// The mask of a padded batch of `shape`, of rank 3 or more: of each sample, the first
    /// `lengths[sample]` places along the first spatial dimension count.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] unless there is one length for each sample,
    /// [`Error::InvalidParameter`] for one beyond the padded length, or without a spatial dimension;
    /// those of [`Valid::from_mask`].
    pub fn from_lengths(gpu: &Gpu, shape: &Shape, lengths: &[usize]) -> Result<Self, Error> {
        let dims = positions(shape);
        let [samples, padded, ..] = dims[..] else {
            return Err(Error::InvalidParameter {
                name: "the number of dimensions",
                expected: "at least 3, with a spatial one that lengths can be of",
                value: shape.dims().len() as f64,
            });
        };
        if lengths.len() != samples {
            return Err(Error::ShapeMismatch {
                tensor: "lengths",
                expected: vec![samples],
                found: vec![lengths.len()],
            });
        }
        if let Some(&length) = lengths.iter().find(|&&length| length > padded) {
            return Err(Error::InvalidParameter {
                name: "length",
                expected: "at most the padded length of the batch",
                value: length as f64,
            });
        }
        let mask = ndarray::ArrayD::from_shape_fn(dims, |index| index[1] < lengths[index[0]]);
        Self::from_mask(gpu, &mask)
    }

    /// How many positions count.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The mask's range, for [`crate::ForwardBuffers::valid`].
    pub fn range(&self) -> wgpu::BufferSlice<'_> {
        self.buffer.slice(..)
    }

    /// Fails unless it belongs to a batch of `shape` on `gpu`.
    pub(crate) fn check(&self, gpu: &Gpu, shape: &Shape) -> Result<(), Error> {
        if self.gpu != *gpu {
            return Err(Error::OtherDevice {
                tensor: "valid",
                expected: gpu.name(),
                found: self.gpu.name(),
            });
        }
        debug_assert!(
            self.dims != positions(shape) || self.buffer.size() == 4 * valid_words(shape)
        );
        check_positions(&self.dims, shape)
    }

    /// The mask, read back.
    pub(crate) async fn to_mask(&self) -> Result<ndarray::ArrayD<bool>, Error> {
        let words = self.gpu.download::<u32>(self.range()).await?;
        let mut position = 0;
        Ok(ndarray::ArrayD::from_shape_simple_fn(
            self.dims.clone(),
            || {
                let valid = words[position / 32] >> (position % 32) & 1 == 1;
                position += 1;
                valid
            },
        ))
    }
}

/// The dimensions of a batch without its channels.
pub(crate) fn positions(shape: &Shape) -> Vec<usize> {
    let mut dims = shape.dims().to_vec();
    dims.remove(shape.channel_axis());
    dims
}

/// Fails unless a mask has the dimensions of a batch without its channels.
pub(crate) fn check_positions(found: &[usize], shape: &Shape) -> Result<(), Error> {
    let expected = positions(shape);
    if found == expected {
        return Ok(());
    }
    Err(Error::ShapeMismatch {
        tensor: "valid",
        expected,
        found: found.to_vec(),
    })
}
