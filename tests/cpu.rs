//! The CPU path against numbers from outside: PyTorch, and finite differences. No GPU needed.

mod common;

use common::{Onnx, Outcome, PyTorch, ensure_close, largest, normal, normal_vector};
use ndarray::{Array1, ArrayD, array};
use wgpu_batchnorm::cpu::{self, Statistics};
use wgpu_batchnorm::{Error, Gradients, Layout, Mode, Options, RunningVariance, State};

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
        let (gamma, beta) = (vector(&case.gamma), vector(&case.beta));
        let options = Options::default().eps(case.eps).momentum(case.momentum);

        let batch = cpu::statistics(&x, layout)?;
        let y = cpu::normalize(&x, layout, &batch, case.eps, &gamma, &beta)?;
        let scale = |values: &[f64]| largest(values).max(1.0);
        ensure_close_f64(&case.name, &y, &case.y, scale(&case.y))?;

        let gradients = cpu::gradients(&x, &dy, layout, &batch, case.eps)?;
        let (dgamma, dbeta) = (gradients.gamma.clone(), gradients.beta.clone());
        ensure_close_f64("dgamma", &dgamma.into_dyn(), &case.dgamma, 100.0)?;
        ensure_close_f64("dbeta", &dbeta.into_dyn(), &case.dbeta, 100.0)?;
        let dx = cpu::input_gradient(&x, &dy, layout, &batch, case.eps, &gamma, &gradients)?;
        ensure_close_f64("dx", &dx, &case.dx, case.dx_scale(&batch.var).max(1.0))?;

        let mut mean = vector(&case.running_mean);
        let mut var = vector(&case.running_var);
        let count = x.len() / gamma.len();
        cpu::update_running(&mut mean, &mut var, &batch, count, &options)?;
        let (mean_after, var_after) = (&case.running_mean_after, &case.running_var_after);
        ensure_close_f64("mean", &mean.clone().into_dyn(), mean_after, 1000.0)?;
        ensure_close_f64("var", &var.clone().into_dyn(), var_after, 1000.0)?;

        let running = Statistics { mean, var };
        let y_eval = cpu::normalize(&x, layout, &running, case.eps, &gamma, &beta)?;
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

/// The gradients are those of L = Σ w·y, by central differences in f64.
#[test]
fn gradients_agree_with_finite_differences() -> Outcome {
    let cases: [(&[usize], Layout); 5] = [
        (&[4, 3], Layout::ChannelsFirst),
        (&[2, 2, 3], Layout::ChannelsFirst),
        (&[2, 3, 2, 2], Layout::ChannelsFirst),
        (&[2, 2, 2, 3], Layout::ChannelsLast),
        (&[1, 2, 1, 2, 2], Layout::ChannelsLast),
    ];
    let eps = 1e-3;
    for (dims, layout) in cases {
        let channels = wgpu_batchnorm::Shape::new(dims, layout)?.channels();
        let x = normal(dims, 0.5, 2.0, 1).mapv(f64::from);
        let w = normal(dims, 0.3, 1.0, 2).mapv(f64::from);
        let gamma = normal_vector(channels, 1.0, 0.5, 3).mapv(f64::from);
        let beta = normal_vector(channels, 0.0, 1.0, 4).mapv(f64::from);
        let loss = |x: &ArrayD<f64>, gamma: &Array1<f64>, beta: &Array1<f64>| {
            let batch = cpu::statistics(x, layout)?;
            let y = cpu::normalize(x, layout, &batch, eps, gamma, beta)?;
            Ok::<f64, Error>((&y * &w).sum())
        };
        let batch = cpu::statistics(&x, layout)?;
        let found = cpu::gradients(&x, &w, layout, &batch, eps)?;
        let dx = cpu::input_gradient(&x, &w, layout, &batch, eps, &gamma, &found)?;

        let h = 1e-5;
        let close = |found: f64, up: f64, down: f64| -> Outcome {
            let slope = (up - down) / (2.0 * h);
            ensure!((found - slope).abs() < 1e-7, "{dims:?}: {found} {slope}");
            Ok(())
        };
        for index in 0..x.len() {
            let moved = |step: f64| {
                let mut x = x.clone();
                if let Some(value) = x.iter_mut().nth(index) {
                    *value += step;
                }
                loss(&x, &gamma, &beta)
            };
            let found = dx.iter().nth(index).copied().unwrap_or(f64::NAN);
            close(found, moved(h)?, moved(-h)?)?;
        }
        for channel in 0..channels {
            let step = Array1::from_shape_fn(channels, |c| if c == channel { h } else { 0.0 });
            let up = loss(&x, &(&gamma + &step), &beta)?;
            let down = loss(&x, &(&gamma - &step), &beta)?;
            close(found.gamma[channel], up, down)?;
            let up = loss(&x, &gamma, &(&beta + &step))?;
            let down = loss(&x, &gamma, &(&beta - &step))?;
            close(found.beta[channel], up, down)?;
        }
    }
    Ok(())
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

    // The functions refuse what the layer does.
    let x = zeros(&[4, 2]).mapv(f64::from);
    let batch = cpu::statistics(&x, layout)?;
    let (ones, options) = (Array1::ones(2), Options::default());
    let found = cpu::normalize(&x, layout, &batch, f64::NAN, &ones, &ones).err();
    assert!(matches!(
        found,
        Some(Error::InvalidParameter { name: "eps", .. })
    ));
    for (count, options) in [
        (1, options.clone()),
        (0, options.clone()),
        (4, options.momentum(7.0)),
    ] {
        let (mut mean, mut var) = (ones.clone(), ones.clone());
        let found = cpu::update_running(&mut mean, &mut var, &batch, count, &options);
        assert!(
            matches!(found, Err(Error::InvalidParameter { .. })),
            "{count}: {found:?}"
        );
        assert_eq!((mean, var), (ones.clone(), ones.clone()));
    }

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
