//! Gradients of γ and β. Twin: `shaders/gradients.wgsl`.

use ndarray::{Array1, ArrayBase, Data, Dimension};

use super::{Element, Statistics, Values};
use crate::layer::{check_length, check_like};
use crate::{Error, Layout};

/// The gradients of γ and β in f64, one value per channel.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterGradients {
    /// `dγ = Σdy·x̂`.
    pub gamma: Array1<f64>,
    /// `dβ = Σdy`.
    pub beta: Array1<f64>,
}

/// `dβ = Σdy` and `dγ = Σdy·x̂`, with `x̂ = (x − mean)/√(var + eps)`.
///
/// # Errors
/// Those of [`crate::Shape::new`]; [`Error::ShapeMismatch`] if `dy` is not like `x` or a vector
/// does not have one value per channel, [`Error::InvalidParameter`]
/// for an `eps` that is not finite or negative.
pub fn gradients<T, SX, SY, DX, DY>(
    x: &ArrayBase<SX, DX>,
    dy: &ArrayBase<SY, DY>,
    layout: Layout,
    statistics: &Statistics,
    eps: f64,
) -> Result<ParameterGradients, Error>
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

    let mut gamma = Array1::<f64>::zeros(channels);
    let mut beta = Array1::<f64>::zeros(channels);
    for ((channel, x), (_, dy)) in x.runs().zip(dy.runs()) {
        let mean = statistics.mean[channel];
        let deviation = (statistics.var[channel] + eps).sqrt();
        for (x, dy) in x.iter().zip(dy) {
            gamma[channel] += dy.to_f64() * ((x.to_f64() - mean) / deviation);
            beta[channel] += dy.to_f64();
        }
    }
    Ok(ParameterGradients { gamma, beta })
}
