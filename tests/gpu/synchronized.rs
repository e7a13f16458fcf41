//! Synchronized batch normalization: shards of a batch give what the whole gives.

use libtest_mimic::Trial;
use ndarray::{ArrayD, Axis, concatenate};
use wgpu_batchnorm::{
    Activation, BatchNorm, DType, Error, Extra, Gpu, Layout, Mode, Moments, Momentum, Optimizer,
    Options, Sgd, Sums, Tensor, Valid, Wanted, cpu,
};

use super::modes::upload;
use crate::common::{Adapter, Outcome, normal, normal_vector};
use crate::ensure;

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    vec![
        adapter.trial(
            "1, 7 and 32 shards give what the whole batch gives",
            |gpu| {
                for shards in [1, 7, 32] {
                    for offset in [0.0, 1e6] {
                        for (layout, dims) in [
                            (Layout::ChannelsFirst, [64, 5, 3, 3]),
                            // Packs that mix channels, in shards that are large enough.
                            (Layout::ChannelsFirst, [64, 4, 3, 3]),
                            (Layout::ChannelsFirst, [64, 3, 4, 4]),
                            (Layout::ChannelsLast, [64, 3, 3, 8]),
                            (Layout::ChannelsLast, [64, 3, 4, 3]),
                            (Layout::ChannelsLast, [64, 2, 2, 64]),
                        ] {
                            shards_are_the_whole(gpu, shards, offset, layout, &dims)
                                .map_err(|error| format!("{shards} {offset} {dims:?}: {error}"))?;
                        }
                    }
                }
                Ok(())
            },
        ),
        adapter.trial("moments of shards are those of the CPU path", moments),
        adapter.trial("moments and sums go by way of the host", by_the_host),
        adapter.trial("one device and many do not mix", no_mixing),
    ]
}

/// Where a batch is cut: into unequal shards, the third one empty.
fn cuts(batch: usize, shards: usize) -> Vec<usize> {
    let mut cuts: Vec<usize> = (0..=shards)
        .map(|index| batch * index * index / (shards * shards))
        .collect();
    if shards > 2 {
        cuts[3] = cuts[2];
    }
    cuts
}

fn rows(array: &ArrayD<f32>, cuts: &[usize], shard: usize) -> ArrayD<f32> {
    let range = cuts[shard]..cuts[shard + 1];
    array.slice_axis(Axis(0), range.into()).to_owned()
}

fn close(what: &str, found: &ArrayD<f32>, expected: &ArrayD<f32>, tolerance: f32) -> Outcome {
    ensure!(found.shape() == expected.shape(), "{what}: another shape");
    let largest = expected.fold(1.0_f32, |largest, value| largest.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        let apart = (found - expected).abs();
        ensure!(apart <= tolerance * largest, "{what}: {found} {expected}");
    }
    Ok(())
}

fn shards_are_the_whole(
    gpu: &Gpu,
    shards: usize,
    offset: f64,
    layout: Layout,
    dims: &[usize],
) -> Outcome {
    let channels = match layout {
        Layout::ChannelsFirst => dims[1],
        Layout::ChannelsLast => dims[3],
    };
    let x = normal(dims, offset, 2.0, 1);
    let dy = normal(dims, 0.3, 1.0, 2);
    let added = normal(dims, 0.0, 1.0, 3);
    let spatial = match layout {
        Layout::ChannelsFirst => [dims[0], dims[2], dims[3]],
        Layout::ChannelsLast => [dims[0], dims[1], dims[2]],
    };
    let mask = normal(&spatial, 0.5, 1.0, 4).mapv(|value| value > 0.0);
    let options = Options::default()
        .activation(Activation::Relu)
        .momentum(Momentum::OfNew(0.4));
    let new = || {
        let mut layer = BatchNorm::new(gpu, channels, options.clone())?;
        let mut state = layer.state_blocking()?;
        state.gamma = normal_vector(channels, 1.0, 0.3, 5);
        state.beta = normal_vector(channels, 0.0, 0.3, 6);
        layer.set_state(&state)?;
        Ok::<BatchNorm, Error>(layer)
    };
    let tensor = |array: &ArrayD<f32>| upload(gpu, array, layout, DType::F32);

    let mut whole = new()?;
    let (residual, valid) = (tensor(&added)?, Valid::from_mask(gpu, &mask)?);
    let extra = Extra {
        residual: Some(&residual),
        valid: Some(&valid),
    };
    let y = whole
        .forward_with(&tensor(&x)?, extra)?
        .to_array_blocking()?;
    let found = whole.backward_with(&tensor(&dy)?, &Wanted::default())?;
    let dx = found.dx.ok_or("dx is wanted")?.to_array_blocking()?;
    let of_residual = found.residual.ok_or("there is one")?.to_array_blocking()?;
    let gradients = whole.gradients_blocking()?;

    let cuts = cuts(dims[0], shards);
    let mut layers = Vec::new();
    let mut parts = Vec::new();
    let mut moments = Vec::new();
    for shard in 0..shards {
        let mut layer = new()?;
        let part = mask.slice_axis(Axis(0), (cuts[shard]..cuts[shard + 1]).into());
        let valid = Valid::from_mask(gpu, &part)?;
        let x = tensor(&rows(&x, &cuts, shard))?;
        moments.push(layer.moments(&x, Some(&valid))?);
        parts.push((x, tensor(&rows(&added, &cuts, shard))?, valid));
        layers.push(layer);
    }
    let mut ys = Vec::new();
    let mut sums = Vec::new();
    let (mut dgamma, mut dbeta) = (0.0 * &gradients.gamma, 0.0 * &gradients.beta);
    for (shard, (layer, (x, residual, valid))) in layers.iter_mut().zip(&parts).enumerate() {
        let extra = Extra {
            residual: Some(residual),
            valid: Some(valid),
        };
        let y = layer.forward_synchronized(x, extra, &moments)?;
        ys.push(y.to_array_blocking()?);
        let dy = tensor(&rows(&dy, &cuts, shard))?;
        sums.push(layer.backward_sums(&dy)?);
        dgamma += &layer.gradients_blocking()?.gamma;
        dbeta += &layer.gradients_blocking()?.beta;
        let (found, expected) = (layer.state_blocking()?, whole.state_blocking()?);
        close(
            "running_var",
            &found.running_var.into_dyn(),
            &expected.running_var.into_dyn(),
            1e-6,
        )?;
        for (found, expected) in found.running_mean.iter().zip(&expected.running_mean) {
            // Two units in the last place, or a millionth of the deviation.
            let allowed = (2.4e-7 * expected.abs()).max(2e-6);
            let apart = (found - expected).abs();
            ensure!(apart <= allowed, "running_mean: {found} {expected}");
        }
    }
    let mut dxs = Vec::new();
    let mut residuals = Vec::new();
    for (shard, layer) in layers.iter_mut().enumerate() {
        let dy = tensor(&rows(&dy, &cuts, shard))?;
        let found = layer.backward_synchronized(&dy, &sums, &Wanted::default())?;
        dxs.push(found.dx.ok_or("dx is wanted")?.to_array_blocking()?);
        residuals.push(found.residual.ok_or("there is one")?.to_array_blocking()?);
    }
    let joined = |parts: &[ArrayD<f32>]| {
        let parts: Vec<_> = parts.iter().map(|part| part.view()).collect();
        concatenate(Axis(0), &parts)
    };
    close("y", &joined(&ys)?, &y, 2e-6)?;
    close("dx", &joined(&dxs)?, &dx, 1e-5)?;
    close("d_residual", &joined(&residuals)?, &of_residual, 0.0)?;
    close(
        "dgamma",
        &dgamma.into_dyn(),
        &gradients.gamma.clone().into_dyn(),
        1e-5,
    )?;
    close(
        "dbeta",
        &dbeta.into_dyn(),
        &gradients.beta.clone().into_dyn(),
        1e-5,
    )?;
    // After the exchange every layer has the whole batch's gradients, and steps alike.
    let mut first = None;
    for layer in &mut layers {
        let found = layer.gradients_blocking()?;
        close(
            "dgamma of all",
            &found.gamma.into_dyn(),
            &gradients.gamma.clone().into_dyn(),
            1e-5,
        )?;
        close(
            "dbeta of all",
            &found.beta.into_dyn(),
            &gradients.beta.clone().into_dyn(),
            1e-5,
        )?;
        Optimizer::new(layer, Sgd::default())?.step(layer)?;
        let state = layer.state_blocking()?;
        let first = first.get_or_insert_with(|| state.clone());
        ensure!(*first == state, "layers differ after a step");
    }
    Ok(())
}

fn moments(gpu: &Gpu) -> Outcome {
    for (dims, layout) in [
        ([33, 5, 7], Layout::ChannelsFirst),
        ([33, 5, 8], Layout::ChannelsLast),
    ] {
        let x = normal(&dims, 1e5, 3.0, 7);
        let tensor = Tensor::from_array(gpu, &x, layout)?;
        let channels = tensor.shape().channels();
        let mut layer = BatchNorm::new(gpu, channels, Options::default())?;
        let found = layer.moments(&tensor, None)?;
        let found = pollster::block_on(found.to_cpu())?;
        let expected = cpu::moments(&x, layout, None)?;
        ensure!(found.count == expected.count, "{}", found.count);
        for channel in 0..channels {
            let apart = (found.mean[channel] - expected.mean[channel]).abs();
            ensure!(apart < 1e-6, "the mean is {apart:e} apart");
            let apart = (found.m2[channel] - expected.m2[channel]).abs();
            ensure!(apart < 1e-6 * expected.m2[channel], "m2: {apart:e} apart");
        }
    }
    Ok(())
}

fn no_mixing(gpu: &Gpu) -> Outcome {
    let x = Tensor::from_array(gpu, &normal(&[9, 4], 0.0, 1.0, 1), Layout::ChannelsFirst)?;
    let mut layer = BatchNorm::new(gpu, 4, Options::default())?;
    let moments = [layer.moments(&x, None)?];
    layer.forward_synchronized(&x, Extra::default(), &moments)?;
    let conflict = |error| matches!(error, Some(Error::Conflict { .. }));
    ensure!(conflict(layer.backward(&x).err()), "one backward of many");
    let sums = [layer.backward_sums(&x)?];
    layer.backward_synchronized(&x, &sums, &Wanted::default())?;
    layer.forward(&x)?;
    let refused = layer.backward_sums(&x).err();
    ensure!(conflict(refused), "many backward of one");
    let refused = layer.backward_synchronized(&x, &sums, &Wanted::default());
    ensure!(conflict(refused.err()), "many backward of one");
    layer.set_mode(Mode::Eval);
    let before = layer.state_blocking()?;
    let refused = layer.forward_synchronized(&x, Extra::default(), &moments);
    ensure!(conflict(refused.err()), "evaluation by a batch");
    ensure!(layer.state_blocking()? == before, "the state moved");
    Ok(())
}

/// As between machines: by arrays; and with the sums added up to one.
fn by_the_host(gpu: &Gpu) -> Outcome {
    let layout = Layout::ChannelsFirst;
    let tensor = |seed| Tensor::from_array(gpu, &normal(&[9, 4], 0.0, 1.0, seed), layout);
    let shards = [tensor(1)?, tensor(2)?];
    let dys = [tensor(3)?, tensor(4)?];
    let new = || BatchNorm::new(gpu, 4, Options::default());
    let mut layers = [new()?, new()?];
    let mut moments = Vec::new();
    for (layer, x) in layers.iter_mut().zip(&shards) {
        let array = layer.moments(x, None)?.to_array_blocking()?;
        moments.push(Moments::from_array(gpu, &array)?);
    }
    let mut sums = Vec::new();
    for ((layer, x), dy) in layers.iter_mut().zip(&shards).zip(&dys) {
        layer.forward_synchronized(x, Extra::default(), &moments)?;
        sums.push(layer.backward_sums(dy)?);
    }
    let total = sums[0].to_array_blocking()? + sums[1].to_array_blocking()?;
    let total = [Sums::from_array(gpu, &total)?];
    for (layer, dy) in layers.iter_mut().zip(&dys) {
        let wanted = Wanted::default();
        let one_by_one = layer.backward_synchronized(dy, &sums, &wanted)?.dx;
        let added_up = layer.backward_synchronized(dy, &total, &wanted)?.dx;
        let [a, b] = [one_by_one, added_up];
        let a = a.ok_or("dx is wanted")?.to_array_blocking()?;
        let b = b.ok_or("dx is wanted")?.to_array_blocking()?;
        close("dx", &a, &b, 1e-6)?;
    }
    let wrong = Moments::from_array(gpu, &ndarray::Array2::zeros((3, 4)));
    ensure!(wrong.is_err(), "three rows are no moments");
    let mut uneven = moments[0].to_array_blocking()?;
    uneven[[0, 3]] += 1.0;
    let uneven = Moments::from_array(gpu, &uneven);
    ensure!(uneven.is_err(), "counts differ between channels");
    let none = layers[0].forward_synchronized(&shards[0], Extra::default(), &[]);
    ensure!(none.is_err(), "there are no moments");
    Ok(())
}
