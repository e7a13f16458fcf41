//! The GPU against PyTorch and ONNX, whose results lie in `tests/data`.

use libtest_mimic::Trial;
use ndarray::Array1;
use wgpu_batchnorm::{BatchNorm, Gpu, Layout, Mode, Optimizer, Options, State, Tensor};

use crate::common::{Adapter, LayerCase, Onnx, OnnxCase, Outcome, PyTorch, ensure_close, largest};

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    vec![
        adapter.trial("layers agree with PyTorch", |gpu| {
            for case in PyTorch::load().layers {
                layer(gpu, &case).map_err(|error| format!("{}: {error}", case.name))?;
            }
            Ok(())
        }),
        adapter.trial("layers agree with ONNX's node tests", |gpu| {
            for case in Onnx::load().cases {
                onnx(gpu, &case).map_err(|error| format!("{}: {error}", case.name))?;
            }
            Ok(())
        }),
        adapter.trial("optimizers agree with PyTorch", optimizers),
    ]
}

fn layer(gpu: &Gpu, case: &LayerCase) -> Outcome {
    let vector = |values: &[f64]| values.iter().map(|&value| value as f32).collect();
    let options = Options::default().eps(case.eps).momentum(case.momentum);
    let mut layer = BatchNorm::new(gpu, case.gamma.len(), options)?;
    layer.set_state(&State {
        gamma: vector(&case.gamma),
        beta: vector(&case.beta),
        running_mean: vector(&case.running_mean),
        running_var: vector(&case.running_var),
        num_batches_tracked: 0,
    })?;
    let upload = |values: &[f64]| Tensor::from_array(gpu, &case.array_f32(values), case.layout());
    let x = upload(&case.x)?;

    let y = layer.forward(&x)?.to_array_blocking()?;
    let (y_largest, gamma_largest) = (largest(&case.y), largest(&case.gamma));
    let allowed = 1e-6 * y_largest.max(gamma_largest);
    ensure_close("y", &y, &case.y, |_, _| allowed)?;

    let dx = layer.backward(&upload(&case.dy)?)?.to_array_blocking()?;
    let gradients = layer.gradients_blocking()?;
    let batch = wgpu_batchnorm::cpu::statistics(&case.array(&case.x), case.layout())?;
    // Where dx all but cancels (two values per channel), what cancels sets the scale.
    let allowed = (1e-5 * largest(&case.dx)).max(1e-6 * case.dx_scale(&batch.var));
    ensure_close("dx", &dx, &case.dx, |_, _| allowed)?;
    let allowed = 1e-5 * largest(&case.dgamma);
    ensure_close("dgamma", &gradients.gamma, &case.dgamma, |_, _| allowed)?;
    let allowed = 1e-5 * largest(&case.dbeta);
    ensure_close("dbeta", &gradients.beta, &case.dbeta, |_, _| allowed)?;

    let state = layer.state_blocking()?;
    let allowed = |expected: &[f64]| 1e-6 * largest(expected);
    let mean = allowed(&case.running_mean_after);
    ensure_close(
        "mean",
        &state.running_mean,
        &case.running_mean_after,
        |_, _| mean,
    )?;
    let var = allowed(&case.running_var_after);
    ensure_close(
        "var",
        &state.running_var,
        &case.running_var_after,
        |_, _| var,
    )?;

    layer.set_mode(Mode::Eval);
    let y = layer.forward(&x)?.to_array_blocking()?;
    // The running mean is rounded to f32, which shows in y where x and the mean are large.
    let steepest = largest(&case.y_eval) / largest(&case.x).max(1.0);
    let allowed = 1e-6 * largest(&case.y_eval) + 1e-7 * steepest.max(1.0) * largest(&case.x);
    ensure_close("y_eval", &y, &case.y_eval, |_, _| allowed)
}

fn onnx(gpu: &Gpu, case: &OnnxCase) -> Outcome {
    let state = case.state();
    let mut layer = BatchNorm::new(gpu, state.gamma.len(), case.options())?;
    layer.set_state(&state)?;
    layer.set_mode(case.mode());
    let x = Tensor::from_array(gpu, &case.x(), Layout::ChannelsFirst)?;
    let y = layer.forward(&x)?.to_array_blocking()?;
    case.ensure(&y, &layer.state_blocking()?)
}

/// An optimizer moves a layer's γ by the case's gradients, brought there by a backward pass:
/// with x̂ = ∓1 and eps = 0, dγ = dy₁ − dy₀ and dβ = dy₀ + dy₁.
fn optimizers(gpu: &Gpu) -> Outcome {
    for case in PyTorch::load().optimizers {
        let channels = case.initial.len();
        let mut layer = BatchNorm::new(gpu, channels, Options::default().eps(0.0))?;
        let mut state = State::new(channels);
        state.gamma = Array1::from(case.initial.clone());
        state.beta = -&state.gamma;
        layer.set_state(&state)?;
        let mut optimizer = Optimizer::new(&layer, case.algorithm())?;
        let x = ndarray::Array2::from_shape_fn((2, channels), |(row, _)| 2.0 * row as f32 - 1.0);
        let x = Tensor::from_array(gpu, &x, Layout::ChannelsFirst)?;
        layer.forward(&x)?;
        for (gradient, expected) in case.gradients.iter().zip(&case.parameters) {
            // dγ = g and dβ = −g.
            let dy = ndarray::Array2::from_shape_fn((2, channels), |(row, channel)| {
                if row == 0 { -gradient[channel] } else { 0.0 }
            });
            layer.backward(&Tensor::from_array(gpu, &dy, Layout::ChannelsFirst)?)?;
            optimizer.step(&mut layer)?;
            let state = layer.state_blocking()?;
            let allowed = |_, expected: f64| 2e-6 * (expected.abs() + 0.1);
            ensure_close(&case.name, &state.gamma, expected, allowed)?;
            let mirrored: Vec<f64> = expected.iter().map(|value| -value).collect();
            ensure_close(&case.name, &state.beta, &mirrored, allowed)?;
        }
    }
    Ok(())
}
