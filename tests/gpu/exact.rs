//! Inputs whose sums are exact in f32 in any order: there is no rounding to forgive.
//!
//! A channel's values are mean ± δ, with signs that balance in every aligned group of four and at
//! every stride that is a power of two (the Thue–Morse sequence), mean and δ powers of two times
//! small integers, and M a power of two. Every block then has the channel's own mean, every sum of
//! squares is exact, and so must the results be, however the work is split.
//!
//! With other counts Chan's formula weighs by fractions that are not exact, whatever the data. The
//! results of such inputs are then within four units in the last place.

use libtest_mimic::Trial;
use ndarray::ArrayD;
use wgpu_batchnorm::{
    BatchNorm, Gpu, Layout, Options, RunningVariance, Shape, Tensor, Tuning, cpu,
};

use crate::common::{Adapter, Outcome, ensure_close};

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    vec![
        adapter.trial("exact inputs give exact statistics, on all splits", |gpu| {
            for (dims, layout) in [
                (&[16, 23, 8, 8][..], Layout::ChannelsFirst),
                (&[64, 19, 4], Layout::ChannelsFirst),
                (&[256, 33], Layout::ChannelsFirst),
                (&[256, 32], Layout::ChannelsFirst),
                (&[4, 3, 128, 128], Layout::ChannelsFirst),
                (&[1, 1, 1 << 18], Layout::ChannelsFirst),
                (&[16, 8, 8, 23], Layout::ChannelsLast),
                (&[16, 16, 16, 200], Layout::ChannelsLast),
                (&[1 << 16, 4], Layout::ChannelsLast),
            ] {
                for tuning in tunings() {
                    exact(gpu, dims, layout, &tuning, 0.0)
                        .map_err(|error| format!("{layout:?} {dims:?} {tuning:?}: {error}"))?;
                }
            }
            Ok(())
        }),
        adapter.trial("exact inputs of any count are right to four units", |gpu| {
            // The shapes of oneDNN's tests, and other sizes that are no powers of two.
            for (dims, layout) in [
                (&[5, 33, 27][..], Layout::ChannelsFirst),
                (&[4, 200, 17, 16], Layout::ChannelsFirst),
                (&[1, 19, 4, 6, 6], Layout::ChannelsFirst),
                (&[2, 128, 7, 7], Layout::ChannelsFirst),
                (&[10, 23], Layout::ChannelsFirst),
                (&[6, 7, 7, 20], Layout::ChannelsLast),
            ] {
                for tuning in tunings() {
                    exact(gpu, dims, layout, &tuning, 4.0)
                        .map_err(|error| format!("{layout:?} {dims:?} {tuning:?}: {error}"))?;
                }
            }
            Ok(())
        }),
    ]
}

/// From one split to as many as there can be, in powers of two.
fn tunings() -> Vec<Tuning> {
    let mut tunings = Vec::new();
    for lanes in [1, 8, 64, 256] {
        for packs in [4, 32, 1 << 16] {
            let mut tuning = Tuning::gpu();
            tuning.lanes = lanes;
            // Where so few packs may be added up in a row, columns are not taken whole.
            tuning.whole_bytes = u64::MAX;
            tuning.whole_workgroups = 1;
            tuning.reduction_workgroups = 1 << 20;
            tuning.reduction_packs_min = packs;
            tuning.reduction_packs_max = packs;
            tunings.push(tuning);
        }
    }
    tunings
}

/// The mean and the deviation of a channel.
fn parameters(channel: usize) -> (f32, f32) {
    let mean = (channel % 7) as f32 - 3.0;
    let deviation = [0.25, 0.5, 1.0, 2.0][channel % 4];
    (mean * 64.0, deviation)
}

/// Fails unless mean and variance are right to so many units in the last place.
fn exact(gpu: &Gpu, dims: &[usize], layout: Layout, tuning: &Tuning, units: f64) -> Outcome {
    let shape = Shape::new(dims, layout)?;
    let view = shape.view();
    let mut index = 0;
    let x = ArrayD::from_shape_simple_fn(dims, || {
        let channel = index / view.inner % view.channels;
        let place = index / (view.inner * view.channels) * view.inner + index % view.inner;
        index += 1;
        let (mean, deviation) = parameters(channel);
        // The Thue–Morse sequence: the parity of the ones in a number's binary digits.
        match place.count_ones() % 2 {
            0 => mean + deviation,
            _ => mean - deviation,
        }
    });
    // With momentum 1 the running statistics are the batch's.
    let options = Options::default()
        .momentum(1.0)
        .running_variance(RunningVariance::Population)
        .tuning(tuning.clone());
    let mut layer = BatchNorm::new(gpu, view.channels, options)?;
    layer.forward(&Tensor::from_array(gpu, &x, layout)?)?;
    let state = layer.state_blocking()?;
    let expected = cpu::statistics(&x.mapv(f64::from), layout)?;
    let unit = f64::from(f32::EPSILON);
    let mean_allowed = |channel: usize, mean: f64| {
        let deviation = f64::from(parameters(channel).1);
        units * unit * mean.abs().max(deviation)
    };
    ensure_close("mean", &state.running_mean, &expected.mean, mean_allowed)?;
    let var_allowed = |_, var: f64| units * unit * var;
    ensure_close("variance", &state.running_var, &expected.var, var_allowed)
}
