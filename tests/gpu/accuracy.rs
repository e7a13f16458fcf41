//! The numerical contract: errors against f64 that do not grow with the offset of the data.
//!
//! With γ = 1, β = 0: `|y − y64| ≤ 1e-6·max(1, |y64|)`; the variance within 1e-6 of its value; dx and
//! dγ within 1e-5 of their largest magnitude. For x ~ N(offset, σ²) with offsets from 0 to 1e7 and σ
//! from 1e-2 to 1e3; with padding around it or at one side; with an outlier (there y within 4e-6),
//! also where only some positions count; and for channels that are one value from some row on.

#[path = "../../examples/accuracy.rs"]
#[allow(dead_code, reason = "the tests measure, but print no table")]
mod example;

use libtest_mimic::Trial;
use ndarray::{ArrayD, Axis, Slice};
use wgpu_batchnorm::{Gpu, Layout, Tuning};

use self::example::{measure, normal};
use crate::common::{Adapter, Outcome};
use crate::ensure;
use crate::operations::whole_columns;

const OFFSETS: [f64; 9] = [0.0, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7];

const SHAPES: &[(&[usize], Layout)] = &[
    (&[8, 4, 32, 32], Layout::ChannelsFirst),
    (&[8, 4, 31, 31], Layout::ChannelsFirst),
    (&[7, 3, 31, 31], Layout::ChannelsFirst),
    (&[8, 32, 32, 4], Layout::ChannelsLast),
    (&[8, 13, 13, 64], Layout::ChannelsLast),
    (&[8, 31, 31, 3], Layout::ChannelsLast),
];

/// Where an image has its channels.
fn channels(layout: Layout) -> Axis {
    match layout {
        Layout::ChannelsFirst => Axis(1),
        Layout::ChannelsLast => Axis(3),
    }
}

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    let tunings = [
        ("gpu", Tuning::gpu()),
        ("cpu", Tuning::cpu()),
        ("whole columns", whole_columns(false)),
    ];
    tunings
        .into_iter()
        .flat_map(|(name, tuning)| {
            let trial = |what: &str, test: fn(&Gpu, &Tuning) -> Outcome| {
                let tuning = tuning.clone();
                adapter.trial(format!("accuracy {what}, {name} tuning"), move |gpu| {
                    test(gpu, &tuning)
                })
            };
            [
                trial("at every offset and deviation", offsets),
                trial("of channels far apart", far_apart),
                trial("of long channels", long_channels),
                trial("with padding", padding),
                trial("with zeros at one side", zeros_at_one_side),
                trial("of two values", two_values),
                trial("with an outlier", outliers),
                trial("of some positions with an outlier", outliers_among_valid),
                trial("of two values at some positions", two_values_among_valid),
            ]
        })
        .collect()
}

/// Holds the contract, with another bound for y.
fn contract(gpu: &Gpu, x: &ArrayD<f32>, layout: Layout, tuning: &Tuning, y_bound: f64) -> Outcome {
    contract_of_valid(gpu, x, None, layout, tuning, y_bound)
}

/// The same where the mask says which positions count.
fn contract_of_valid(
    gpu: &Gpu,
    x: &ArrayD<f32>,
    valid: Option<&ArrayD<bool>>,
    layout: Layout,
    tuning: &Tuning,
    y_bound: f64,
) -> Outcome {
    let dy = normal(x.shape(), 0.0, 1.0, 6);
    let errors = measure(gpu, x, &dy, valid, layout, Some(tuning.clone()))?;
    ensure!(
        errors.y <= y_bound && errors.var <= 1e-6 && errors.dx <= 1e-5 && errors.dgamma <= 1e-5,
        "{errors:?}"
    );
    Ok(())
}

fn offsets_and_deviations() -> impl Iterator<Item = (f64, f64)> {
    let deviations = [1e-2, 1.0, 1e3];
    OFFSETS
        .into_iter()
        .flat_map(move |offset| deviations.map(|sigma| (offset, sigma)))
}

fn offsets(gpu: &Gpu, tuning: &Tuning) -> Outcome {
    for &(dims, layout) in SHAPES {
        for (offset, sigma) in offsets_and_deviations() {
            let x = normal(dims, offset, sigma, 5);
            contract(gpu, &x, layout, tuning, 1e-6)
                .map_err(|error| format!("{dims:?}, {offset:e} ± {sigma:e}: {error}"))?;
        }
    }
    Ok(())
}

/// No channel may be measured from another's values.
fn far_apart(gpu: &Gpu, tuning: &Tuning) -> Outcome {
    // Also where most values of a channel share their packs with its neighbours.
    let small: (&[usize], _) = (&[32, 4, 5, 1], Layout::ChannelsFirst);
    for &(dims, layout) in SHAPES.iter().chain([&small]) {
        let mut x = normal(dims, 0.0, 1.0, 9);
        for (channel, mut values) in x.axis_iter_mut(channels(layout)).enumerate() {
            values += [0.0, 1e7, -1e7][channel % 3];
        }
        contract(gpu, &x, layout, tuning, 1e-6).map_err(|error| format!("{dims:?}: {error}"))?;
    }
    Ok(())
}

fn long_channels(gpu: &Gpu, tuning: &Tuning) -> Outcome {
    for (dims, layout) in [
        ([1, 1, 1_000_001], Layout::ChannelsFirst),
        ([1, 1, 2_000_000], Layout::ChannelsFirst),
        ([1, 500_000, 4], Layout::ChannelsLast),
        ([1, 500_000, 3], Layout::ChannelsLast),
        ([1, 31_250, 64], Layout::ChannelsLast),
        ([8_000, 3, 49], Layout::ChannelsFirst),
    ] {
        for offset in [0.0, 1e3, 1e7] {
            let x = normal(&dims, offset, 1.0, 5);
            contract(gpu, &x, layout, tuning, 1e-6)
                .map_err(|error| format!("{dims:?}, {offset:e}: {error}"))?;
        }
    }
    Ok(())
}

/// A border of zeros around data far from zero.
fn padding(gpu: &Gpu, tuning: &Tuning) -> Outcome {
    for (dims, axes, layout) in [
        ([8, 4, 16, 16], [2, 3], Layout::ChannelsFirst),
        ([8, 4, 9, 9], [2, 3], Layout::ChannelsFirst),
        ([8, 112, 112, 3], [1, 2], Layout::ChannelsLast),
        ([8, 16, 16, 4], [1, 2], Layout::ChannelsLast),
    ] {
        for (offset, sigma) in offsets_and_deviations() {
            let mut x = normal(&dims, offset, sigma, 7);
            for axis in axes.map(Axis) {
                x.slice_axis_mut(axis, Slice::from(..1)).fill(0.0);
                x.slice_axis_mut(axis, Slice::from(-1..)).fill(0.0);
            }
            contract(gpu, &x, layout, tuning, 1e-6)
                .map_err(|error| format!("{dims:?}, {offset:e} ± {sigma:e}: {error}"))?;
        }
    }
    Ok(())
}

/// A column of zeros at one side of images, of 18 or 36 rows: places at equal distances may all lie in one column.
fn zeros_at_one_side(gpu: &Gpu, tuning: &Tuning) -> Outcome {
    for (dims, axis, layout) in [
        ([1, 3, 18, 224], 3, Layout::ChannelsFirst),
        ([1, 3, 36, 225], 3, Layout::ChannelsFirst),
        ([2, 18, 224, 4], 2, Layout::ChannelsLast),
        ([9, 18, 224, 3], 2, Layout::ChannelsLast),
        ([4, 36, 36, 4], 2, Layout::ChannelsLast),
    ] {
        for (offset, sigma) in offsets_and_deviations() {
            let mut x = normal(&dims, offset, sigma, 7);
            x.slice_axis_mut(Axis(axis), Slice::from(..1)).fill(0.0);
            contract(gpu, &x, layout, tuning, 1e-6)
                .map_err(|error| format!("{dims:?}, {offset:e} ± {sigma:e}: {error}"))?;
        }
    }
    Ok(())
}

/// Zeros in the first rows of a batch, and then one value, of as many digits as f32 holds: all that is added is
/// rounded alike.
fn two_values(gpu: &Gpu, tuning: &Tuning) -> Outcome {
    for (dims, layout) in [
        ([1, 8, 64, 64], Layout::ChannelsFirst),
        ([1, 8, 64, 61], Layout::ChannelsFirst),
        ([64, 8, 8, 8], Layout::ChannelsFirst),
        ([1, 64, 64, 8], Layout::ChannelsLast),
        ([1, 64, 64, 12], Layout::ChannelsLast),
        ([64, 7, 7, 6], Layout::ChannelsLast),
        ([41, 1, 1, 64], Layout::ChannelsLast),
        ([41, 1, 1, 252], Layout::ChannelsLast),
    ] {
        let values = normal(&[dims[channels(layout).index()]], 0.0, 3.0, 4);
        for zeros in [0.02, 0.06, 0.12, 0.22, 0.5] {
            let mut x = ArrayD::zeros(dims.to_vec());
            for (mut channel, value) in x.axis_iter_mut(channels(layout)).zip(&values) {
                let first = (channel.len() as f64 * zeros) as usize;
                channel.iter_mut().skip(first).for_each(|x| *x = *value);
            }
            contract(gpu, &x, layout, tuning, 1e-6)
                .map_err(|error| format!("{dims:?}, {zeros} zeros: {error}"))?;
        }
    }
    Ok(())
}

/// The same where each fourth position does not count, or counts alone, of so many that a lane may come to hundreds of
/// packs with a channel of which none counts.
fn two_values_among_valid(gpu: &Gpu, tuning: &Tuning) -> Outcome {
    for (dims, layout) in [
        ([1, 1 << 14, 4, 3], Layout::ChannelsLast),
        ([1, 1 << 14, 4, 8], Layout::ChannelsLast),
    ] {
        let values = normal(&[dims[3]], 0.0, 3.0, 4);
        for of_four in [[true, true, true, false], [false, false, true, false]] {
            let valid = ArrayD::from_shape_fn(dims[..3].to_vec(), |index| of_four[index[2]]);
            for zeros in [0.02, 0.12, 0.5] {
                // In each of the pieces that reductions may go by.
                let first = (1024.0 * zeros) as usize;
                let x = ArrayD::from_shape_fn(dims.to_vec(), |index| {
                    let counts = index[1] % 1024 >= first && of_four[index[2]];
                    if counts { values[index[3]] } else { 0.0 }
                });
                contract_of_valid(gpu, &x, Some(&valid), layout, tuning, 1e-6)
                    .map_err(|error| format!("{dims:?}, {of_four:?}, {zeros} zeros: {error}"))?;
            }
        }
    }
    Ok(())
}

/// One value of every channel 10⁴ standard deviations off, to either side: the first, a middle one
/// or the last; and, with some offsets, where the pivot is looked for in rows.
fn outliers(gpu: &Gpu, tuning: &Tuning) -> Outcome {
    for &(dims, layout) in SHAPES {
        let ends = offsets_and_deviations()
            .flat_map(|(offset, sigma)| [0.0, 0.5, 1.0].map(|place| (offset, sigma, place)));
        let primes = [2.0_f64, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0, 23.0];
        let probes = [1e3, 1e5, 1e7]
            .into_iter()
            .flat_map(|offset| primes.map(move |prime| (offset, 1.0, prime.sqrt().fract())));
        for (case, (offset, sigma, place)) in ends.chain(probes).enumerate() {
            let mut x = normal(dims, offset, sigma, 8);
            let side = if case % 2 == 0 { 1e4 } else { -1e4 };
            for mut channel in x.axis_iter_mut(channels(layout)) {
                let index = ((channel.len() as f64 * place) as usize).min(channel.len() - 1);
                if let Some(value) = channel.iter_mut().nth(index) {
                    *value = (offset + side * sigma) as f32;
                }
            }
            contract(gpu, &x, layout, tuning, 4e-6).map_err(|error| {
                format!("{dims:?}, {offset:e} ± {sigma:e}, at {place}: {error}")
            })?;
        }
    }
    Ok(())
}

/// Every other position counts or so, or two of eight, for which no two lanes may come to the same, or those after the
/// first two fifths, with zeros at the others; and of those that count, the first, a middle one or the last is 10⁴
/// standard deviations off in every channel.
fn outliers_among_valid(gpu: &Gpu, tuning: &Tuning) -> Outcome {
    for &(dims, layout) in SHAPES {
        let axis = channels(layout);
        let mut positions = dims.to_vec();
        positions.remove(axis.index());
        let noise = normal(&positions, 0.0, 1.0, 9);
        let sparse = noise.mapv(|value| value > 0.0);
        let mut apart = sparse.clone();
        for (index, counts) in apart.iter_mut().enumerate() {
            *counts = [0, 5].contains(&(index % 8));
        }
        let mut late = sparse.clone();
        let head = late.len() * 2 / 5;
        for (index, counts) in late.iter_mut().enumerate() {
            *counts = index >= head;
        }
        for (name, valid) in [("sparse", sparse), ("apart", apart), ("late", late)] {
            let counted = valid.iter().filter(|&&counts| counts).count();
            for (case, (offset, place)) in [0.0, 1e3, 1e7]
                .into_iter()
                .flat_map(|offset| [0, counted / 2, counted - 1].map(|place| (offset, place)))
                .enumerate()
            {
                let mut x = normal(dims, offset, 1.0, 8);
                let outlier = offset + if case % 2 == 0 { 1e4 } else { -1e4 };
                for mut channel in x.axis_iter_mut(axis) {
                    let mut seen = 0;
                    for (value, &counts) in channel.iter_mut().zip(&valid) {
                        match (counts, seen == place) {
                            (false, _) => *value = 0.0,
                            (true, true) => *value = outlier as f32,
                            (true, false) => {}
                        }
                        seen += usize::from(counts);
                    }
                }
                contract_of_valid(gpu, &x, Some(&valid), layout, tuning, 4e-6).map_err(
                    |error| format!("{dims:?}, {name}, {offset:e}, at {place}: {error}"),
                )?;
            }
        }
    }
    Ok(())
}
