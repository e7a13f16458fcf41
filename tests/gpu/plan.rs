//! Plans: recorded into the caller's encoder, over ranges of the caller's buffers.

use libtest_mimic::Trial;
use ndarray::ArrayD;
use wgpu_batchnorm::half::{bf16, f16};
use wgpu_batchnorm::{
    Activation, BackwardBuffers, BatchNorm, Commands, DType, Extra, ForwardBuffers, Gpu, Layout,
    Mode, Momentum, Options, Parameter, Plan, Shape, State, Stored, Tensor, Tuning, Valid, Wanted,
    wgpu,
};

use crate::common::operations::{NAMES, Operation, Rule, Storage, bytes_of, good_place};
use crate::common::{Adapter, Outcome, Turn, normal, normal_vector};
use crate::ensure;
use crate::modes::upload;
use crate::operations::{many_splits, merged_in_maps, whole_columns};

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    vec![
        adapter.trial(
            "a plan gives what the layer gives, and writes nothing else",
            |gpu| {
                for (dims, layout) in SHAPES {
                    for tuning in tunings() {
                        let mode = (DType::F32, Options::default(), false, false);
                        in_mode(gpu, &Shape::new(dims, *layout)?, mode, &tuning, 0)
                            .map_err(|error| format!("{layout:?} {dims:?}: {error}"))?;
                    }
                }
                Ok(())
            },
        ),
        adapter.trial("a plan gives what the layer gives, in every mode", |gpu| {
            let turn = Turn::of(gpu);
            for (index, (dims, layout)) in SHAPES.iter().enumerate() {
                for (number, mode) in modes().into_iter().enumerate() {
                    if !turn.has(index + number) {
                        continue;
                    }
                    let tuning = tunings()[(number + index) % 5].clone();
                    let said = format!("{layout:?} {dims:?} {mode:?}");
                    in_mode(gpu, &Shape::new(dims, *layout)?, mode, &tuning, 40)
                        .map_err(|error| format!("{said}: {error}"))?;
                }
            }
            Ok(())
        }),
        adapter.trial("what is not wanted takes no dispatch", dispatches),
        adapter.trial("all tensors may lie in one buffer", one_buffer),
        adapter.trial("recording twice steps twice", recorded_twice),
        adapter.trial("results repeat bit for bit", repeats),
    ]
}

fn tunings() -> [Tuning; 5] {
    [
        Tuning::gpu(),
        Tuning::cpu(),
        merged_in_maps(),
        whole_columns(false),
        whole_columns(true),
    ]
}

/// Planes and rows, of sizes that make whole packs and words and of sizes that do not.
const SHAPES: &[(&[usize], Layout)] = &[
    (&[4, 8, 6, 6], Layout::ChannelsFirst),
    (&[4, 5, 7, 7], Layout::ChannelsFirst),
    // Packs that mix channels.
    (&[32, 5, 3, 3], Layout::ChannelsFirst),
    (&[4, 6, 6, 8], Layout::ChannelsLast),
    (&[4, 3, 5, 72], Layout::ChannelsLast),
    (&[4, 7, 7, 5], Layout::ChannelsLast),
    (&[300, 3], Layout::ChannelsFirst),
    // An odd number of values.
    (&[1, 3, 5], Layout::ChannelsFirst),
    (&[3, 6, 7, 7], Layout::ChannelsFirst),
    (&[3, 7, 7, 5], Layout::ChannelsLast),
    // An odd number of values in a plane, of pairs that lie in two.
    (&[2, 3, 33, 33], Layout::ChannelsFirst),
];

/// Storage type, options, whether there is a residual, whether only some positions are valid.
type ModeOfPlan = (DType, Options, bool, bool);

fn modes() -> Vec<ModeOfPlan> {
    let leaky = Activation::LeakyRelu { slope: 0.25 };
    let clamp = Activation::Clamp {
        min: -0.5,
        max: 1.0,
    };
    let options = |activation| Options::default().activation(activation);
    let frozen = |activation| options(activation).frozen_statistics(true);
    let (none, relu) = (Activation::Identity, Activation::Relu);
    vec![
        (DType::F32, options(relu), false, false),
        (DType::F32, options(leaky), true, true),
        (DType::F32, frozen(clamp), true, false),
        (
            DType::F32,
            options(relu).running_statistics(false),
            true,
            false,
        ),
        (DType::F16, options(none), false, false),
        (DType::F16, options(clamp), true, false),
        (
            DType::F16,
            options(relu).gamma(Parameter::Absent),
            false,
            true,
        ),
        (DType::F16, frozen(none), false, false),
        (
            DType::Bf16,
            options(none).beta(Parameter::Frozen),
            true,
            true,
        ),
        (DType::Bf16, options(relu), true, true),
        (
            DType::Bf16,
            options(leaky)
                .momentum(Momentum::Cumulative)
                .beta(Parameter::Absent),
            false,
            false,
        ),
        (DType::Bf16, frozen(leaky), true, false),
    ]
}

fn in_mode(gpu: &Gpu, shape: &Shape, mode: ModeOfPlan, tuning: &Tuning, gap: usize) -> Outcome {
    let (dtype, options, residual, valid) = mode;
    let channels = shape.channels();
    let mut state = State {
        gamma: normal_vector(channels, 1.0, 1.0, 3),
        beta: normal_vector(channels, 0.0, 1.0, 4),
        running_mean: normal_vector(channels, 0.0, 1.0, 5),
        running_var: normal_vector(channels, 2.0, 0.1, 6),
        num_batches_tracked: 3,
    };
    if options.gamma == Parameter::Absent {
        state.gamma.fill(1.0);
    }
    if options.beta == Parameter::Absent {
        state.beta.fill(0.0);
    }
    let places = normal(&positions(shape), 0.5, 1.0, 7);
    plan_agrees_with_layer(
        gpu,
        &Work {
            shape,
            dtype,
            options: &options.tuning(tuning.clone()),
            state: &state,
            x: rounded(&normal(shape.dims(), 2.0, 3.0, 1), dtype),
            dy: rounded(&normal(shape.dims(), 0.0, 1.0, 2), dtype),
            residual: residual.then(|| rounded(&normal(shape.dims(), 0.0, 1.0, 8), dtype)),
            valid: valid.then(|| places.mapv(|value| value > 0.0)),
            gap,
        },
    )
}

/// A shape without its channels.
fn positions(shape: &Shape) -> Vec<usize> {
    let mut dims = shape.dims().to_vec();
    match shape.layout() {
        Layout::ChannelsFirst => dims.remove(1),
        Layout::ChannelsLast => dims.remove(dims.len() - 1),
    };
    dims
}

/// A training step and an evaluation, to be done by a layer and by a plan.
pub struct Work<'a> {
    pub shape: &'a Shape,
    pub dtype: DType,
    pub options: &'a Options,
    pub state: &'a State,
    /// These are numbers of the storage type.
    pub x: ArrayD<f32>,
    pub dy: ArrayD<f32>,
    pub residual: Option<ArrayD<f32>>,
    pub valid: Option<ArrayD<bool>>,
    /// How many alignments of the device lie between the ranges in a buffer.
    pub gap: usize,
}

/// A vector with its name, as it lies in memory.
type Words = (&'static str, Vec<u32>);

impl Work<'_> {
    fn inputs(&self) -> Vec<Words> {
        let words = |array| words(array, self.dtype);
        let mut inputs = vec![("x", words(&self.x)), ("dy", words(&self.dy))];
        inputs.extend(self.residual.iter().map(|array| ("residual", words(array))));
        inputs.extend(self.valid.iter().map(|valid| ("valid", bits(valid))));
        if self.options.gamma != Parameter::Absent {
            inputs.push(("gamma", words_of_f32(&self.state.gamma.to_vec())));
        }
        if self.options.beta != Parameter::Absent {
            inputs.push(("beta", words_of_f32(&self.state.beta.to_vec())));
        }
        inputs
    }

    fn running(&self) -> Vec<Words> {
        if !self.options.running_statistics {
            return Vec::new();
        }
        vec![
            (
                "running_mean",
                words_of_f32(&self.state.running_mean.to_vec()),
            ),
            (
                "running_var",
                words_of_f32(&self.state.running_var.to_vec()),
            ),
        ]
    }

    /// The outputs, filled with these bits.
    fn outputs(&self, fill: u32) -> Vec<Words> {
        let filled = |name, bytes: u64| (name, vec![fill; bytes as usize / 4]);
        let (tensor, vector) = (
            self.shape.bytes(self.dtype),
            4 * self.shape.channels() as u64,
        );
        let mut outputs = vec![filled("y", tensor), filled("dx", tensor)];
        for (wanted, name, bytes) in [
            (self.options.running_statistics, "y_eval", tensor),
            (self.residual.is_some(), "residual_gradient", tensor),
            (self.options.gamma == Parameter::Learned, "dgamma", vector),
            (self.options.beta == Parameter::Learned, "dbeta", vector),
        ] {
            if wanted {
                outputs.push(filled(name, bytes));
            }
        }
        outputs
    }
}

/// What came out, by name.
type Results = Vec<(&'static str, Vec<f32>)>;

/// Any result or error.
type Found<T> = Result<T, Box<dyn std::error::Error>>;

/// Training, backward and inference over sub-ranges with offsets, against the layer, bit for bit;
/// then once more, in place and over memory with other values in it. Between the ranges lie guards.
pub fn plan_agrees_with_layer(gpu: &Gpu, work: &Work<'_>) -> Outcome {
    let expected = by_layer(gpu, work)?;
    // All bits set is no number, in every type.
    let apart = by_plan(gpu, work, u32::MAX, false)?;
    let in_place = by_plan(gpu, work, 0, true)?;
    for (what, expected) in expected {
        ensure_same_bits(what, &apart, &expected)?;
        ensure_same_bits(what, &in_place, &expected)
            .map_err(|error| format!("in place, {error}"))?;
    }
    let both = |what| {
        let find =
            |results: &Results| Some(results.iter().find(|(name, _)| *name == what)?.1.clone());
        find(&apart).zip(find(&in_place))
    };
    if let Some((saved, _)) = both("saved") {
        ensure_same_bits("saved", &in_place, &saved)?;
    }
    if let Some((apart, in_place)) = both("mask") {
        let mut written = 0;
        for (index, words) in apart.iter().zip(&in_place).enumerate() {
            let (apart, in_place) = (words.0.to_bits(), words.1.to_bits());
            // Those that hold no bits stay what they were.
            let unwritten = (apart, in_place) == (u32::MAX, 0);
            written += usize::from(!unwritten);
            ensure!(
                apart == in_place || unwritten,
                "mask[{index}] is {apart:x}, and in place {in_place:x}"
            );
        }
        ensure!(32 * written >= work.shape.len(), "the mask is too short");
    }
    Ok(())
}

fn ensure_same_bits(what: &str, found: &Results, expected: &[f32]) -> Outcome {
    let found = found.iter().find(|(name, _)| *name == what);
    let (_, found) = found.ok_or(format!("{what} is missing"))?;
    ensure!(found.len() == expected.len(), "{what} has another length");
    let differs = |(found, expected): (&f32, &f32)| found.to_bits() != expected.to_bits();
    let index = found.iter().zip(expected).position(differs);
    if let Some(index) = index {
        let (found, expected) = (found[index], expected[index]);
        return Err(format!("{what}[{index}] is {found:e}, expected {expected:e}").into());
    }
    Ok(())
}

fn by_layer(gpu: &Gpu, work: &Work<'_>) -> Found<Results> {
    let tensor = |array| upload(gpu, array, work.shape.layout(), work.dtype);
    let flat = |tensor: &Tensor| Found::Ok(tensor.to_array_blocking()?.into_iter().collect());
    let residual = work.residual.as_ref().map(tensor).transpose()?;
    let valid = work.valid.as_ref();
    let valid = valid
        .map(|valid| Valid::from_mask(gpu, valid))
        .transpose()?;
    let extra = Extra {
        residual: residual.as_ref(),
        valid: valid.as_ref(),
    };
    let mut layer = BatchNorm::new(gpu, work.shape.channels(), work.options.clone())?;
    layer.set_state(work.state)?;
    let x = tensor(&work.x)?;

    let mut results = vec![("y", flat(&layer.forward_with(&x, extra)?)?)];
    let found = layer.backward_with(&tensor(&work.dy)?, &Wanted::default())?;
    results.push(("dx", flat(&found.dx.ok_or("dx is wanted")?)?));
    if let Some(residual) = found.residual {
        results.push(("residual_gradient", flat(&residual)?));
    }
    let gradients = layer.gradients_blocking()?;
    if work.options.gamma == Parameter::Learned {
        results.push(("dgamma", gradients.gamma.to_vec()));
    }
    if work.options.beta == Parameter::Learned {
        results.push(("dbeta", gradients.beta.to_vec()));
    }
    if work.options.running_statistics {
        let trained = layer.state_blocking()?;
        results.push(("running_mean", trained.running_mean.to_vec()));
        results.push(("running_var", trained.running_var.to_vec()));
        layer.set_mode(Mode::Eval);
        results.push(("y_eval", flat(&layer.forward_with(&x, extra)?)?));
    }
    Ok(results)
}

/// The same by a plan, in place where that can be; memory that is to be written is filled with
/// these bits.
fn by_plan(gpu: &Gpu, work: &Work<'_>, fill: u32, in_place: bool) -> Found<Results> {
    let plan = Plan::new(gpu, work.shape, work.dtype, work.options)?;
    plan.set_batches_tracked(work.state.num_batches_tracked)?;
    let memory = Memory::new(gpu, work, &plan, fill, in_place);
    let commands = memory.bind(work, &plan)?;
    // Commands outlive their plan.
    drop(plan);
    submit(gpu, |encoder| {
        let (first, others) = commands.split_at(1);
        first[0].record(encoder);
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for commands in others {
            commands.record_into(&mut pass);
        }
    });
    memory.results(gpu, work)
}

/// All that a plan's operations read and write. Which ranges share a buffer is as tight as the rules
/// allow.
struct Memory {
    read: Guarded,
    running: Guarded,
    saved: Guarded,
    mask: Guarded,
    written: Guarded,
    /// In place: the inputs, under the names of the outputs.
    over: Option<Guarded>,
}

impl Memory {
    fn new(gpu: &Gpu, work: &Work<'_>, plan: &Plan, fill: u32, in_place: bool) -> Self {
        let guarded = |vectors| Guarded::new(gpu, work.gap, vectors);
        let filled = |name, bytes: u64| (name, vec![fill; bytes as usize / 4]);
        let mut written = work.outputs(fill);
        let mut over = None;
        if in_place {
            written.retain(|(name, _)| !["y", "dx", "y_eval"].contains(name));
            let [x, dy] = [&work.x, &work.dy].map(|array| words(array, work.dtype));
            over = Some(guarded(vec![("y", x.clone()), ("y_eval", x), ("dx", dy)]));
        }
        let mut mask = Vec::new();
        if work.residual.is_some() && work.options.activation != Activation::Identity {
            mask.push(filled("mask", plan.mask_bytes()));
        }
        Self {
            read: guarded(work.inputs()),
            running: guarded(work.running()),
            saved: guarded(vec![filled("saved", plan.saved_bytes())]),
            mask: guarded(mask),
            written: guarded(written),
            over,
        }
    }

    /// Training, its backward pass, and inference where there is one.
    fn bind(&self, work: &Work<'_>, plan: &Plan) -> Found<Vec<Commands>> {
        let mut training = self.forward("y")?.saved(self.saved.range("saved")?);
        training = with(training, self.mask.get("mask"), ForwardBuffers::mask);
        training = with(training, self.read.get("valid"), ForwardBuffers::valid);
        let mut commands = vec![
            plan.bind_forward(&training)?,
            plan.bind_backward(&self.backward()?)?,
        ];
        if work.options.running_statistics {
            let inference = plan.bind_inference(&self.forward("y_eval")?)?;
            ensure!(inference.dispatches() == 1, "inference takes one dispatch");
            commands.push(inference);
        }
        Ok(commands)
    }

    /// What is read, and where its result goes.
    fn between(&self, from: &str, to: &str) -> Found<[wgpu::BufferSlice<'_>; 2]> {
        Ok(match &self.over {
            Some(over) => [over.range(to)?, over.range(to)?],
            None => [self.read.range(from)?, self.written.range(to)?],
        })
    }

    fn forward(&self, to: &str) -> Found<ForwardBuffers<'_>> {
        let [x, y] = self.between("x", to)?;
        let (read, running) = (&self.read, &self.running);
        let mut buffers = ForwardBuffers::new(x, y);
        buffers = with(buffers, read.get("gamma"), ForwardBuffers::gamma);
        buffers = with(buffers, read.get("beta"), ForwardBuffers::beta);
        buffers = with(buffers, read.get("residual"), ForwardBuffers::residual);
        let mean = running.get("running_mean");
        buffers = with(buffers, mean, ForwardBuffers::running_mean);
        let var = running.get("running_var");
        Ok(with(buffers, var, ForwardBuffers::running_var))
    }

    fn backward(&self) -> Found<BackwardBuffers<'_>> {
        let [dy, dx] = self.between("dy", "dx")?;
        let (read, written) = (&self.read, &self.written);
        let (x, saved) = (read.range("x")?, self.saved.range("saved")?);
        let mut buffers = BackwardBuffers::new(x, dy, saved).dx(dx);
        buffers = with(buffers, read.get("gamma"), BackwardBuffers::gamma);
        buffers = with(buffers, read.get("beta"), BackwardBuffers::beta);
        buffers = with(buffers, read.get("valid"), BackwardBuffers::valid);
        buffers = with(buffers, self.mask.get("mask"), BackwardBuffers::mask);
        buffers = with(buffers, written.get("dgamma"), BackwardBuffers::dgamma);
        buffers = with(buffers, written.get("dbeta"), BackwardBuffers::dbeta);
        let residual = written.get("residual_gradient");
        Ok(with(buffers, residual, BackwardBuffers::residual_gradient))
    }

    /// What was written, if all else is as it was.
    fn results(&self, gpu: &Gpu, work: &Work<'_>) -> Found<Results> {
        ensure!(
            self.read.read(gpu)? == self.read.vectors,
            "an input was changed"
        );
        let mut results = Vec::new();
        let outputs = [&self.running, &self.saved, &self.mask, &self.written];
        for guarded in outputs.into_iter().chain(&self.over) {
            for (name, words) in guarded.read(gpu)? {
                let tensor = ["y", "y_eval", "dx", "residual_gradient"].contains(&name);
                let dtype = if tensor { work.dtype } else { DType::F32 };
                let mut values = values(&words, dtype);
                if tensor {
                    // What fills up the last word never counts.
                    values.truncate(work.shape.len());
                }
                let finite = values.iter().all(|value| value.is_finite());
                ensure!(finite || name != "saved", "saved has a NaN left");
                results.push((name, values));
            }
        }
        Ok(results)
    }
}

/// Buffers with a range, if there is one.
fn with<'a, B>(
    buffers: B,
    range: Option<wgpu::BufferSlice<'a>>,
    add: impl FnOnce(B, wgpu::BufferSlice<'a>) -> B,
) -> B {
    match range {
        Some(range) => add(buffers, range),
        None => buffers,
    }
}

/// Numbers of a storage type.
fn rounded(array: &ArrayD<f32>, dtype: DType) -> ArrayD<f32> {
    match dtype {
        DType::F32 => array.clone(),
        DType::F16 => array.mapv(|value| f16::from_f32(value).to_f32()),
        DType::Bf16 => array.mapv(|value| bf16::from_f32(value).to_f32()),
    }
}

/// Numbers of a storage type as they lie in memory.
fn words(array: &ArrayD<f32>, dtype: DType) -> Vec<u32> {
    fn packed<T: Stored>(halves: impl Iterator<Item = T>) -> Vec<u32> {
        let mut bytes: Vec<u8> = halves
            .flat_map(|half| bytemuck::bytes_of(&half).to_vec())
            .collect();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytemuck::pod_collect_to_vec(&bytes)
    }
    let values = array.iter().copied();
    match dtype {
        DType::F32 => packed(values),
        DType::F16 => packed(values.map(f16::from_f32)),
        DType::Bf16 => packed(values.map(bf16::from_f32)),
    }
}

fn words_of_f32(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The numbers that lie in these words.
fn values(words: &[u32], dtype: DType) -> Vec<f32> {
    let halves = words
        .iter()
        .flat_map(|word| [*word as u16, (word >> 16) as u16]);
    match dtype {
        DType::F32 => words.iter().map(|&word| f32::from_bits(word)).collect(),
        DType::F16 => halves.map(|half| f16::from_bits(half).to_f32()).collect(),
        DType::Bf16 => halves.map(|half| bf16::from_bits(half).to_f32()).collect(),
    }
}

/// One bit for each position.
fn bits(valid: &ArrayD<bool>) -> Vec<u32> {
    let mut words = vec![0; valid.len().div_ceil(32)];
    for (position, &valid) in valid.iter().enumerate() {
        words[position / 32] |= u32::from(valid) << (position % 32);
    }
    words
}

/// What stands between the ranges.
const GUARD: u32 = 0xc640_e6b7;

/// One buffer with named ranges, each between guards.
struct Guarded {
    buffer: wgpu::Buffer,
    /// What was in them at first.
    vectors: Vec<Words>,
    /// Where they start, in words.
    starts: Vec<usize>,
}

impl Guarded {
    /// A buffer with these vectors, each at an offset that can be bound, with guards between them:
    /// at least one, and up to `gap` alignments of the device more.
    fn new(gpu: &Gpu, gap: usize, vectors: Vec<Words>) -> Self {
        let alignment = gpu.limits().min_storage_buffer_offset_alignment as usize / 4;
        let mut words = vec![GUARD; alignment];
        let mut starts = Vec::new();
        for (_, vector) in &vectors {
            starts.push(words.len());
            words.extend_from_slice(vector);
            words.push(GUARD);
            let next = words.len().next_multiple_of(alignment) + gap * alignment;
            words.resize(next, GUARD);
        }
        let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4 * words.len() as u64,
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let bytes = bytemuck::cast_slice(&words);
        gpu.queue().write_buffer(&buffer, 0, bytes);
        Self {
            buffer,
            vectors,
            starts,
        }
    }

    fn get(&self, name: &str) -> Option<wgpu::BufferSlice<'_>> {
        let index = self.vectors.iter().position(|(found, _)| *found == name)?;
        let start = 4 * self.starts[index] as u64;
        let size = 4 * self.vectors[index].1.len() as u64;
        Some(self.buffer.slice(start..start + size))
    }

    fn range(&self, name: &str) -> Found<wgpu::BufferSlice<'_>> {
        Ok(self.get(name).ok_or(format!("there is no {name}"))?)
    }

    /// The vectors, if all guards still stand.
    fn read(&self, gpu: &Gpu) -> Found<Vec<Words>> {
        let length = self.buffer.size() as usize / 4;
        let shape = Shape::new(&[length, 1], Layout::ChannelsFirst)?;
        let all = Tensor::from_buffer(gpu, &self.buffer, 0, &shape, DType::F32)?;
        let all = all.to_array_blocking()?;
        let mut all: Vec<u32> = all.iter().map(|value| value.to_bits()).collect();
        let mut vectors = Vec::new();
        for (&start, (name, first)) in self.starts.iter().zip(&self.vectors) {
            let range = &mut all[start..start + first.len()];
            vectors.push((*name, range.to_vec()));
            range.fill(GUARD);
        }
        let broken = all.iter().position(|&word| word != GUARD);
        ensure!(broken.is_none(), "the guard at {broken:?} was overwritten");
        Ok(vectors)
    }
}

fn submit(gpu: &Gpu, record: impl FnOnce(&mut wgpu::CommandEncoder)) {
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    record(&mut encoder);
    gpu.queue().submit([encoder.finish()]);
}

/// Sums, merge and dx, the last two or all in one where the tuning asks for it: as many as what is wanted takes.
fn dispatches(gpu: &Gpu) -> Outcome {
    let shape = Shape::new(&[4, 3, 5], Layout::ChannelsFirst)?;
    let storage = Storage::new(gpu);
    for (frozen, names, expected, merged, whole) in [
        (false, &["dx", "dgamma", "dbeta"][..], 3, 2, 1),
        (false, &["dx"], 3, 2, 1),
        (false, &["dgamma", "dbeta"], 2, 2, 2),
        (false, &["dbeta"], 2, 2, 2),
        (false, &[], 0, 0, 0),
        (true, &["dx", "dgamma", "dbeta"], 3, 3, 3),
        // γ·inv_std, and dx: nothing to sum.
        (true, &["dx"], 2, 2, 2),
        (true, &["dbeta"], 2, 2, 2),
    ] {
        for (expected, tuning) in [
            (expected, many_splits(false)),
            (merged, merged_in_maps()),
            (whole, whole_columns(false)),
        ] {
            let options = Options::default().frozen_statistics(frozen).tuning(tuning);
            let plan = Plan::new(gpu, &shape, DType::F32, &options)?;
            let names = ["x", "dy", "saved", "gamma"].iter().chain(names);
            let ranges: Vec<_> = names
                .map(|name| {
                    let place = good_place(name, bytes_of(&plan, name, 1));
                    (*name, storage.range(place))
                })
                .collect();
            let found = Operation::Backward.bind(&plan, &ranges, 1)?.dispatches();
            ensure!(found == expected, "{frozen} {ranges:?}: {found}");
        }
    }
    Ok(())
}

/// Every operation out of one buffer gives what it gives out of a buffer for each range, bit for
/// bit, in as many dispatches, also in place.
fn one_buffer(gpu: &Gpu) -> Outcome {
    let turn = Turn::of(gpu);
    for index in [0, 3, 8] {
        let (dims, layout) = SHAPES[index];
        for (number, mode) in modes().into_iter().enumerate() {
            if !turn.has(index + number) {
                continue;
            }
            let tuning = tunings()[(number + index) % 5].clone();
            let said = format!("{layout:?} {dims:?} {mode:?}");
            let (dtype, options, residual, valid) = mode;
            let options = options.tuning(tuning);
            let plan = Plan::new(gpu, &Shape::new(dims, layout)?, dtype, &options)?;
            for operation in Operation::ALL {
                use Operation::{Inference, Moments, Statistics};
                let undefined = match operation {
                    Moments | Statistics => options.frozen_statistics,
                    Inference => !options.running_statistics,
                    _ => false,
                };
                if undefined {
                    continue;
                }
                let contents = contents(&plan, operation, &options, residual, valid);
                for in_place in [false, true] {
                    let run = |buffers| run_in(gpu, &plan, operation, buffers, in_place);
                    let apart = run(contents.iter().map(|words| vec![words.clone()]).collect())?;
                    let together = run(vec![contents.clone()])?;
                    ensure!(
                        apart == together,
                        "{said} {operation:?}, in place: {in_place}"
                    );
                }
            }
        }
    }
    Ok(())
}

/// Some numbers for everything that an operation takes in a mode.
fn contents(
    plan: &Plan,
    operation: Operation,
    options: &Options,
    residual: bool,
    valid: bool,
) -> Vec<Words> {
    let mut names = Vec::new();
    for name in NAMES {
        let wanted = match name {
            "residual" | "mask" | "residual_gradient" => residual,
            "valid" => valid,
            _ => true,
        };
        let rule = operation.rule(name, options, &|other| names.contains(&other));
        if rule == Rule::Must || rule == Rule::May && wanted {
            names.push(name);
        }
    }
    let numbered = names.into_iter().zip(1..);
    numbered
        .map(|(name, seed)| {
            let length = bytes_of(plan, name, 1) as usize / 4;
            let words = match name {
                "x" | "y" | "dy" | "dx" | "residual" | "residual_gradient" => {
                    words(&normal(plan.shape().dims(), 1.0, 2.0, seed), plan.dtype())
                }
                "mask" | "valid" => (0..length as u32)
                    .map(|word| word.wrapping_mul(0x9e37_79b9))
                    .collect(),
                _ => {
                    let vector = normal_vector(length, 0.0, 1.0, seed);
                    words_of_f32(&vector.mapv(|value| value.abs() + 0.5).to_vec())
                }
            };
            (name, words)
        })
        .collect()
}

/// How many dispatches an operation takes, and all that is in these buffers after it.
fn run_in(
    gpu: &Gpu,
    plan: &Plan,
    operation: Operation,
    buffers: Vec<Vec<Words>>,
    in_place: bool,
) -> Found<(usize, Vec<Words>)> {
    let buffers: Vec<_> = buffers
        .into_iter()
        .map(|vectors| Guarded::new(gpu, 0, vectors))
        .collect();
    let range = |name: &str| buffers.iter().find_map(|buffer| buffer.get(name));
    let names = buffers.iter().flat_map(|buffer| &buffer.vectors);
    let ranges: Vec<_> = names
        .filter_map(|&(name, _)| {
            let place = match name {
                "y" if in_place => "x",
                "dx" if in_place => "dy",
                _ => name,
            };
            Some((name, range(place)?))
        })
        .collect();
    let commands = operation.bind(plan, &ranges, 1)?;
    submit(gpu, |encoder| commands.record(encoder));
    let mut found = Vec::new();
    for buffer in &buffers {
        found.extend(buffer.read(gpu)?);
    }
    Ok((commands.dispatches(), found))
}

fn recorded_twice(gpu: &Gpu) -> Outcome {
    let shape = Shape::new(&[2, 1], Layout::ChannelsFirst)?;
    let plan = Plan::new(gpu, &shape, DType::F32, &Options::default().momentum(0.5))?;
    let guarded = |vectors: &[(&'static str, &[f32])]| {
        let words = vectors.iter();
        let words = words.map(|(name, values)| (*name, words_of_f32(values)));
        Guarded::new(gpu, 0, words.collect())
    };
    let read = guarded(&[("x", &[1.0, 3.0]), ("gamma", &[1.0]), ("beta", &[0.0])]);
    let running = guarded(&[("mean", &[0.0]), ("var", &[1.0])]);
    let (saved, y) = (
        guarded(&[("saved", &[0.0; 5])]),
        guarded(&[("y", &[0.0; 2])]),
    );
    let forward = plan.bind_forward(
        &ForwardBuffers::new(read.range("x")?, y.range("y")?)
            .gamma(read.range("gamma")?)
            .beta(read.range("beta")?)
            .running_mean(running.range("mean")?)
            .running_var(running.range("var")?)
            .saved(saved.range("saved")?),
    )?;
    submit(gpu, |encoder| {
        forward.record(encoder);
        forward.record(encoder);
    });
    // Mean 2 and unbiased variance 2: 0 → 1 → 1.5 and 1 → 1.5 → 1.75.
    let found = running.read(gpu)?;
    let expected = [
        ("mean", words_of_f32(&[1.5])),
        ("var", words_of_f32(&[1.75])),
    ];
    ensure!(found == expected, "{found:x?}");
    Ok(())
}

fn repeats(gpu: &Gpu) -> Outcome {
    for (dims, layout) in [
        (&[8, 3, 57, 57][..], Layout::ChannelsFirst),
        (&[8, 56, 56, 8], Layout::ChannelsLast),
    ] {
        let x = Tensor::from_array(gpu, &normal(dims, 1.0, 1.0, 1), layout)?;
        let dy = Tensor::from_array(gpu, &normal(dims, 0.0, 1.0, 2), layout)?;
        let run = || {
            let channels = x.shape().channels();
            let options = Options::default().tuning(Tuning::gpu());
            let mut layer = BatchNorm::new(gpu, channels, options)?;
            let y = layer.forward(&x)?.to_array_blocking()?;
            let dx = layer.backward(&dy)?.to_array_blocking()?;
            let bits = y.iter().chain(&dx).map(|value| value.to_bits());
            Ok::<Vec<u32>, wgpu_batchnorm::Error>(bits.collect())
        };
        let first = run()?;
        for _ in 0..3 {
            ensure!(run()? == first, "{dims:?} gave other bits");
        }
    }
    Ok(())
}
