//! Tensors stored in 16 bits: every number, and every rounding.

use libtest_mimic::Trial;
use ndarray::{Array1, Array2};
use wgpu_batchnorm::half::{bf16, f16};
use wgpu_batchnorm::{
    BatchNorm, DType, Gpu, Layout, Mode, NativeF16, Options, State, Stored, Tensor, Tuning,
};

use crate::common::{Adapter, Outcome};
use crate::ensure;

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    vec![
        adapter.trial("every f16 is read and written", |gpu| {
            conversions().try_for_each(|tuning| every_number(gpu, f16::from_bits, tuning))
        }),
        adapter.trial("every bf16 is read and written", |gpu| {
            every_number(gpu, bf16::from_bits, Tuning::gpu())
        }),
        adapter.trial("f16 is rounded to nearest even", |gpu| {
            conversions().try_for_each(|tuning| roundings(gpu, f16::from_bits, 0x7c00, tuning))
        }),
        adapter.trial("bf16 is rounded to nearest even", |gpu| {
            roundings(gpu, bf16::from_bits, 0x7f80, Tuning::gpu())
        }),
    ]
}

/// Conversions by integer arithmetic, and by the device's own instructions, where these are exact.
fn conversions() -> impl Iterator<Item = Tuning> {
    let ways = [NativeF16::Never, NativeF16::Reads, NativeF16::Always];
    ways.into_iter().map(|native_f16| {
        let mut tuning = Tuning::gpu();
        tuning.native_f16 = native_f16;
        tuning
    })
}

/// A layer that gives back what it gets, times γ.
fn scaling(
    gpu: &Gpu,
    gamma: Array1<f32>,
    tuning: Tuning,
) -> Result<BatchNorm, wgpu_batchnorm::Error> {
    let options = Options::default().eps(0.0).tuning(tuning);
    let mut layer = BatchNorm::new(gpu, gamma.len(), options)?;
    let state = State::new(gamma.len());
    layer.set_state(&State { gamma, ..state })?;
    layer.set_mode(Mode::Eval);
    Ok(layer)
}

/// Through a layer that changes nothing, every number comes out as it went in.
fn every_number<T: Stored>(gpu: &Gpu, from_bits: fn(u16) -> T, tuning: Tuning) -> Outcome {
    for channels in [1, 3, 4] {
        let rows = (1 << 16) / channels;
        let x = Array2::from_shape_fn((rows, channels), |(row, channel)| {
            from_bits((row * channels + channel) as u16)
        });
        let mut layer = scaling(gpu, Array1::ones(channels), tuning.clone())?;
        let tensor = Tensor::from_array(gpu, &x, Layout::ChannelsFirst)?;
        let uploaded = tensor.to_array_blocking()?;
        let y = layer.forward(&tensor)?.to_array_blocking()?;
        for ((x, uploaded), y) in x.iter().zip(&uploaded).zip(&y) {
            let expected = x.to_f64() as f32;
            let is = |found: &f32| *found == expected || (found.is_nan() && expected.is_nan());
            // x - 0 + 0 may lose the sign of 0. Numbers below 1.2e-38, of bf16, a GPU may count as 0.
            let flushed = expected.abs() < f32::MIN_POSITIVE && *y == 0.0;
            // Infinity times anything that is not 0 is infinity, but x̂ of it no number.
            let infinite = expected.is_infinite() && !y.is_finite();
            ensure!(is(uploaded), "{expected:e} was uploaded as {uploaded:e}");
            ensure!(
                is(y) || flushed || infinite,
                "{expected:e} came out as {y:e}"
            );
        }
    }
    Ok(())
}

/// Every number, what is halfway to the next, and what is one unit of f32 next to that; and numbers too large.
fn roundings<T: Stored>(
    gpu: &Gpu,
    from_bits: fn(u16) -> T,
    infinity: u16,
    tuning: Tuning,
) -> Outcome {
    let mut wanted = Vec::new();
    for bits in 0..infinity {
        let low = from_bits(bits).to_f64();
        let next = from_bits(bits + 1).to_f64();
        // From halfway beyond the largest number on, it is infinity.
        let high = if next.is_finite() {
            next
        } else {
            2.0 * low - from_bits(bits - 1).to_f64()
        };
        let even = if bits % 2 == 0 { low } else { next };
        let half = ((low + high) / 2.0) as f32;
        for (value, expected) in [
            (low as f32, low),
            (half.next_down(), low),
            (half, even),
            (half.next_up(), next),
        ] {
            if value >= f32::MIN_POSITIVE && value.is_finite() {
                wanted.push((value, expected as f32));
                wanted.push((-value, -expected as f32));
            }
        }
    }
    // And far beyond, where f32 still has numbers.
    for value in [65536.0_f32, 1e9, f32::MAX] {
        let expected = T::from_f64(value.into()).to_f64() as f32;
        wanted.push((value, expected));
        wanted.push((-value, -expected));
    }
    // As γ, times 1: in pairs, the last of which is half, and in fours.
    for multiple in [1, 4] {
        let length = wanted.len() / multiple * multiple - usize::from(multiple == 1);
        let wanted = &wanted[..length];
        let mut layer = scaling(
            gpu,
            wanted.iter().map(|(value, _)| *value).collect(),
            tuning.clone(),
        )?;
        let one = Array2::from_elem((2, length), T::from_f64(1.0));
        let y = layer.forward(&Tensor::from_array(gpu, &one, Layout::ChannelsFirst)?)?;
        ensure!(y.dtype() == T::DTYPE && T::DTYPE != DType::F32, "the type");
        let y = y.to_array_blocking()?;
        for (y, (value, expected)) in y.iter().zip(wanted.iter().chain(wanted)) {
            ensure!(
                y == expected,
                "{value:e} was rounded to {y:e}, not {expected:e}"
            );
        }
    }
    Ok(())
}
