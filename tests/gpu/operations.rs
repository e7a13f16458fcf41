//! Every layer operation, in every layout and with either tuning, against the CPU path.

use libtest_mimic::Trial;
use wgpu_batchnorm::verify::Checked;
use wgpu_batchnorm::{
    Adam, Algorithm, BatchNorm, Gpu, Layout, Mode, Optimizer, Options, RmsProp, RunningVariance,
    Sgd, Shape, State, Tensor, Tuning,
};

use crate::common::{Adapter, Outcome, normal, normal_vector};
use crate::ensure;

/// Shapes in every layout, with C and the spatial sizes multiples of four and not; then those
/// that walk an edge of the division of work.
const SHAPES: &[(&[usize], Layout)] = {
    use Layout::{ChannelsFirst as First, ChannelsLast as Last};
    &[
        (&[2, 1], First),
        (&[3, 1], First),
        (&[2, 4], First),
        (&[5, 7], First),
        (&[64, 8], First),
        (&[1000, 3], First),
        (&[37, 100], First),
        (&[33, 260], Last),
        (&[5, 5, 5], First),
        (&[3, 2, 4], First),
        (&[2, 23, 27], First),
        (&[1, 2, 2], First),
        (&[3, 2, 3, 4], First),
        (&[4, 20, 17, 16], First),
        (&[2, 5, 7, 7], First),
        (&[8, 3, 35, 35], First),
        // Packs that mix channels, in rows of one, two and four samples.
        (&[10, 4, 7, 7], First),
        (&[18, 6, 5, 5], First),
        (&[32, 3, 7, 7], First),
        (&[1, 19, 4, 6], First),
        (&[2, 1, 73, 73], First),
        (&[2, 3, 64, 64], First),
        (&[6, 16, 1, 1], First),
        (&[2, 3, 2, 3, 4], First),
        (&[1, 19, 4, 6, 6], First),
        (&[3, 9, 5], Last),
        (&[3, 9, 8], Last),
        (&[2, 7, 7, 3], Last),
        (&[2, 14, 14, 64], Last),
        (&[4, 56, 56, 2], Last),
        (&[8, 4, 3, 3], Last),
        (&[1, 300, 20, 1], Last),
        (&[2, 3, 2, 3, 4], Last),
        (&[2, 2, 2, 2, 5], Last),
        (&[3, 5, 5, 264], Last),
        // One value more or less than a whole number of workgroups, lanes or packs.
        (&[1, 1, 1023], First),
        (&[1, 1, 1025], First),
        (&[255, 4], First),
        (&[257, 4], First),
        (&[1, 1, 40_001], First),
        (&[1, 1, 40_004], First),
        (&[40_001, 4], Last),
        (&[40_001, 1], Last),
        // More channels than a grid is long.
        (&[2, 65_535], First),
        (&[2, 65_537], First),
        (&[2, 131_072], First),
        (&[2, 65_537, 2], First),
        (&[1, 131_071, 4], First),
    ]
};

/// A tuning unlike the two that are chosen by themselves: narrow, and split as far as it goes.
pub fn many_splits(wide_words: bool) -> Tuning {
    let mut tuning = Tuning::gpu();
    tuning.lanes = 32;
    tuning.bytes_across = 64;
    // Both ways of lanes across, too.
    tuning.spread = wide_words;
    tuning.rows_bytes = 500;
    tuning.mixed_rows_min = 1;
    tuning.reduction_workgroups = 4096;
    tuning.reduction_packs_min = 1;
    tuning.reduction_packs_max = 3;
    tuning.map_packs = 5;
    tuning.whole_bytes = 0;
    tuning.map_partials_max = 0;
    tuning.wide_words = wide_words;
    tuning
}

/// Partial results that element-wise kernels merge, wherever that can be.
pub fn merged_in_maps() -> Tuning {
    let mut tuning = Tuning::gpu();
    tuning.lanes = 8;
    tuning.spread = true;
    tuning.wide_words = true;
    tuning.reduction_packs_min = 2;
    tuning.whole_bytes = 0;
    tuning.map_partials_max = u32::MAX;
    tuning
}

/// One dispatch for a training pass, wherever that can be.
pub fn whole_columns(wide_words: bool) -> Tuning {
    let mut tuning = Tuning::gpu();
    tuning.lanes = 64;
    tuning.whole_bytes = u64::MAX;
    tuning.whole_workgroups = 1;
    tuning.wide_words = wide_words;
    tuning
}

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    let tunings = [
        ("gpu", Tuning::gpu()),
        ("cpu", Tuning::cpu()),
        ("many splits", many_splits(false)),
        ("many splits in wide words", many_splits(true)),
        ("merged in maps", merged_in_maps()),
        ("whole columns", whole_columns(false)),
        ("whole columns in wide words", whole_columns(true)),
    ];
    let mut trials = Vec::new();
    for (name, tuning) in tunings {
        trials.push(adapter.trial(
            format!("operations in every layout, {name} tuning"),
            move |gpu| {
                for (seed, &(dims, layout)) in SHAPES.iter().enumerate() {
                    train_and_evaluate(gpu, dims, layout, &tuning, seed as u64)
                        .map_err(|error| format!("{layout:?} {dims:?}: {error}"))?;
                }
                Ok(())
            },
        ));
    }
    trials.push(adapter.trial("constant channels give beta", constant_channels));
    trials.push(adapter.trial(
        "values that are not finite poison their own channel only",
        poison_stays_in_its_channel,
    ));
    trials.push(adapter.trial("a batch that overflows is not finite", overflow));
    trials.push(adapter.trial("the running variance is the chosen one", running_variance));
    trials.push(adapter.trial(
        "momenta of mean and variance are separate",
        separate_momenta,
    ));
    trials.push(adapter.trial(
        "poisoned gradients and parameters stay in their channel",
        poisoned_vectors,
    ));
    trials.push(adapter.trial("the learning rate can be changed", learning_rate));
    trials.push(adapter.trial("a layer takes turns among many shapes", many_shapes));
    trials.push(adapter.trial("self-check passes", |gpu| {
        let report = wgpu_batchnorm::self_check_blocking(gpu);
        ensure!(report.passed(), "{report}");
        Ok(())
    }));
    trials
}

/// Two training steps with an optimizer, then an evaluation, all checked.
fn train_and_evaluate(
    gpu: &Gpu,
    dims: &[usize],
    layout: Layout,
    tuning: &Tuning,
    seed: u64,
) -> Outcome {
    let channels = Shape::new(dims, layout)?.channels();
    let algorithm: Algorithm = match seed % 3 {
        0 => Sgd::default().into(),
        1 => RmsProp::default().into(),
        _ => Adam::default().into(),
    };
    let mut layer = BatchNorm::new(gpu, channels, Options::default().tuning(tuning.clone()))?;
    layer.set_state(&State {
        gamma: normal_vector(channels, 0.5, 1.0, seed + 100),
        beta: normal_vector(channels, 0.0, 2.0, seed + 200),
        running_mean: normal_vector(channels, 0.0, 2.0, seed + 300),
        running_var: normal_vector(channels, 0.0, 2.0, seed + 400).mapv(|v| v * v + 0.1),
        num_batches_tracked: 7,
    })?;
    let mut optimizer = Optimizer::new(&layer, algorithm)?;
    for step in 0..2 {
        let x = normal(dims, 3.0, 2.0, seed + 10 * step);
        let dy = normal(dims, 0.1, 1.0, seed + 10 * step + 1);
        let x = Tensor::from_array(gpu, &x, layout)?;
        let dy = Tensor::from_array(gpu, &dy, layout)?;
        let mut checked = Checked::new(&mut layer);
        checked.forward_blocking(&x)?;
        checked.backward_blocking(&dy)?;
        checked.step_blocking(&mut optimizer)?;
    }
    ensure!(
        layer.state_blocking()?.num_batches_tracked == 9,
        "two batches should have been counted"
    );
    layer.set_mode(Mode::Eval);
    let x = Tensor::from_array(gpu, &normal(dims, 1.0, 2.0, seed), layout)?;
    Checked::new(&mut layer).forward_blocking(&x)?;
    Ok(())
}

fn constant_channels(gpu: &Gpu) -> Outcome {
    for (dims, layout) in [
        (vec![4, 3, 5, 5], Layout::ChannelsFirst),
        (vec![4, 5, 5, 4], Layout::ChannelsLast),
    ] {
        for value in [0.0, 1.0, -3.7e6] {
            let shape = Shape::new(&dims, layout)?;
            let mut layer = BatchNorm::new(gpu, shape.channels(), Options::default())?;
            let mut state = State::new(shape.channels());
            state.beta.fill(0.25);
            layer.set_state(&state)?;
            let x = ndarray::ArrayD::from_elem(dims.clone(), value);
            let y = layer.forward(&Tensor::from_array(gpu, &x, layout)?)?;
            let y = y.to_array_blocking()?;
            ensure!(y.iter().all(|&y| y == 0.25), "{dims:?} of {value}: {y}");
        }
    }
    Ok(())
}

fn poison_stays_in_its_channel(gpu: &Gpu) -> Outcome {
    for (dims, layout, axis) in [
        (vec![4, 8, 4, 4], Layout::ChannelsFirst, 1),
        (vec![4, 8, 5, 5], Layout::ChannelsFirst, 1),
        (vec![4, 5, 5, 8], Layout::ChannelsLast, 3),
        (vec![4, 5, 5, 7], Layout::ChannelsLast, 3),
        (vec![12, 8, 5, 5], Layout::ChannelsFirst, 1),
        (vec![8, 5, 5, 7], Layout::ChannelsLast, 3),
    ] {
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = normal(&dims, 0.0, 1.0, 1);
            let mut channel = x.index_axis_mut(ndarray::Axis(axis), 2);
            if let Some(value) = channel.iter_mut().nth(9) {
                *value = poison;
            }
            let mut layer = BatchNorm::new(gpu, dims[axis], Options::default())?;
            let x = Tensor::from_array(gpu, &x, layout)?;
            let dy = Tensor::from_array(gpu, &normal(&dims, 0.0, 1.0, 2), layout)?;
            // Checked takes a value that is not finite for one only where the CPU path has one.
            let mut checked = Checked::new(&mut layer);
            let y = checked.forward_blocking(&x)?.to_array_blocking()?;
            let dx = checked.backward_blocking(&dy)?.to_array_blocking()?;
            for (what, values) in [("y", y), ("dx", dx)] {
                for (channel, values) in values.axis_iter(ndarray::Axis(axis)).enumerate() {
                    ensure!(
                        values
                            .iter()
                            .all(|value| value.is_finite() == (channel != 2)),
                        "{poison} in {dims:?}: {what} of channel {channel}"
                    );
                }
            }
        }
    }
    Ok(())
}

/// [1, 2, 3, 4] has the variances 5/3 and 5/4.
fn running_variance(gpu: &Gpu) -> Outcome {
    for (kind, expected) in [
        (RunningVariance::Unbiased, 0.9 + 0.1 * 5.0 / 3.0),
        (RunningVariance::Population, 0.9 + 0.1 * 5.0 / 4.0),
    ] {
        let mut layer = BatchNorm::new(gpu, 1, Options::default().running_variance(kind))?;
        let x = ndarray::array![[1.0], [2.0], [3.0], [4.0]];
        layer.forward(&Tensor::from_array(gpu, &x, Layout::ChannelsFirst)?)?;
        let state = layer.state_blocking()?;
        let found = f64::from(state.running_var[0]);
        ensure!((found - expected).abs() < 1e-6, "{kind:?}: {found}");
        ensure!((state.running_mean[0] - 0.25).abs() < 1e-6, "{state:?}");
    }
    Ok(())
}

fn separate_momenta(gpu: &Gpu) -> Outcome {
    let options = Options::default().momentum_mean(0.5).momentum_var(0.0);
    let mut layer = BatchNorm::new(gpu, 1, options)?;
    let x = ndarray::array![[1.0], [3.0]];
    layer.forward(&Tensor::from_array(gpu, &x, Layout::ChannelsFirst)?)?;
    let state = layer.state_blocking()?;
    ensure!(state.running_mean[0] == 1.0, "{state:?}");
    ensure!(state.running_var[0] == 1.0, "{state:?}");
    Ok(())
}

/// A NaN in dy, γ or a running statistic reaches its own channel only; the others are checked.
fn poisoned_vectors(gpu: &Gpu) -> Outcome {
    let dims = [6, 4, 5];
    let x = Tensor::from_array(gpu, &normal(&dims, 0.0, 1.0, 1), Layout::ChannelsFirst)?;
    for poison in [f32::NAN, f32::INFINITY] {
        let mut dy = normal(&dims, 0.0, 1.0, 2);
        dy[[3, 2, 1]] = poison;
        let dy = Tensor::from_array(gpu, &dy, Layout::ChannelsFirst)?;
        let mut layer = BatchNorm::new(gpu, 4, Options::default())?;
        let mut checked = Checked::new(&mut layer);
        checked.forward_blocking(&x)?;
        checked.backward_blocking(&dy)?;
        let gradients = layer.gradients_blocking()?;
        for channel in 0..4 {
            let finite =
                gradients.gamma[channel].is_finite() && gradients.beta[channel].is_finite();
            ensure!(finite == (channel != 2), "{poison} in dy: {gradients:?}");
        }
        for set in [
            (|state, value| state.gamma[2] = value) as fn(&mut State, f32),
            |state, value| state.beta[2] = value,
            |state, value| state.running_mean[2] = value,
            |state, value| state.running_var[2] = value,
        ] {
            let mut state = State::new(4);
            set(&mut state, poison);
            layer.set_state(&state)?;
            layer.set_mode(Mode::Train);
            Checked::new(&mut layer).forward_blocking(&x)?;
            layer.set_state(&state)?;
            layer.set_mode(Mode::Eval);
            Checked::new(&mut layer).forward_blocking(&x)?;
        }
    }
    Ok(())
}

fn learning_rate(gpu: &Gpu) -> Outcome {
    let mut layer = BatchNorm::new(gpu, 1, Options::default())?;
    let x = ndarray::array![[1.0], [3.0]];
    let x = Tensor::from_array(gpu, &x, Layout::ChannelsFirst)?;
    layer.forward(&x)?;
    layer.backward(&x)?; // dβ = 4
    let mut optimizer = Optimizer::new(&layer, Sgd::default())?;
    for (lr, expected) in [(0.5, -2.0), (0.0, -2.0), (0.25, -3.0)] {
        optimizer.set_lr(lr)?;
        optimizer.step(&mut layer)?;
        let beta = layer.state_blocking()?.beta[0];
        ensure!(beta == expected, "{beta} after a step at {lr}");
    }
    Ok(())
}

/// More shapes than a layer keeps plans for, each more than once.
fn many_shapes(gpu: &Gpu) -> Outcome {
    let mut layer = BatchNorm::new(gpu, 3, Options::default())?;
    for round in 0..3 {
        for batch in 2..20 {
            let x = normal(&[batch, 3, 7], 0.0, 1.0, 50 * round + batch as u64);
            let x = Tensor::from_array(gpu, &x, Layout::ChannelsFirst)?;
            let mut checked = Checked::new(&mut layer);
            checked.forward_blocking(&x)?;
            checked.backward_blocking(&x)?;
        }
    }
    ensure!(layer.num_batches_tracked() == 54, "54 batches");
    Ok(())
}

/// Sums that overflow f32 must not pass for numbers: neither for a constant channel nor for zeros.
fn overflow(gpu: &Gpu) -> Outcome {
    let x = ndarray::Array2::from_shape_fn((1000, 2), |(row, channel)| {
        let sign = if row % 2 == 0 { 1.0 } else { -1.0 };
        sign * [1.0, 1e19][channel]
    });
    let x = Tensor::from_array(gpu, &x, Layout::ChannelsFirst)?;
    let mut layer = BatchNorm::new(gpu, 2, Options::default())?;
    let y = layer.forward(&x)?.to_array_blocking()?;
    let dx = layer.backward(&x)?.to_array_blocking()?;
    for (what, values) in [("y", y), ("dx", dx)] {
        for row in values.rows() {
            ensure!(row[0].is_finite() && !row[1].is_finite(), "{what}: {row}");
        }
    }
    Ok(())
}
