//! Sizes at the edges: many rows and channels, tensors larger than a binding on wgpu's default
//! limits, and, in the long run (`-- --ignored`), more than 1 GiB.

use libtest_mimic::Trial;
use ndarray::{ArrayD, Axis};
use wgpu_batchnorm::verify::Checked;
use wgpu_batchnorm::{BatchNorm, Gpu, Layout, Mode, Options, Shape, Tensor, cpu, wgpu};

use crate::common::{Adapter, Outcome, largest, normal};
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
            tiled(&gpu, &[33, 16, 256, 256], Layout::ChannelsFirst)?;
            tiled(&gpu, &[33, 256, 256, 16], Layout::ChannelsLast)?;
            tiled(&gpu, &[1, 1, 3 * 11_534_337], Layout::ChannelsFirst)
        }),
        adapter
            .trial("a tensor of more than 1 GiB, the adapter's limits", |gpu| {
                tiled(gpu, &[65, 64, 256, 256], Layout::ChannelsFirst)
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

/// A tensor of equal parts along its longest axis has the statistics of one part, and so the same
/// y and dx in each: the CPU path need only do one.
fn tiled(gpu: &Gpu, dims: &[usize], layout: Layout) -> Outcome {
    let (axis, count) = match dims {
        [1, 1, length] => (2, length / 3),
        _ => (0, 1),
    };
    let mut part = dims.to_vec();
    part[axis] = count;
    let x = normal(&part, 100.0, 1.0, 1);
    let dy = normal(&part, 0.1, 1.0, 2);
    let whole = |part: &ArrayD<f32>| {
        let views = vec![part.view(); dims[axis] / count];
        ndarray::concatenate(Axis(axis), &views)
    };
    let mut layer = BatchNorm::new(
        gpu,
        Shape::new(dims, layout)?.channels(),
        Options::default(),
    )?;
    let y = layer.forward(&Tensor::from_array(gpu, &whole(&x)?, layout)?)?;
    let dx = layer.backward(&Tensor::from_array(gpu, &whole(&dy)?, layout)?)?;

    let (x, dy) = (x.mapv(f64::from), dy.mapv(f64::from));
    let batch = cpu::statistics(&x, layout)?;
    let channels = batch.mean.len();
    let ones = ndarray::Array1::ones(channels);
    let zeros = ndarray::Array1::zeros(channels);
    let y64 = cpu::normalize(&x, layout, &batch, 1e-5, &ones, &zeros)?;
    let gradients = cpu::gradients(&x, &dy, layout, &batch, 1e-5)?;
    let dx64 = cpu::input_gradient(&x, &dy, layout, &batch, 1e-5, &ones, &gradients)?;
    let dx_allowed = 1e-5 * largest(&dx64);

    let y = y.to_array_blocking()?;
    for (index, y) in y.axis_chunks_iter(Axis(axis), count).enumerate() {
        for (found, exact) in y.iter().zip(&y64) {
            let apart = (f64::from(*found) - exact).abs();
            ensure!(
                apart <= 1e-6 * exact.abs().max(1.0),
                "{dims:?}: y of part {index}: {apart:e}"
            );
        }
    }
    drop(y);
    let dx = dx.to_array_blocking()?;
    for (index, dx) in dx.axis_chunks_iter(Axis(axis), count).enumerate() {
        for (found, exact) in dx.iter().zip(&dx64) {
            let apart = (f64::from(*found) - exact).abs();
            ensure!(
                apart <= dx_allowed,
                "{dims:?}: dx of part {index}: {apart:e}"
            );
        }
    }
    Ok(())
}
