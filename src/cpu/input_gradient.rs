//! Gradient of x. Twin: `shaders/input_gradient.wgsl`.

use ndarray::{Array1, ArrayBase, ArrayD, Data, Dimension};

use super::{Element, ParameterGradients, Run, Statistics, Valid, Values, change_runs};
use crate::layer::{check_length, check_like};
use crate::{Error, Layout, Shape};

/// The gradient of x, also through the statistics:
/// `dx = γ/√(var + eps)·(g − dβ/M − x̂·dγ/M)`, with `x̂ = (x − mean)/√(var + eps)` and M the count
/// of the statistics.
///
/// `g` is as in [`super::gradients`]. Where `valid` is false, and everywhere for constant
/// statistics, the statistics do not depend on x, and `dx = γ/√(var + eps)·g`. `valid` is as in
/// [`super::moments`].
///
/// Where a batch was gathered in parts, this is called for each with the merged statistics, and
/// with the sums of the parts' gradients of γ and β.
///
/// # Errors
/// Those of [`crate::Shape::new`]; [`Error::ShapeMismatch`] if `g` is not like `x`, `valid` has
/// other dimensions or a vector does not have one value per channel, [`Error::InvalidParameter`]
/// for an `eps` that is not finite or negative, or a negative count.
#[expect(
    clippy::too_many_arguments,
    reason = "each is a term of the formula, or says how to read one"
)]
pub fn input_gradient<T, SX, SG, DX, DG>(
    x: &ArrayBase<SX, DX>,
    g: &ArrayBase<SG, DG>,
    layout: Layout,
    statistics: &Statistics,
    eps: f64,
    gamma: &Array1<f64>,
    gradients: &ParameterGradients,
    valid: Option<&ArrayD<bool>>,
) -> Result<ArrayD<T>, Error>
where
    T: Element,
    SX: Data<Elem = T>,
    SG: Data<Elem = T>,
    DX: Dimension,
    DG: Dimension,
{
    let g = Values::new(g, layout)?;
    let terms = Terms {
        x: Values::new(x, layout)?,
        statistics,
        eps,
        gamma,
        gradients,
        valid: Valid::new(valid, &g.shape)?,
    };
    terms.check(&g.shape)?;
    g.changed(|run| terms.apply(run))
}

/// [`input_gradient`], with `dx` written over `g`, which takes no second tensor if its memory has the
/// order of its dimensions.
///
/// # Errors
/// As [`input_gradient`]; `g` is then as it was.
#[expect(
    clippy::too_many_arguments,
    reason = "each is a term of the formula, or says how to read one"
)]
pub fn input_gradient_in_place<T: Element, S: Data<Elem = T>, D: Dimension>(
    x: &ArrayBase<S, D>,
    g: &mut ArrayD<T>,
    layout: Layout,
    statistics: &Statistics,
    eps: f64,
    gamma: &Array1<f64>,
    gradients: &ParameterGradients,
    valid: Option<&ArrayD<bool>>,
) -> Result<(), Error> {
    let shape = Shape::new(g.shape(), layout)?;
    let terms = Terms {
        x: Values::new(x, layout)?,
        statistics,
        eps,
        gamma,
        gradients,
        valid: Valid::new(valid, &shape)?,
    };
    terms.check(&shape)?;
    match g.as_slice_mut() {
        Some(values) => change_runs(values, shape.view(), |run| terms.apply(run)),
        None => *g = Values::new(&*g, layout)?.changed(|run| terms.apply(run))?,
    }
    Ok(())
}

/// All that goes into the formula beside `g`.
struct Terms<'a, T: Element> {
    x: Values<'a, T>,
    statistics: &'a Statistics,
    eps: f64,
    gamma: &'a Array1<f64>,
    gradients: &'a ParameterGradients,
    valid: Valid,
}

impl<T: Element> Terms<'_, T> {
    /// Fails unless they belong to a `g` of this shape.
    fn check(&self, g: &Shape) -> Result<(), Error> {
        crate::options::not_negative("eps", self.eps)?;
        check_like("g", g, &self.x.shape)?;
        let channels = g.channels();
        self.statistics.check(channels)?;
        check_length("gamma", self.gamma.len(), channels)?;
        check_length("dgamma", self.gradients.gamma.len(), channels)?;
        check_length("dbeta", self.gradients.beta.len(), channels)
    }

    /// Makes `dx` of a run of `g`.
    fn apply(&self, run: Run<&mut [T]>) {
        let (channel, statistics) = (run.channel, self.statistics);
        let x_hat = statistics.x_hat(channel, self.eps);
        let scale = self.gamma[channel] / statistics.deviation(channel, self.eps);
        let dgamma_mean = self.gradients.gamma[channel] / statistics.count;
        let dbeta_mean = self.gradients.beta[channel] / statistics.count;
        for (index, value) in run.values.iter_mut().enumerate() {
            let mut dx = value.to_f64();
            if statistics.depend_on_batch() && self.valid.at(run.position + index) {
                let x = self.x.values[run.start + index].to_f64();
                dx = dx - dbeta_mean - x_hat(x) * dgamma_mean;
            }
            *value = T::from_f64(scale * dx);
        }
    }
}
