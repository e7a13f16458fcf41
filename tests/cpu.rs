//! The CPU path against numbers from outside: PyTorch, and finite differences. No GPU needed.

mod common;

use common::modes::{self, ModeCase};
use common::{Onnx, Outcome, PyTorch, ensure_close, largest, normal, normal_vector};
use std::ops::Range;

use ndarray::{Array1, ArrayD, Axis, Slice, Zip, array};
use wgpu_batchnorm::cpu::{self, Affine, Extra, Moments, ParameterGradients, Statistics};
use wgpu_batchnorm::{
    Activation, Error, Gradients, Layout, Mode, Momentum, OneValue, Options, Parameter,
    RunningVariance, Shape, State, Stored, Wanted, half,
};

/// Roundings of f64 in sums of a few hundred terms, also about a mean of 1000.
const F64: f64 = 1e-11;

fn ensure_close_f64(what: &str, found: &ArrayD<f64>, expected: &[f64], scale: f64) -> Outcome {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        ensure!(
            (found - expected).abs() <= F64 * scale,
            "{what}[{index}] is {found:e}, expected {expected:e}"
        );
    }
    Ok(())
}

#[test]
fn functions_agree_with_pytorch_in_f64() -> Outcome {
    for case in PyTorch::load().layers {
        let layout = case.layout();
        let vector = |values: &[f64]| Array1::from(values.to_vec());
        let x = case.array(&case.x);
        let dy = case.array(&case.dy);
        let affine = Affine {
            gamma: vector(&case.gamma),
            beta: vector(&case.beta),
            eps: case.eps,
            activation: Activation::Identity,
        };
        let gamma = &affine.gamma;
        let options = Options::default().eps(case.eps).momentum(case.momentum);

        let batch = cpu::statistics(&x, layout)?;
        let y = cpu::normalize(&x, layout, &batch, &affine, None)?;
        let scale = |values: &[f64]| largest(values).max(1.0);
        ensure_close_f64(&case.name, &y, &case.y, scale(&case.y))?;

        let gradients = cpu::gradients(&x, &dy, layout, &batch, case.eps, None)?;
        let (dgamma, dbeta) = (gradients.gamma.clone(), gradients.beta.clone());
        ensure_close_f64("dgamma", &dgamma.into_dyn(), &case.dgamma, 100.0)?;
        ensure_close_f64("dbeta", &dbeta.into_dyn(), &case.dbeta, 100.0)?;
        let eps = case.eps;
        let dx = cpu::input_gradient(&x, &dy, layout, &batch, eps, gamma, &gradients, None)?;
        ensure_close_f64("dx", &dx, &case.dx, case.dx_scale(&batch.var).max(1.0))?;

        let mut mean = vector(&case.running_mean);
        let mut var = vector(&case.running_var);
        cpu::update_running(&mut mean, &mut var, &batch, &options, 0)?;
        let (mean_after, var_after) = (&case.running_mean_after, &case.running_var_after);
        ensure_close_f64("mean", &mean.clone().into_dyn(), mean_after, 1000.0)?;
        ensure_close_f64("var", &var.clone().into_dyn(), var_after, 1000.0)?;

        let running = Statistics::constant(mean, var);
        let y_eval = cpu::normalize(&x, layout, &running, &affine, None)?;
        ensure_close_f64("y_eval", &y_eval, &case.y_eval, scale(&case.y_eval) * 10.0)?;
    }
    Ok(())
}

#[test]
fn layer_agrees_with_pytorch() -> Outcome {
    /// Half a unit in the last place of f32, and a little for the sums that were rounded before.
    fn rounding(_: usize, expected: f64) -> f64 {
        1.2e-7 * expected.abs() + 1e-9
    }
    for case in PyTorch::load().layers {
        let vector = |values: &[f64]| values.iter().map(|&value| value as f32).collect();
        let x = case.array_f32(&case.x);
        let options = Options::default().eps(case.eps).momentum(case.momentum);
        let mut layer = cpu::BatchNorm::new(case.gamma.len(), options)?;
        layer.set_state(&State {
            gamma: vector(&case.gamma),
            beta: vector(&case.beta),
            running_mean: vector(&case.running_mean),
            running_var: vector(&case.running_var),
            num_batches_tracked: 0,
        })?;
        let y = layer.forward(&x, case.layout())?;
        ensure_close(&case.name, &y, &case.y, rounding)?;
        let dx = layer.backward(&case.array_f32(&case.dy))?;
        ensure_close(&case.name, &dx, &case.dx, rounding)?;
        let gradients = layer.gradients();
        ensure_close(&case.name, &gradients.gamma, &case.dgamma, rounding)?;
        ensure_close(&case.name, &gradients.beta, &case.dbeta, rounding)?;
        let state = layer.state();
        assert_eq!(state.num_batches_tracked, 1);
        ensure_close(
            "mean",
            &state.running_mean,
            &case.running_mean_after,
            rounding,
        )?;
        ensure_close("var", &state.running_var, &case.running_var_after, rounding)?;
        layer.set_mode(Mode::Eval);
        let y_eval = layer.forward(&x, case.layout())?;
        // The running statistics were rounded to f32; with a mean of 1000 that shows.
        let allowed = 1e-6 * largest(&case.y_eval).max(largest(&case.x));
        ensure_close(&case.name, &y_eval, &case.y_eval, |_, _| allowed)?;
    }
    Ok(())
}

/// The functions in f64, and the layer in f32, of the same case.
#[test]
fn modes_agree_with_pytorch_and_flax() -> Outcome {
    let cases = modes::load();
    assert!(!cases.is_empty());
    for case in &cases {
        mode_of_functions(case).map_err(|error| format!("{}: {error}", case.name))?;
        mode_of_layer(case).map_err(|error| format!("{}: {error}", case.name))?;
    }
    Ok(())
}

fn mode_of_functions(case: &ModeCase) -> Outcome {
    let layout = case.layout();
    let options = case.options();
    let vector = |values: &Option<Vec<f64>>, absent: f64| match values {
        Some(values) => Array1::from(values.clone()),
        None => Array1::from_elem(case.channels(), absent),
    };
    let affine = Affine::new(&case.state(), &options);
    let (x, dy) = (case.array(&case.x), case.array(&case.dy));
    let residual = case.residual.as_ref().map(|values| case.array(values));
    let (residual, valid) = (residual.as_ref(), case.valid());
    let (mut mean, mut var) = (
        vector(&case.running_mean, 0.0),
        vector(&case.running_var, 1.0),
    );
    let batch = match case.frozen {
        true => Statistics::constant(mean.clone(), var.clone()),
        false => cpu::moments(&x, layout, valid.as_ref())?.statistics(),
    };

    // In units of the largest value, or of what cancels in it.
    let close = |what: &str, found: &ArrayD<f64>, expected: &[f64], terms: f64| {
        ensure_close_f64(what, found, expected, largest(expected).max(terms))
    };
    let y = cpu::normalize(&x, layout, &batch, &affine, residual)?;
    close("y", &y, &case.y, 1.0)?;
    let g = cpu::activation_gradient(&x, &dy, layout, &batch, &affine, residual)?;
    if let Some(expected) = &case.d_residual {
        close("d_residual", &g, expected, 0.0)?;
    }
    let (eps, gamma) = (case.eps, &affine.gamma);
    let sums = cpu::gradients(&x, &g, layout, &batch, eps, valid.as_ref())?;
    let terms = largest(&sums.gamma).max(10.0);
    for (what, found, expected) in [
        ("dgamma", &sums.gamma, &case.dgamma),
        ("dbeta", &sums.beta, &case.dbeta),
    ] {
        if let Some(expected) = expected {
            close(what, &found.clone().into_dyn(), expected, terms)?;
        }
    }
    let valid = valid.as_ref();
    let dx = cpu::input_gradient(&x, &g, layout, &batch, eps, gamma, &sums, valid)?;
    // In place it is the same, in any order of memory.
    let other_order = |array: &ArrayD<f64>| {
        let mut swapped = array.clone();
        swapped.swap_axes(0, 1);
        let mut array = swapped.as_standard_layout().into_owned();
        array.swap_axes(0, 1);
        array
    };
    for (mut over_x, mut over_g) in [(x.clone(), g.clone()), (other_order(&x), other_order(&g))] {
        cpu::normalize_in_place(&mut over_x, layout, &batch, &affine, residual)?;
        ensure!(over_x == y, "{}: in place", case.name);
        cpu::input_gradient_in_place(&x, &mut over_g, layout, &batch, eps, gamma, &sums, valid)?;
        ensure!(over_g == dx, "{}: in place", case.name);
    }
    close("dx", &dx, &case.dx, terms)?;

    let mut evaluated = batch.clone();
    if let (Some(mean_after), Some(var_after)) = (&case.running_mean_after, &case.running_var_after)
    {
        if !case.frozen {
            let batches = case.num_batches_tracked;
            cpu::update_running(&mut mean, &mut var, &batch, &options, batches)?;
        }
        close("mean", &mean.clone().into_dyn(), mean_after, 1.0)?;
        close("var", &var.clone().into_dyn(), var_after, 1.0)?;
        evaluated = Statistics::constant(mean, var);
    }
    let y_eval = cpu::normalize(&x, layout, &evaluated, &affine, residual)?;
    close("y_eval", &y_eval, &case.y_eval, 1.0)
}

fn mode_of_layer(case: &ModeCase) -> Outcome {
    /// Half a unit in the last place of f32, and a little for the sums that were rounded before.
    fn rounding(_: usize, expected: f64) -> f64 {
        1.2e-7 * expected.abs() + 1e-9
    }
    let layout = case.layout();
    let before = case.state();
    let mut layer = cpu::BatchNorm::new(case.channels(), case.options())?;
    layer.set_state(&before)?;
    let (x, dy) = (case.array_f32(&case.x), case.array_f32(&case.dy));
    let residual = case.residual.as_ref().map(|values| case.array_f32(values));
    let valid = case.valid();
    let extra = Extra {
        residual: residual.as_ref(),
        valid: valid.as_ref(),
    };
    let y = layer.forward_with(&x, layout, extra)?;
    ensure_close("y", &y, &case.y, rounding)?;
    let found = layer.backward_with(&dy, &Wanted::default())?;
    ensure_close("dx", found.dx.iter().flatten(), &case.dx, rounding)?;
    let expected = case.d_residual.iter().flatten();
    ensure_close(
        "d_residual",
        found.residual.iter().flatten(),
        expected,
        rounding,
    )?;
    let zeros = vec![0.0; case.channels()];
    let gradients = layer.gradients();
    let expected = case.dgamma.as_ref().unwrap_or(&zeros);
    ensure_close("dgamma", &gradients.gamma, expected, rounding)?;
    let expected = case.dbeta.as_ref().unwrap_or(&zeros);
    ensure_close("dbeta", &gradients.beta, expected, rounding)?;

    let state = layer.state().clone();
    match (&case.running_mean_after, &case.running_var_after) {
        (Some(mean), Some(var)) => {
            ensure_close("mean", &state.running_mean, mean, rounding)?;
            ensure_close("var", &state.running_var, var, rounding)?;
            let counted = case.num_batches_tracked + u64::from(!case.frozen);
            assert_eq!(state.num_batches_tracked, counted);
        }
        _ => assert_eq!(state.num_batches_tracked, 0),
    }
    layer.set_mode(Mode::Eval);
    let y_eval = layer.forward_with(&x, layout, extra)?;
    assert_eq!(*layer.state(), state);
    // The running statistics were rounded to f32.
    let allowed = 1e-6 * largest(&case.y_eval).max(largest(&case.x));
    ensure_close("y_eval", &y_eval, &case.y_eval, |_, _| allowed)
}

#[test]
fn layer_agrees_with_onnx() -> Outcome {
    for case in Onnx::load().cases {
        let state = case.state();
        let mut layer = cpu::BatchNorm::new(state.gamma.len(), case.options())?;
        layer.set_state(&state)?;
        layer.set_mode(case.mode());
        let y = layer.forward(&case.x(), Layout::ChannelsFirst)?;
        case.ensure(&y, layer.state())
            .map_err(|error| format!("{}: {error}", case.name))?;
    }
    Ok(())
}

#[test]
fn optimizers_agree_with_pytorch() -> Outcome {
    for case in PyTorch::load().optimizers {
        let initial = Array1::from(case.initial.clone());
        let mut state = State::new(initial.len());
        let layer = cpu::BatchNorm::new(initial.len(), Options::default())?;
        // The same descent for γ and, mirrored, for β.
        state.beta = -&initial;
        state.gamma = initial;
        let mut optimizer = cpu::Optimizer::new(&layer, case.algorithm())?;
        for (gradient, expected) in case.gradients.iter().zip(&case.parameters) {
            let gradient = Array1::from(gradient.clone());
            let gradients = Gradients {
                beta: -&gradient,
                gamma: gradient,
            };
            optimizer.update(&mut state, &gradients)?;
            let rounding = |_, expected: f64| 1e-6 * (expected.abs() + 0.1);
            ensure_close(&case.name, &state.gamma, expected, rounding)?;
            let mirrored: Vec<f64> = expected.iter().map(|value| -value).collect();
            ensure_close(&case.name, &state.beta, &mirrored, rounding)?;
        }
    }
    Ok(())
}

/// What a finite difference is taken of: L = Σ w·y, with y by the functions in f64.
#[derive(Clone)]
struct Loss {
    layout: Layout,
    w: ArrayD<f64>,
    x: ArrayD<f64>,
    affine: Affine,
    residual: Option<ArrayD<f64>>,
    valid: Option<ArrayD<bool>>,
    /// Constants, where there are any.
    frozen: Option<Statistics>,
}

impl Loss {
    fn new(dims: &[usize], layout: Layout) -> Result<Self, Error> {
        let channels = Shape::new(dims, layout)?.channels();
        Ok(Self {
            layout,
            w: normal(dims, 0.3, 1.0, 2).mapv(f64::from),
            x: normal(dims, 0.5, 2.0, 1).mapv(f64::from),
            affine: Affine {
                gamma: normal_vector(channels, 1.0, 0.5, 3).mapv(f64::from),
                beta: normal_vector(channels, 0.0, 1.0, 4).mapv(f64::from),
                eps: 1e-3,
                activation: Activation::Identity,
            },
            residual: None,
            valid: None,
            frozen: None,
        })
    }

    fn statistics(&self) -> Result<Statistics, Error> {
        match &self.frozen {
            Some(frozen) => Ok(frozen.clone()),
            None => Ok(cpu::moments(&self.x, self.layout, self.valid.as_ref())?.statistics()),
        }
    }

    fn y(&self) -> Result<ArrayD<f64>, Error> {
        let residual = self.residual.as_ref();
        cpu::normalize(
            &self.x,
            self.layout,
            &self.statistics()?,
            &self.affine,
            residual,
        )
    }

    /// `z`, what the activation is applied to.
    fn z(&self) -> Result<ArrayD<f64>, Error> {
        let mut linear = self.clone();
        linear.affine.activation = Activation::Identity;
        linear.y()
    }

    /// The gradients of x, of the residual, of γ and β.
    fn gradients(&self) -> Result<(ArrayD<f64>, ArrayD<f64>, ParameterGradients), Error> {
        let (x, layout, eps) = (&self.x, self.layout, self.affine.eps);
        let statistics = &self.statistics()?;
        let (affine, residual) = (&self.affine, self.residual.as_ref());
        let g = cpu::activation_gradient(x, &self.w, layout, statistics, affine, residual)?;
        let (gamma, valid) = (&affine.gamma, self.valid.as_ref());
        let found = cpu::gradients(x, &g, layout, statistics, eps, valid)?;
        let dx = cpu::input_gradient(x, &g, layout, statistics, eps, gamma, &found, valid)?;
        Ok((dx, g, found))
    }

    /// Fails unless a gradient is that of L by central differences, when `part` is moved.
    fn ensure_slopes<'a>(
        &self,
        what: &str,
        found: impl IntoIterator<Item = &'a f64>,
        part: impl Fn(&mut Self, usize) -> Option<&mut f64>,
    ) -> Outcome {
        let h = 1e-5;
        for (index, found) in found.into_iter().enumerate() {
            let moved = |step: f64| {
                let mut moved = self.clone();
                *part(&mut moved, index).ok_or("there is a value for each gradient")? += step;
                Ok::<_, Box<dyn std::error::Error>>((&moved.y()? * &self.w).sum())
            };
            let slope = (moved(h)? - moved(-h)?) / (2.0 * h);
            ensure!(
                (found - slope).abs() < 1e-7,
                "{what}[{index}] is {found}, by differences {slope}"
            );
        }
        Ok(())
    }

    fn ensure_gradients(&self) -> Outcome {
        let (dx, g, found) = self.gradients()?;
        self.ensure_slopes("dx", &dx, |loss, index| loss.x.iter_mut().nth(index))?;
        self.ensure_slopes("dgamma", &found.gamma, |loss, channel| {
            loss.affine.gamma.get_mut(channel)
        })?;
        self.ensure_slopes("dbeta", &found.beta, |loss, channel| {
            loss.affine.beta.get_mut(channel)
        })?;
        if self.residual.is_some() {
            self.ensure_slopes("d_residual", &g, |loss, index| {
                loss.residual.as_mut()?.iter_mut().nth(index)
            })?;
        }
        Ok(())
    }
}

const SHAPES: [(&[usize], Layout); 5] = [
    (&[4, 3], Layout::ChannelsFirst),
    (&[2, 2, 3], Layout::ChannelsFirst),
    (&[2, 3, 2, 2], Layout::ChannelsFirst),
    (&[2, 2, 2, 3], Layout::ChannelsLast),
    (&[1, 2, 1, 2, 2], Layout::ChannelsLast),
];

/// The dimensions of a mask.
fn without_channels(dims: &[usize], layout: Layout) -> Vec<usize> {
    let mut dims = dims.to_vec();
    dims.remove(match layout {
        Layout::ChannelsFirst => 1,
        Layout::ChannelsLast => dims.len() - 1,
    });
    dims
}

/// A mask that leaves out every third position, beginning with the second.
fn mask(dims: &[usize], layout: Layout) -> ArrayD<bool> {
    let mut positions = 0..;
    ArrayD::from_shape_simple_fn(without_channels(dims, layout), || {
        positions.next().is_some_and(|position| position % 3 != 1)
    })
}

/// In every mode and every combination of modes.
#[test]
fn gradients_agree_with_finite_differences() -> Outcome {
    let clamp = Activation::Clamp {
        min: -0.7,
        max: 1.1,
    };
    for (dims, layout) in SHAPES {
        let plain = Loss::new(dims, layout)?;
        let channels = plain.affine.gamma.len();
        let mean = normal_vector(channels, 0.3, 1.0, 5).mapv(f64::from);
        let var = normal_vector(channels, 0.0, 1.0, 6).mapv(|value| f64::from(value.exp()));
        for (activation, edges, with_residual, masked, frozen) in all_modes(&[
            (Activation::Identity, &[][..]),
            (Activation::Relu, &[0.0]),
            (Activation::LeakyRelu { slope: 0.3 }, &[0.0]),
            (clamp, &[-0.7, 1.1]),
        ]) {
            let mut loss = plain.clone();
            loss.affine.activation = activation;
            if with_residual {
                loss.residual = Some(normal(dims, 0.2, 1.0, 7).mapv(f64::from));
            }
            if masked {
                loss.valid = Some(mask(dims, layout));
            }
            if frozen {
                loss.frozen = Some(Statistics::constant(mean.clone(), var.clone()));
            }
            // No value is moved over an edge.
            for z in loss.z()? {
                let near = edges.iter().any(|edge| (z - edge).abs() < 1e-3);
                assert!(!near, "{z} lies on an edge: take other data");
            }
            loss.ensure_gradients().map_err(|error| {
                format!("{dims:?}, {activation:?}, {with_residual} {masked} {frozen}: {error}")
            })?;
        }
    }
    Ok(())
}

/// Every activation with its edges, with and without a residual, a mask and frozen statistics.
fn all_modes<'a>(
    activations: &'a [(Activation, &'a [f64])],
) -> impl Iterator<Item = (Activation, &'a [f64], bool, bool, bool)> {
    activations.iter().flat_map(|&(activation, edges)| {
        (0..8).map(move |bits| (activation, edges, bits & 1 > 0, bits & 2 > 0, bits & 4 > 0))
    })
}

/// [1, 2, 3, 4] has the variances 5/3 and 5/4.
#[test]
fn running_variance_is_the_chosen_one() -> Outcome {
    let x = array![[1.0_f32], [2.0], [3.0], [4.0]];
    for (kind, expected) in [
        (RunningVariance::Unbiased, 0.9 + 0.1 * 5.0 / 3.0),
        (RunningVariance::Population, 0.9 + 0.1 * 5.0 / 4.0),
    ] {
        let options = Options::default().running_variance(kind);
        let mut layer = cpu::BatchNorm::new(1, options)?;
        layer.forward(&x, Layout::ChannelsFirst)?;
        let found = f64::from(layer.state().running_var[0]);
        assert!((found - expected).abs() < 1e-6, "{kind:?}: {found}");
    }
    Ok(())
}

#[test]
fn memory_order_does_not_matter() -> Outcome {
    let x = normal(&[3, 4, 5], 0.0, 1.0, 9);
    let nlc = x.view().permuted_axes(vec![0, 2, 1]);
    let first = cpu::BatchNorm::new(4, Options::default())?.forward(&x, Layout::ChannelsFirst)?;
    let last = cpu::BatchNorm::new(4, Options::default())?.forward(&nlc, Layout::ChannelsLast)?;
    // The sums run in another order, in f64.
    let difference = (&first - &last.permuted_axes(vec![0, 2, 1])).mapv(f32::abs);
    assert!(difference.iter().all(|&value| value <= 2.4e-7));
    Ok(())
}

#[test]
fn bad_input_is_an_error_and_changes_nothing() -> Outcome {
    let mut layer = cpu::BatchNorm::new(2, Options::default())?;
    let layout = Layout::ChannelsFirst;
    let before = layer.state().clone();
    let zeros = |dims: &[usize]| ArrayD::<f32>::zeros(dims);
    let error = |found: Result<ArrayD<f32>, Error>| found.err();

    assert_eq!(
        error(layer.backward(&zeros(&[2, 2]))),
        Some(Error::NoForward)
    );
    let found = error(layer.forward(&zeros(&[2]), layout));
    assert!(matches!(found, Some(Error::Rank { .. })));
    let found = error(layer.forward(&zeros(&[2, 3]), layout));
    assert!(matches!(found, Some(Error::ShapeMismatch { .. })));
    let found = error(layer.forward(&zeros(&[0, 2]), layout));
    assert!(matches!(found, Some(Error::EmptyBatch { .. })));
    let found = error(layer.forward(&zeros(&[1, 2]), layout));
    assert!(matches!(found, Some(Error::OneValuePerChannel { .. })));
    let short = State::new(1);
    assert!(matches!(
        layer.set_state(&short),
        Err(Error::ShapeMismatch { .. })
    ));
    assert_eq!(*layer.state(), before);

    layer.forward(&zeros(&[4, 2]), layout)?;
    let found = error(layer.backward(&zeros(&[2, 2])));
    assert!(matches!(
        found,
        Some(Error::ShapeMismatch { tensor: "dy", .. })
    ));
    let mut optimizer = cpu::Optimizer::new(&layer, wgpu_batchnorm::Sgd::default())?;
    assert_eq!(optimizer.step(&mut layer), Err(Error::NoBackward));

    layer.set_mode(Mode::Eval);
    layer.forward(&zeros(&[4, 2]), layout)?;
    assert_eq!(
        error(layer.backward(&zeros(&[4, 2]))),
        Some(Error::NoForward)
    );
    assert_eq!(layer.forward(&zeros(&[0, 2]), layout)?.shape(), [0, 2]);
    assert_eq!(layer.forward(&zeros(&[1, 2]), layout)?.shape(), [1, 2]);
    assert!(matches!(
        cpu::BatchNorm::new(0, Options::default()),
        Err(Error::ZeroChannels { .. })
    ));
    Ok(())
}

/// Fails unless an error is that of a shape, and names the tensor.
fn ensure_shape_error<T: std::fmt::Debug>(tensor: &str, found: Result<T, Error>) -> Outcome {
    ensure!(
        matches!(&found, Err(Error::ShapeMismatch { tensor: named, .. }) if *named == tensor),
        "{tensor}: {found:?}"
    );
    Ok(())
}

/// Fails unless an error is that of a number, and names it.
fn ensure_number_error<T: std::fmt::Debug>(name: &str, found: Result<T, Error>) -> Outcome {
    ensure!(
        matches!(&found, Err(Error::InvalidParameter { name: named, .. }) if *named == name),
        "{name}: {found:?}"
    );
    Ok(())
}

#[test]
fn functions_refuse_bad_input() -> Outcome {
    let layout = Layout::ChannelsFirst;
    let x = ArrayD::<f64>::zeros(vec![4, 2, 3]);
    let (wrong_x, wrong) = (ArrayD::zeros(vec![4, 2]), Array1::zeros(3));
    let batch = cpu::statistics(&x, layout)?;
    let affine = Affine::new(&State::new(2), &Options::default());
    let none = ParameterGradients {
        gamma: Array1::zeros(2),
        beta: Array1::zeros(2),
    };
    let normalize = |batch: &Statistics, affine: &Affine, residual| {
        cpu::normalize(&x, layout, batch, affine, residual)
    };
    let input_gradient =
        |batch: &Statistics, gamma: &Array1<f64>, gradients: &_, valid: Option<&_>| {
            cpu::input_gradient(&x, &x, layout, batch, 1e-5, gamma, gradients, valid)
        };
    let gamma = &affine.gamma;

    // Statistics and what goes with them.
    for (what, batch) in [
        (
            "mean",
            Statistics {
                mean: wrong.clone(),
                ..batch.clone()
            },
        ),
        (
            "var",
            Statistics {
                var: wrong.clone(),
                ..batch.clone()
            },
        ),
    ] {
        ensure_shape_error(what, normalize(&batch, &affine, None))?;
        ensure_shape_error(what, cpu::gradients(&x, &x, layout, &batch, 1e-5, None))?;
        ensure_shape_error(what, input_gradient(&batch, gamma, &none, None))?;
        let found = cpu::activation_gradient(&x, &x, layout, &batch, &affine, None);
        ensure_shape_error(what, found)?;
    }
    for count in [-1.0, f64::NAN] {
        let batch = Statistics {
            count,
            ..batch.clone()
        };
        ensure_number_error("count", normalize(&batch, &affine, None))?;
        ensure_number_error("count", cpu::gradients(&x, &x, layout, &batch, 1e-5, None))?;
        ensure_number_error("count", input_gradient(&batch, gamma, &none, None))?;
    }
    for (what, affine) in [
        (
            "gamma",
            Affine {
                gamma: wrong.clone(),
                ..affine.clone()
            },
        ),
        (
            "beta",
            Affine {
                beta: wrong.clone(),
                ..affine.clone()
            },
        ),
    ] {
        ensure_shape_error(what, normalize(&batch, &affine, None))?;
        let found = cpu::activation_gradient(&x, &x, layout, &batch, &affine, None);
        ensure_shape_error(what, found)?;
    }
    let slope = f64::INFINITY;
    let bent = Affine {
        activation: Activation::LeakyRelu { slope },
        ..affine.clone()
    };
    ensure_number_error("activation.slope", normalize(&batch, &bent, None))?;
    for eps in [f64::NAN, -1.0, f64::INFINITY] {
        let affine = Affine {
            eps,
            ..affine.clone()
        };
        ensure_number_error("eps", normalize(&batch, &affine, None))?;
        ensure_number_error("eps", cpu::gradients(&x, &x, layout, &batch, eps, None))?;
        let found = cpu::input_gradient(&x, &x, layout, &batch, eps, gamma, &none, None);
        ensure_number_error("eps", found)?;
        let found = cpu::activation_gradient(&x, &x, layout, &batch, &affine, None);
        ensure_number_error("eps", found)?;
    }

    // Tensors.
    ensure_shape_error("residual", normalize(&batch, &affine, Some(&wrong_x)))?;
    let found = cpu::activation_gradient(&x, &x, layout, &batch, &affine, Some(&wrong_x));
    ensure_shape_error("residual", found)?;
    let found = cpu::activation_gradient(&x, &wrong_x, layout, &batch, &affine, None);
    ensure_shape_error("dy", found)?;
    ensure_shape_error(
        "g",
        cpu::gradients(&x, &wrong_x, layout, &batch, 1e-5, None),
    )?;
    let found = cpu::input_gradient(&x, &wrong_x, layout, &batch, 1e-5, gamma, &none, None);
    ensure_shape_error("g", found)?;
    ensure_shape_error("gamma", input_gradient(&batch, &wrong, &none, None))?;
    let gradients = ParameterGradients {
        gamma: wrong.clone(),
        ..none.clone()
    };
    ensure_shape_error("dgamma", input_gradient(&batch, gamma, &gradients, None))?;
    let gradients = ParameterGradients {
        beta: wrong.clone(),
        ..none.clone()
    };
    ensure_shape_error("dbeta", input_gradient(&batch, gamma, &gradients, None))?;
    for dims in [&[4][..], &[3, 4], &[2, 3], &[4, 2, 3]] {
        let valid = ArrayD::from_elem(dims, true);
        ensure_shape_error("valid", cpu::moments(&x, layout, Some(&valid)))?;
        ensure_shape_error("valid", input_gradient(&batch, gamma, &none, Some(&valid)))?;
    }

    // Running statistics stay as they are.
    let (mut mean, mut var) = (Array1::ones(2), Array1::ones(2));
    let momentum = Options::default().momentum(7.0);
    let found = cpu::update_running(&mut mean, &mut var, &batch, &momentum, 0);
    ensure_number_error("momentum_mean", found)?;
    let options = Options::default();
    let negative = Statistics {
        count: -1.0,
        ..batch.clone()
    };
    let found = cpu::update_running(&mut mean, &mut var, &negative, &options, 0);
    ensure_number_error("count", found)?;
    let found = cpu::update_running(&mut mean, &mut wrong.clone(), &batch, &options, 0);
    ensure_shape_error("running_var", found)?;
    let found = cpu::update_running(&mut wrong.clone(), &mut wrong.clone(), &batch, &options, 0);
    ensure_shape_error("mean", found)?;
    assert_eq!(
        (mean, var),
        (Array1::<f64>::ones(2), Array1::<f64>::ones(2))
    );

    // Moments.
    let part = cpu::moments(&x, layout, None)?;
    ensure_number_error("the number of parts", Moments::merge(&[]))?;
    for count in [-1.0, f64::NAN, f64::INFINITY] {
        let torn = Moments {
            count,
            ..part.clone()
        };
        ensure_number_error("count", Moments::merge(&[part.clone(), torn]))?;
    }
    let short = Moments {
        mean: wrong.clone(),
        ..part.clone()
    };
    ensure_shape_error("mean", Moments::merge(&[part.clone(), short]))?;
    let short = Moments {
        m2: wrong.clone(),
        count: 0.0,
        ..part.clone()
    };
    ensure_shape_error("m2", Moments::merge(&[part, short]))
}

/// Some rows of a tensor: a part of a batch.
fn rows<T: Clone>(array: &ArrayD<T>, rows: Range<usize>) -> ArrayD<T> {
    array.slice_axis(Axis(0), Slice::from(rows)).to_owned()
}

/// Parts of 1, 7 and 32 rows and parts without any, in every order.
#[test]
fn merged_moments_are_those_of_the_whole() -> Outcome {
    let layout = Layout::ChannelsFirst;
    for offset in [0.0, 1.0, 1e7] {
        let x = normal(&[40, 3, 2], 0.0, 1.0, 1).mapv(|value| f64::from(value) + offset);
        let whole = cpu::moments(&x, layout, None)?;
        let mut parts = Vec::new();
        for part in [0..1, 1..1, 1..8, 8..40, 40..40] {
            parts.push(cpu::moments(&rows(&x, part), layout, None)?);
        }
        // Where there are no values, it does not matter what is there.
        parts[1].mean.fill(f64::NAN);
        parts[1].m2.fill(f64::INFINITY);
        for rotated in 0..parts.len() {
            parts.rotate_left(1);
            let merged = Moments::merge(&parts)?;
            assert_eq!((merged.count, whole.count), (80.0, 80.0));
            for channel in 0..3 {
                let (mean, m2) = (whole.mean[channel], whole.m2[channel]);
                let apart = (merged.mean[channel] - mean).abs();
                ensure!(
                    apart <= 1e-12 * mean.abs().max(1.0),
                    "{offset}: mean {apart:e}"
                );
                // A mean is rounded to f64, so a part's distance from the whole is off by as much.
                let rounded = whole.count * f64::EPSILON * offset;
                let apart = (merged.m2[channel] - m2).abs();
                ensure!(
                    apart <= 1e-12 * m2 + rounded,
                    "{offset}, {rotated}: sum of squares {apart:e} of {m2:e}"
                );
            }
        }
        // Merged moments are a part like any other.
        let (head, tail) = parts.split_at(3);
        let halves = [Moments::merge(head)?, Moments::merge(tail)?];
        let merged = Moments::merge(&halves)?.statistics();
        let expected = cpu::statistics(&x, layout)?;
        for (found, expected) in merged.var.iter().zip(&expected.var) {
            ensure!(
                (found - expected).abs() <= 1e-12 + f64::EPSILON * offset,
                "{found}"
            );
        }
        assert_eq!(merged.count, expected.count);
    }
    // A mean near 1e7 that f64 holds: nothing is lost at all.
    let x = array![[1e7], [1e7 + 2.0], [1e7 + 4.0], [1e7 + 6.0]].into_dyn();
    let parts = [0..1, 1..4, 0..0].map(|part| cpu::moments(&rows(&x, part), layout, None));
    let [one, three, none] = parts;
    let merged = Moments::merge(&[one?, three?, none?.clone()])?;
    assert_eq!(merged, cpu::moments(&x, layout, None)?);
    assert_eq!(merged.m2, array![20.0]);

    // Nothing at all is 0.
    let nothing = cpu::moments(&ArrayD::<f64>::zeros(vec![0, 2]), layout, None)?;
    let merged = Moments::merge(&[nothing.clone(), nothing])?;
    assert_eq!(
        (merged.count, &merged.mean, &merged.m2),
        (0.0, &array![0.0, 0.0], &array![0.0, 0.0])
    );
    let Statistics { mean, var, count } = merged.statistics();
    assert_eq!(
        (count, mean, var),
        (0.0, array![0.0, 0.0], array![0.0, 0.0])
    );
    Ok(())
}

/// A batch in three parts gives the y and dx of the whole batch, where sums are merged between
/// forward and backward.
#[test]
fn parts_that_share_their_sums_are_one_batch() -> Outcome {
    let layout = Layout::ChannelsFirst;
    let mut whole = Loss::new(&[12, 3, 2], layout)?;
    whole.affine.activation = Activation::Relu;
    whole.valid = Some(mask(&[12, 3, 2], layout));
    let (dx, _, gradients) = whole.gradients()?;
    let y = whole.y()?;

    let eps = whole.affine.eps;
    let cuts = [0..1, 1..8, 8..12];
    let valid = |part: &Range<usize>| Some(rows(whole.valid.as_ref()?, part.clone()));
    let mut parts = Vec::new();
    for part in &cuts {
        let x = rows(&whole.x, part.clone());
        parts.push(cpu::moments(&x, layout, valid(part).as_ref())?);
    }
    let statistics = Moments::merge(&parts)?.statistics();
    let mut sums = ParameterGradients {
        gamma: Array1::zeros(3),
        beta: Array1::zeros(3),
    };
    let mut gs = Vec::new();
    for part in &cuts {
        let (x, dy) = (rows(&whole.x, part.clone()), rows(&whole.w, part.clone()));
        let found = cpu::normalize(&x, layout, &statistics, &whole.affine, None)?;
        let expected = rows(&y, part.clone()).iter().copied().collect::<Vec<_>>();
        ensure_close_f64("y", &found, &expected, 1.0)?;
        let g = cpu::activation_gradient(&x, &dy, layout, &statistics, &whole.affine, None)?;
        let part = cpu::gradients(&x, &g, layout, &statistics, eps, None)?;
        sums.gamma += &part.gamma;
        sums.beta += &part.beta;
        gs.push(g);
    }
    ensure_close_f64(
        "dgamma",
        &sums.gamma.clone().into_dyn(),
        &gradients.gamma.to_vec(),
        1.0,
    )?;
    ensure_close_f64(
        "dbeta",
        &sums.beta.clone().into_dyn(),
        &gradients.beta.to_vec(),
        1.0,
    )?;
    for (part, g) in cuts.iter().zip(&gs) {
        let (x, gamma, valid) = (
            rows(&whole.x, part.clone()),
            &whole.affine.gamma,
            valid(part),
        );
        let valid = valid.as_ref();
        let found = cpu::input_gradient(&x, g, layout, &statistics, eps, gamma, &sums, valid)?;
        let expected = rows(&dx, part.clone()).iter().copied().collect::<Vec<_>>();
        ensure_close_f64("dx", &found, &expected, 1.0)?;
    }
    Ok(())
}

/// The mask's statistics are those of the values that are left, whatever lies in the padding.
#[test]
fn padding_is_not_read_into_statistics() -> Outcome {
    for (dims, layout) in SHAPES {
        let valid = mask(dims, layout);
        let clean = Loss::new(dims, layout)?;
        let axis = Axis(match layout {
            Layout::ChannelsFirst => 1,
            Layout::ChannelsLast => dims.len() - 1,
        });
        let mut x = clean.x.clone();
        for mut lane in x.axis_iter_mut(axis) {
            Zip::from(&mut lane).and(&valid).for_each(|x, &valid| {
                if !valid {
                    *x = f64::NAN;
                }
            });
        }
        let found = cpu::moments(&x, layout, Some(&valid))?;
        for (channel, lane) in clean.x.axis_iter(axis).enumerate() {
            let left: Vec<f64> = lane
                .iter()
                .zip(&valid)
                .filter(|(_, valid)| **valid)
                .map(|(x, _)| *x)
                .collect();
            let count = left.len() as f64;
            let mean = left.iter().sum::<f64>() / count;
            let m2 = left.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
            ensure!(left.len() < lane.len() && found.count == count, "{count}");
            ensure!((found.mean[channel] - mean).abs() < 1e-12, "{dims:?}: mean");
            ensure!(
                (found.m2[channel] - m2).abs() < 1e-12,
                "{dims:?}: sum of squares"
            );
        }

        // So in the layer; and what is valid is normalized as without the padding's values.
        let channels = found.mean.len();
        let [x, dirty] = [&clean.x, &x].map(|x| x.mapv(|value| value as f32));
        let extra = Extra {
            valid: Some(&valid),
            residual: None,
        };
        let mut layers = [0, 1].map(|_| cpu::BatchNorm::new(channels, Options::default()));
        let [Ok(first), Ok(second)] = &mut layers else {
            return Err("a layer with default options".into());
        };
        let y = first.forward_with(&x, layout, extra)?;
        let y_dirty = second.forward_with(&dirty, layout, extra)?;
        assert_eq!(first.state(), second.state());
        for ((y, dirty), x) in y.iter().zip(&y_dirty).zip(&dirty) {
            ensure!(
                if x.is_nan() {
                    dirty.is_nan()
                } else {
                    y == dirty
                },
                "{y} {dirty}"
            );
        }
        assert!(y.iter().all(|y| y.is_finite()));
    }

    // A mask in another order of memory is the same mask.
    let layout = Layout::ChannelsFirst;
    let x = normal(&[3, 2, 4], 0.0, 1.0, 1);
    let valid = mask(&[3, 2, 4], layout);
    let mut turned = ArrayD::from_elem(vec![4, 3], false);
    turned.assign(&valid.t());
    let turned = turned.reversed_axes();
    assert!(!turned.is_standard_layout());
    let [found, expected] = [&turned, &valid].map(|valid| cpu::moments(&x, layout, Some(valid)));
    assert_eq!(found?, expected?);
    Ok(())
}

/// A mask may leave one value or none, which the running statistics do not follow.
#[test]
fn masks_may_leave_one_value_or_none() -> Outcome {
    let layout = Layout::ChannelsFirst;
    let x = array![[3.0_f32], [f32::NAN], [5.0]].into_dyn();
    let dy = array![[1.0_f32], [1.0], [2.0]].into_dyn();
    for (flags, mean, dx) in [
        // dβ = 3 and 4, of which the only valid position takes all: its x̂ is 0.
        ([true, false, false], 3.0, [1.0 - 4.0, 1.0, 2.0]),
        ([false, false, true], 5.0, [1.0, 1.0, 2.0 - 4.0]),
        ([false; 3], 0.0, [1.0, 1.0, 2.0]),
    ] {
        let options = Options::default().eps(1.0).momentum(Momentum::Cumulative);
        let mut layer = cpu::BatchNorm::new(1, options)?;
        let valid = Array1::from_iter(flags).into_dyn();
        let found = cpu::moments(&x, layout, Some(&valid))?.statistics();
        assert_eq!((found.mean[0], found.var[0]), (mean, 0.0));
        let extra = Extra {
            valid: Some(&valid),
            residual: None,
        };
        let y = layer.forward_with(&x, layout, extra)?;
        for (y, x) in y.iter().zip(&x) {
            ensure!(
                y.is_nan() && x.is_nan() || f64::from(y + mean as f32) == f64::from(*x),
                "{y}"
            );
        }
        assert_eq!(*layer.state(), State::new(1));
        // A NaN in the padding would reach dγ, for it was normalized.
        let finite = x.mapv(|x| if x.is_nan() { mean as f32 } else { x });
        layer.forward_with(&finite, layout, extra)?;
        let found = layer.backward(&dy)?;
        let x_hat = finite.mapv(|x| f64::from(x) - mean);
        let dgamma = (&x_hat * &dy.mapv(f64::from)).sum();
        assert_eq!(f64::from(layer.gradients().gamma[0]), dgamma);
        assert_eq!(layer.gradients().beta[0], 4.0);
        assert_eq!(
            found.iter().map(|&dx| f64::from(dx)).collect::<Vec<_>>(),
            dx,
            "{flags:?}"
        );
    }
    // One value in all, and a mask over it.
    let valid = ArrayD::from_elem(vec![1], true);
    let extra = Extra {
        valid: Some(&valid),
        residual: None,
    };
    let mut layer = cpu::BatchNorm::new(1, Options::default())?;
    assert_eq!(
        layer.forward_with(&array![[7.0_f32]], layout, extra)?,
        array![[0.0]].into_dyn()
    );
    Ok(())
}

#[test]
fn one_value_gives_beta_where_that_is_chosen() -> Outcome {
    let layout = Layout::ChannelsFirst;
    let options = Options::default()
        .one_value(OneValue::GiveBeta)
        .activation(Activation::Relu);
    let mut layer = cpu::BatchNorm::new(3, options.clone())?;
    let mut state = State::new(3);
    state.gamma = array![2.0, 3.0, 4.0];
    state.beta = array![0.5, -0.5, 1.0];
    layer.set_state(&state)?;
    let x = array![[1e6_f32, -3.0, 0.0]].into_dyn();
    assert_eq!(
        layer.forward(&x, layout)?,
        array![[0.5, 0.0, 1.0]].into_dyn()
    );
    let residual = array![[0.25_f32, 1.0, -2.0]].into_dyn();
    let extra = Extra {
        residual: Some(&residual),
        valid: None,
    };
    let y = layer.forward_with(&x, layout, extra)?;
    assert_eq!(y, array![[0.75, 0.5, 0.0]].into_dyn());
    // The running statistics stay, and what did not enter them does not count.
    state.num_batches_tracked = 0;
    assert_eq!(*layer.state(), state);
    // y does not depend on x.
    let found = layer.backward_with(&array![[1.0_f32, 2.0, 3.0]], &Wanted::default())?;
    assert_eq!(found.dx, Some(array![[0.0, 0.0, 0.0]].into_dyn()));
    assert_eq!(found.residual, Some(array![[1.0, 2.0, 0.0]].into_dyn()));
    assert_eq!(layer.gradients().beta, array![1.0, 2.0, 0.0]);
    assert_eq!(layer.gradients().gamma, array![0.0, 0.0, 0.0]);
    // An empty batch has not even one value.
    let found = layer.forward(&ArrayD::<f32>::zeros(vec![0, 3]), layout);
    assert!(matches!(found, Err(Error::EmptyBatch { .. })));

    // In evaluation by the batch's statistics the same is chosen.
    for (one_value, given) in [(OneValue::GiveBeta, true), (OneValue::Refuse, false)] {
        let options = options
            .clone()
            .one_value(one_value)
            .running_statistics(false);
        let mut layer = cpu::BatchNorm::new(3, options)?;
        layer.set_mode(Mode::Eval);
        assert_eq!(layer.forward(&x, layout).is_ok(), given);
    }
    Ok(())
}

#[test]
fn cumulative_momentum_is_the_plain_average() -> Outcome {
    let layout = Layout::ChannelsFirst;
    let mean_momentum = Options::default().momentum_mean(Momentum::Cumulative);
    let mut layer = cpu::BatchNorm::new(2, mean_momentum.momentum_var(Momentum::OfOld(0.75)))?;
    // What was there before the first batch does not count.
    let mut state = State::new(2);
    state.running_mean = array![100.0, 100.0];
    layer.set_state(&state)?;
    let (mut sum, mut var) = (Array1::zeros(2), array![1.0, 1.0]);
    for batch in 1..=5 {
        let x = normal(&[3 + batch, 2], batch as f64, 1.0, batch as u64);
        layer.forward(&x, layout)?;
        let found = cpu::statistics(&x, layout)?;
        sum += &found.mean;
        let expected = &sum / batch as f64;
        let rounding = |_, _| 1e-6;
        ensure_close("mean", &layer.state().running_mean, &expected, rounding)?;
        let unbiased = &found.var * (found.count / (found.count - 1.0));
        var = var * 0.75 + unbiased * 0.25;
        ensure_close("var", &layer.state().running_var, &var, rounding)?;
    }
    assert_eq!(layer.state().num_batches_tracked, 5);

    // The function takes the number of batches before.
    let (mut mean, mut var) = (array![1.0, 2.0], array![3.0, 4.0]);
    let batch = Statistics {
        mean: array![5.0, 6.0],
        var: array![7.0, 8.0],
        count: 4.0,
    };
    let options = Options::default().momentum(Momentum::Cumulative);
    let options = options.running_variance(RunningVariance::Population);
    cpu::update_running(&mut mean, &mut var, &batch, &options, 3)?;
    assert_eq!((mean, var), (array![2.0, 3.0], array![4.0, 5.0]));
    // Fewer than two values say nothing of a variance.
    for count in [0.0, 1.0] {
        let batch = Statistics {
            count,
            ..batch.clone()
        };
        let (mut mean, mut var) = (array![1.0, 2.0], array![3.0, 4.0]);
        cpu::update_running(&mut mean, &mut var, &batch, &options, 3)?;
        assert_eq!((mean, var), (array![1.0, 2.0], array![3.0, 4.0]));
    }
    Ok(())
}

/// The layer's twin in f64 is the functions': all that it returns is theirs, rounded once.
fn layer_rounds_once<T: Stored + PartialEq + std::fmt::Debug>() -> Outcome {
    let stored = |array: &ArrayD<f64>| array.mapv(T::from_f64);
    let activations = [
        (Activation::Identity, &[][..]),
        (Activation::LeakyRelu { slope: 0.3 }, &[]),
        (Activation::RELU6, &[]),
    ];
    for (dims, layout) in SHAPES {
        for (activation, _, with_residual, masked, frozen) in all_modes(&activations) {
            let mut loss = Loss::new(dims, layout)?;
            let options = Options::default()
                .eps(loss.affine.eps)
                .activation(activation)
                .frozen_statistics(frozen);
            let channels = loss.affine.gamma.len();
            let mut state = State::new(channels);
            state.gamma = normal_vector(channels, 1.0, 0.5, 3);
            state.beta = normal_vector(channels, 0.0, 1.0, 4);
            state.running_mean = normal_vector(channels, 0.3, 1.0, 5);
            state.running_var = normal_vector(channels, 1.0, 0.1, 6);
            let mut layer = cpu::BatchNorm::new(channels, options.clone())?;
            layer.set_state(&state)?;

            let [x, dy] = [&loss.x, &loss.w].map(stored);
            loss.x = x.mapv(T::to_f64);
            loss.w = dy.mapv(T::to_f64);
            loss.affine = Affine::new(&state, &options);
            let residual = with_residual
                .then(|| normal(dims, 0.2, 1.0, 7).mapv(|value| T::from_f64(value.into())));
            loss.residual = residual.as_ref().map(|residual| residual.mapv(T::to_f64));
            loss.valid = masked.then(|| mask(dims, layout));
            if frozen {
                let [mean, var] =
                    [&state.running_mean, &state.running_var].map(|v| v.mapv(f64::from));
                loss.frozen = Some(Statistics::constant(mean, var));
            }

            let extra = Extra {
                residual: residual.as_ref(),
                valid: loss.valid.as_ref(),
            };
            let y = layer.forward_with(&x, layout, extra)?;
            assert_eq!(y, stored(&loss.y()?), "{dims:?} {options:?}");
            let found = layer.backward_with(&dy, &Wanted::default())?;
            let (dx, d_residual, gradients) = loss.gradients()?;
            assert_eq!(found.dx, Some(stored(&dx)), "{dims:?} {options:?}");
            assert_eq!(found.residual, with_residual.then(|| stored(&d_residual)));
            assert_eq!(
                layer.gradients().gamma,
                gradients.gamma.mapv(|value| value as f32)
            );
            assert_eq!(
                layer.gradients().beta,
                gradients.beta.mapv(|value| value as f32)
            );
            assert_eq!(layer.backward(&dy)?, stored(&dx));

            // The functions round once, too.
            let statistics = loss.statistics()?;
            let found = cpu::normalize(&x, layout, &statistics, &loss.affine, residual.as_ref())?;
            assert_eq!(found, y);
        }
    }
    Ok(())
}

#[test]
fn layer_rounds_once_to_what_it_stores() -> Outcome {
    layer_rounds_once::<f32>()?;
    layer_rounds_once::<half::f16>()?;
    layer_rounds_once::<half::bf16>()
}

#[test]
fn frozen_statistics_stay() -> Outcome {
    let layout = Layout::ChannelsFirst;
    let options = Options::default().frozen_statistics(true).eps(0.0);
    let mut layer = cpu::BatchNorm::new(2, options)?;
    let mut state = State::new(2);
    state.gamma = array![1.0, 6.0];
    state.running_mean = array![1.0, 2.0];
    state.running_var = array![4.0, 9.0];
    state.num_batches_tracked = 17;
    layer.set_state(&state)?;
    // By constants, one value is as good as many, and a mask has no part.
    let x = array![[5.0_f32, 8.0]];
    let valid = ArrayD::from_elem(vec![1], false);
    let extra = Extra {
        valid: Some(&valid),
        residual: None,
    };
    assert_eq!(
        layer.forward_with(&x, layout, extra)?,
        array![[2.0, 12.0]].into_dyn()
    );
    assert_eq!(
        layer.backward(&array![[2.0_f32, 3.0]])?,
        array![[1.0, 6.0]].into_dyn()
    );
    assert_eq!(layer.gradients().gamma, array![4.0, 6.0]);
    assert_eq!(*layer.state(), state);
    // Nothing flows through constants, also where x is not finite.
    layer.forward(&array![[f32::NAN, f32::INFINITY]], layout)?;
    assert_eq!(
        layer.backward(&array![[2.0_f32, 3.0]])?,
        array![[1.0, 6.0]].into_dyn()
    );
    // Evaluation has no backward pass, here as elsewhere.
    layer.set_mode(Mode::Eval);
    assert_eq!(layer.forward(&x, layout)?, array![[2.0, 12.0]].into_dyn());
    assert_eq!(
        layer.backward(&array![[2.0_f32, 3.0]]),
        Err(Error::NoForward)
    );
    Ok(())
}

#[test]
fn without_running_statistics_evaluation_takes_the_batch() -> Outcome {
    let layout = Layout::ChannelsFirst;
    let mut layer = cpu::BatchNorm::new(2, Options::default().running_statistics(false))?;
    let mut state = State::new(2);
    state.gamma = array![2.0, 3.0];
    layer.set_state(&State {
        running_mean: array![1.0, 2.0],
        running_var: array![4.0, 9.0],
        num_batches_tracked: 17,
        ..state.clone()
    })?;
    assert_eq!(*layer.state(), state);
    let x = normal(&[6, 2], 3.0, 2.0, 1);
    let valid = mask(&[6, 2], layout);
    let extra = Extra {
        valid: Some(&valid),
        residual: None,
    };
    let y = [
        layer.forward(&x, layout)?,
        layer.forward_with(&x, layout, extra)?,
    ];
    assert_ne!(y[0], y[1]);
    assert_eq!(*layer.state(), state);
    layer.set_mode(Mode::Eval);
    let y_eval = [
        layer.forward(&x, layout)?,
        layer.forward_with(&x, layout, extra)?,
    ];
    assert_eq!(y_eval, y);
    assert_eq!(layer.backward(&x), Err(Error::NoForward));
    let one = layer.forward(&array![[1.0_f32, 2.0]], layout);
    assert!(matches!(one, Err(Error::OneValuePerChannel { .. })));

    // With running statistics, evaluation has no use for a mask.
    let mut layer = cpu::BatchNorm::new(2, Options::default())?;
    layer.set_mode(Mode::Eval);
    let y = layer.forward(&x, layout)?;
    assert_eq!(layer.forward_with(&x, layout, extra)?, y);
    Ok(())
}

/// Frozen and absent parameters have no gradient and do not learn, also by momentum or decay.
#[test]
fn only_learned_parameters_learn() -> Outcome {
    use Parameter::{Absent, Frozen, Learned};
    let layout = Layout::ChannelsFirst;
    let x = normal(&[8, 2], 3.0, 2.0, 1);
    let dy = normal(&[8, 2], 0.5, 1.0, 2);
    let sgd = wgpu_batchnorm::Sgd {
        lr: 0.1,
        momentum: 0.9,
        weight_decay: 0.1,
        ..Default::default()
    };
    let all = [Learned, Frozen, Absent];
    for (gamma, beta) in all.iter().flat_map(|&gamma| all.map(|beta| (gamma, beta))) {
        let mut state = State::new(2);
        if gamma != Absent {
            state.gamma = array![2.0, 3.0];
        }
        if beta != Absent {
            state.beta = array![0.5, -0.5];
        }
        let mut full = cpu::BatchNorm::new(2, Options::default())?;
        let mut layer = cpu::BatchNorm::new(2, Options::default().gamma(gamma).beta(beta))?;
        full.set_state(&state)?;
        layer.set_state(&state)?;
        // Forward and backward are as with learned parameters of these values.
        assert_eq!(layer.forward(&x, layout)?, full.forward(&x, layout)?);
        assert_eq!(layer.backward(&dy)?, full.backward(&dy)?);
        let zeros = Array1::<f32>::zeros(2);
        let (found, expected) = (layer.gradients(), full.gradients());
        assert_eq!(
            found.gamma,
            if gamma == Learned {
                expected.gamma
            } else {
                zeros.clone()
            }
        );
        assert_eq!(
            found.beta,
            if beta == Learned {
                expected.beta
            } else {
                zeros
            }
        );

        let mut optimizers = [
            cpu::Optimizer::new(&full, sgd.clone())?,
            cpu::Optimizer::new(&layer, sgd.clone())?,
            cpu::Optimizer::new(&layer, sgd.clone())?,
        ];
        let mut updated = layer.state().clone();
        for _ in 0..2 {
            optimizers[0].step(&mut full)?;
            optimizers[1].step(&mut layer)?;
            // Whatever gradient it is given.
            optimizers[2].update(&mut updated, &full.gradients())?;
        }
        let (found, learned) = (layer.state(), full.state());
        let expected_gamma = if gamma == Learned {
            &learned.gamma
        } else {
            &state.gamma
        };
        let expected_beta = if beta == Learned {
            &learned.beta
        } else {
            &state.beta
        };
        assert_ne!(learned.gamma, state.gamma);
        assert_ne!(learned.beta, state.beta);
        assert_eq!((&found.gamma, &found.beta), (expected_gamma, expected_beta));
        assert_eq!(
            (&updated.gamma, &updated.beta),
            (expected_gamma, expected_beta)
        );
    }

    // What is absent cannot be given.
    let options = Options::default().gamma(Absent).beta(Absent);
    let mut layer = cpu::BatchNorm::new(2, options.clone())?;
    let before = layer.state().clone();
    for (gamma, beta) in [
        (array![1.0, 2.0], array![0.0, 0.0]),
        (array![1.0, 1.0], array![0.0, 0.1]),
    ] {
        let state = State {
            gamma,
            beta,
            ..State::new(2)
        };
        assert!(matches!(
            layer.set_state(&state),
            Err(Error::Conflict { .. })
        ));
        assert_eq!(*layer.state(), before);
        // Nor is it read.
        let affine = Affine::new(&state, &options);
        assert_eq!(
            (affine.gamma, affine.beta),
            (array![1.0, 1.0], array![0.0, 0.0])
        );
    }
    Ok(())
}

#[test]
fn only_wanted_gradients_are_given() -> Outcome {
    let layout = Layout::ChannelsFirst;
    let x = normal(&[8, 2], 3.0, 2.0, 1);
    let dy = normal(&[8, 2], 0.5, 1.0, 2);
    let residual = normal(&[8, 2], 0.5, 1.0, 3);
    let mut layer = cpu::BatchNorm::new(2, Options::default())?;
    let extra = Extra {
        residual: Some(&residual),
        valid: None,
    };
    layer.forward_with(&x, layout, extra)?;
    let all = layer.backward_with(&dy, &Wanted::default())?;
    let expected = layer.gradients();
    assert!(all.dx.is_some() && all.residual.is_some());
    for bits in 0..16 {
        let [x, residual, gamma, beta] = [1, 2, 4, 8].map(|bit| bits & bit > 0);
        let found = layer.backward_with(
            &dy,
            &Wanted {
                x,
                residual,
                gamma,
                beta,
            },
        )?;
        assert_eq!(found.dx, all.dx.clone().filter(|_| x));
        assert_eq!(found.residual, all.residual.clone().filter(|_| residual));
        let zeros = Array1::<f32>::zeros(2);
        let gradients = layer.gradients();
        assert_eq!(
            &gradients.gamma,
            if gamma { &expected.gamma } else { &zeros }
        );
        assert_eq!(&gradients.beta, if beta { &expected.beta } else { &zeros });
    }
    // Where there was no residual, it has no gradient.
    layer.forward(&x, layout)?;
    assert_eq!(layer.backward_with(&dy, &Wanted::default())?.residual, None);
    Ok(())
}

/// What goes in beside x is checked before anything changes, in every mode.
#[test]
fn bad_extras_are_errors_and_change_nothing() -> Outcome {
    let layout = Layout::ChannelsLast;
    let x = normal(&[3, 4, 2], 0.0, 1.0, 1);
    let dy = x.clone();
    for options in [
        Options::default(),
        Options::default().frozen_statistics(true),
        Options::default().running_statistics(false),
    ] {
        for mode in [Mode::Train, Mode::Eval] {
            let mut layer = cpu::BatchNorm::new(2, options.clone())?;
            layer.forward(&x, layout)?;
            let dx = layer.backward(&dy)?;
            let before = layer.state().clone();
            layer.set_mode(mode);
            let residual = ArrayD::zeros(vec![3, 2, 4]);
            let valid = ArrayD::from_elem(vec![4, 3], true);
            let extra = Extra {
                residual: Some(&residual),
                valid: None,
            };
            ensure_shape_error("residual", layer.forward_with(&x, layout, extra))?;
            let extra = Extra {
                residual: None,
                valid: Some(&valid),
            };
            ensure_shape_error("valid", layer.forward_with(&x, layout, extra))?;
            assert_eq!(*layer.state(), before);
            assert_eq!(layer.backward(&dy)?, dx);
        }
    }
    Ok(())
}

/// Nothing flows through statistics that were taken over no values, or over infinitely many.
#[test]
fn constants_pass_on_no_gradient() -> Outcome {
    let layout = Layout::ChannelsFirst;
    let (mean, var) = (array![1.0], array![4.0]);
    let constant = Statistics::constant(mean, var);
    let none = Statistics {
        count: 0.0,
        ..constant.clone()
    };
    let x = array![[f64::NAN], [f64::INFINITY], [3.0]];
    let g = array![[1.0], [2.0], [-3.0]];
    let sums = ParameterGradients {
        gamma: array![f64::INFINITY],
        beta: array![5.0],
    };
    for statistics in [constant, none] {
        let gamma = array![6.0];
        let dx = cpu::input_gradient(&x, &g, layout, &statistics, 0.0, &gamma, &sums, None)?;
        assert_eq!(dx, array![[3.0], [6.0], [-9.0]].into_dyn());
    }
    Ok(())
}

/// A running variance that is infinite gives β.
#[test]
fn an_infinite_running_variance_gives_beta() -> Outcome {
    let running = Statistics::constant(array![1.0], array![f64::INFINITY]);
    let affine = Affine {
        gamma: array![2.0],
        beta: array![3.0],
        eps: 1e-5,
        activation: Activation::Identity,
    };
    let x = array![[5.0], [1e300]];
    let y = cpu::normalize(&x, Layout::ChannelsFirst, &running, &affine, None)?;
    assert_eq!(y, array![[3.0], [3.0]].into_dyn());
    Ok(())
}
