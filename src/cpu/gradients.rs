//! Gradients of γ and β. Twin: `shaders/gradients.wgsl`.

use ndarray::{Array1, ArrayBase, ArrayD, Data, Dimension};

use super::{Element, Statistics, Valid, Values};
use crate::layer::check_like;
use crate::{Error, Layout};

/// The gradients of γ and β in f64, one value per channel.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterGradients {
    /// `dγ = Σg·x̂`.
    pub gamma: Array1<f64>,
    /// `dβ = Σg`.
    pub beta: Array1<f64>,
}

/// `dβ = Σg` and `dγ = Σg·x̂`, with `x̂ = (x − mean)/√(var + eps)`.
///
/// `g` is the gradient with respect to `γ·x̂ + β`: that of the output, or what
/// [`super::activation_gradient`] makes of it. The sums are over all positions, also over those
/// that a mask kept out of the statistics, since they too were normalized; but where `valid` is
/// false and `g` is 0, what `x` holds has no part in them, even if it is no number.
///
/// # Errors
/// Those of [`crate::Shape::new`]; [`Error::ShapeMismatch`] if `g` is not like `x`, `valid`
/// has other dimensions or a vector does not have one value per channel, [`Error::InvalidParameter`] for an `eps` that is not finite
/// or negative, or a negative count.
pub fn gradients<T, SX, SG, DX, DG>(
    x: &ArrayBase<SX, DX>,
    g: &ArrayBase<SG, DG>,
    layout: Layout,
    statistics: &Statistics,
    eps: f64,
    valid: Option<&ArrayD<bool>>,
) -> Result<ParameterGradients, Error>
where
    T: Element,
    SX: Data<Elem = T>,
    SG: Data<Elem = T>,
    DX: Dimension,
    DG: Dimension,
{
    crate::options::not_negative("eps", eps)?;
    let x = Values::new(x, layout)?;
    let g = Values::new(g, layout)?;
    check_like("g", &g.shape, &x.shape)?;
    let channels = x.shape.channels();
    statistics.check(channels)?;
    let valid = Valid::new(valid, &x.shape)?;

    let mut gamma = Array1::<f64>::zeros(channels);
    let mut beta = Array1::<f64>::zeros(channels);
    for (x_run, g_run) in x.runs().zip(g.runs()) {
        let channel = x_run.channel;
        let x_hat = statistics.x_hat(channel, eps);
        for (index, (x, g)) in x_run.values.iter().zip(g_run.values).enumerate() {
            let g = g.to_f64();
            if g != 0.0 || valid.at(x_run.position + index) {
                gamma[channel] += g * x_hat(x.to_f64());
            }
            beta[channel] += g;
        }
    }
    Ok(ParameterGradients { gamma, beta })
}
