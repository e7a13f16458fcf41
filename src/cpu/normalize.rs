//! Normalize, scale, shift, add a residual, activate. Twin: `shaders/normalize.wgsl`.

use ndarray::{Array1, ArrayBase, ArrayD, Data, Dimension};

use super::{Element, Run, Statistics, Values, change_runs};
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

    /// Fails unless there is one value per channel, and every number is in its range.
    pub(super) fn check(&self, channels: usize) -> Result<(), Error> {
        check_length("gamma", self.gamma.len(), channels)?;
        check_length("beta", self.beta.len(), channels)?;
        crate::options::not_negative("eps", self.eps)?;
        self.activation.validate()
    }

    /// What makes `γ·x̂ + β` of a value of a channel.
    pub(super) fn channel(
        &self,
        statistics: &Statistics,
        channel: usize,
    ) -> impl Fn(f64) -> f64 + use<> {
        let x_hat = statistics.x_hat(channel, self.eps);
        let (gamma, beta) = (self.gamma[channel], self.beta[channel]);
        move |x| x_hat(x) * gamma + beta
    }
}

/// What is added before the activation.
pub(super) struct Residual<'a, T: Element>(Option<Values<'a, T>>);

impl<'a, T: Element> Residual<'a, T> {
    /// Fails unless the residual has the dimensions of `shape`. No residual: 0 everywhere.
    pub(super) fn new(residual: Option<&'a ArrayD<T>>, shape: &Shape) -> Result<Self, Error> {
        let Some(residual) = residual else {
            return Ok(Self(None));
        };
        let residual = Values::new(residual, shape.layout())?;
        check_like("residual", &residual.shape, shape)?;
        Ok(Self(Some(residual)))
    }

    /// The value at a flat index.
    pub(super) fn at(&self, index: usize) -> f64 {
        match &self.0 {
            Some(residual) => residual.values[index].to_f64(),
            None => 0.0,
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
    let residual = Residual::new(residual, &x.shape)?;

    x.changed(|run| normalize_run(run, statistics, affine, &residual))
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
    let checked = Residual::new(residual, &shape)?;
    match x.as_slice_mut() {
        Some(values) => change_runs(values, shape.view(), |run| {
            normalize_run(run, statistics, affine, &checked);
        }),
        None => *x = normalize(&*x, layout, statistics, affine, residual)?,
    }
    Ok(())
}

fn normalize_run<T: Element>(
    run: Run<&mut [T]>,
    statistics: &Statistics,
    affine: &Affine,
    residual: &Residual<'_, T>,
) {
    let z = affine.channel(statistics, run.channel);
    for (index, value) in run.values.iter_mut().enumerate() {
        let z = z(value.to_f64()) + residual.at(run.start + index);
        *value = T::from_f64(affine.activation.apply(z));
    }
}
