//! The layer's modes: what is fused, frozen, absent, masked or in place, against PyTorch, Flax and
//! the CPU path.

use libtest_mimic::Trial;
use ndarray::{ArrayD, IxDyn};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wgpu_batchnorm::half::{bf16, f16};
use wgpu_batchnorm::verify::Checked;
use wgpu_batchnorm::{
    Activation, BatchNorm, DType, Error, Extra, Gpu, Layout, Mode, Momentum, OneValue, Options,
    Parameter, RunningVariance, Shape, State, Tensor, Tuning, Valid, Wanted,
};

use super::operations::{many_splits, merged_in_maps, whole_columns};
use super::properties;
use crate::common::modes::{self, ModeCase};
use crate::common::{Adapter, Outcome, Turn, ensure_close, largest, normal, normal_vector};
use crate::ensure;

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    vec![
        adapter.trial("modes agree with PyTorch and Flax", |gpu| {
            for case in modes::load() {
                agrees(gpu, &case).map_err(|error| format!("{}: {error}", case.name))?;
            }
            Ok(())
        }),
        adapter.trial("modes in every layout and storage type", every_mode),
        adapter.trial("modes of packs at one address", modes_of_twins),
        adapter.trial("pairs of small channels", pairs_of_channels),
        adapter.trial("any modes, shapes and offsets", random_modes),
        adapter.trial("both passes cut the same values", same_values_are_cut),
        adapter.trial("only wanted gradients are computed", wanted_gradients),
        adapter.trial("one value per channel gives beta", one_value),
        adapter.trial("padding has no part in the statistics", padding),
        adapter.trial(
            "the cumulative average is the plain one",
            cumulative_average,
        ),
        adapter.trial(
            "batches that do not enter do not count",
            batches_that_do_not_count,
        ),
        adapter.trial("in place is the same", in_place),
        adapter.trial("an overwritten input is noticed", overwritten_elsewhere),
    ]
}

/// A case of PyTorch's or Flax's, in training and then in evaluation.
fn agrees(gpu: &Gpu, case: &ModeCase) -> Outcome {
    let layout = case.layout();
    let upload = |values: &[f64]| Tensor::from_array(gpu, &case.array_f32(values), layout);
    let x = upload(&case.x)?;
    let residual = case.residual.as_deref().map(upload).transpose()?;
    let valid = case.valid();
    let valid = valid.map(|mask| Valid::from_mask(gpu, &mask)).transpose()?;
    let extra = Extra {
        residual: residual.as_ref(),
        valid: valid.as_ref(),
    };
    let mut layer = BatchNorm::new(gpu, case.channels(), case.options())?;
    layer.set_state(&case.state())?;

    let scale = |values: &[f64]| largest(values).max(1.0);
    let y = layer.forward_with(&x, extra)?.to_array_blocking()?;
    ensure_close("y", &y, &case.y, |_, _| 2e-6 * scale(&case.y))?;
    let found = layer.backward_with(&upload(&case.dy)?, &Wanted::default())?;
    let dx = found.dx.ok_or("dx is wanted")?.to_array_blocking()?;
    ensure_close("dx", &dx, &case.dx, |_, _| 1e-5 * scale(&case.dx))?;
    match (&found.residual, &case.d_residual) {
        (Some(found), Some(expected)) => {
            let found = found.to_array_blocking()?;
            ensure_close("d_residual", &found, expected, |_, expected| {
                1e-6 * expected.abs()
            })?;
        }
        (found, expected) => {
            ensure!(found.is_none() && expected.is_none(), "d_residual");
        }
    }
    let parameters = layer.gradients_blocking()?;
    let zeros = vec![0.0; case.channels()];
    for (what, found, expected) in [
        ("dgamma", &parameters.gamma, &case.dgamma),
        ("dbeta", &parameters.beta, &case.dbeta),
    ] {
        let expected = expected.as_ref().unwrap_or(&zeros);
        ensure_close(what, found, expected, |_, _| 1e-5 * scale(expected))?;
    }
    let state = layer.state_blocking()?;
    for (what, found, expected) in [
        ("mean", &state.running_mean, &case.running_mean_after),
        ("var", &state.running_var, &case.running_var_after),
    ] {
        if let Some(expected) = expected {
            ensure_close(what, found, expected, |_, _| 1e-6 * scale(expected))?;
        }
    }
    layer.set_mode(Mode::Eval);
    let y = layer.forward_with(&x, extra)?.to_array_blocking()?;
    ensure_close("y_eval", &y, &case.y_eval, |_, _| {
        2e-6 * scale(&case.y_eval)
    })
}

/// Shapes for all packings, with odd and even numbers of values.
const SHAPES: &[(&[usize], Layout)] = {
    use Layout::{ChannelsFirst as First, ChannelsLast as Last};
    &[
        (&[5, 7], First),
        (&[64, 8], First),
        (&[2, 5, 7, 7], First),
        (&[3, 3, 11, 1], First),
        (&[1, 3, 5], First),
        (&[9, 4, 8, 8], First),
        (&[2, 3, 64, 65], First),
        (&[3, 9, 5], Last),
        (&[2, 14, 14, 64], Last),
        (&[300, 33, 3], Last),
        (&[33, 4, 7, 7], First),
        (&[32, 3, 5, 5], First),
        (&[20, 8, 3], Last),
        (&[40, 40, 4], Last),
    ]
};

/// Any options that go together.
fn any_options(random: &mut StdRng) -> Options {
    let parameter = |random: &mut StdRng| match random.random_range(0..4) {
        0 => Parameter::Absent,
        1 => Parameter::Frozen,
        _ => Parameter::Learned,
    };
    let activation = match random.random_range(0..5) {
        0 => Activation::Identity,
        1 | 2 => Activation::Relu,
        3 => Activation::LeakyRelu { slope: -1.5 },
        _ => Activation::Clamp {
            min: -0.5,
            max: 0.75,
        },
    };
    let momentum = match random.random_range(0..3) {
        0 => Momentum::OfNew(0.3),
        1 => Momentum::OfOld(0.9),
        _ => Momentum::Cumulative,
    };
    let running_statistics = random.random_bool(0.75);
    let tuning = match random.random_range(0..7) {
        0 => Tuning::gpu(),
        1 => Tuning::cpu(),
        2 => many_splits(false),
        3 => many_splits(true),
        4 => whole_columns(false),
        5 => merged_in_maps(),
        _ => whole_columns(true),
    };
    Options::default()
        .gamma(parameter(random))
        .beta(parameter(random))
        .activation(activation)
        .momentum(momentum)
        .running_variance(match random.random_bool(0.5) {
            true => RunningVariance::Population,
            false => RunningVariance::Unbiased,
        })
        .running_statistics(running_statistics)
        .frozen_statistics(running_statistics && random.random_bool(0.25))
        .one_value(OneValue::GiveBeta)
        .tuning(tuning)
}

/// An array as a tensor of a storage type.
pub fn upload(gpu: &Gpu, array: &ArrayD<f32>, layout: Layout, dtype: DType) -> Upload {
    Ok(match dtype {
        DType::F32 => Tensor::from_array(gpu, array, layout)?,
        DType::F16 => Tensor::from_array(gpu, &array.mapv(f16::from_f32), layout)?,
        DType::Bf16 => Tensor::from_array(gpu, &array.mapv(bf16::from_f32), layout)?,
    })
}

type Upload = Result<Tensor, Error>;

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

fn every_mode(gpu: &Gpu) -> Outcome {
    let turn = Turn::of(gpu);
    for (seed, &(dims, layout)) in SHAPES.iter().enumerate() {
        for dtype in DTYPES {
            for round in 0..2 {
                if !turn.has(seed + dtype as usize + round) {
                    continue;
                }
                let seed = (100 * seed + 10 * round) as u64 + dtype.size() as u64;
                let mut random = StdRng::seed_from_u64(seed);
                let options = any_options(&mut random);
                one_mode(gpu, dims, layout, dtype, 1.0, &options, &mut random).map_err(
                    |error| format!("{layout:?} {dims:?} {dtype:?} {options:?}: {error}"),
                )?;
            }
        }
    }
    Ok(())
}

/// Planes of an odd number of 16-bit values, which begin and end within words: two channels in one dispatch.
fn pairs_of_channels(gpu: &Gpu) -> Outcome {
    let turn = Turn::of(gpu);
    let shapes = [[33, 4, 7, 7], [2, 6, 5, 5], [1, 2, 3, 3], [70, 8, 1, 3]];
    for (shape, dims) in shapes.into_iter().enumerate() {
        for dtype in [DType::F16, DType::Bf16] {
            for (number, activation) in [Activation::Identity, Activation::Relu]
                .into_iter()
                .enumerate()
            {
                for seed in 0..4 {
                    if !turn.has(shape + dtype as usize + number + seed as usize) {
                        continue;
                    }
                    let mut tuning = Tuning::gpu();
                    // With one lane, nothing goes by pairs of channels.
                    tuning.lanes = [256, 2, 16, 1][seed as usize];
                    let options = Options::default().activation(activation).tuning(tuning);
                    let mut random = StdRng::seed_from_u64(seed);
                    let first = Layout::ChannelsFirst;
                    one_mode(gpu, &dims, first, dtype, 1.0, &options, &mut random)
                        .map_err(|error| format!("{dims:?} {dtype:?} {activation:?}: {error}"))?;
                }
            }
        }
    }
    Ok(())
}

/// Planes, and channels that lie last, of multiples of eight, on a software adapter: also where lanes and walks
/// are left over.
fn modes_of_twins(gpu: &Gpu) -> Outcome {
    let options = Options::default()
        .activation(Activation::Relu)
        .tuning(Tuning::cpu());
    for (dims, layout) in [
        ([3, 5, 5, 72], Layout::ChannelsLast),
        ([5, 3, 5, 8], Layout::ChannelsFirst),
    ] {
        for dtype in DTYPES {
            for seed in 0..6 {
                let mut random = StdRng::seed_from_u64(seed);
                one_mode(gpu, &dims, layout, dtype, 1.0, &options, &mut random)
                    .map_err(|error| format!("{seed}: {layout:?} {dims:?} {dtype:?}: {error}"))?;
            }
        }
    }
    Ok(())
}

/// A twentieth of the random cases of `properties.rs`: nearly every one has kernels of its own.
fn random_modes(gpu: &Gpu) -> Outcome {
    let turn = Turn::of(gpu);
    for seed in (0..properties::cases()? / 20).filter(|&seed| turn.has(seed as usize)) {
        let mut random = StdRng::seed_from_u64(seed.into());
        let rank = random.random_range(2..=5);
        let most = [700, 70, 20, 9][rank - 2];
        let dims: Vec<_> = (0..rank).map(|_| random.random_range(1..=most)).collect();
        let layout = match random.random_bool(0.5) {
            true => Layout::ChannelsFirst,
            false => Layout::ChannelsLast,
        };
        let dtype = DTYPES[random.random_range(0..3)];
        // In 16 bits an offset leaves no digits to x itself.
        let power = random.random_range(0..=if dtype == DType::F32 { 7 } else { 1 });
        let mean = random.random_range(-1.0..1.0) * 10_f64.powi(power);
        let options = any_options(&mut random);
        one_mode(gpu, &dims, layout, dtype, mean, &options, &mut random).map_err(|error| {
            format!("{seed}: {layout:?} {dims:?} {dtype:?} {mean} {options:?}: {error}")
        })?;
    }
    Ok(())
}

/// Two steps of training and an evaluation, checked.
fn one_mode(
    gpu: &Gpu,
    dims: &[usize],
    layout: Layout,
    dtype: DType,
    mean: f64,
    options: &Options,
    random: &mut StdRng,
) -> Outcome {
    let shape = Shape::new(dims, layout)?;
    let channels = shape.channels();
    let seed = random.random();
    let mut state = State {
        gamma: normal_vector(channels, 1.0, 0.5, seed),
        beta: normal_vector(channels, 0.0, 1.0, seed ^ 1),
        running_mean: normal_vector(channels, mean, 0.5, seed ^ 2),
        running_var: normal_vector(channels, 1.0, 0.2, seed ^ 3).mapv(f32::abs),
        num_batches_tracked: 3,
    };
    if options.gamma == Parameter::Absent {
        state.gamma.fill(1.0);
    }
    if options.beta == Parameter::Absent {
        state.beta.fill(0.0);
    }
    let mut layer = BatchNorm::new(gpu, channels, options.clone())?;
    layer.set_state(&state)?;
    let tensor = |mean, seed| upload(gpu, &normal(dims, mean, 1.0, seed), layout, dtype);
    let residual = random.random_bool(0.5);
    let masked = random.random_bool(0.4);
    for step in 0..3 {
        let seed = seed ^ (4 + step);
        let x = tensor(mean, seed)?;
        let added = tensor(0.3, seed ^ 16)?;
        let share = random.random_range(0.0..1.0);
        let mask = ArrayD::from_shape_simple_fn(positions(&shape), || random.random_bool(share));
        let valid = Valid::from_mask(gpu, &mask)?;
        let extra = Extra {
            residual: residual.then_some(&added),
            valid: masked.then_some(&valid),
        };
        if step == 2 {
            layer.set_mode(Mode::Eval);
        }
        let mut checked = Checked::new(&mut layer);
        checked.forward_with_blocking(&x, extra)?;
        if step < 2 {
            let wanted = Wanted {
                x: random.random_bool(0.8),
                residual: random.random_bool(0.8),
                gamma: random.random_bool(0.8),
                beta: random.random_bool(0.8),
            };
            let dy = tensor(0.2, seed ^ 32)?;
            checked
                .backward_with_blocking(&dy, &wanted)
                .map_err(|error| {
                    format!("{wanted:?}, residual {residual}, masked {masked}: {error}")
                })?;
        }
    }
    Ok(())
}

/// A shape without its channels.
fn positions(shape: &Shape) -> IxDyn {
    let mut dims = shape.dims().to_vec();
    match shape.layout() {
        Layout::ChannelsFirst => dims.remove(1),
        Layout::ChannelsLast => dims.remove(dims.len() - 1),
    };
    IxDyn(&dims)
}

/// Values next to an edge are cut in the backward pass just where they are in the forward pass.
///
/// β is chosen so that one value of each channel comes to lie on an edge, but for a rounding.
/// Frozen, dx is γ·inv_std·g: it tells of every g by itself.
fn same_values_are_cut(gpu: &Gpu) -> Outcome {
    let clamp = Activation::Clamp { min: 0.0, max: 1.0 };
    let leaky = Activation::LeakyRelu { slope: 0.5 };
    let edges = [
        (Activation::Relu, 0.0),
        (leaky, 0.0),
        (clamp, 0.0),
        (clamp, 1.0),
    ];
    let turn = Turn::of(gpu);
    for (shape, &(dims, layout)) in SHAPES.iter().enumerate() {
        for dtype in DTYPES {
            for (number, (activation, edge)) in edges.into_iter().enumerate() {
                for residual in [false, true] {
                    if !turn.has(shape + dtype as usize + number + usize::from(residual)) {
                        continue;
                    }
                    cut_alike(gpu, dims, layout, dtype, activation, edge, residual).map_err(
                        |error| format!("{dims:?} {dtype:?} {activation:?} {residual}: {error}"),
                    )?;
                }
            }
        }
    }
    Ok(())
}

fn cut_alike(
    gpu: &Gpu,
    dims: &[usize],
    layout: Layout,
    dtype: DType,
    activation: Activation,
    edge: f32,
    residual: bool,
) -> Outcome {
    let shape = Shape::new(dims, layout)?;
    let (channels, view) = (shape.channels(), shape.view());
    let channel_of = |index: usize| index / view.inner % view.channels;
    let x = upload(gpu, &normal(dims, 3.0, 1.0, 1), layout, dtype)?;
    let added = upload(gpu, &normal(dims, 0.0, 1.0, 2), layout, dtype)?;
    let extra = Extra {
        residual: residual.then_some(&added),
        valid: None,
    };
    let ones = upload(gpu, &ArrayD::ones(dims), layout, dtype)?;

    // What enters the activation with β = 0: in f32, whatever the storage.
    let mut state = State::new(channels);
    state.gamma = normal_vector(channels, 1.0, 0.2, 3).mapv(f32::abs);
    state.running_mean = normal_vector(channels, 3.0, 0.1, 4);
    let wide = |tensor: &Tensor| {
        let values = tensor.to_array_blocking()?;
        Tensor::from_array(gpu, &values, layout)
    };
    let mut linear = BatchNorm::new(gpu, channels, Options::default())?;
    linear.set_state(&state)?;
    linear.set_mode(Mode::Eval);
    let wide_added = wide(&added)?;
    let z = linear.forward_with(
        &wide(&x)?,
        Extra {
            residual: residual.then_some(&wide_added),
            valid: None,
        },
    )?;
    for (index, z) in z.to_array_blocking()?.iter().enumerate() {
        let channel = channel_of(index);
        // The last value of the channel is as good as any.
        state.beta[channel] = edge - z;
    }

    let options = Options::default()
        .activation(activation)
        .frozen_statistics(true);
    let mut layer = BatchNorm::new(gpu, channels, options)?;
    layer.set_state(&state)?;
    let y = layer.forward_with(&x, extra)?.to_array_blocking()?;
    let found = layer.backward_with(&ones, &Wanted::default())?;
    let dx = found.dx.ok_or("dx is wanted")?.to_array_blocking()?;
    let full: Vec<f32> = (0..channels)
        .map(|channel| state.gamma[channel] / (1.0 + 1e-5_f32).sqrt())
        .collect();
    let mut near = 0;
    let mut all_passed = Vec::new();
    for (index, (&y, &dx)) in y.iter().zip(&dx).enumerate() {
        // With any activation here, what is cut has at most half the gradient.
        let passed = dx > 0.75 * full[channel_of(index)];
        let inside = match activation {
            Activation::Clamp { .. } => y > 0.0 && y < 1.0,
            _ => y > 0.0,
        };
        all_passed.push(passed);
        near += usize::from((y - edge).abs() < 1e-6);
        // In 16 bits what passes may be rounded to the edge.
        ensure!(
            passed == inside || (passed && dtype != DType::F32),
            "{y} has the gradient {dx}"
        );
    }
    ensure!(near >= channels, "only {near} values are near the edge");
    if let Some(gradient) = found.residual {
        for (passed, g) in all_passed.iter().zip(&gradient.to_array_blocking()?) {
            ensure!(
                (*g == 1.0) == *passed,
                "a gradient of {g}, passed: {passed}"
            );
        }
    }
    Ok(())
}

fn wanted_gradients(gpu: &Gpu) -> Outcome {
    let dims = [4, 3, 5, 5];
    let layout = Layout::ChannelsFirst;
    let x = upload(gpu, &normal(&dims, 1.0, 2.0, 1), layout, DType::F32)?;
    let dy = upload(gpu, &normal(&dims, 0.0, 1.0, 2), layout, DType::F32)?;
    for frozen in [false, true] {
        let options = Options::default().frozen_statistics(frozen);
        let mut layer = BatchNorm::new(gpu, 3, options)?;
        layer.forward(&x)?;
        let all = layer.backward(&dy)?.to_array_blocking()?;
        let gradients = layer.gradients_blocking()?;
        for bits in 0..8 {
            let wanted = Wanted {
                x: bits & 1 == 1,
                gamma: bits & 2 == 2,
                beta: bits & 4 == 4,
                residual: true,
            };
            let found = layer.backward_with(&dy, &wanted)?;
            ensure!(found.residual.is_none(), "there was no residual");
            ensure!(found.dx.is_some() == wanted.x, "{wanted:?}");
            if let Some(dx) = found.dx {
                ensure!(dx.to_array_blocking()? == all, "{wanted:?}: another dx");
            }
            let parameters = layer.gradients_blocking()?;
            for (wanted, found, all) in [
                (wanted.gamma, parameters.gamma, &gradients.gamma),
                (wanted.beta, parameters.beta, &gradients.beta),
            ] {
                let expected = if wanted { all.clone() } else { all * 0.0 };
                ensure!(found == expected, "{bits}: {found} {expected}");
            }
        }
    }
    Ok(())
}

fn one_value(gpu: &Gpu) -> Outcome {
    let options = Options::default()
        .one_value(OneValue::GiveBeta)
        .activation(Activation::Relu);
    for dims in [&[1, 3][..], &[1, 4], &[1, 3, 1, 1]] {
        let channels = dims[1];
        let mut layer = BatchNorm::new(gpu, channels, options.clone())?;
        let mut state = State::new(channels);
        state.beta = normal_vector(channels, 0.0, 1.0, 1);
        state.running_mean = normal_vector(channels, 0.0, 1.0, 2);
        layer.set_state(&state)?;
        let layout = Layout::ChannelsFirst;
        let x = Tensor::from_array(gpu, &normal(dims, 1e6, 1e5, 3), layout)?;
        let y = layer.forward(&x)?.to_array_blocking()?;
        let beta = state.beta.mapv(|beta| beta.max(0.0));
        ensure!(y.iter().eq(beta.iter()), "{y} should be {beta}");
        let dx = layer.backward(&x)?.to_array_blocking()?;
        ensure!(dx.iter().all(|&dx| dx == 0.0), "{dx}");
        let after = layer.state_blocking()?;
        ensure!(after.running_mean == state.running_mean, "the mean moved");
        ensure!(after.running_var == state.running_var, "the variance moved");
        ensure!(after.num_batches_tracked == 0, "the batch was counted");
    }
    Ok(())
}

/// Padding that is no number, at an offset, leaves the digits of what is valid.
fn padding(gpu: &Gpu) -> Outcome {
    for (layout, dims) in [
        (Layout::ChannelsLast, [6, 40, 64]),
        (Layout::ChannelsLast, [6, 40, 8]),
        (Layout::ChannelsLast, [6, 40, 3]),
        (Layout::ChannelsFirst, [6, 8, 40]),
        (Layout::ChannelsFirst, [6, 8, 37]),
        (Layout::ChannelsFirst, [6, 3, 37]),
    ] {
        for offset in [0.0, 1e7] {
            for tuning in [Tuning::gpu(), Tuning::cpu(), many_splits(true)] {
                padded(gpu, layout, dims, offset, tuning)
                    .map_err(|error| format!("{layout:?} {dims:?} {offset:e}: {error}"))?;
            }
        }
    }
    Ok(())
}

fn padded(gpu: &Gpu, layout: Layout, dims: [usize; 3], offset: f64, tuning: Tuning) -> Outcome {
    let shape = Shape::new(&dims, layout)?;
    let lengths = [0, 1, 7, 19, 30, 37];
    let axis = match layout {
        Layout::ChannelsFirst => 2,
        Layout::ChannelsLast => 1,
    };
    // Every channel has its own.
    let mut x = normal(&dims, 0.0, 1.0, 1);
    for (channel, mut values) in x.axis_iter_mut(ndarray::Axis(3 - axis)).enumerate() {
        values += [1.0, 0.0, -1.0][channel % 3] * offset as f32;
    }
    for (index, value) in x.indexed_iter_mut() {
        if index[axis] >= lengths[index[0]] {
            *value = f32::NAN;
        }
    }
    let valid = Valid::from_lengths(gpu, &shape, &lengths)?;
    let options = Options::default().momentum(1.0).tuning(tuning);
    let mut layer = BatchNorm::new(gpu, shape.channels(), options)?;
    let tensor = Tensor::from_array(gpu, &x, layout)?;
    let extra = Extra {
        residual: None,
        valid: Some(&valid),
    };
    let y = layer.forward_with(&tensor, extra)?.to_array_blocking()?;
    for ((index, y), x) in y.indexed_iter().zip(&x) {
        let expected = index[axis] < lengths[index[0]];
        ensure!(y.is_finite() == expected, "y{index:?} is {y} of {x}");
    }
    // Backward, with a gradient of 0 at the padding: as if it were not there.
    let mut dy = normal(&dims, 0.3, 1.0, 2);
    for (index, value) in dy.indexed_iter_mut() {
        if index[axis] >= lengths[index[0]] {
            *value = 0.0;
        }
    }
    let mut checked = Checked::new(&mut layer);
    let dx = checked.backward_blocking(&Tensor::from_array(gpu, &dy, layout)?)?;
    let dx = dx.to_array_blocking()?;
    ensure!(dx.iter().all(|dx| dx.is_finite()), "dx is poisoned");
    let gradients = layer.gradients_blocking()?;
    let finite = gradients.gamma.iter().all(|dgamma| dgamma.is_finite());
    ensure!(finite, "dgamma is poisoned");

    let state = layer.state_blocking()?;
    for channel in 0..shape.channels() {
        let values = x.axis_iter(ndarray::Axis(3 - axis)).nth(channel);
        let values = values.ok_or("there is such a channel")?;
        let values: Vec<f64> = values
            .iter()
            .filter(|value| value.is_finite())
            .map(|&value| value.into())
            .collect();
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let m2: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let var = m2 / (count - 1.0);
        let apart = (f64::from(state.running_mean[channel]) - mean).abs();
        // Two units in the last place of a deviation of 1, and what f32 can say of a mean.
        let allowed = 2.4e-7 + 1e-7 * mean.abs();
        ensure!(apart <= allowed, "mean: {apart:e} apart");
        let apart = (f64::from(state.running_var[channel]) - var).abs();
        ensure!(apart <= 1e-6 * var, "var: {apart:e} apart");
    }
    Ok(())
}

fn cumulative_average(gpu: &Gpu) -> Outcome {
    let options = Options::default().momentum(Momentum::Cumulative);
    let mut layer = BatchNorm::new(gpu, 2, options)?;
    let mut sum = 0.0;
    for step in 0..5 {
        let x = normal(&[50, 2], f64::from(step), 1.0, step as u64);
        sum += x.column_mean(0);
        layer.forward(&Tensor::from_array(gpu, &x, Layout::ChannelsFirst)?)?;
        let found = layer.state_blocking()?.running_mean[0];
        let expected = sum / (step + 1) as f32;
        ensure!((found - expected).abs() < 1e-5, "{found} {expected}");
    }
    Ok(())
}

trait ColumnMean {
    fn column_mean(&self, column: usize) -> f32;
}

impl ColumnMean for ArrayD<f32> {
    fn column_mean(&self, column: usize) -> f32 {
        let values = self.index_axis(ndarray::Axis(1), column);
        values.sum() / values.len() as f32
    }
}

/// A layer sees that its input was written over by another.
fn overwritten_elsewhere(gpu: &Gpu) -> Outcome {
    let new = || BatchNorm::new(gpu, 3, Options::default());
    let (mut first, mut second) = (new()?, new()?);
    let fresh = |seed| {
        upload(
            gpu,
            &normal(&[6, 3], 0.0, 1.0, seed),
            Layout::ChannelsFirst,
            DType::F32,
        )
    };
    let (x, dy) = (fresh(1)?, fresh(2)?);
    first.forward(&x)?;
    second.set_mode(Mode::Eval);
    second.forward_in_place(&x, Extra::default())?;
    let refused = first.backward(&dy).err();
    ensure!(refused == Some(Error::Overwritten), "{refused:?}");
    first.forward(&x)?;
    first.backward(&dy)?;
    // So it is where x is the dy of another.
    second.set_mode(Mode::Train);
    second.forward(&dy)?;
    second.backward_in_place(&x, &Wanted::default())?;
    let refused = first.backward(&dy).err();
    ensure!(refused == Some(Error::Overwritten), "{refused:?}");
    Ok(())
}

/// Batches that did not enter the running statistics do not weigh in their average.
fn batches_that_do_not_count(gpu: &Gpu) -> Outcome {
    let options = Options::default()
        .momentum(Momentum::Cumulative)
        .one_value(OneValue::GiveBeta);
    let mut layer = BatchNorm::new(gpu, 2, options)?;
    let tensor =
        |values: ndarray::Array2<f32>| Tensor::from_array(gpu, &values, Layout::ChannelsFirst);
    let x = tensor(ndarray::array![[9.0, 1.0], [11.0, 3.0]])?;
    layer.forward(&tensor(ndarray::array![[5.0, 5.0]])?)?;
    let none = Valid::from_mask(gpu, &ndarray::array![false, false])?;
    let extra = Extra {
        valid: Some(&none),
        residual: None,
    };
    layer.forward_with(&x, extra)?;
    layer.forward(&x)?;
    let state = layer.state_blocking()?;
    ensure!(state.num_batches_tracked == 1, "{state:?}");
    ensure!(
        state.running_mean == ndarray::array![10.0, 2.0],
        "{state:?}"
    );
    ensure!(state.running_var == ndarray::array![2.0, 2.0], "{state:?}");
    Ok(())
}

fn in_place(gpu: &Gpu) -> Outcome {
    for (seed, &(dims, layout)) in SHAPES.iter().enumerate() {
        for dtype in DTYPES {
            let seed = seed as u64;
            let shape = Shape::new(dims, layout)?;
            let options = Options::default().activation(Activation::Relu);
            let mut layer = BatchNorm::new(gpu, shape.channels(), options)?;
            let fresh = |seed| upload(gpu, &normal(dims, 1.0, 2.0, seed), layout, dtype);
            let (x, dy, added) = (fresh(seed)?, fresh(seed ^ 64)?, fresh(seed ^ 128)?);
            let extra = Extra {
                residual: Some(&added),
                valid: None,
            };
            let y = layer.forward_with(&x, extra)?.to_array_blocking()?;
            let found = layer.backward_with(&dy, &Wanted::default())?;
            let dx = found.dx.ok_or("dx is wanted")?.to_array_blocking()?;
            let residual = found.residual.ok_or("it had one")?.to_array_blocking()?;

            // What is not wanted is not written.
            let nothing = Wanted {
                x: false,
                residual: false,
                ..Wanted::default()
            };
            let before = dy.to_array_blocking()?;
            layer.backward_in_place(&dy, &nothing)?;
            ensure!(dy.to_array_blocking()? == before, "dy was written over");

            let found = layer.backward_in_place(&dy, &Wanted::default())?;
            let over_dy = found.dx.ok_or("dx is wanted")?;
            ensure!(over_dy.buffer() == dy.buffer(), "another buffer");
            ensure!(over_dy.to_array_blocking()? == dx, "{dims:?}: another dx");
            let again = found.residual.ok_or("it had one")?.to_array_blocking()?;
            ensure!(again == residual, "{dims:?}: another gradient");

            layer.forward_in_place(&x, extra)?;
            ensure!(x.to_array_blocking()? == y, "{dims:?}: another y");
            let refused = layer.backward(&over_dy);
            ensure!(refused.err() == Some(Error::Overwritten), "x is gone");
            layer.set_mode(Mode::Eval);
            let x = fresh(seed)?;
            let y = layer.forward_with(&x, extra)?.to_array_blocking()?;
            layer.forward_in_place(&x, extra)?;
            ensure!(
                x.to_array_blocking()? == y,
                "{dims:?}: another y in evaluation"
            );
        }
    }
    Ok(())
}
