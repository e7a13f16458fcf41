//! Gradient of what the activation is applied to. Twins: `shaders/lib/cut/`.

use ndarray::{ArrayBase, ArrayD, Data, Dimension};

use super::cut::{Bend, choose};
use super::normalize::{linear, residual_values};
use super::walk::{Formula, Operands, PerChannel, Walk, part};
use super::{Affine, Element, Statistics, Valid, Values};
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
    let inputs = Inputs::new(x, dy, layout, statistics, affine, residual)?;
    let walk = inputs.x.walk(&Valid::ALL);
    inputs.x.like(activation_gradients(
        &walk,
        inputs.operands(),
        statistics,
        affine,
        inputs.residual.is_some(),
    ))
}

/// What a gradient through the activation is taken of.
pub(super) struct Inputs<'a, X: Element, T: Element> {
    pub(super) x: Values<'a, X>,
    dy: Values<'a, T>,
    pub(super) residual: Option<Values<'a, X>>,
}

impl<'a, X: Element, T: Element> Inputs<'a, X, T> {
    /// Fails unless all fit together.
    pub(super) fn new<SX: Data<Elem = X>, SY: Data<Elem = T>, DX: Dimension, DY: Dimension>(
        x: &'a ArrayBase<SX, DX>,
        dy: &'a ArrayBase<SY, DY>,
        layout: Layout,
        statistics: &Statistics,
        affine: &Affine,
        residual: Option<&'a ArrayD<X>>,
    ) -> Result<Self, Error> {
        let x = Values::new(x, layout)?;
        let dy = Values::new(dy, layout)?;
        check_like("dy", &dy.shape, &x.shape)?;
        statistics.check(x.shape.channels())?;
        affine.check(x.shape.channels())?;
        let residual = residual_values(residual, &x.shape)?;
        Ok(Self { x, dy, residual })
    }

    pub(super) fn operands(&self) -> Operands<'_, X, T> {
        let residual = self.residual.as_ref();
        Operands {
            x: &self.x.values,
            dy: &self.dy.values,
            residual: residual.map_or(&self.x.values, |found| &found.values),
        }
    }
}

/// The values of `g`.
pub(super) fn activation_gradients<X: Element, T: Element>(
    walk: &Walk<'_>,
    operands: Operands<'_, X, T>,
    statistics: &Statistics,
    affine: &Affine,
    with_residual: bool,
) -> Vec<T> {
    let table = affine.table(statistics);
    choose!(affine.activation, with_residual, |ADD, bend| {
        walk.map(Gradient::<ADD, _>(bend), operands, table)
    })
}

/// `g`, with a residual or without.
#[derive(Clone, Copy)]
struct Gradient<const ADD: bool, B>(B);

impl<const ADD: bool, B: Bend, X: Element, T: Element> Formula<X, T, 3> for Gradient<ADD, B> {
    #[inline(always)]
    fn values<P: PerChannel, const L: usize>(
        self,
        operands: Operands<'_, X, T>,
        _: bool,
        [mean, scale, beta]: [P; 3],
        out: &mut [T; L],
    ) {
        let Operands { x, dy, residual } = operands.at(0..L);
        let [mean, scale, beta] = part([mean, scale, beta], 0..L);
        for (index, g) in out.iter_mut().enumerate() {
            let numbers = [mean.at(index), scale.at(index), beta.at(index)];
            let residual = if ADD { residual[index].to_f64() } else { 0.0 };
            let z = linear::<ADD>(x[index].to_f64(), residual, numbers);
            *g = T::from_f64(self.0.gradient(dy[index].to_f64(), z));
        }
    }
}
