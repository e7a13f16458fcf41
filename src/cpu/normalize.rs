//! Normalize, scale and shift. Twin: `shaders/normalize.wgsl`.

use ndarray::{Array1, ArrayBase, ArrayD, Data, Dimension};

use super::{Element, Statistics, Values};
use crate::layer::check_length;
use crate::{Error, Layout};

/// `y = (x − mean)·γ/√(var + eps) + β`, with the statistics of the batch or running ones.
///
/// # Errors
/// Those of [`crate::Shape::new`]; [`Error::ShapeMismatch`] for a vector that does not have one
/// value per channel, [`Error::InvalidParameter`]
/// for an `eps` that is not finite or negative.
pub fn normalize<T: Element, S: Data<Elem = T>, D: Dimension>(
    x: &ArrayBase<S, D>,
    layout: Layout,
    statistics: &Statistics,
    eps: f64,
    gamma: &Array1<T>,
    beta: &Array1<T>,
) -> Result<ArrayD<T>, Error> {
    crate::options::not_negative("eps", eps)?;
    let x = Values::new(x, layout)?;
    let channels = x.shape.channels();
    check_length("mean", statistics.mean.len(), channels)?;
    check_length("var", statistics.var.len(), channels)?;
    check_length("gamma", gamma.len(), channels)?;
    check_length("beta", beta.len(), channels)?;

    x.changed(|channel, run| {
        let mean = statistics.mean[channel];
        let deviation = (statistics.var[channel] + eps).sqrt();
        let (gamma, beta) = (gamma[channel].to_f64(), beta[channel].to_f64());
        for value in run {
            *value = T::from_f64((value.to_f64() - mean) / deviation * gamma + beta);
        }
    })
}
