//! The whole backward pass.

use std::sync::OnceLock;

use ndarray::{Array1, ArrayBase, ArrayD, Data, Dimension};

use super::activation_gradient::{Inputs, activation_gradients};
use super::gradients::parameter_gradients;
use super::input_gradient::{input_gradients, table};
use super::{Affine, Element, InputGradients, ParameterGradients, Statistics, Valid};
use crate::{Error, Layout, Wanted};

/// The gradients of all that went into [`super::normalize`], from that of its output: those of
/// [`super::activation_gradient`], [`super::gradients`] and [`super::input_gradient`], but in fewer
/// passes, and with no tensor between them that would be rounded.
///
/// It reads `x` and `dy` twice, once for the sums and once for `dx`, and writes `dx`; where the channels
/// of a tensor lie apart and each fits in the processor's caches, the second time from there. The
/// gradient of a residual takes one pass more. What is not wanted is not computed, but for the sums if `dx`
/// needs them; the gradient of a parameter that is not wanted is 0. `valid` is as in
/// [`super::moments`]. `x` and the residual may be of another type than `dy`, whose type that of the
/// gradients is.
///
/// # Errors
/// Those of [`super::activation_gradient`]; [`Error::ShapeMismatch`] if `valid` has other
/// dimensions.
///
/// # Example
/// ```
/// use ndarray::array;
/// use wgpu_batchnorm::{Layout, Options, State, Wanted, cpu};
///
/// let layout = Layout::ChannelsFirst;
/// let x = array![[1.0], [3.0]];
/// let statistics = cpu::statistics(&x, layout)?;
/// let affine = cpu::Affine::new(&State::new(1), &Options::default());
/// let dy = array![[1.0], [2.0]];
/// let wanted = Wanted::default();
/// let (_, parameters) =
///     cpu::backward(&x, &dy, layout, &statistics, &affine, None, None, &wanted)?;
/// assert_eq!(parameters.beta, array![3.0]);
/// # Ok::<(), wgpu_batchnorm::Error>(())
/// ```
#[expect(
    clippy::too_many_arguments,
    reason = "each is a term of the formula, or says how to read one"
)]
pub fn backward<X, T, SX, SY, DX, DY>(
    x: &ArrayBase<SX, DX>,
    dy: &ArrayBase<SY, DY>,
    layout: Layout,
    statistics: &Statistics,
    affine: &Affine,
    residual: Option<&ArrayD<X>>,
    valid: Option<&ArrayD<bool>>,
    wanted: &Wanted,
) -> Result<(InputGradients<T>, ParameterGradients), Error>
where
    X: Element,
    T: Element,
    SX: Data<Elem = X>,
    SY: Data<Elem = T>,
    DX: Dimension,
    DY: Dimension,
{
    let inputs = Inputs::new(x, dy, layout, statistics, affine, residual)?;
    let x = &inputs.x;
    let valid = Valid::new(valid, &x.shape)?;

    let walk = &x.walk(&valid);
    let operands = inputs.operands();
    let added = inputs.residual.is_some();
    let mut parameters = ParameterGradients::zeros(x.shape.channels());
    let mut found = InputGradients {
        dx: None,
        residual: None,
    };
    if wanted.x {
        // Group by group of channels, so that dx finds in the caches what the sums have read.
        let groups = walk.groups();
        let sums: Vec<OnceLock<_>> = groups.iter().map(|_| OnceLock::new()).collect();
        let needed = wanted.gamma || wanted.beta || statistics.depend_on_batch();
        let table = |group: usize| {
            let channels = || groups[group].clone();
            let sums = sums[group].get_or_init(|| match needed {
                true => parameter_gradients(walk, channels(), operands, statistics, affine, added),
                false => ParameterGradients::zeros(channels().len()),
            });
            table(channels(), statistics, affine, sums)
        };
        let dx = input_gradients(walk, operands, statistics, affine, added, &groups, &table);
        found.dx = Some(x.like(dx)?);
        // The groups follow one another.
        let sums: Vec<_> = sums.into_iter().filter_map(OnceLock::into_inner).collect();
        let joined = |vector: fn(&ParameterGradients) -> &Array1<f64>| {
            sums.iter()
                .flat_map(|sums| vector(sums).iter().copied())
                .collect()
        };
        parameters.gamma = joined(|sums| &sums.gamma);
        parameters.beta = joined(|sums| &sums.beta);
    } else if wanted.gamma || wanted.beta {
        let all = 0..x.shape.channels();
        parameters = parameter_gradients(walk, all, operands, statistics, affine, added);
    }
    if wanted.residual && added {
        let g = activation_gradients(walk, operands, statistics, affine, added);
        found.residual = Some(x.like(g)?);
    }
    if !wanted.gamma {
        parameters.gamma.fill(0.0);
    }
    if !wanted.beta {
        parameters.beta.fill(0.0);
    }
    Ok((found, parameters))
}
