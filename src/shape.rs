//! The shape of a tensor, and the one view that all kernels take of it.

use crate::{DType, Error};

/// Where a tensor's channels lie among its dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// The second dimension is the channels: NC, NCL, NCHW, NCDHW.
    ChannelsFirst,
    /// The last dimension is the channels: NC, NLC, NHWC, NDHWC.
    ChannelsLast,
}

/// The dimensions of a tensor, in the order of its memory (row-major), and its layout.
///
/// ```
/// use wgpu_batchnorm::{Layout, Shape};
///
/// let shape = Shape::new(&[32, 64, 56, 56], Layout::ChannelsFirst)?;
/// assert_eq!(shape.channels(), 64);
/// assert_eq!(shape.values_per_channel(), 32 * 56 * 56);
/// assert!(Shape::new(&[64], Layout::ChannelsFirst).is_err());
/// # Ok::<(), wgpu_batchnorm::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: Vec<usize>,
    layout: Layout,
    view: View,
}

/// A tensor of any rank and layout as `(outer, channels, inner)`, row-major: the value `i` of
/// channel `c` in the outer slice `o` lies at `(o·channels + c)·inner + i`.
///
/// Channels-first tensors have `inner` = the product of the spatial sizes (1 for NC);
/// channels-last tensors have `inner` = 1 and `outer` = the product of all other sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// Repetitions of the block of all channels.
    pub outer: usize,
    /// Channels, at least 1.
    pub channels: usize,
    /// Neighbouring values of one channel.
    pub inner: usize,
}

impl Shape {
    /// A shape of rank 2 or more with at least one channel. Other dimensions may be 0.
    ///
    /// # Errors
    /// [`Error::Rank`] below rank 2, [`Error::ZeroChannels`] without a channel,
    /// [`Error::TooLarge`] where the number of bytes does not fit an address.
    pub fn new(dims: &[usize], layout: Layout) -> Result<Self, Error> {
        if dims.len() < 2 {
            return Err(Error::Rank {
                dims: dims.to_vec(),
            });
        }
        let last = dims.len() - 1;
        let channels = match layout {
            Layout::ChannelsFirst => dims[1],
            Layout::ChannelsLast => dims[last],
        };
        if channels == 0 {
            return Err(Error::ZeroChannels {
                dims: dims.to_vec(),
            });
        }
        // Bytes of a few such tensors, counting an empty dimension as 1: with these in range, no
        // product of sizes overflows from here on.
        let bytes = dims.iter().try_fold(8 * size_of::<f32>(), |product, &dim| {
            product.checked_mul(dim.max(1))
        });
        if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(Error::TooLarge {
                what: format!("a tensor of shape {dims:?}"),
                bytes: u64::MAX,
                limit: isize::MAX as u64,
            });
        }
        let view = match layout {
            Layout::ChannelsFirst => View {
                outer: dims[0],
                channels,
                inner: dims[2..].iter().product(),
            },
            Layout::ChannelsLast => View {
                outer: dims[..last].iter().product(),
                channels,
                inner: 1,
            },
        };
        Ok(Self {
            dims: dims.to_vec(),
            layout,
            view,
        })
    }

    /// The dimensions, in the order of memory.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Where the channels lie.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Which of the dimensions is that of the channels.
    pub(crate) fn channel_axis(&self) -> usize {
        match self.layout {
            Layout::ChannelsFirst => 1,
            Layout::ChannelsLast => self.dims.len() - 1,
        }
    }

    /// The tensor as `(outer, channels, inner)`.
    pub fn view(&self) -> View {
        self.view
    }

    /// How many channels there are.
    pub fn channels(&self) -> usize {
        self.view.channels
    }

    /// M: how many values each channel has.
    pub fn values_per_channel(&self) -> usize {
        self.view.outer * self.view.inner
    }

    /// How many values there are in all.
    pub fn len(&self) -> usize {
        self.values_per_channel() * self.view.channels
    }

    /// Whether there are no values at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a tensor of this shape: those of its values, up to the next multiple of 4.
    /// What lies between is written, but never counts.
    pub fn bytes(&self, dtype: DType) -> u64 {
        (self.len() as u64 * dtype.size() as u64).next_multiple_of(4)
    }

    /// Fails where batch statistics are not defined: training needs two values per channel.
    pub(crate) fn check_trainable(&self) -> Result<(), Error> {
        match self.values_per_channel() {
            0 => Err(Error::EmptyBatch {
                dims: self.dims.clone(),
            }),
            1 => Err(Error::OneValuePerChannel {
                dims: self.dims.clone(),
            }),
            _ => Ok(()),
        }
    }
}

impl View {
    /// The channel of the value at a flat index.
    pub(crate) fn channel_of(&self, index: usize) -> usize {
        index / self.inner % self.channels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_has_its_view() {
        let view = |dims: &[usize], layout| {
            let view = Shape::new(dims, layout).unwrap().view();
            (view.outer, view.channels, view.inner)
        };
        use Layout::{ChannelsFirst, ChannelsLast};
        assert_eq!(view(&[7, 5], ChannelsFirst), (7, 5, 1));
        assert_eq!(view(&[7, 5], ChannelsLast), (7, 5, 1));
        assert_eq!(view(&[2, 3, 4], ChannelsFirst), (2, 3, 4));
        assert_eq!(view(&[2, 3, 4, 5], ChannelsFirst), (2, 3, 20));
        assert_eq!(view(&[2, 3, 4, 5, 6], ChannelsFirst), (2, 3, 120));
        assert_eq!(view(&[2, 3, 4], ChannelsLast), (6, 4, 1));
        assert_eq!(view(&[2, 3, 4, 5], ChannelsLast), (24, 5, 1));
        assert_eq!(view(&[2, 3, 4, 5, 6], ChannelsLast), (120, 6, 1));
        assert_eq!(view(&[0, 3, 4], ChannelsFirst), (0, 3, 4));
    }

    #[test]
    fn impossible_shapes_are_errors() {
        let error = |dims: &[usize]| Shape::new(dims, Layout::ChannelsFirst).unwrap_err();
        assert!(matches!(error(&[]), Error::Rank { .. }));
        assert!(matches!(error(&[3]), Error::Rank { .. }));
        assert!(matches!(error(&[3, 0, 2]), Error::ZeroChannels { .. }));
        assert!(matches!(error(&[1 << 40, 1 << 40]), Error::TooLarge { .. }));
        assert!(matches!(error(&[1 << 62, 2]), Error::TooLarge { .. }));
        assert!(matches!(error(&[0, 1 << 62]), Error::TooLarge { .. }));
        assert!(matches!(
            error(&[usize::MAX, 0]),
            Error::ZeroChannels { .. }
        ));
        let message = error(&[1, 1, 1 << 62]).to_string();
        assert!(message.contains("[1, 1, 4611686018427387904]"), "{message}");
    }
}
