//! Gradient of x. Twin: `shaders/input_gradient.wgsl`.

use ndarray::{Array1, ArrayBase, ArrayD, Data, Dimension};

use super::{Element, ParameterGradients, Statistics, Values};
use crate::layer::{check_length, check_like};
use crate::{Error, Layout};

/// The gradient of x through the batch's own statistics:
/// `dx = γ/√(var + eps)·(dy − dβ/M − x̂·dγ/M)`, with `x̂ = (x − mean)/√(var + eps)`.
///
/// # Errors
/// Those of [`crate::Shape::new`]; [`Error::ShapeMismatch`] if `dy` is not like `x` or a vector
/// does not have one value per channel, [`Error::InvalidParameter`]
/// for an `eps` that is not finite or negative.
pub fn input_gradient<T, SX, SY, DX, DY>(
    x: &ArrayBase<SX, DX>,
    dy: &ArrayBase<SY, DY>,
    layout: Layout,
    statistics: &Statistics,
    eps: f64,
    gamma: &Array1<T>,
    gradients: &ParameterGradients,
) -> Result<ArrayD<T>, Error>
where
    T: Element,
    SX: Data<Elem = T>,
    SY: Data<Elem = T>,
    DX: Dimension,
    DY: Dimension,
{
    crate::options::not_negative("eps", eps)?;
    let x = Values::new(x, layout)?;
    let dy = Values::new(dy, layout)?;
    check_like("dy", &dy.shape, &x.shape)?;
    let channels = x.shape.channels();
    check_length("mean", statistics.mean.len(), channels)?;
    check_length("var", statistics.var.len(), channels)?;
    check_length("gamma", gamma.len(), channels)?;
    check_length("dgamma", gradients.gamma.len(), channels)?;
    check_length("dbeta", gradients.beta.len(), channels)?;

    let count = x.shape.values_per_channel() as f64;
    let mut x_runs = x.runs();
    dy.changed(|channel, run| {
        let mean = statistics.mean[channel];
        let deviation = (statistics.var[channel] + eps).sqrt();
        let scale = gamma[channel].to_f64() / deviation;
        let dgamma_mean = gradients.gamma[channel] / count;
        let dbeta_mean = gradients.beta[channel] / count;
        let x_run = x_runs.next().map_or(&[][..], |(_, x_run)| x_run);
        for (value, x) in run.iter_mut().zip(x_run) {
            let x_hat = (x.to_f64() - mean) / deviation;
            *value = T::from_f64(scale * (value.to_f64() - dbeta_mean - x_hat * dgamma_mean));
        }
    })
}
