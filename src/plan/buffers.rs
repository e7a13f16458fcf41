//! The ranges that a caller gives to an operation, by name.

use wgpu::BufferSlice;

/// A buffer range with the name of what lies in it.
pub(super) type Named<'a> = (&'static str, BufferSlice<'a>);

/// Methods that add a range to a set of them.
macro_rules! ranges {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        $(
            $(#[$doc])*
            pub fn $name(mut self, range: BufferSlice<'a>) -> Self {
                self.ranges.retain(|(name, _)| *name != stringify!($name));
                self.ranges.push((stringify!($name), range));
                self
            }
        )+
    };
}

/// The buffer ranges of a forward pass. Which are needed follows from the options; one too few is
/// [`crate::Error::MissingBuffer`], one too many [`crate::Error::Conflict`].
#[derive(Clone, Debug)]
pub struct ForwardBuffers<'a> {
    pub(super) ranges: Vec<Named<'a>>,
}

impl<'a> ForwardBuffers<'a> {
    /// From `x`, of the plan's shape, to `y`, of the same. With the same range for both, `y` is
    /// written over `x`.
    pub fn new(x: BufferSlice<'a>, y: BufferSlice<'a>) -> Self {
        Self {
            ranges: vec![("x", x), ("y", y)],
        }
    }

    ranges!(
        /// Read: the scale, `[channels]`. Needed unless absent by the options.
        gamma,
        /// Read: the shift, `[channels]`. Needed unless absent by the options.
        beta,
        /// Read: what is added before the activation, of the plan's shape. Optional.
        residual,
        /// Written: what the activation cut, [`super::Plan::mask_bytes`], for the backward pass. Needed in
        /// training with a residual and an activation, and only then. (Which positions count is
        /// [`ForwardBuffers::valid`].)
        mask,
        /// Read: which positions count, [`super::Plan::valid_bytes`]. Optional, in training.
        ///
        /// The positions are those of one channel, in the order of memory: N times the spatial
        /// sizes. Bit `p % 32`, from the lowest on, of the u32 number `p / 32` is 1 where position
        /// `p` counts. `y` is computed at all positions, by the statistics of those that count.
        valid,
        /// The running mean, `[channels]`: updated in training, but read in inference and where
        /// statistics are frozen. Needed unless there are none by the options.
        running_mean,
        /// The running variance, `[channels]`, like the running mean.
        running_var,
        /// Written in training: the batch statistics for the backward pass, [`super::Plan::saved_bytes`].
        saved,
    );
}

/// The buffer ranges of a backward pass. Which are needed follows from the options and, for
/// [`BackwardBuffers::mask`] and [`BackwardBuffers::valid`], from the forward pass, which a plan does
/// not remember. One too few by the options is [`crate::Error::MissingBuffer`], one too many
/// [`crate::Error::Conflict`].
///
/// # Example
/// `y = relu(bn(x) + residual)`, forward and backward, each range in a buffer of its own.
/// ```
/// use wgpu_batchnorm::{Activation, BackwardBuffers, ForwardBuffers, Options, Plan};
/// use wgpu_batchnorm::{DType, Error, Gpu, Layout, Shape, wgpu};
///
/// let gpu = Gpu::open_blocking()?;
/// let shape = Shape::new(&[8, 16, 7, 7], Layout::ChannelsFirst)?;
/// let options = Options::default().activation(Activation::Relu);
/// let plan = Plan::new(&gpu, &shape, DType::F16, &options)?;
///
/// let buffer = |size| {
///     gpu.device().create_buffer(&wgpu::BufferDescriptor {
///         label: None,
///         size,
///         usage: wgpu::BufferUsages::STORAGE,
///         mapped_at_creation: false,
///     })
/// };
/// let tensor = || buffer(shape.bytes(DType::F16));
/// let vector = || buffer(4 * shape.channels() as u64);
/// let (x, residual, y) = (tensor(), tensor(), tensor());
/// let (gamma, beta, mean, var) = (vector(), vector(), vector(), vector());
/// // What goes from the forward pass to the backward pass.
/// let (saved, mask) = (buffer(plan.saved_bytes()), buffer(plan.mask_bytes()));
/// let forward = plan.bind_forward(
///     &ForwardBuffers::new(x.slice(..), y.slice(..))
///         .gamma(gamma.slice(..))
///         .beta(beta.slice(..))
///         .residual(residual.slice(..))
///         .running_mean(mean.slice(..))
///         .running_var(var.slice(..))
///         .saved(saved.slice(..))
///         .mask(mask.slice(..)),
/// )?;
///
/// let (dy, d_residual, dgamma, dbeta) = (tensor(), tensor(), vector(), vector());
/// let backward = plan.bind_backward(
///     &BackwardBuffers::new(x.slice(..), dy.slice(..), saved.slice(..))
///         .gamma(gamma.slice(..))
///         .beta(beta.slice(..))
///         .mask(mask.slice(..))
///         .dx(dy.slice(..)) // over dy, which nobody needs any more
///         .residual_gradient(d_residual.slice(..))
///         .dgamma(dgamma.slice(..))
///         .dbeta(dbeta.slice(..)),
/// )?;
///
/// let mut encoder = gpu.device().create_command_encoder(&Default::default());
/// forward.record(&mut encoder);
/// backward.record(&mut encoder);
/// gpu.queue().submit([encoder.finish()]);
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct BackwardBuffers<'a> {
    pub(super) ranges: Vec<Named<'a>>,
}

impl<'a> BackwardBuffers<'a> {
    /// Of the forward pass's `x` and `saved`, and of `dy`, the gradient of the loss with respect to
    /// its `y`, of the plan's shape.
    pub fn new(x: BufferSlice<'a>, dy: BufferSlice<'a>, saved: BufferSlice<'a>) -> Self {
        Self {
            ranges: vec![("x", x), ("dy", dy), ("saved", saved)],
        }
    }

    ranges!(
        /// Read: the scale, `[channels]`, as it was in the forward pass. Needed unless absent by
        /// the options.
        gamma,
        /// Read: the shift, `[channels]`, as it was in the forward pass. Needed with an activation,
        /// unless absent by the options.
        beta,
        /// Read: what the forward pass wrote there. Needed if it had a residual and an activation, and
        /// nothing can tell if it is then left out: gradients are wrong.
        mask,
        /// Read: the same as in the forward pass. Needed if it had one.
        valid,
        /// Written, if wanted: the gradient with respect to `x`, of the plan's shape. With the same
        /// range as `dy`, it is written over that.
        dx,
        /// Written, if wanted with `dx`: the gradient with respect to the residual, of the plan's
        /// shape. Without an activation that is `dy`.
        residual_gradient,
        /// Written, if wanted: the gradient with respect to `gamma`, `[channels]`.
        dgamma,
        /// Written, if wanted: the gradient with respect to `beta`, `[channels]`.
        dbeta,
    );
}
