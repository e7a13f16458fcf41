//! Gradient of x. Twin: `shaders/input_gradient.wgsl`.

use std::ops::Range;

use ndarray::{Array1, ArrayBase, ArrayD, Data, Dimension};

use super::cut::{Bend, Straight, choose};
use super::normalize::linear;
use super::walk::{Formula, Operands, PerChannel, Table, Walk, part};
use super::{Affine, Element, ParameterGradients, Statistics, Valid, Values};
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
    let x = Values::new(x, layout)?;
    let g = Values::new(g, layout)?;
    let valid = Valid::new(valid, &g.shape)?;
    let affine = straight(eps, gamma);
    check(&x.shape, &g.shape, statistics, &affine, gradients)?;
    let operands = Operands {
        x: &x.values,
        dy: &g.values,
        residual: &x.values,
    };
    let (walk, all) = (g.walk(&valid), 0..g.shape.channels());
    let table = |_| table(all.clone(), statistics, &affine, gradients);
    let groups = std::slice::from_ref(&all);
    g.like(input_gradients(
        &walk, operands, statistics, &affine, false, groups, &table,
    ))
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
    let x_values = Values::new(x, layout)?;
    let flags = Valid::new(valid, &shape)?;
    let affine = straight(eps, gamma);
    check(&x_values.shape, &shape, statistics, &affine, gradients)?;
    let Some(values) = g.as_slice_mut() else {
        *g = input_gradient(x, &*g, layout, statistics, eps, gamma, gradients, valid)?;
        return Ok(());
    };
    let formula = InputGradient::<false, _>::new(Straight, statistics);
    let table = table(0..shape.channels(), statistics, &affine, gradients);
    let walk = Walk::new(shape.view(), flags.as_deref());
    walk.map_in_place(formula, values, Some(&x_values.values), None, table);
    Ok(())
}

/// What is not there where `g` is given.
fn straight(eps: f64, gamma: &Array1<f64>) -> Affine {
    Affine {
        eps,
        gamma: gamma.clone(),
        ..Affine::none(gamma.len())
    }
}

/// Fails unless all belongs to a `g` of this shape.
fn check(
    x: &Shape,
    g: &Shape,
    statistics: &Statistics,
    affine: &Affine,
    gradients: &ParameterGradients,
) -> Result<(), Error> {
    check_like("g", g, x)?;
    let channels = g.channels();
    statistics.check(channels)?;
    affine.check(channels)?;
    check_length("dgamma", gradients.gamma.len(), channels)?;
    check_length("dbeta", gradients.beta.len(), channels)
}

/// The values of `dx`, with `g` that of the activation, taken of `dy`; `table` is asked for [`table`] of
/// each group of channels.
pub(super) fn input_gradients<X: Element, T: Element>(
    walk: &Walk<'_>,
    operands: Operands<'_, X, T>,
    statistics: &Statistics,
    affine: &Affine,
    with_residual: bool,
    groups: &[Range<usize>],
    table: &(dyn Fn(usize) -> Table<5> + Sync),
) -> Vec<T> {
    choose!(affine.activation, with_residual, |ADD, bend| {
        let formula = InputGradient::<ADD, _>::new(bend, statistics);
        walk.map_groups(groups, formula, operands, table)
    })
}

/// Mean, scale and shift of each of some channels, `dβ/M`, and what takes `x − mean` to `x̂·dγ/M`. The
/// gradients are those of the same channels.
pub(super) fn table(
    channels: Range<usize>,
    statistics: &Statistics,
    affine: &Affine,
    gradients: &ParameterGradients,
) -> Table<5> {
    let first = channels.start;
    Table::new(channels, |channel| {
        let deviation = statistics.deviation(channel, affine.eps);
        let [mean, scale, beta] = affine.numbers(statistics, channel);
        let dbeta_mean = gradients.beta[channel - first] / statistics.count;
        let dgamma_mean = gradients.gamma[channel - first] / statistics.count;
        [mean, scale, beta, dbeta_mean, dgamma_mean / deviation]
    })
}

/// `dx`, with a residual or without.
#[derive(Clone, Copy)]
struct InputGradient<const ADD: bool, B> {
    bend: B,
    /// Whether the statistics depend on x.
    dependent: bool,
}

impl<const ADD: bool, B: Bend> InputGradient<ADD, B> {
    fn new(bend: B, statistics: &Statistics) -> Self {
        Self {
            bend,
            dependent: statistics.depend_on_batch(),
        }
    }
}

impl<const ADD: bool, B: Bend, X: Element, T: Element> Formula<X, T, 5> for InputGradient<ADD, B> {
    #[inline(always)]
    fn values<P: PerChannel, const L: usize>(
        self,
        operands: Operands<'_, X, T>,
        valid: bool,
        numbers: [P; 5],
        out: &mut [T; L],
    ) {
        let Operands { x, dy, residual } = operands.at(0..L);
        let [mean, scale, beta, offset, slope] = part(numbers, 0..L);
        let g = |index: usize, x: f64| {
            let numbers = [mean.at(index), scale.at(index), beta.at(index)];
            let residual = if ADD { residual[index].to_f64() } else { 0.0 };
            let z = linear::<ADD>(x, residual, numbers);
            self.bend.gradient(dy[index].to_f64(), z)
        };
        if self.dependent && valid {
            for (index, dx) in out.iter_mut().enumerate() {
                let x = x[index].to_f64();
                let through = offset.at(index) + (x - mean.at(index)) * slope.at(index);
                *dx = T::from_f64(scale.at(index) * (g(index, x) - through));
            }
        } else {
            for (index, dx) in out.iter_mut().enumerate() {
                *dx = T::from_f64(scale.at(index) * g(index, x[index].to_f64()));
            }
        }
    }
}
