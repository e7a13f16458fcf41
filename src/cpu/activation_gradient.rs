//! Gradient of what the activation is applied to. Twins: `shaders/lib/cut/`.

use ndarray::{ArrayBase, ArrayD, Data, Dimension};

use super::normalize::Residual;
use super::{Affine, Element, Statistics, Values};
use crate::layer::check_like;
use crate::{Error, Layout};

/// The gradient `g` with respect to `z = γ·x̂ + β [+ residual]`, from that with respect to
/// `y = act(z)`: `g = dy·act′(z)`. It is the gradient with respect to the residual, too.
///
/// # Errors
/// Those of [`super::normalize`]; [`Error::ShapeMismatch`] if `dy` is not like `x`.
pub fn activation_gradient<T, SX, SY, DX, DY>(
    x: &ArrayBase<SX, DX>,
    dy: &ArrayBase<SY, DY>,
    layout: Layout,
    statistics: &Statistics,
    affine: &Affine,
    residual: Option<&ArrayD<T>>,
) -> Result<ArrayD<T>, Error>
where
    T: Element,
    SX: Data<Elem = T>,
    SY: Data<Elem = T>,
    DX: Dimension,
    DY: Dimension,
{
    let x = Values::new(x, layout)?;
    let dy = Values::new(dy, layout)?;
    check_like("dy", &dy.shape, &x.shape)?;
    statistics.check(x.shape.channels())?;
    affine.check(x.shape.channels())?;
    let residual = Residual::new(residual, &x.shape)?;

    dy.changed(|run| {
        let z = affine.channel(statistics, run.channel);
        for (index, value) in run.values.iter_mut().enumerate() {
            let flat = run.start + index;
            let z = z(x.values[flat].to_f64()) + residual.at(flat);
            *value = T::from_f64(affine.activation.gradient(value.to_f64(), z));
        }
    })
}
