//! Gradients of γ and β. Twin: `shaders/gradients.wgsl`.

use std::ops::Range;

use ndarray::{Array1, ArrayBase, ArrayD, Data, Dimension};

use super::cut::{Bend, choose};
use super::normalize::linear;
use super::walk::{self, Block, Operands, PerChannel, Table, Walk};
use super::{Affine, Element, Statistics, Valid, Values};
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

impl ParameterGradients {
    pub(super) fn zeros(channels: usize) -> Self {
        Self {
            gamma: Array1::zeros(channels),
            beta: Array1::zeros(channels),
        }
    }
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
    statistics.check(x.shape.channels())?;
    let valid = Valid::new(valid, &x.shape)?;

    let operands = Operands {
        x: &x.values,
        dy: &g.values,
        residual: &x.values,
    };
    let straight = Affine {
        eps,
        ..Affine::none(x.shape.channels())
    };
    let walk = x.walk(&valid);
    let channels = 0..x.shape.channels();
    Ok(parameter_gradients(
        &walk, channels, operands, statistics, &straight, false,
    ))
}

/// The sums of `g` and `g·x̂` over some channels, with `g` that of the activation, taken of `dy`.
pub(super) fn parameter_gradients<X: Element, T: Element>(
    walk: &Walk<'_>,
    channels: Range<usize>,
    operands: Operands<'_, X, T>,
    statistics: &Statistics,
    affine: &Affine,
    with_residual: bool,
) -> ParameterGradients {
    let table = &affine.table_of(channels.clone(), statistics);
    let parts = choose!(affine.activation, with_residual, |ADD, bend| {
        let terms = Terms::<'_, ADD, _, _, _> { operands, bend };
        walk.each_block(channels.clone(), |block| Sums {
            walk,
            block,
            terms,
            table,
        })
    });
    let mut found = ParameterGradients::zeros(channels.len());
    for (part, [g, product]) in parts {
        let first = part.start - channels.start;
        for (index, (g, product)) in g.into_iter().zip(product).enumerate() {
            found.beta[first + index] += g;
            found.gamma[first + index] += product;
        }
    }
    for (gamma, channel) in found.gamma.iter_mut().zip(channels) {
        *gamma /= statistics.deviation(channel, affine.eps);
    }
    found
}

/// `g` and `g·(x − mean)`.
#[derive(Clone, Copy)]
struct Terms<'a, const ADD: bool, B, X, T> {
    operands: Operands<'a, X, T>,
    bend: B,
}

impl<const ADD: bool, B: Bend, X: Element, T: Element> Terms<'_, ADD, B, X, T> {
    #[inline(always)]
    fn of(self, x: X, dy: T, residual: X, numbers: [f64; 3]) -> [f64; 2] {
        let (x, dy) = (x.to_f64(), dy.to_f64());
        let residual = if ADD { residual.to_f64() } else { 0.0 };
        let g = self.bend.gradient(dy, linear::<ADD>(x, residual, numbers));
        [g, g * (x - numbers[0])]
    }
}

/// What a value that does not count adds to a sum of products: where `g` is 0, what `x` holds has no
/// part.
#[inline(always)]
fn not_valid([g, product]: [f64; 2]) -> [f64; 2] {
    [g, if g == 0.0 { 0.0 } else { product }]
}

impl<const ADD: bool, B: Bend, X: Element, T: Element> walk::Terms<3, 2>
    for Terms<'_, ADD, B, X, T>
{
    #[inline(always)]
    fn add<P: PerChannel, const L: usize>(
        self,
        start: usize,
        valid: bool,
        [mean, scale, beta]: [P; 3],
        [gs, products]: &mut [[f64; L]; 2],
    ) {
        let Operands { x, dy, residual } = self.operands.at(start..start + L);
        let terms = |lane: usize| {
            let numbers = [mean.at(lane), scale.at(lane), beta.at(lane)];
            self.of(x[lane], dy[lane], residual[lane], numbers)
        };
        if valid {
            for lane in 0..L {
                let [g, product] = terms(lane);
                gs[lane] += g;
                products[lane] += product;
            }
        } else {
            for lane in 0..L {
                let [g, product] = not_valid(terms(lane));
                gs[lane] += g;
                products[lane] += product;
            }
        }
    }
}

/// The sums of a block, and the channels that they belong to.
struct Sums<'a, S> {
    walk: &'a Walk<'a>,
    block: Block,
    terms: S,
    table: &'a Table<3>,
}

impl<S: walk::Terms<3, 2>> pulp::NullaryFnOnce for Sums<'_, S> {
    type Output = (Range<usize>, [Vec<f64>; 2]);

    #[inline(always)]
    fn call(self) -> Self::Output {
        let channels = self.block.channels.clone();
        let numbers = self.table.slices(channels.clone());
        (channels, self.walk.sums(&self.block, self.terms, numbers))
    }
}
