//! Gradients of γ and β. Twin: `shaders/gradients.wgsl`.

use std::ops::Range;

use ndarray::{Array1, ArrayBase, ArrayD, Data, Dimension};

use super::cut::{Bend, choose};
use super::normalize::linear;
use super::walk::{self, Block, LANES, Operands, Table, Walk};
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
    Ok(parameter_gradients(
        &walk, operands, statistics, &straight, false,
    ))
}

/// The sums of `g` and `g·x̂`, with `g` that of the activation, taken of `dy`.
pub(super) fn parameter_gradients<X: Element, T: Element>(
    walk: &Walk<'_>,
    operands: Operands<'_, X, T>,
    statistics: &Statistics,
    affine: &Affine,
    with_residual: bool,
) -> ParameterGradients {
    let table = &affine.table(statistics);
    let parts = choose!(affine.activation, with_residual, |ADD, bend| {
        let terms = Terms::<'_, ADD, _, _, _> { operands, bend };
        walk.each_block(|block| Sums {
            walk,
            block,
            terms,
            table,
        })
    });
    let mut found = ParameterGradients::zeros(affine.gamma.len());
    for (channels, [g, product]) in parts {
        for ((channel, g), product) in channels.zip(g).zip(product) {
            found.beta[channel] += g;
            found.gamma[channel] += product;
        }
    }
    for (channel, gamma) in found.gamma.iter_mut().enumerate() {
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
    fn add_run(
        self,
        range: Range<usize>,
        valid: bool,
        numbers: [f64; 3],
        sums: &mut [[f64; LANES]; 2],
    ) {
        let Operands { x, dy, residual } = self.operands.at(range);
        let [mut gs, mut products] = *sums;
        if valid {
            let (x, x_rest) = x.as_chunks::<LANES>();
            let (dy, dy_rest) = dy.as_chunks::<LANES>();
            let (residual, residual_rest) = residual.as_chunks::<LANES>();
            for ((x, dy), residual) in x.iter().zip(dy).zip(residual) {
                for lane in 0..LANES {
                    let [g, product] = self.of(x[lane], dy[lane], residual[lane], numbers);
                    gs[lane] += g;
                    products[lane] += product;
                }
            }
            let rest = x_rest.iter().zip(dy_rest).zip(residual_rest);
            for (lane, ((x, dy), residual)) in rest.enumerate() {
                let [g, product] = self.of(*x, *dy, *residual, numbers);
                gs[lane] += g;
                products[lane] += product;
            }
        } else {
            for ((x, dy), residual) in x.iter().zip(dy).zip(residual) {
                let [g, product] = not_valid(self.of(*x, *dy, *residual, numbers));
                gs[0] += g;
                products[0] += product;
            }
        }
        *sums = [gs, products];
    }

    #[inline(always)]
    fn add_row(
        self,
        range: Range<usize>,
        valid: bool,
        [mean, scale, beta]: [&[f64]; 3],
        [gs, products]: &mut [Vec<f64>; 2],
    ) {
        let count = range.len();
        let Operands { x, dy, residual } = self.operands.at(range);
        let [mean, scale, beta] = [&mean[..count], &scale[..count], &beta[..count]];
        let (gs, products) = (&mut gs[..count], &mut products[..count]);
        if valid {
            for index in 0..count {
                let numbers = [mean[index], scale[index], beta[index]];
                let [g, product] = self.of(x[index], dy[index], residual[index], numbers);
                gs[index] += g;
                products[index] += product;
            }
        } else {
            for index in 0..count {
                let numbers = [mean[index], scale[index], beta[index]];
                let terms = self.of(x[index], dy[index], residual[index], numbers);
                let [g, product] = not_valid(terms);
                gs[index] += g;
                products[index] += product;
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
