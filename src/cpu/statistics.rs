//! Mean and variance of each channel, and the running statistics. Twin: `shaders/statistics.wgsl`.

use ndarray::{Array1, ArrayBase, Data, Dimension};

use super::{Element, Values};
use crate::{Error, Layout, Options};

/// The mean and the population variance of each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// `Σx / M`.
    pub mean: Array1<f64>,
    /// `Σ(x − mean)² / M`.
    pub var: Array1<f64>,
}

/// The mean and the population variance of each channel of `x`.
///
/// # Errors
/// Those of [`crate::Shape::new`]; [`Error::EmptyBatch`] or [`Error::OneValuePerChannel`] with
/// fewer than two values per channel.
pub fn statistics<T: Element, S: Data<Elem = T>, D: Dimension>(
    x: &ArrayBase<S, D>,
    layout: Layout,
) -> Result<Statistics, Error> {
    let x = Values::new(x, layout)?;
    x.shape.check_trainable()?;
    let count = x.shape.values_per_channel() as f64;

    let mut mean = Array1::<f64>::zeros(x.shape.channels());
    for (channel, run) in x.runs() {
        mean[channel] += run.iter().map(|value| value.to_f64()).sum::<f64>();
    }
    mean /= count;

    let mut var = Array1::<f64>::zeros(x.shape.channels());
    for (channel, run) in x.runs() {
        let mean = mean[channel];
        var[channel] += run
            .iter()
            .map(|value| (value.to_f64() - mean).powi(2))
            .sum::<f64>();
    }
    var /= count;
    Ok(Statistics { mean, var })
}

/// Moves running statistics towards those of a batch with `values_per_channel` values:
/// `running ← (1 − m)·running + m·batch`, with the momenta and the kind of variance that the
/// options say.
///
/// # Errors
/// [`Error::ShapeMismatch`] if the vectors differ in length, [`Error::InvalidParameter`] for options
/// out of range or fewer than two values per channel.
pub fn update_running<T: Element>(
    running_mean: &mut Array1<T>,
    running_var: &mut Array1<T>,
    batch: &Statistics,
    values_per_channel: usize,
    options: &Options,
) -> Result<(), Error> {
    options.validate()?;
    if values_per_channel < 2 {
        return Err(Error::InvalidParameter {
            name: "values_per_channel",
            expected: "at least 2",
            value: values_per_channel as f64,
        });
    }
    let channels = batch.mean.len();
    crate::layer::check_length("running_mean", running_mean.len(), channels)?;
    crate::layer::check_length("running_var", running_var.len(), channels)?;
    let correction = options.variance_correction(values_per_channel);
    let step = |running: &mut Array1<T>, batch: &Array1<f64>, momentum: f64, factor: f64| {
        running.zip_mut_with(batch, |running, &batch| {
            let moved = (1.0 - momentum) * running.to_f64() + momentum * (factor * batch);
            *running = T::from_f64(moved);
        });
    };
    step(running_mean, &batch.mean, options.momentum_mean, 1.0);
    step(running_var, &batch.var, options.momentum_var, correction);
    Ok(())
}
