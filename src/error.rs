//! What can go wrong, with the data to mend it.

use crate::verify::Mismatch;

/// Every error of this crate.
///
/// Mistakes of a caller are found before any work is given to the GPU, and leave all state as it
/// was.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no adapter to open.
    #[error(
        "no GPU adapter found ({reason}); install a Vulkan driver, or Mesa's software adapter (Debian: mesa-vulkan-drivers), or use the CPU path in `cpu`"
    )]
    NoAdapter {
        /// What was looked for, and what wgpu said.
        reason: String,
    },
    /// An adapter was found but refused to open a device.
    #[error("the adapter {adapter} opened no device: {reason}")]
    NoDevice {
        /// The adapter's name.
        adapter: String,
        /// What wgpu said.
        reason: String,
    },
    /// The device's limits are below what the kernels need.
    #[error(
        "the device allows {limit} = {found}, but batch normalization needs {needed}; open the device with higher limits"
    )]
    DeviceLimit {
        /// wgpu's name of the limit.
        limit: &'static str,
        /// What the kernels need.
        needed: u64,
        /// What the device allows.
        found: u64,
    },
    /// A tensor has fewer than two dimensions.
    #[error("a tensor needs at least the dimensions (batch, channels), found shape {dims:?}")]
    Rank {
        /// The dimensions given.
        dims: Vec<usize>,
    },
    /// A tensor has no channel.
    #[error("a tensor needs at least one channel, found shape {dims:?}")]
    ZeroChannels {
        /// The dimensions given.
        dims: Vec<usize>,
    },
    /// Batch statistics were asked of an empty batch.
    #[error(
        "statistics of a batch need at least two values per channel, but the batch of shape {dims:?} is empty"
    )]
    EmptyBatch {
        /// The dimensions of the batch.
        dims: Vec<usize>,
    },
    /// Batch statistics were asked of one value per channel, whose variance is always 0.
    #[error(
        "statistics of a batch need at least two values per channel, found one in shape {dims:?}; enlarge the batch, evaluate by running statistics, or choose OneValue::GiveBeta"
    )]
    OneValuePerChannel {
        /// The dimensions of the batch.
        dims: Vec<usize>,
    },
    /// A tensor or vector does not have the shape that the others imply.
    #[error("{tensor} should have shape {expected:?}, found {found:?}")]
    ShapeMismatch {
        /// The tensor's name.
        tensor: &'static str,
        /// The shape it should have.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// A tensor is stored as another type than those that it belongs with.
    #[error("{tensor} should be stored as {expected:?}, found {found:?}")]
    DTypeMismatch {
        /// The tensor's name.
        tensor: &'static str,
        /// The type it should have.
        expected: crate::DType,
        /// The type it has.
        found: crate::DType,
    },
    /// A tensor has another layout than the one it belongs with.
    #[error("{tensor} should have layout {expected:?}, found {found:?}")]
    LayoutMismatch {
        /// The tensor's name.
        tensor: &'static str,
        /// The layout it should have.
        expected: crate::Layout,
        /// The layout it has.
        found: crate::Layout,
    },
    /// Something exceeds what the device can address.
    #[error("{what} takes {bytes} bytes, more than the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// The bytes it takes (`u64::MAX` where even that number overflows).
        bytes: u64,
        /// The bytes allowed.
        limit: u64,
    },
    /// An operation was not given a buffer range that it needs.
    #[error("{tensor} is needed, but has no buffer range")]
    MissingBuffer {
        /// The tensor's name.
        tensor: &'static str,
    },
    /// A buffer range does not have the size that its tensor takes.
    #[error(
        "{tensor} takes {expected} bytes, but its buffer range has {found}{}", if found > expected { "; slice the buffer to the tensor" } else { "" }
    )]
    BufferSize {
        /// The tensor's name.
        tensor: &'static str,
        /// The bytes it takes.
        expected: u64,
        /// The bytes in the range.
        found: u64,
    },
    /// A buffer range starts at an offset that the device cannot bind.
    #[error(
        "{tensor} starts at byte {offset} of its buffer, which is not a multiple of {alignment} (min_storage_buffer_offset_alignment)"
    )]
    Misaligned {
        /// The tensor's name.
        tensor: &'static str,
        /// Its offset in bytes.
        offset: u64,
        /// What the offset must be a multiple of.
        alignment: u64,
    },
    /// A buffer was made without a usage that is needed.
    #[error("the buffer of {tensor} lacks the usage {usage:?}; create it with that flag")]
    MissingUsage {
        /// The tensor's name.
        tensor: &'static str,
        /// The usage it lacks.
        usage: wgpu::BufferUsages,
    },
    /// An output of an operation overlaps another of its tensors.
    #[error("{output} is written, but its buffer range overlaps that of {other}")]
    Overlap {
        /// The tensor that is written.
        output: &'static str,
        /// The tensor that it overlaps.
        other: &'static str,
    },
    /// A tensor lives on another device than the object it was given to.
    #[error(
        "{tensor} lives on another device ({found}) than the one in use ({expected}); open a device once and clone the Gpu"
    )]
    OtherDevice {
        /// The tensor's name.
        tensor: &'static str,
        /// The adapter in use.
        expected: String,
        /// The adapter of the tensor.
        found: String,
    },
    /// A parameter is not a number in its range.
    #[error("{name} should be {expected}, found {}", number(*value))]
    InvalidParameter {
        /// The parameter's name.
        name: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        value: f64,
    },
    /// Two options, or two inputs of an operation, cannot go together.
    #[error("{first} and {second} cannot go together: {reason}")]
    Conflict {
        /// One of them.
        first: &'static str,
        /// The other.
        second: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// `backward` was called, but the input of the last `forward` was written over since.
    #[error(
        "backward needs the input of the forward pass, which was written over in place; keep it until then"
    )]
    Overwritten,
    /// A batch normalization cannot be folded into the layer before it.
    #[error("{vector} is {value:e} in channel {channel}, which cannot be folded: {reason}")]
    NotFoldable {
        /// The vector or tensor that the value is in.
        vector: &'static str,
        /// The output channel.
        channel: usize,
        /// The value.
        value: f64,
        /// Why not.
        reason: &'static str,
    },
    /// Bytes are not a file in the safetensors format.
    #[error("not a safetensors file: {message}")]
    StateFile {
        /// What is wrong with it.
        message: String,
    },
    /// A tensor of a safetensors file is not what a state needs.
    #[error("the tensor {name:?} of the safetensors file {problem}")]
    StateTensor {
        /// The tensor's name, with its prefix.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The file of a pipeline cache cannot be read or written.
    #[error("the pipeline cache {} cannot be {what}: {message}", path.display())]
    PipelineCache {
        /// What was tried: `read` or `written`.
        what: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        message: String,
    },
    /// A backward pass, or the statistics of a batch, were asked for, but the last `forward` was not in
    /// training mode, or there was none.
    #[error(
        "this needs a forward pass in training mode right before it; to go backward through running statistics, train with frozen_statistics(true)"
    )]
    NoForward,
    /// An optimizer's step was asked for before any `backward`.
    #[error("an optimizer's step needs the gradients of a backward pass before it")]
    NoBackward,
    /// The two paths disagree by more than the tolerance.
    #[error(transparent)]
    Mismatch(#[from] Box<Mismatch>),
    /// The device is out of memory.
    #[error("out of memory on the GPU: {message}")]
    OutOfMemory {
        /// What wgpu said.
        message: String,
    },
    /// wgpu refused a call: a buffer of another device, a destroyed buffer, a shader that the
    /// driver does not take.
    #[error("wgpu refused the call: {message}")]
    Wgpu {
        /// What wgpu said.
        message: String,
    },
    /// The device is lost or was destroyed: open another.
    #[error("the GPU device is lost; open it again and restore what it held")]
    DeviceLost,
    /// Values could not be read back.
    #[error("reading back from the GPU failed: {message}")]
    Readback {
        /// What wgpu said.
        message: String,
    },
}

/// A number as people write it.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 | 1e-4..1e7 => value.to_string(),
        _ => format!("{value:e}"),
    }
}
