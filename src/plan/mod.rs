//! The lower level: operations recorded into the caller's commands, over the caller's buffers.

mod buffers;
mod operands;

use wgpu::{BufferBinding, BufferSlice};

use self::buffers::Named;
pub use self::buffers::{BackwardBuffers, ForwardBuffers};
pub(crate) use self::operands::check_storage;
use self::operands::{FROZEN_STATISTICS, Operands, Take, check_overlap, is_tensor, shares};
use crate::division::{Division, Divisions, Form, Geometry, Packing, Whole};
use crate::gpu::check_size;
use crate::kernels::{ActivationFile, Choice, Constants, Dispatch, EntryPoint};
use crate::kernels::{
    backward, forward, frozen_statistics, gradients, input_gradient, normalize, statistics,
};
use crate::{Activation, DType, Error, Gpu, NativeF16, OneValue, Options, Shape, Tuning};

/// Batch normalization of one shape with one set of options, for engines.
///
/// A plan is built once. It holds the workspace and the numbers that the kernels need; `bind_*`
/// checks the caller's buffer ranges and binds them, and the [`Commands`] that result are recorded
/// as often as wanted. Recording never allocates, submits or waits.
///
/// Ranges that are only read may share a buffer, and overlap. Ranges that are written must not
/// overlap any other, but for two: `y` may be given the very range of `x`, and `dx` that of `dy`,
/// and are then computed in place. All may be ranges of one buffer, as in an engine's memory pool.
///
/// All operations of a plan share its workspace. They may be recorded in any order, into any
/// number of encoders, for the same queue: a queue runs them one after the other.
///
/// # Shapes
/// `x`, `y`, `dy`, `dx`, `residual`, `residual_gradient`: the plan's shape and storage type,
/// row-major, [`Shape::bytes`] · `gamma`, `beta`, `running_mean`, `running_var`, `dgamma`, `dbeta`:
/// `[channels]` f32 · `saved`: [`Plan::saved_bytes`] bytes that carry the statistics of a forward
/// pass to its backward pass · `mask`: [`Plan::mask_bytes`] bytes that carry what the activation
/// cut · `valid`: [`Plan::valid_bytes`] bytes, see [`ForwardBuffers::valid`].
///
/// Each is given as a `wgpu::BufferSlice` of exactly that size, at an offset that is a multiple of
/// the device's `min_storage_buffer_offset_alignment`, of a buffer with the usage `STORAGE`. The
/// buffers must be of the plan's device. wgpu reports one of another device ([`Error::Wgpu`]), but
/// cannot tell one of another `wgpu::Instance`, and may panic on it.
///
/// # Example
/// ```
/// use wgpu_batchnorm::{DType, Error, ForwardBuffers, Gpu, Layout, Options, Plan, Shape, wgpu};
///
/// let gpu = Gpu::open_blocking()?;
/// let shape = Shape::new(&[8, 16, 4, 4], Layout::ChannelsFirst)?;
/// let plan = Plan::new(&gpu, &shape, DType::F32, &Options::default())?;
///
/// // An engine's own memory: one buffer, cut into ranges.
/// let pool = gpu.device().create_buffer(&wgpu::BufferDescriptor {
///     label: None,
///     size: 32768,
///     usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
///     mapped_at_creation: false,
/// });
/// let range = |start, size| pool.slice(start..start + size);
/// let (bytes, channels) = (shape.bytes(DType::F32), 16 * 4);
/// let forward = plan.bind_forward(
///     &ForwardBuffers::new(range(0, bytes), range(8192, bytes))
///         .gamma(range(16384, channels))
///         .beta(range(16640, channels))
///         .running_mean(range(16896, channels))
///         .running_var(range(17152, channels))
///         .saved(range(17408, plan.saved_bytes())),
/// )?;
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
    dtype: DType,
    options: Options,
    tuning: Tuning,
    native_f16: NativeF16,
    form: Form,
    divisions: Divisions,
    /// `Constants`, then the geometry of every division, each at a multiple of `uniform_stride`.
    uniforms: wgpu::Buffer,
    uniform_stride: u64,
    /// Partial results of the statistics, from one dispatch to the next.
    moments: wgpu::Buffer,
    /// Partial results of the gradients, from one dispatch to the next.
    sums: wgpu::Buffer,
    /// What the gradient of x needs of each channel.
    coefficients: wgpu::Buffer,
    /// What stands for absent vectors that are read: ones, zeros; and for vectors that nobody
    /// wants, two, which are written. Each at a multiple of `vector_stride`.
    constant_vectors: wgpu::Buffer,
    unwanted_vectors: wgpu::Buffer,
    vector_stride: u64,
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

/// A kernel of an operation.
#[derive(Clone, Copy)]
struct Step<'a> {
    entry: &'static EntryPoint,
    over: Over<'a>,
    /// What the kernel calls `partials`.
    partials: BufferSlice<'a>,
}

/// What a kernel runs over.
#[derive(Clone, Copy)]
enum Over<'a> {
    Reduction,
    /// The partial results of all slices.
    Merge,
    /// No partial results: the merge gives sums over nothing.
    Nothing,
    /// Partial results that the caller gives.
    Given(&'a Given),
    Map,
    /// Columns as a whole, in a pass of that number.
    Whole(&'a Whole, usize),
}

/// A merge of partial results that are not those of the plan's slices.
struct Given {
    division: Division,
    /// Its geometry.
    uniform: wgpu::Buffer,
}

impl Plan {
    /// Plans batch normalization of tensors of `shape`, stored as `dtype`.
    ///
    /// A device's first plan in f16 submits a small dispatch, and waits for it and what was submitted before:
    /// see [`NativeF16`].
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for options out of range, [`Error::Conflict`] for options that
    /// collide, [`Error::TooLarge`] for a tensor beyond the device's `max_buffer_size` or parameters
    /// beyond its `max_storage_buffer_binding_size`, [`Error::DeviceLimit`] if the work takes more
    /// workgroups than the device allows, [`Error::OutOfMemory`] if the workspace does not fit,
    /// [`Error::DeviceLost`].
    pub fn new(gpu: &Gpu, shape: &Shape, dtype: DType, options: &Options) -> Result<Self, Error> {
        options.validate()?;
        let limits = gpu.limits();
        let tensor = format!("a tensor of shape {:?}", shape.dims());
        check_size(&tensor, shape.bytes(dtype), limits.max_buffer_size)?;
        let saved = statistics::SAVED_ROWS * channel_bytes(shape);
        let binding = limits.max_storage_buffer_binding_size;
        check_size("the statistics of all channels", saved, binding)?;
        // An empty tensor takes no dispatch: plan for one value per channel instead.
        let mut view = shape.view();
        if shape.is_empty() {
            (view.outer, view.inner) = (1, 1);
        }
        if view.channels == 1 {
            // One plane, however it lies.
            (view.outer, view.inner) = (1, view.outer * view.inner);
        }
        let mut tuning = options
            .tuning
            .clone()
            .unwrap_or_else(|| Tuning::for_device(gpu.info().device_type))
            .within(limits);
        tuning.wide_words &= gpu.wide_words();
        // With a residual, an activation keeps what it cuts.
        let masked = options.activation != Activation::Identity;
        let form = Form::of(view, dtype, masked, &tuning, limits);
        if form.in_pairs() {
            // A shader computes a value's channel from its index.
            check_size(&tensor, shape.bytes(dtype), 2 * u64::from(u32::MAX))?;
        }
        let divisions = Divisions::new(view, form, masked, &tuning, limits);
        for division in divisions.all() {
            division.launch.check(limits)?;
        }

        let uniform_stride = (size_of::<Geometry>() as u64)
            .next_multiple_of(limits.min_uniform_buffer_offset_alignment.into());
        let constants = constants(options, 0);
        let geometries = divisions
            .all()
            .map(|division| bytemuck::bytes_of(&division.geometry));
        let mut uniforms = Vec::new();
        for block in std::iter::once(bytemuck::bytes_of(&constants)).chain(geometries) {
            uniforms.extend_from_slice(block);
            uniforms.resize(uniforms.len().next_multiple_of(uniform_stride as usize), 0);
        }

        let rows = |name: &str, rows: u64| gpu.vector_buffer(name, rows * channel_bytes(shape));
        let vector_stride = channel_bytes(shape)
            .next_multiple_of(limits.min_storage_buffer_offset_alignment.into());
        let mut constant_vectors = vec![1.0_f32; vector_stride as usize / size_of::<f32>()];
        constant_vectors.resize(2 * constant_vectors.len(), 0.0);
        Ok(Self {
            uniforms: gpu.uniform_buffer("batch_norm.plan", &uniforms)?,
            moments: rows(
                "batch_norm.moments",
                statistics::MOMENTS_ROWS * divisions.partials(),
            )?,
            sums: rows(
                "batch_norm.sums",
                gradients::SUMS_ROWS * divisions.partials(),
            )?,
            coefficients: rows("batch_norm.coefficients", gradients::COEFFICIENT_ROWS)?,
            constant_vectors: gpu.upload("batch_norm.constant_vectors", &constant_vectors)?,
            unwanted_vectors: gpu
                .vector_buffer("batch_norm.unwanted_vectors", 2 * vector_stride)?,
            gpu: gpu.clone(),
            shape: shape.clone(),
            dtype,
            options: options.clone(),
            native_f16: match (dtype, tuning.native_f16) {
                (DType::F16, wanted) if wanted != NativeF16::Never => wanted.min(gpu.native_f16()),
                _ => NativeF16::Never,
            },
            tuning,
            form,
            divisions,
            uniform_stride,
            vector_stride,
        })
    }

    /// The shape that was planned for.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The storage type that was planned for.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The size of the `saved` range, in bytes.
    pub fn saved_bytes(&self) -> u64 {
        statistics::SAVED_ROWS * channel_bytes(&self.shape)
    }

    /// The size of the `mask` range, in bytes: one bit for each value, and some to fill up words (a
    /// quarter where channels have tens of thousands of values, up to three times as many where they have few, and
    /// a word for each channel at least).
    /// Words that hold no value's bit are not written.
    pub fn mask_bytes(&self) -> u64 {
        self.divisions.mask_words * 4
    }

    /// The size of the `valid` range, in bytes: one bit for each position, filled up to u32.
    pub fn valid_bytes(&self) -> u64 {
        valid_words(&self.shape) * 4
    }

    /// The size of a shard's moments, in bytes: see [`Plan::bind_moments`].
    pub fn moments_bytes(&self) -> u64 {
        statistics::MOMENTS_ROWS * channel_bytes(&self.shape)
    }

    /// The size of a shard's sums, in bytes: see [`Plan::bind_sums`].
    pub fn sums_bytes(&self) -> u64 {
        gradients::SUMS_ROWS * channel_bytes(&self.shape)
    }

    /// Says how many batches entered the running statistics before the work that is submitted next,
    /// for [`crate::Momentum::Cumulative`]; no other momentum needs it. Takes effect with the next
    /// submission to the queue.
    ///
    /// # Errors
    /// [`Error::Wgpu`] or [`Error::DeviceLost`].
    pub fn set_batches_tracked(&self, batches: u64) -> Result<(), Error> {
        let constants = constants(&self.options, batches);
        self.gpu.caught(|| {
            let bytes = bytemuck::bytes_of(&constants);
            self.gpu.queue().write_buffer(&self.uniforms, 0, bytes);
        })
    }

    /// Binds a forward pass in training: `y = act((x − mean)·γ/√(var + eps) + β [+ residual])` with
    /// the mean and the population variance of the batch, and a step of the running statistics.
    /// With frozen statistics, mean and variance are the running ones, which stay as they are.
    ///
    /// A batch with one value per channel, where the options allow it, or with one valid position
    /// gives `y = act(β [+ residual])` there and leaves the running statistics as they are. So does
    /// a batch without any valid position, where mean and variance count as 0.
    ///
    /// # Accuracy
    /// Against f64, whatever the offset of `x`, for γ = 1, β = 0: `|y − y64| ≤ 1e-6·max(1, |y64|)`, or
    /// 4e-6 where a channel has an outlier of 10⁴ standard deviations; the variance within 1e-6 of
    /// its value (`tests/gpu/accuracy.rs`). In units of `max(|γ|, |γ·x̂|) + |β| + |residual|`, times the
    /// slope of an activation steeper than 1, it is 1e-6 for any γ, β and residual
    /// (`tests/gpu/modes.rs`). In 16 bits, and half a unit in the last place of `y`.
    ///
    /// # Errors
    /// [`Error::EmptyBatch`] or [`Error::OneValuePerChannel`] where training is not defined;
    /// [`Error::MissingBuffer`] or [`Error::Conflict`] for a range too few or too many;
    /// [`Error::BufferSize`], [`Error::Misaligned`], [`Error::MissingUsage`] or [`Error::Overlap`]
    /// for a range that cannot be bound;
    /// [`Error::Wgpu`] for what only wgpu can know, such as a buffer of another device.
    ///
    /// # Source
    /// Ioffe & Szegedy 2015, algorithm 1; Chan, Golub & LeVeque 1983 for the variance.
    pub fn bind_forward(&self, buffers: &ForwardBuffers<'_>) -> Result<Commands, Error> {
        self.check_trainable(&buffers.ranges)?;
        let frozen = self.options.frozen_statistics;
        let mut takes = self.forward_takes(&buffers.ranges);
        takes.extend([
            ("valid", Take::may_if(!frozen, FROZEN_STATISTICS)),
            ("running_mean", self.takes_running()),
            ("running_var", self.takes_running()),
            ("saved", Take::Must),
        ]);
        let operands = self.operands("bind_forward", &buffers.ranges, &takes, 1)?;
        if operands.has("valid") {
            self.options.check_masked()?;
        }
        let choice = self.forward_choice(&operands);
        let partial = self.forward_step(&statistics::PARTIAL, Over::Reduction);
        let merge = self.forward_step(&statistics::MERGE, Over::Merge);
        let saved = self.forward_step(&frozen_statistics::MAIN, Over::Merge);
        let normalize = self.forward_step(&normalize::MAIN, Over::Map);
        if frozen && self.shape.is_empty() {
            // Also an empty batch leaves its statistics.
            return self.dispatches(&operands, &choice, &[saved]);
        }
        if frozen {
            return self.commands(&operands, &choice, &[saved, normalize]);
        }
        if let Some(whole) = self.whole(&choice, &forward::WHOLE, 0) {
            return self.commands(&operands, &choice, &[whole]);
        }
        if self.may_go_from_partials(&choice, &forward::FROM_PARTIALS) {
            let from_partials = self.forward_step(&forward::FROM_PARTIALS, Over::Map);
            return self.commands(&operands, &choice, &[partial, from_partials]);
        }
        self.commands(&operands, &choice, &[partial, merge, normalize])
    }

    /// Binds inference:
    /// `y = act((x − running_mean)·γ/√(running_var + eps) + β [+ residual])`.
    ///
    /// # Accuracy
    /// As [`Plan::bind_forward`], in units of `max(|γ|, |γ·x̂|) + |β| + |residual|`
    /// (`tests/gpu/operations.rs`).
    ///
    /// # Errors
    /// As [`Plan::bind_forward`], but any batch will do. [`Error::Conflict`] without running
    /// statistics.
    pub fn bind_inference(&self, buffers: &ForwardBuffers<'_>) -> Result<Commands, Error> {
        if !self.options.running_statistics {
            return Err(Error::Conflict {
                first: "bind_inference",
                second: "running_statistics(false)",
                reason: "evaluation then goes by the batch's statistics, as bind_forward does",
            });
        }
        let mut takes = self.forward_takes(&buffers.ranges);
        takes.retain(|(name, _)| *name != "mask");
        takes.extend([("running_mean", Take::Must), ("running_var", Take::Must)]);
        let operands = self.operands("bind_inference", &buffers.ranges, &takes, 1)?;
        let choice = Choice {
            running: true,
            ..self.forward_choice(&operands)
        };
        let normalize = self.forward_step(&normalize::MAIN, Over::Map);
        self.commands(&operands, &choice, &[normalize])
    }

    /// Binds the backward pass of training, through the batch's own statistics, with `g` the
    /// gradient of what enters the activation: `dβ = Σg`, `dγ = Σg·x̂`,
    /// `dx = γ/√(var + eps)·(g − dβ/M − x̂·dγ/M)`, `residual_gradient = g`. Where only some positions
    /// are valid, `M` counts those, and at the others `dx = γ/√(var + eps)·g`; so it is everywhere
    /// with frozen statistics.
    ///
    /// Only what has a range is computed, and what that takes.
    ///
    /// # Accuracy
    /// `dx` and `dγ` within 1e-5 of their largest magnitude against f64, whatever the offset of
    /// `x` (`tests/gpu/accuracy.rs`). In 16 bits, and half a unit in the last place.
    ///
    /// # Errors
    /// As [`Plan::bind_forward`].
    ///
    /// # Source
    /// Ioffe & Szegedy 2015, section 3.
    pub fn bind_backward(&self, buffers: &BackwardBuffers<'_>) -> Result<Commands, Error> {
        self.check_trainable(&buffers.ranges)?;
        let takes = self.backward_takes(&buffers.ranges);
        let operands = self.operands("bind_backward", &buffers.ranges, &takes, 1)?;
        let wants_dx = operands.has("dx");
        let frozen = self.options.frozen_statistics;
        let choice = Choice {
            products: operands.has("dgamma") || (wants_dx && !frozen),
            ..self.backward_choice(&operands)
        };
        let wants_sums = choice.products || operands.has("dbeta");
        let partial = self.backward_step(&gradients::PARTIAL, Over::Reduction);
        let merge = self.backward_step(&gradients::MERGE, Over::Merge);
        let merge_none = self.backward_step(&gradients::MERGE, Over::Nothing);
        if self.shape.is_empty() {
            // The gradients are 0.
            return self.dispatches(&operands, &choice, &[merge_none]);
        }
        let mut steps = Vec::new();
        if wants_dx
            && !frozen
            && let Some(whole) = self.whole(&choice, &backward::WHOLE, 1)
        {
            return self.commands(&operands, &choice, &[whole]);
        }
        if wants_dx && !frozen && self.may_go_from_partials(&choice, &backward::FROM_PARTIALS) {
            let from_partials = self.backward_step(&backward::FROM_PARTIALS, Over::Map);
            return self.commands(&operands, &choice, &[partial, from_partials]);
        }
        if wants_sums {
            steps.extend([partial, merge]);
        } else if wants_dx {
            // There is nothing to sum, but the coefficients are wanted.
            steps.push(merge_none);
        }
        if wants_dx {
            steps.push(self.backward_step(&input_gradient::MAIN, Over::Map));
        }
        self.commands(&operands, &choice, &steps)
    }

    /// Binds the moments of this plan's `x` as one shard of a larger batch: the first of the steps
    /// by which several devices normalize a batch together (synchronized batch norm).
    ///
    /// 1. `bind_moments` on each device: its moments, [`Plan::moments_bytes`] each;
    /// 2. the caller brings the moments of all shards to all devices;
    /// 3. [`Plan::bind_statistics`] and [`Plan::bind_normalize`] on each device;
    /// 4. in the backward pass, [`Plan::bind_sums`], the exchange of the sums, [`Plan::sums_bytes`]
    ///    each, and [`Plan::bind_input_gradient`].
    ///
    /// `moments` is written: `[4, channels]` f32, of each channel the count of its values, a pivot,
    /// the mean less the pivot, and `Σ(x − mean)²`. `valid` is optional. The batch may be of any
    /// size, even empty.
    ///
    /// # Errors
    /// As [`Plan::bind_forward`], but any batch will do; [`Error::Conflict`] if statistics are
    /// frozen.
    pub fn bind_moments(
        &self,
        x: BufferSlice<'_>,
        valid: Option<BufferSlice<'_>>,
        moments: BufferSlice<'_>,
    ) -> Result<Commands, Error> {
        self.refuse_frozen("bind_moments")?;
        let mut ranges = vec![("x", x), ("moments", moments)];
        ranges.extend(valid.map(|valid| ("valid", valid)));
        let takes = [
            ("x", Take::Must),
            ("valid", Take::May),
            ("moments", Take::Must),
        ];
        if self.shape.is_empty() {
            // Of nothing: no partial results.
            ranges.retain(|(name, _)| *name == "moments");
            let operands = self.operands("bind_moments", &ranges, &takes[2..], 1)?;
            let collect = self.forward_step(&statistics::COLLECT, Over::Nothing);
            return self.dispatches(&operands, &self.plain_choice(), &[collect]);
        }
        let operands = self.operands("bind_moments", &ranges, &takes, 1)?;
        let choice = Choice {
            some_valid: operands.has("valid"),
            ..self.plain_choice()
        };
        let partial = self.forward_step(&statistics::PARTIAL, Over::Reduction);
        let collect = self.forward_step(&statistics::COLLECT, Over::Merge);
        self.commands(&operands, &choice, &[partial, collect])
    }

    /// Binds the merge of the moments of `shards` shards, one behind the other in `moments`, to the
    /// statistics of the whole batch, written to `saved`, with a step of the running statistics,
    /// which are needed unless there are none by the options. Shards may be of any size.
    ///
    /// # Errors
    /// As [`Plan::bind_moments`]; [`Error::InvalidParameter`] for no shards.
    pub fn bind_statistics(
        &self,
        moments: BufferSlice<'_>,
        shards: u32,
        running: Option<[BufferSlice<'_>; 2]>,
        saved: BufferSlice<'_>,
    ) -> Result<Commands, Error> {
        self.refuse_frozen("bind_statistics")?;
        let mut ranges = vec![("moments", moments), ("saved", saved)];
        if let Some([mean, var]) = running {
            ranges.extend([("running_mean", mean), ("running_var", var)]);
        }
        let takes = [
            ("moments", Take::Must),
            ("running_mean", self.takes_running()),
            ("running_var", self.takes_running()),
            ("saved", Take::Must),
        ];
        let operands = self.operands("bind_statistics", &ranges, &takes, self.shards(shards)?)?;
        let given = self.given(shards, statistics::MOMENTS_ROWS)?;
        let merge = Step {
            partials: moments,
            ..self.forward_step(&statistics::MERGE, Over::Given(&given))
        };
        self.dispatches(&operands, &self.plain_choice(), &[merge])
    }

    /// Binds normalization by statistics that are there already, in `saved`: see
    /// [`Plan::bind_moments`]. An empty batch takes no work.
    ///
    /// # Errors
    /// As [`Plan::bind_forward`], but any batch will do.
    pub fn bind_normalize(&self, buffers: &ForwardBuffers<'_>) -> Result<Commands, Error> {
        let mut takes = self.forward_takes(&buffers.ranges);
        takes.push(("saved", Take::Must));
        let operands = self.operands("bind_normalize", &buffers.ranges, &takes, 1)?;
        let choice = self.forward_choice(&operands);
        let normalize = self.forward_step(&normalize::MAIN, Over::Map);
        self.commands(&operands, &choice, &[normalize])
    }

    /// Binds the sums of the backward pass over this shard: see [`Plan::bind_moments`].
    ///
    /// `sums` is written: `[2, channels]` f32, of each channel `Σg` and `Σg·(x − mean)` over this
    /// shard. `dgamma` and `dbeta`, if wanted, are those of this shard: add them up for the whole
    /// batch, or average them, as the loss wants. `buffers` may have no `dx`. Positions that are not
    /// valid enter the sums like others.
    ///
    /// # Errors
    /// As [`Plan::bind_forward`], but any batch will do.
    pub fn bind_sums(
        &self,
        buffers: &BackwardBuffers<'_>,
        sums: BufferSlice<'_>,
    ) -> Result<Commands, Error> {
        let mut ranges = buffers.ranges.clone();
        ranges.push(("sums", sums));
        let mut takes = self.backward_takes(&ranges);
        takes.retain(|(name, _)| !["dx", "residual_gradient"].contains(name));
        takes.push(("sums", Take::Must));
        let operands = self.operands("bind_sums", &ranges, &takes, 1)?;
        let choice = self.backward_choice(&operands);
        if self.shape.is_empty() {
            let collect = self.backward_step(&gradients::COLLECT, Over::Nothing);
            return self.dispatches(&operands, &choice, &[collect]);
        }
        let partial = self.backward_step(&gradients::PARTIAL, Over::Reduction);
        let collect = self.backward_step(&gradients::COLLECT, Over::Merge);
        self.commands(&operands, &choice, &[partial, collect])
    }

    /// Binds the gradient of this shard's `x` by the sums of `shards` shards, one behind the other
    /// in `sums` (or one, of what was added up elsewhere): see [`Plan::bind_moments`]. `buffers`
    /// must have `dx`. `dgamma` and `dbeta`, if wanted, are those of the whole batch.
    ///
    /// # Errors
    /// As [`Plan::bind_forward`], but any batch will do; [`Error::InvalidParameter`] for no shards.
    pub fn bind_input_gradient(
        &self,
        buffers: &BackwardBuffers<'_>,
        sums: BufferSlice<'_>,
        shards: u32,
    ) -> Result<Commands, Error> {
        let mut ranges = buffers.ranges.clone();
        ranges.push(("sums", sums));
        let mut takes = self.backward_takes(&ranges);
        takes.retain(|(name, _)| *name != "dx");
        takes.extend([("sums", Take::Must), ("dx", Take::Must)]);
        let operands =
            self.operands("bind_input_gradient", &ranges, &takes, self.shards(shards)?)?;
        let choice = self.backward_choice(&operands);
        let given = self.given(shards, gradients::SUMS_ROWS)?;
        let merge = Step {
            partials: sums,
            ..self.backward_step(&gradients::MERGE, Over::Given(&given))
        };
        let input_gradient = self.backward_step(&input_gradient::MAIN, Over::Map);
        match self.shape.is_empty() {
            // Its share of the batch's gradients is nothing, but not theirs.
            true => self.dispatches(&operands, &choice, &[merge]),
            false => self.dispatches(&operands, &choice, &[merge, input_gradient]),
        }
    }

    /// A kernel of the forward pass, with the plan's own partial results.
    fn forward_step<'a>(&'a self, entry: &'static EntryPoint, over: Over<'a>) -> Step<'a> {
        Step {
            entry,
            over,
            partials: self.moments.slice(..),
        }
    }

    /// A kernel of the backward pass, with the plan's own partial results.
    fn backward_step<'a>(&'a self, entry: &'static EntryPoint, over: Over<'a>) -> Step<'a> {
        Step {
            entry,
            over,
            partials: self.sums.slice(..),
        }
    }

    /// A kernel that does all of an operation by itself, if it may: where channels are small, all
    /// positions count, and the device binds so many buffers.
    fn whole(&self, choice: &Choice, entry: &'static EntryPoint, pass: usize) -> Option<Step<'_>> {
        let whole = self.divisions.whole.as_ref()?;
        if whole.form.in_pairs() && choice.masked() {
            return None;
        }
        let step = self.forward_step(entry, Over::Whole(whole, pass));
        (!choice.some_valid && self.binds(choice, entry)).then_some(step)
    }

    /// Whether an element-wise kernel may merge the partial results too: where these are few, and the device
    /// binds so many buffers.
    fn may_go_from_partials(&self, choice: &Choice, entry: &'static EntryPoint) -> bool {
        self.divisions.few_partials && self.binds(choice, entry)
    }

    /// Whether the device binds as many buffers as a kernel has.
    fn binds(&self, choice: &Choice, entry: &'static EntryPoint) -> bool {
        let limit = self.gpu.limits().max_storage_buffers_per_shader_stage;
        entry.storage_buffers(choice) <= limit as usize
    }

    /// Fails where training is not defined. How many positions are valid only the GPU knows.
    fn check_trainable(&self, ranges: &[Named<'_>]) -> Result<(), Error> {
        if self.options.frozen_statistics {
            return Ok(());
        }
        match self.shape.check_trainable() {
            Err(Error::OneValuePerChannel { .. })
                if self.options.one_value == OneValue::GiveBeta
                    || ranges.iter().any(|(name, _)| *name == "valid") =>
            {
                Ok(())
            }
            checked => checked,
        }
    }

    fn shards(&self, shards: u32) -> Result<u64, Error> {
        if shards > 0 {
            return Ok(shards.into());
        }
        Err(Error::InvalidParameter {
            name: "shards",
            expected: "at least 1",
            value: 0.0,
        })
    }

    fn forward_choice(&self, operands: &Operands<'_>) -> Choice {
        Choice {
            activation: ActivationFile::from(self.options.activation),
            residual: operands.has("residual"),
            some_valid: operands.has("valid"),
            in_place: operands.same("x", "y"),
            ..self.plain_choice()
        }
    }

    fn backward_choice(&self, operands: &Operands<'_>) -> Choice {
        Choice {
            activation: ActivationFile::from(self.options.activation),
            // Without an activation the backward pass is the same with a residual and without.
            residual: operands.has("mask") || operands.has("residual_gradient"),
            residual_gradient: operands.has("residual_gradient"),
            some_valid: operands.has("valid"),
            in_place: operands.same("dy", "dx"),
            batch_statistics: !self.options.frozen_statistics,
            ..self.plain_choice()
        }
    }

    /// The plainest kernels for the plan's tensors.
    fn plain_choice(&self) -> Choice {
        Choice {
            native_f16: self.native_f16,
            ..Choice::plain(self.form)
        }
    }

    /// A merge of `length` partial results, of so many rows each, that the caller gives one behind the other.
    fn given(&self, length: u32, rows: u64) -> Result<Given, Error> {
        let limits = self.gpu.limits();
        let columns = self.divisions.merge.geometry.columns;
        let mut division = Division::merge(columns, length, &self.tuning, limits);
        division.geometry.partial_step = rows as u32 * columns;
        division.geometry.partial_row_step = columns;
        division.launch.check(limits)?;
        let geometry = bytemuck::bytes_of(&division.geometry);
        Ok(Given {
            uniform: self.gpu.uniform_buffer("batch_norm.merge", geometry)?,
            division,
        })
    }

    /// Binds a sequence of kernels over tensors; of empty ones, none.
    fn commands(
        &self,
        operands: &Operands<'_>,
        choice: &Choice,
        steps: &[Step<'_>],
    ) -> Result<Commands, Error> {
        if self.shape.is_empty() {
            return Ok(Commands {
                dispatches: Vec::new(),
            });
        }
        self.dispatches(operands, choice, steps)
    }

    /// Binds a sequence of kernels, one dispatch for each division that the kernel runs over.
    fn dispatches(
        &self,
        operands: &Operands<'_>,
        choice: &Choice,
        steps: &[Step<'_>],
    ) -> Result<Commands, Error> {
        check_overlap(operands, choice, steps)?;
        let mut dispatches = Vec::new();
        let divisions = &self.divisions;
        for step in steps {
            let form = match step.over {
                Over::Map => choice.form,
                Over::Whole(whole, _) => whole.form,
                _ => choice.form.of_reductions(),
            };
            let in_packs = form.packing != Packing::Scalar;
            let choice = Choice {
                form,
                wide: in_packs && self.tuning.wide_words,
                shared: shares(operands, choice, step),
                ..*choice
            };
            let reductions = divisions.reductions.len();
            let (over, slices, first_block) = match step.over {
                Over::Reduction => (divisions.reductions.as_slice(), &divisions.slices, 1),
                Over::Merge => (
                    std::slice::from_ref(&divisions.merge),
                    &divisions.slices,
                    1 + reductions,
                ),
                Over::Nothing => (
                    std::slice::from_ref(&divisions.nothing),
                    &divisions.slices,
                    2 + reductions,
                ),
                Over::Given(given) => {
                    let division = std::slice::from_ref(&given.division);
                    (division, &divisions.slices, 0)
                }
                Over::Map => (
                    divisions.maps.as_slice(),
                    &divisions.map_slices,
                    3 + reductions,
                ),
                Over::Whole(whole, pass) => (
                    std::slice::from_ref(&whole.passes[pass]),
                    &divisions.slices,
                    3 + reductions + divisions.maps.len() + pass,
                ),
            };
            for (index, division) in over.iter().enumerate() {
                let buffer = |name: &'static str| match (name, step.over) {
                    ("constants", _) => Some(self.uniform(0, size_of::<Constants>())),
                    ("geometry", Over::Given(given)) => Some(binding(given.uniform.slice(..))),
                    ("geometry", _) => {
                        Some(self.uniform(first_block + index, size_of::<Geometry>()))
                    }
                    ("partials", _) => Some(binding(step.partials)),
                    (name, _) if is_tensor(name) => operands
                        .get(name)
                        .map(|tensor| binding(tensor.slice(slices.bytes(index)))),
                    (name, _) => operands
                        .get(name)
                        .or_else(|| self.own_vector(name))
                        .map(binding),
                };
                dispatches.push(Dispatch::new(
                    &self.gpu,
                    step.entry,
                    &choice,
                    division.launch,
                    buffer,
                )?);
            }
        }
        Ok(Commands { dispatches })
    }

    /// What stands for a vector that the caller did not give.
    fn own_vector(&self, name: &str) -> Option<BufferSlice<'_>> {
        let (buffer, index) = match name {
            "coefficient_rows" => return Some(self.coefficients.slice(..)),
            "gamma" => (&self.constant_vectors, 0),
            "beta" => (&self.constant_vectors, 1),
            "running_mean" | "dgamma" => (&self.unwanted_vectors, 0),
            "running_var" | "dbeta" => (&self.unwanted_vectors, 1),
            _ => return None,
        };
        let start = index * self.vector_stride;
        Some(buffer.slice(start..start + channel_bytes(&self.shape)))
    }

    /// The uniform in a block of `uniforms`.
    fn uniform(&self, block: usize, size: usize) -> BufferBinding<'_> {
        let start = block as u64 * self.uniform_stride;
        binding(self.uniforms.slice(start..start + size as u64))
    }
}

/// The numbers of the shaders' `Constants` for the batch that comes after `batches` others.
fn constants(options: &Options, batches: u64) -> Constants {
    let (slope, least, most) = match options.activation {
        Activation::Identity | Activation::Relu => (0.0, 0.0, 0.0),
        Activation::LeakyRelu { slope } => (slope, 0.0, 0.0),
        Activation::Clamp { min, max } => (0.0, min, max),
    };
    Constants {
        eps: options.eps as f32,
        momentum_mean: options.momentum_mean.weight(batches) as f32,
        momentum_var: options.momentum_var.weight(batches) as f32,
        degrees_lost: options.running_variance.degrees_lost() as f32,
        slope: slope as f32,
        least: least as f32,
        most: most as f32,
    }
}

/// The bytes of one f32 per channel.
fn channel_bytes(shape: &Shape) -> u64 {
    (shape.channels() * size_of::<f32>()) as u64
}

/// The words of a bit for each position.
pub(crate) fn valid_words(shape: &Shape) -> u64 {
    (shape.values_per_channel() as u64).div_ceil(32).max(1)
}

pub(crate) fn binding(range: BufferSlice<'_>) -> BufferBinding<'_> {
    BufferBinding {
        buffer: range.buffer(),
        offset: range.offset(),
        size: wgpu::BufferSize::new(range.size()),
    }
}
