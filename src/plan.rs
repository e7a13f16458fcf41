//! The lower level: operations recorded into the caller's commands, over the caller's buffers.

use wgpu::{BufferBinding, BufferSlice};

use crate::division::{Block, Divisions, Geometry, Packing};
use crate::gpu::check_size;
use crate::kernels::{Constants, Dispatch, EntryPoint};
use crate::kernels::{gradients, input_gradient, normalize, statistics};
use crate::{Error, Gpu, Options, Shape, Tuning};

/// Batch normalization of one shape with one set of options, for engines.
///
/// A plan is built once. It holds the workspace and the numbers that the kernels need; `bind_*`
/// checks the caller's buffer ranges and binds them, and the [`Commands`] that result are recorded
/// as often as wanted. Recording never allocates, submits or waits.
///
/// Ranges that are only read may share a buffer, and overlap. Ranges that are written must not
/// overlap any other; they may share a buffer with each other, but `y` and `dx` not with what is
/// read, nor with `saved`, and `dgamma` and `dbeta` not with `saved`: WebGPU forbids to read and
/// write one buffer in one dispatch.
///
/// All operations of a plan share its workspace. They may be recorded in any order, into any
/// number of encoders, for the same queue: a queue runs them one after the other.
///
/// # Shapes
/// `x`, `y`, `dy`, `dx`: the plan's shape, f32, row-major · `gamma`, `beta`, `running_mean`,
/// `running_var`, `dgamma`, `dbeta`: `[channels]` f32 · `saved`: [`Plan::saved_bytes`] bytes that
/// carry the statistics of a forward pass to its backward pass.
///
/// Each is given as a `wgpu::BufferSlice` of exactly that size, at an offset that is a multiple of
/// the device's `min_storage_buffer_offset_alignment`, of a buffer with the usage `STORAGE`. The
/// buffers must be of the plan's device. wgpu reports one of another device ([`Error::Wgpu`]), but
/// cannot tell one of another `wgpu::Instance`, and may panic on it.
///
/// # Example
/// ```
/// use wgpu_batchnorm::{Error, ForwardBuffers, Gpu, Layout, Options, Plan, Shape, wgpu};
///
/// let gpu = Gpu::open_blocking()?;
/// let shape = Shape::new(&[8, 16, 4, 4], Layout::ChannelsFirst)?;
/// let plan = Plan::new(&gpu, &shape, &Options::default())?;
///
/// // An engine's own memory: here one buffer to read and one to write, cut into ranges.
/// let buffer = |size| {
///     gpu.device().create_buffer(&wgpu::BufferDescriptor {
///         label: None,
///         size,
///         usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
///         mapped_at_creation: false,
///     })
/// };
/// let (read, written, saved) = (buffer(16384), buffer(16384), buffer(plan.saved_bytes()));
/// let channels = 16 * 4;
/// let forward = plan.bind_forward(&ForwardBuffers {
///     x: read.slice(..shape.bytes()),
///     gamma: read.slice(8192..8192 + channels),
///     beta: read.slice(8448..8448 + channels),
///     y: written.slice(..shape.bytes()),
///     running_mean: written.slice(8192..8192 + channels),
///     running_var: written.slice(8448..8448 + channels),
///     saved: saved.slice(..),
/// })?;
///
/// let mut encoder = gpu.device().create_command_encoder(&Default::default());
/// forward.record(&mut encoder);
/// gpu.queue().submit([encoder.finish()]);
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct Plan {
    gpu: Gpu,
    shape: Shape,
    packing: Packing,
    divisions: Divisions,
    /// `Constants`, then the geometry of every division, each at a multiple of `uniform_stride`.
    uniforms: wgpu::Buffer,
    uniform_stride: u64,
    /// Partial results of the statistics, from one dispatch to the next.
    moments: wgpu::Buffer,
    /// Partial results of the gradients, from one dispatch to the next.
    sums: wgpu::Buffer,
}

/// The buffer ranges of a forward pass in training.
#[derive(Clone, Copy, Debug)]
pub struct ForwardBuffers<'a> {
    /// Read: the input, of the plan's shape.
    pub x: BufferSlice<'a>,
    /// Read: the scale, `[channels]`.
    pub gamma: BufferSlice<'a>,
    /// Read: the shift, `[channels]`.
    pub beta: BufferSlice<'a>,
    /// Written: the output, of the plan's shape.
    pub y: BufferSlice<'a>,
    /// Updated: the running mean, `[channels]`.
    pub running_mean: BufferSlice<'a>,
    /// Updated: the running variance, `[channels]`.
    pub running_var: BufferSlice<'a>,
    /// Written: the batch statistics for the backward pass, [`Plan::saved_bytes`].
    pub saved: BufferSlice<'a>,
}

/// The buffer ranges of inference.
#[derive(Clone, Copy, Debug)]
pub struct InferenceBuffers<'a> {
    /// Read: the input, of the plan's shape.
    pub x: BufferSlice<'a>,
    /// Read: the scale, `[channels]`.
    pub gamma: BufferSlice<'a>,
    /// Read: the shift, `[channels]`.
    pub beta: BufferSlice<'a>,
    /// Read: the running mean, `[channels]`.
    pub running_mean: BufferSlice<'a>,
    /// Read: the running variance, `[channels]`.
    pub running_var: BufferSlice<'a>,
    /// Written: the output, of the plan's shape.
    pub y: BufferSlice<'a>,
}

/// The buffer ranges of a backward pass in training.
#[derive(Clone, Copy, Debug)]
pub struct BackwardBuffers<'a> {
    /// Read: the input of the forward pass, of the plan's shape.
    pub x: BufferSlice<'a>,
    /// Read: the gradient of the loss with respect to `y`, of the plan's shape.
    pub dy: BufferSlice<'a>,
    /// Read: the scale, `[channels]`, as it was in the forward pass.
    pub gamma: BufferSlice<'a>,
    /// Read: what the forward pass wrote there.
    pub saved: BufferSlice<'a>,
    /// Written: the gradient with respect to `x`, of the plan's shape.
    pub dx: BufferSlice<'a>,
    /// Written: the gradient with respect to `gamma`, `[channels]`.
    pub dgamma: BufferSlice<'a>,
    /// Written: the gradient with respect to `beta`, `[channels]`.
    pub dbeta: BufferSlice<'a>,
}

/// An operation with all its buffers bound, to be recorded as often as wanted.
///
/// It keeps what it needs alive, also after its [`Plan`] is gone.
#[derive(Clone, Debug)]
pub struct Commands {
    dispatches: Vec<Dispatch>,
}

impl Commands {
    /// Records the operation into `encoder`, as one compute pass.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("batch_norm"),
            timestamp_writes: None,
        });
        self.record_into(&mut pass);
    }

    /// Records the operation into a compute pass. It sets the pass's pipeline and bind group 0.
    pub fn record_into(&self, pass: &mut wgpu::ComputePass<'_>) {
        for dispatch in &self.dispatches {
            dispatch.record(pass);
        }
    }

    /// How many dispatches the operation takes; 0 for an empty tensor.
    pub fn dispatches(&self) -> usize {
        self.dispatches.len()
    }
}

/// A buffer range with the name of the tensor in it.
type Named<'a> = (&'static str, BufferSlice<'a>);

/// A kernel of an operation, with its buffers in the order of its bindings.
struct Step<'a> {
    entry: &'static EntryPoint,
    over: Over,
    /// Of which each dispatch binds its slice.
    tensors: &'a [Named<'a>],
    /// Which each dispatch binds whole.
    vectors: &'a [Named<'a>],
}

/// Which divisions a kernel runs over.
#[derive(Clone, Copy)]
enum Over {
    Reduction,
    Merge,
    Map,
}

impl Plan {
    /// Plans batch normalization of tensors of `shape`.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for options out of range, [`Error::TooLarge`] for a tensor
    /// beyond the device's `max_buffer_size` or parameters beyond its
    /// `max_storage_buffer_binding_size`, [`Error::DeviceLimit`] if the work takes more workgroups
    /// than the device allows, [`Error::OutOfMemory`] if the workspace does not fit,
    /// [`Error::DeviceLost`].
    pub fn new(gpu: &Gpu, shape: &Shape, options: &Options) -> Result<Self, Error> {
        options.validate()?;
        let limits = gpu.limits();
        let tensor = format!("a tensor of shape {:?}", shape.dims());
        check_size(&tensor, shape.bytes(), limits.max_buffer_size)?;
        let saved = statistics::SAVED_ROWS * channel_bytes(shape);
        let binding = limits.max_storage_buffer_binding_size;
        check_size("the statistics of all channels", saved, binding)?;
        // An empty tensor takes no dispatch: plan for one value per channel instead.
        let mut view = shape.view();
        if shape.is_empty() {
            (view.outer, view.inner) = (1, 1);
        }
        let tuning = options
            .tuning
            .clone()
            .unwrap_or_else(|| Tuning::for_device(gpu.info().device_type))
            .within(limits);
        let packing = Packing::of(view);
        let divisions = Divisions::new(Block::new(view, packing), packing, &tuning, limits);
        for division in divisions.all() {
            division.launch.check(limits)?;
        }

        let count = shape.values_per_channel();
        let constants = Constants {
            eps: options.eps as f32,
            inverse_count: (1.0 / count as f64) as f32,
            variance_correction: options.variance_correction(count) as f32,
            momentum_mean: options.momentum_mean as f32,
            momentum_var: options.momentum_var as f32,
        };
        let uniform_stride = (size_of::<Geometry>() as u64)
            .next_multiple_of(limits.min_uniform_buffer_offset_alignment.into());
        let geometries = divisions
            .all()
            .map(|division| bytemuck::bytes_of(&division.geometry));
        let mut uniforms = Vec::new();
        for block in std::iter::once(bytemuck::bytes_of(&constants)).chain(geometries) {
            uniforms.extend_from_slice(block);
            uniforms.resize(uniforms.len().next_multiple_of(uniform_stride as usize), 0);
        }

        let partials = |name: &str, rows: u64| gpu.vector_buffer(name, rows * channel_bytes(shape));
        Ok(Self {
            uniforms: gpu.uniform_buffer("batch_norm.plan", &uniforms)?,
            moments: partials(
                "batch_norm.moments",
                statistics::partial_rows(divisions.splits()),
            )?,
            sums: partials(
                "batch_norm.sums",
                gradients::partial_rows(divisions.splits()),
            )?,
            gpu: gpu.clone(),
            shape: shape.clone(),
            packing,
            divisions,
            uniform_stride,
        })
    }

    /// The shape that was planned for.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The size of the `saved` range, in bytes.
    pub fn saved_bytes(&self) -> u64 {
        statistics::SAVED_ROWS * channel_bytes(&self.shape)
    }

    /// Binds a forward pass in training: `y = (x − mean)·γ/√(var + eps) + β` with the mean and the
    /// population variance of the batch, and a step of the running statistics.
    ///
    /// # Accuracy
    /// Against f64, whatever the offset of `x`, for γ = 1, β = 0: `|y − y64| ≤ 1e-6·max(1, |y64|)`, or
    /// 4e-6 where a channel has an outlier of 10⁴ standard deviations; the variance within 1e-6 of
    /// its value (`tests/gpu/accuracy.rs`).
    ///
    /// # Errors
    /// [`Error::EmptyBatch`] or [`Error::OneValuePerChannel`] where training is not defined;
    /// [`Error::BufferSize`], [`Error::Misaligned`], [`Error::MissingUsage`],
    /// [`Error::SharedBuffer`] or [`Error::Overlap`] for a range that cannot be bound;
    /// [`Error::Wgpu`] for what only wgpu can know, such as a buffer of another device.
    ///
    /// # Source
    /// Ioffe & Szegedy 2015, algorithm 1; Chan, Golub & LeVeque 1983 for the variance.
    pub fn bind_forward(&self, buffers: &ForwardBuffers<'_>) -> Result<Commands, Error> {
        self.shape.check_trainable()?;
        let x = self.tensor("x", buffers.x)?;
        let y = self.tensor("y", buffers.y)?;
        let gamma = self.vector("gamma", buffers.gamma)?;
        let beta = self.vector("beta", buffers.beta)?;
        let running_mean = self.vector("running_mean", buffers.running_mean)?;
        let running_var = self.vector("running_var", buffers.running_var)?;
        let saved = self.range("saved", buffers.saved, self.saved_bytes())?;
        in_other_buffers(y, &[x, gamma, beta, saved])?;
        without_overlap(&[y, running_mean, running_var, saved], &[x, gamma, beta])?;
        let partials = ("partials", self.moments.slice(..));
        self.commands(&[
            Step {
                entry: &statistics::PARTIAL,
                over: Over::Reduction,
                tensors: &[x],
                vectors: &[partials],
            },
            Step {
                entry: &statistics::MERGE,
                over: Over::Merge,
                tensors: &[],
                vectors: &[partials, saved, running_mean, running_var],
            },
            Step {
                entry: &normalize::BATCH,
                over: Over::Map,
                tensors: &[x, y],
                vectors: &[gamma, beta, saved],
            },
        ])
    }

    /// Binds inference: `y = (x − running_mean)·γ/√(running_var + eps) + β`.
    ///
    /// # Accuracy
    /// `|y − y64| ≤ 1e-6·(max(|γ|, |y64 − β|) + |β|)` against f64 (`tests/gpu/operations.rs`).
    ///
    /// # Errors
    /// As [`Plan::bind_forward`], but any batch will do.
    pub fn bind_inference(&self, buffers: &InferenceBuffers<'_>) -> Result<Commands, Error> {
        let gamma = self.vector("gamma", buffers.gamma)?;
        let beta = self.vector("beta", buffers.beta)?;
        let running_mean = self.vector("running_mean", buffers.running_mean)?;
        let running_var = self.vector("running_var", buffers.running_var)?;
        if self.shape.is_empty() {
            return Ok(Commands {
                dispatches: Vec::new(),
            });
        }
        let x = self.tensor("x", buffers.x)?;
        let y = self.tensor("y", buffers.y)?;
        let inputs = [x, gamma, beta, running_mean, running_var];
        in_other_buffers(y, &inputs)?;
        self.commands(&[Step {
            entry: &normalize::RUNNING,
            over: Over::Map,
            tensors: &[x, y],
            vectors: &[gamma, beta, running_mean, running_var],
        }])
    }

    /// Binds the backward pass of training, through the batch's own statistics: `dβ = Σdy`,
    /// `dγ = Σdy·x̂`, `dx = γ/√(var + eps)·(dy − dβ/M − x̂·dγ/M)`.
    ///
    /// # Accuracy
    /// `dx` and `dγ` within 1e-5 of their largest magnitude against f64, whatever the offset of
    /// `x` (`tests/gpu/accuracy.rs`).
    ///
    /// # Errors
    /// As [`Plan::bind_forward`].
    ///
    /// # Source
    /// Ioffe & Szegedy 2015, section 3.
    pub fn bind_backward(&self, buffers: &BackwardBuffers<'_>) -> Result<Commands, Error> {
        self.shape.check_trainable()?;
        let x = self.tensor("x", buffers.x)?;
        let dy = self.tensor("dy", buffers.dy)?;
        let dx = self.tensor("dx", buffers.dx)?;
        let gamma = self.vector("gamma", buffers.gamma)?;
        let dgamma = self.vector("dgamma", buffers.dgamma)?;
        let dbeta = self.vector("dbeta", buffers.dbeta)?;
        let saved = self.range("saved", buffers.saved, self.saved_bytes())?;
        in_other_buffers(dx, &[x, dy, gamma, saved])?;
        in_other_buffers(dgamma, &[saved])?;
        in_other_buffers(dbeta, &[saved])?;
        without_overlap(&[dx, dgamma, dbeta], &[x, dy, gamma, saved])?;
        let partials = ("partials", self.sums.slice(..));
        self.commands(&[
            Step {
                entry: &gradients::PARTIAL,
                over: Over::Reduction,
                tensors: &[x, dy],
                vectors: &[saved, partials],
            },
            Step {
                entry: &gradients::MERGE,
                over: Over::Merge,
                tensors: &[],
                vectors: &[saved, partials, dgamma, dbeta],
            },
            Step {
                entry: &input_gradient::MAIN,
                over: Over::Map,
                tensors: &[x, dy, dx],
                vectors: &[saved, gamma, partials],
            },
        ])
    }

    /// Binds a sequence of kernels, one dispatch for each division that the kernel runs over.
    fn commands(&self, steps: &[Step<'_>]) -> Result<Commands, Error> {
        let mut dispatches = Vec::new();
        for step in steps {
            let reductions = &self.divisions.reductions;
            let (divisions, first_block) = match step.over {
                Over::Reduction => (reductions.as_slice(), 1),
                Over::Merge => (
                    std::slice::from_ref(&self.divisions.merge),
                    1 + reductions.len(),
                ),
                Over::Map => (self.divisions.maps.as_slice(), 2 + reductions.len()),
            };
            for (index, division) in divisions.iter().enumerate() {
                let block = first_block + index;
                let uniforms = step
                    .entry
                    .bindings
                    .iter()
                    .filter_map(|&(_, name)| match name {
                        "constants" => Some((name, self.uniform(0, size_of::<Constants>()))),
                        "geometry" => Some((name, self.uniform(block, size_of::<Geometry>()))),
                        _ => None,
                    });
                let tensors = step
                    .tensors
                    .iter()
                    .map(|&(name, tensor)| (name, self.sliced(tensor, index)));
                let vectors = step
                    .vectors
                    .iter()
                    .map(|&(name, vector)| (name, binding(vector)));
                let buffers: Vec<_> = uniforms.chain(tensors).chain(vectors).collect();
                dispatches.push(Dispatch::new(
                    &self.gpu,
                    step.entry,
                    self.packing,
                    division.launch,
                    &buffers,
                )?);
            }
        }
        Ok(Commands { dispatches })
    }

    /// The uniform in a block of `uniforms`.
    fn uniform(&self, block: usize, size: usize) -> BufferBinding<'_> {
        let start = block as u64 * self.uniform_stride;
        binding(self.uniforms.slice(start..start + size as u64))
    }

    /// The part of a tensor that lies in a slice.
    fn sliced<'a>(&self, tensor: BufferSlice<'a>, index: usize) -> BufferBinding<'a> {
        let alignment = self.gpu.limits().min_storage_buffer_offset_alignment;
        let bytes = self.divisions.slices[index].bytes(self.packing, alignment.into());
        binding(tensor.slice(bytes))
    }

    /// A range that holds a tensor of the plan's shape.
    fn tensor<'a>(&self, name: &'static str, range: BufferSlice<'a>) -> Result<Named<'a>, Error> {
        self.range(name, range, self.shape.bytes())
    }

    /// A range that holds one value per channel.
    fn vector<'a>(&self, name: &'static str, range: BufferSlice<'a>) -> Result<Named<'a>, Error> {
        self.range(name, range, channel_bytes(&self.shape))
    }

    /// A range of `expected` bytes that the device can bind as storage.
    fn range<'a>(
        &self,
        tensor: &'static str,
        range: BufferSlice<'a>,
        expected: u64,
    ) -> Result<Named<'a>, Error> {
        check_storage(&self.gpu, tensor, range)?;
        if range.size() != expected {
            return Err(Error::BufferSize {
                tensor,
                expected,
                found: range.size(),
            });
        }
        Ok((tensor, range))
    }
}

/// The bytes of one f32 per channel.
fn channel_bytes(shape: &Shape) -> u64 {
    (shape.channels() * size_of::<f32>()) as u64
}

/// Fails unless the range can be bound as storage.
pub(crate) fn check_storage(
    gpu: &Gpu,
    tensor: &'static str,
    range: BufferSlice<'_>,
) -> Result<(), Error> {
    let usage = wgpu::BufferUsages::STORAGE;
    if !range.buffer().usage().contains(usage) {
        return Err(Error::MissingUsage { tensor, usage });
    }
    let alignment = u64::from(gpu.limits().min_storage_buffer_offset_alignment);
    if !range.offset().is_multiple_of(alignment) {
        return Err(Error::Misaligned {
            tensor,
            offset: range.offset(),
            alignment,
        });
    }
    Ok(())
}

pub(crate) fn binding(range: BufferSlice<'_>) -> BufferBinding<'_> {
    BufferBinding {
        buffer: range.buffer(),
        offset: range.offset(),
        size: wgpu::BufferSize::new(range.size()),
    }
}

/// Fails if an output lies in the buffer of something that is read in the same dispatch.
fn in_other_buffers((output, written): Named<'_>, inputs: &[Named<'_>]) -> Result<(), Error> {
    match inputs
        .iter()
        .find(|(_, read)| read.buffer() == written.buffer())
    {
        Some(&(input, _)) => Err(Error::SharedBuffer { output, input }),
        None => Ok(()),
    }
}

/// Fails if an output overlaps another output or an input.
fn without_overlap(outputs: &[Named<'_>], inputs: &[Named<'_>]) -> Result<(), Error> {
    for (i, &(output, a)) in outputs.iter().enumerate() {
        for &(other, b) in outputs[i + 1..].iter().chain(inputs) {
            let overlap = a.offset() < b.offset() + b.size() && b.offset() < a.offset() + a.size();
            if a.buffer() == b.buffer() && overlap {
                return Err(Error::Overlap { output, other });
            }
        }
    }
    Ok(())
}
