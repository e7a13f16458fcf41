//! The numerical contract: errors against f64 that do not grow with the offset of the data.
//!
//! With γ = 1, β = 0 and x ~ N(offset, 1), for every offset from 0 to 1e7:
//! `|y − y64| ≤ 1e-6·max(1, |y64|)`; the variance within 1e-6 of its value; dx and dγ within 1e-5 of
//! their largest magnitude.

use libtest_mimic::Trial;
use wgpu_batchnorm::{
    BatchNorm, Gpu, Layout, Options, RunningVariance, Shape, Tensor, Tuning, cpu,
};

use crate::common::{Adapter, Outcome, ensure_close, largest, normal};

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    let shapes: [(&[usize], Layout); 5] = [
        (&[8, 4, 32, 32], Layout::ChannelsFirst),
        (&[8, 4, 31, 31], Layout::ChannelsFirst),
        (&[8, 32, 32, 4], Layout::ChannelsLast),
        (&[8, 31, 31, 3], Layout::ChannelsLast),
        (&[1, 1, 200_001], Layout::ChannelsFirst),
    ];
    [("gpu", Tuning::gpu()), ("cpu", Tuning::cpu())]
        .into_iter()
        .map(|(name, tuning)| {
            adapter.trial(
                format!("accuracy at every offset, {name} tuning"),
                move |gpu| {
                    for (dims, layout) in shapes {
                        for offset in [0.0, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7] {
                            contract(gpu, dims, layout, offset, &tuning).map_err(|error| {
                                format!("{layout:?} {dims:?}, {offset:e}: {error}")
                            })?;
                        }
                    }
                    Ok(())
                },
            )
        })
        .collect()
}

fn contract(gpu: &Gpu, dims: &[usize], layout: Layout, offset: f64, tuning: &Tuning) -> Outcome {
    let channels = Shape::new(dims, layout)?.channels();
    let x = normal(dims, offset, 1.0, 5);
    let dy = normal(dims, 0.0, 1.0, 6);

    // With momentum 1 the running statistics are the batch's.
    let options = Options::default()
        .momentum(1.0)
        .running_variance(RunningVariance::Population)
        .tuning(tuning.clone());
    let mut layer = BatchNorm::new(gpu, channels, options)?;
    let y = layer.forward(&Tensor::from_array(gpu, &x, layout)?)?;
    let dx = layer.backward(&Tensor::from_array(gpu, &dy, layout)?)?;
    let state = layer.state_blocking()?;
    let gradients = layer.gradients_blocking()?;

    let (x, dy) = (x.mapv(f64::from), dy.mapv(f64::from));
    let (ones, zeros) = (state.gamma.mapv(f64::from), state.beta.mapv(f64::from));
    let batch = cpu::statistics(&x, layout)?;
    let y64 = cpu::normalize(&x, layout, &batch, 1e-5, &ones, &zeros)?;
    let gradients64 = cpu::gradients(&x, &dy, layout, &batch, 1e-5)?;
    let dx64 = cpu::input_gradient(&x, &dy, layout, &batch, 1e-5, &ones, &gradients64)?;

    let y_allowed = |_, y64: f64| 1e-6 * y64.abs().max(1.0);
    ensure_close("y", &y.to_array_blocking()?, &y64, y_allowed)?;
    let var_allowed = |_, var: f64| 1e-6 * var;
    ensure_close("var", &state.running_var, &batch.var, var_allowed)?;
    let dx_allowed = 1e-5 * largest(&dx64);
    ensure_close("dx", &dx.to_array_blocking()?, &dx64, |_, _| dx_allowed)?;
    let dgamma_allowed = 1e-5 * largest(&gradients64.gamma);
    let dgamma = &gradients.gamma;
    ensure_close("dgamma", dgamma, &gradients64.gamma, |_, _| dgamma_allowed)
}
