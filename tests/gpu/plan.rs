//! Plans: recorded into the caller's encoder, over ranges of the caller's buffers.

use libtest_mimic::Trial;
use ndarray::{Array1, ArrayD};
use wgpu_batchnorm::{
    BackwardBuffers, BatchNorm, ForwardBuffers, Gpu, InferenceBuffers, Layout, Mode, Options, Plan,
    Shape, State, Tensor, Tuning, wgpu,
};

use crate::common::{Adapter, Outcome, normal, normal_vector};
use crate::ensure;

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    vec![
        adapter.trial(
            "a plan gives what the layer gives, and writes nothing else",
            |gpu| {
                for (dims, layout) in [
                    (&[4, 8, 6, 6][..], Layout::ChannelsFirst),
                    (&[4, 5, 7, 7], Layout::ChannelsFirst),
                    (&[4, 6, 6, 8], Layout::ChannelsLast),
                    (&[4, 7, 7, 5], Layout::ChannelsLast),
                    (&[300, 3], Layout::ChannelsFirst),
                ] {
                    for tuning in [Tuning::gpu(), Tuning::cpu()] {
                        guarded(gpu, &Shape::new(dims, layout)?, tuning)
                            .map_err(|error| format!("{layout:?} {dims:?}: {error}"))?;
                    }
                }
                Ok(())
            },
        ),
        adapter.trial("recording twice steps twice", recorded_twice),
        adapter.trial("results repeat bit for bit", repeats),
    ]
}

const GUARD: f32 = -12345.678;

/// One buffer with named ranges, each between guards, and all output NaN before the run.
struct Guarded {
    buffer: wgpu::Buffer,
    ranges: Vec<(u64, u64)>,
}

impl Guarded {
    /// A buffer with these vectors, each at an offset that can be bound, with guards between them:
    /// at least one, and up to `gap` alignments of the device more.
    fn new(gpu: &Gpu, gap: usize, vectors: &[&[f32]]) -> Self {
        let alignment = gpu.limits().min_storage_buffer_offset_alignment as usize / 4;
        let mut values = vec![GUARD; alignment];
        let mut ranges = Vec::new();
        for vector in vectors {
            ranges.push((4 * values.len() as u64, 4 * vector.len() as u64));
            values.extend_from_slice(vector);
            values.push(GUARD);
            let next = values.len().next_multiple_of(alignment) + gap * alignment;
            values.resize(next, GUARD);
        }
        let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4 * values.len() as u64,
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        gpu.queue()
            .write_buffer(&buffer, 0, bytemuck::cast_slice(&values));
        Self { buffer, ranges }
    }

    fn range(&self, index: usize) -> wgpu::BufferSlice<'_> {
        let (offset, size) = self.ranges[index];
        self.buffer.slice(offset..offset + size)
    }

    /// The vectors, if all guards still stand.
    fn read(&self, gpu: &Gpu) -> Result<Vec<Vec<f32>>, Box<dyn std::error::Error>> {
        let length = self.buffer.size() as usize / 4;
        let shape = Shape::new(&[length, 1], Layout::ChannelsFirst)?;
        let all = Tensor::from_buffer(gpu, &self.buffer, 0, &shape)?.to_array_blocking()?;
        let mut all: Vec<f32> = all.into_iter().collect();
        let mut vectors = Vec::new();
        for &(offset, size) in &self.ranges {
            let range = &mut all[offset as usize / 4..(offset + size) as usize / 4];
            vectors.push(range.to_vec());
            range.fill(GUARD);
        }
        let broken = all.iter().position(|&value| value != GUARD);
        ensure!(broken.is_none(), "the guard at {broken:?} was overwritten");
        Ok(vectors)
    }
}

fn submit(gpu: &Gpu, record: impl FnOnce(&mut wgpu::CommandEncoder)) {
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    record(&mut encoder);
    gpu.queue().submit([encoder.finish()]);
}

fn guarded(gpu: &Gpu, shape: &Shape, tuning: Tuning) -> Outcome {
    let channels = shape.channels();
    let options = Options::default().tuning(tuning);
    let x = normal(shape.dims(), 2.0, 3.0, 1);
    let dy = normal(shape.dims(), 0.0, 1.0, 2);
    let state = State {
        gamma: normal_vector(channels, 1.0, 1.0, 3),
        beta: normal_vector(channels, 0.0, 1.0, 4),
        running_mean: normal_vector(channels, 0.0, 1.0, 5),
        running_var: normal_vector(channels, 2.0, 0.1, 6),
        num_batches_tracked: 0,
    };
    plan_agrees_with_layer(gpu, shape, &options, &state, &x, &dy, 0)
}

/// Training, backward and inference over sub-ranges with offsets, against the layer, bit for bit.
/// Between the ranges, and `gap` alignments on, lie guards.
pub fn plan_agrees_with_layer(
    gpu: &Gpu,
    shape: &Shape,
    options: &Options,
    state: &State,
    x: &ArrayD<f32>,
    dy: &ArrayD<f32>,
    gap: usize,
) -> Outcome {
    let channels = shape.channels();
    let mut layer = BatchNorm::new(gpu, channels, options.clone())?;
    layer.set_state(state)?;
    let x_tensor = Tensor::from_array(gpu, x, shape.layout())?;
    let y = layer.forward(&x_tensor)?.to_array_blocking()?;
    let dy_tensor = Tensor::from_array(gpu, dy, shape.layout())?;
    let dx = layer.backward(&dy_tensor)?.to_array_blocking()?;
    let gradients = layer.gradients_blocking()?;
    let trained = layer.state_blocking()?;
    layer.set_mode(Mode::Eval);
    let y_eval = layer.forward(&x_tensor)?.to_array_blocking()?;

    let plan = Plan::new(gpu, shape, options)?;
    let flat = |array: &ArrayD<f32>| array.iter().copied().collect::<Vec<_>>();
    let vector = |array: &Array1<f32>| array.to_vec();
    let nans = |length: usize| vec![f32::NAN; length];
    let read = Guarded::new(
        gpu,
        gap,
        &[
            &flat(x),
            &flat(dy),
            &vector(&state.gamma),
            &vector(&state.beta),
        ],
    );
    let running = Guarded::new(
        gpu,
        gap,
        &[&vector(&state.running_mean), &vector(&state.running_var)],
    );
    let saved = Guarded::new(gpu, gap, &[&nans(plan.saved_bytes() as usize / 4)]);
    let (tensor, per_channel) = (nans(shape.len()), nans(channels));
    let written = Guarded::new(
        gpu,
        gap,
        &[&tensor, &tensor, &tensor, &per_channel, &per_channel],
    );

    let forward = plan.bind_forward(&ForwardBuffers {
        x: read.range(0),
        gamma: read.range(2),
        beta: read.range(3),
        y: written.range(0),
        running_mean: running.range(0),
        running_var: running.range(1),
        saved: saved.range(0),
    })?;
    let backward = plan.bind_backward(&BackwardBuffers {
        x: read.range(0),
        dy: read.range(1),
        gamma: read.range(2),
        saved: saved.range(0),
        dx: written.range(1),
        dgamma: written.range(3),
        dbeta: written.range(4),
    })?;
    let inference = plan.bind_inference(&InferenceBuffers {
        x: read.range(0),
        gamma: read.range(2),
        beta: read.range(3),
        running_mean: running.range(0),
        running_var: running.range(1),
        y: written.range(2),
    })?;
    ensure!(inference.dispatches() == 1, "inference takes one dispatch");
    // Commands outlive their plan.
    drop(plan);
    submit(gpu, |encoder| {
        forward.record(encoder);
        backward.record(encoder);
        let mut pass = encoder.begin_compute_pass(&Default::default());
        inference.record_into(&mut pass);
    });

    let bits = |values: &[f32]| {
        values
            .iter()
            .map(|value| value.to_bits())
            .collect::<Vec<_>>()
    };
    let written = written.read(gpu)?;
    let running = running.read(gpu)?;
    for (what, found, expected) in [
        ("y", &written[0], flat(&y)),
        ("dx", &written[1], flat(&dx)),
        ("y_eval", &written[2], flat(&y_eval)),
        ("dgamma", &written[3], vector(&gradients.gamma)),
        ("dbeta", &written[4], vector(&gradients.beta)),
        ("running_mean", &running[0], vector(&trained.running_mean)),
        ("running_var", &running[1], vector(&trained.running_var)),
    ] {
        ensure!(
            bits(found) == bits(&expected),
            "{what} differs from the layer's"
        );
    }
    let saved = saved.read(gpu)?;
    ensure!(
        saved[0].iter().all(|value| value.is_finite()),
        "saved has a NaN left"
    );
    let read = read.read(gpu)?;
    let inputs = [flat(x), flat(dy), vector(&state.gamma), vector(&state.beta)];
    ensure!(read == inputs, "an input was changed");
    Ok(())
}

fn recorded_twice(gpu: &Gpu) -> Outcome {
    let shape = Shape::new(&[2, 1], Layout::ChannelsFirst)?;
    let plan = Plan::new(gpu, &shape, &Options::default().momentum(0.5))?;
    let read = Guarded::new(gpu, 0, &[&[1.0, 3.0], &[1.0], &[0.0]]);
    let running = Guarded::new(gpu, 0, &[&[0.0], &[1.0]]);
    let saved = Guarded::new(gpu, 0, &[&[0.0; 4]]);
    let y = Guarded::new(gpu, 0, &[&[0.0; 2]]);
    let forward = plan.bind_forward(&ForwardBuffers {
        x: read.range(0),
        gamma: read.range(1),
        beta: read.range(2),
        y: y.range(0),
        running_mean: running.range(0),
        running_var: running.range(1),
        saved: saved.range(0),
    })?;
    submit(gpu, |encoder| {
        forward.record(encoder);
        forward.record(encoder);
    });
    // Mean 2 and unbiased variance 2: 0 → 1 → 1.5 and 1 → 1.5 → 1.75.
    let found = running.read(gpu)?;
    ensure!(found == [[1.5], [1.75]], "{found:?}");
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
