//! Normalize, scale, shift, add a residual, activate. Twin: `shaders/normalize.wgsl`.

use std::ops::Range;

use ndarray::{Array1, ArrayBase, ArrayD, Data, Dimension};

use super::cut::{Bend, choose};
use super::walk::{Formula, Operands, PerChannel, Table, Walk, part};
use super::{Element, Statistics, Valid, Values};
use crate::layer::{check_length, check_like};
use crate::{Activation, Error, Layout, Options, Parameter, Shape, State};

/// What a value goes through once the mean is taken off it.
#[derive(Clone, Debug, PartialEq)]
pub struct Affine {
    /// γ, the scale of each channel.
    pub gamma: Array1<f64>,
    /// β, the shift of each channel.
    pub beta: Array1<f64>,
    /// What is added to a variance before its square root is taken.
    pub eps: f64,
    /// What comes last.
    pub activation: Activation,
}

impl Affine {
    /// That of a layer. Where γ or β is absent, it is 1 or 0 whatever the state says.
    pub fn new(state: &State, options: &Options) -> Self {
        let or = |parameter, values: &Array1<f32>, absent: f64| match parameter {
            Parameter::Absent => Array1::from_elem(values.len(), absent),
            Parameter::Learned | Parameter::Frozen => values.mapv(f64::from),
        };
        Self {
            gamma: or(options.gamma, &state.gamma, 1.0),
            beta: or(options.beta, &state.beta, 0.0),
            eps: options.eps,
            activation: options.activation,
        }
    }

    /// `x̂` itself.
    pub(super) fn none(channels: usize) -> Self {
        Self {
            gamma: Array1::ones(channels),
            beta: Array1::zeros(channels),
            eps: 0.0,
            activation: Activation::Identity,
        }
    }

    /// Fails unless there is one value per channel, and every number is in its range.
    pub(super) fn check(&self, channels: usize) -> Result<(), Error> {
        check_length("gamma", self.gamma.len(), channels)?;
        check_length("beta", self.beta.len(), channels)?;
        crate::options::not_negative("eps", self.eps)?;
        self.activation.validate()
    }

    /// Mean, scale and shift of a channel.
    pub(super) fn numbers(&self, statistics: &Statistics, channel: usize) -> [f64; 3] {
        let scale = self.gamma[channel] / statistics.deviation(channel, self.eps);
        [statistics.mean[channel], scale, self.beta[channel]]
    }

    /// Those of each channel.
    pub(super) fn table(&self, statistics: &Statistics) -> Table<3> {
        self.table_of(0..self.gamma.len(), statistics)
    }

    /// Those of some channels.
    pub(super) fn table_of(&self, channels: Range<usize>, statistics: &Statistics) -> Table<3> {
        Table::new(channels, |channel| self.numbers(statistics, channel))
    }
}

/// The residual's values, if there is one.
///
/// # Errors
/// [`Error::ShapeMismatch`] unless it has the dimensions of `shape`.
pub(super) fn residual_values<'a, T: Element>(
    residual: Option<&'a ArrayD<T>>,
    shape: &Shape,
) -> Result<Option<Values<'a, T>>, Error> {
    let Some(residual) = residual else {
        return Ok(None);
    };
    let residual = Values::new(residual, shape.layout())?;
    check_like("residual", &residual.shape, shape)?;
    Ok(Some(residual))
}

/// `γ·x̂ + β [+ residual]` of a value.
#[inline(always)]
pub(super) fn linear<const ADD: bool>(x: f64, residual: f64, [mean, scale, beta]: [f64; 3]) -> f64 {
    let z = (x - mean) * scale + beta;
    if ADD { z + residual } else { z }
}

/// `y`, with a residual or without.
#[derive(Clone, Copy)]
struct Normalized<const ADD: bool, B>(B);

impl<const ADD: bool, B: Bend, T: Element> Formula<T, T, 3> for Normalized<ADD, B> {
    #[inline(always)]
    fn values<P: PerChannel, const L: usize>(
        self,
        operands: Operands<'_, T, T>,
        _: bool,
        [mean, scale, beta]: [P; 3],
        out: &mut [T; L],
    ) {
        let Operands { x, residual, .. } = operands.at(0..L);
        let [mean, scale, beta] = part([mean, scale, beta], 0..L);
        for (index, y) in out.iter_mut().enumerate() {
            let numbers = [mean.at(index), scale.at(index), beta.at(index)];
            let residual = if ADD { residual[index].to_f64() } else { 0.0 };
            let z = linear::<ADD>(x[index].to_f64(), residual, numbers);
            *y = T::from_f64(self.0.apply(z));
        }
    }
}

/// `y = act((x − mean)·γ/√(var + eps) + β [+ residual])`, with the statistics of the batch or
/// constant ones.
///
/// # Errors
/// Those of [`crate::Shape::new`]; [`Error::ShapeMismatch`] if the residual is not like `x` or a
/// vector does not have one value per channel, [`Error::InvalidParameter`] for an `eps` that is not
/// finite or negative, a negative count or an activation out of range.
pub fn normalize<T: Element, S: Data<Elem = T>, D: Dimension>(
    x: &ArrayBase<S, D>,
    layout: Layout,
    statistics: &Statistics,
    affine: &Affine,
    residual: Option<&ArrayD<T>>,
) -> Result<ArrayD<T>, Error> {
    let x = Values::new(x, layout)?;
    statistics.check(x.shape.channels())?;
    affine.check(x.shape.channels())?;
    let residual = residual_values(residual, &x.shape)?;

    let operands = Operands {
        x: &x.values,
        dy: &x.values,
        residual: residual.as_ref().map_or(&x.values, |found| &found.values),
    };
    let (walk, table) = (x.walk(&Valid::ALL), affine.table(statistics));
    let y = choose!(affine.activation, residual.is_some(), |ADD, bend| {
        walk.map(Normalized::<ADD, _>(bend), operands, table)
    });
    x.like(y)
}

/// [`normalize`], with `y` written over `x`, which takes no second tensor if its memory has the order
/// of its dimensions.
///
/// # Errors
/// As [`normalize`]; `x` is then as it was.
pub fn normalize_in_place<T: Element>(
    x: &mut ArrayD<T>,
    layout: Layout,
    statistics: &Statistics,
    affine: &Affine,
    residual: Option<&ArrayD<T>>,
) -> Result<(), Error> {
    let shape = Shape::new(x.shape(), layout)?;
    statistics.check(shape.channels())?;
    affine.check(shape.channels())?;
    let checked = residual_values(residual, &shape)?;
    let Some(values) = x.as_slice_mut() else {
        *x = normalize(&*x, layout, statistics, affine, residual)?;
        return Ok(());
    };
    let (walk, table) = (Walk::new(shape.view(), None), affine.table(statistics));
    let residual = checked.as_ref().map(|found| &*found.values);
    choose!(affine.activation, residual.is_some(), |ADD, bend| {
        walk.map_in_place(Normalized::<ADD, _>(bend), values, None, residual, table)
    });
    Ok(())
}
