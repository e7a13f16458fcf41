//! Sizes at the edges: many rows and channels, tensors larger than a binding on wgpu's default
//! limits, and, in the long run (`-- --ignored`), more than 1 GiB.

use libtest_mimic::Trial;
use wgpu_batchnorm::verify::Checked;
use wgpu_batchnorm::{BatchNorm, Gpu, Layout, Mode, Options, Shape, Tensor, cpu, wgpu};

use crate::common::{Adapter, Outcome, ensure_close, largest, normal};
use crate::device::open;
use crate::ensure;

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    vec![
        adapter.trial(
            "65,535 rows or channels and a few more, default limits",
            many,
        ),
        adapter.trial("tensors of more than 128 MiB, default limits", |gpu| {
            let gpu = open(gpu, wgpu::Limits::default())?;
            // 132 MiB each: cut into whole images, into whole rows, and within a plane.
            train(&gpu, &[33, 16, 256, 256], Layout::ChannelsFirst)?;
            train(&gpu, &[33, 256, 256, 16], Layout::ChannelsLast)?;
            train(&gpu, &[1, 1, 34_603_011], Layout::ChannelsFirst)
        }),
        adapter
            .trial("a tensor of more than 1 GiB, the adapter's limits", |gpu| {
                train(gpu, &[65, 64, 256, 256], Layout::ChannelsFirst)
            })
            .with_ignored_flag(true),
    ]
}

fn many(gpu: &Gpu) -> Outcome {
    let gpu = open(gpu, wgpu::Limits::default())?;
    for count in [65_535, 65_536, 65_537, 131_071] {
        for (dims, layout) in [
            (vec![count, 3], Layout::ChannelsFirst),
            (vec![count, 4], Layout::ChannelsFirst),
            (vec![count, 2, 3], Layout::ChannelsFirst),
            (vec![2, count], Layout::ChannelsFirst),
            (vec![2, count, 3], Layout::ChannelsFirst),
            (vec![1, count, 4], Layout::ChannelsFirst),
        ] {
            let channels = Shape::new(&dims, layout)?.channels();
            let mut layer = BatchNorm::new(&gpu, channels, Options::default())?;
            let x = Tensor::from_array(&gpu, &normal(&dims, 1.0, 1.0, 1), layout)?;
            let dy = Tensor::from_array(&gpu, &normal(&dims, 0.1, 1.0, 2), layout)?;
            let mut checked = Checked::new(&mut layer);
            checked.forward_blocking(&x)?;
            checked.backward_blocking(&dy)?;
            layer.set_mode(Mode::Eval);
            Checked::new(&mut layer).forward_blocking(&x)?;
        }
    }
    Ok(())
}

/// A training step on random values, against the CPU path in f32 with its sums in f64.
fn train(gpu: &Gpu, dims: &[usize], layout: Layout) -> Outcome {
    let x = normal(dims, 100.0, 1.0, 1);
    let dy = normal(dims, 0.1, 1.0, 2);
    let mut layer = BatchNorm::new(
        gpu,
        Shape::new(dims, layout)?.channels(),
        Options::default(),
    )?;
    let y = layer.forward(&Tensor::from_array(gpu, &x, layout)?)?;
    let dx = layer.backward(&Tensor::from_array(gpu, &dy, layout)?)?;
    let state = layer.state_blocking()?;
    let found = layer.gradients_blocking()?;

    let batch = cpu::statistics(&x, layout)?;
    let affine = cpu::Affine::new(&state, layer.options());
    let expected = cpu::normalize(&x, layout, &batch, &affine, None)?;
    // 1e-6, and half a unit in the last place that the CPU's f32 is off itself.
    for (index, (found, expected)) in y.to_array_blocking()?.iter().zip(&expected).enumerate() {
        let apart = (found - expected).abs();
        ensure!(
            apart <= 1.1e-6 * expected.abs().max(1.0),
            "{dims:?}: y[{index}]: {apart:e}"
        );
    }
    drop((y, expected));
    let mean_allowed = |_, mean: f64| 1e-6 * (mean.abs() + 1.0);
    let running_mean = batch.mean.mapv(|mean| 0.1 * mean);
    ensure_close(
        "running_mean",
        &state.running_mean,
        &running_mean,
        mean_allowed,
    )?;

    let gradients = cpu::gradients(&x, &dy, layout, &batch, 1e-5, None)?;
    for (what, found, expected) in [
        ("dgamma", &found.gamma, &gradients.gamma),
        ("dbeta", &found.beta, &gradients.beta),
    ] {
        let allowed = 1e-5 * largest(expected);
        ensure_close(what, found, expected, |_, _| allowed)?;
    }
    let gamma = &affine.gamma;
    let expected = cpu::input_gradient(&x, &dy, layout, &batch, 1e-5, gamma, &gradients, None)?;
    let allowed = 1e-5 * expected.fold(0.0_f32, |largest, value| largest.max(value.abs()));
    for (index, (found, expected)) in dx.to_array_blocking()?.iter().zip(&expected).enumerate() {
        let apart = (found - expected).abs();
        ensure!(apart <= allowed, "{dims:?}: dx[{index}]: {apart:e}");
    }
    Ok(())
}
