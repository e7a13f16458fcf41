//! Conversions between f16 and f32, by the device's own instructions where these are exact.

use crate::division::Launch;
use crate::kernels::native_f16::{COMPARE, NUMBERS};
use crate::kernels::{Choice, Dispatch};
use crate::plan::binding;
use crate::{Error, Gpu};

/// Which conversions between f16 and f32 are made by the device's own instructions, not by integer
/// arithmetic.
///
/// WGSL leaves open which way `pack2x16float` rounds (some GPUs round towards 0), and whether
/// `unpack2x16float` takes numbers below 2⁻¹⁴ for 0. So a device is asked, once, before it first computes
/// in f16: an instruction is used only if it gives, for all numbers of 16 bits and all that lie halfway
/// between two, the very bits that integer arithmetic gives. Results are the same either way. A browser is not
/// asked, since it cannot be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NativeF16 {
    /// None.
    Never,
    /// Those from f16.
    Reads,
    /// Those from f16 and to it.
    Always,
}

/// What a device's own instructions are good for.
pub(crate) fn of_device(gpu: &Gpu) -> NativeF16 {
    // A browser could not be waited for, and what a device refuses it has not.
    let differences = match cfg!(target_arch = "wasm32") {
        true => None,
        false => compared(gpu).ok(),
    };
    match differences.as_deref() {
        Some([0, 0]) => NativeF16::Always,
        Some([0, _]) => NativeF16::Reads,
        _ => NativeF16::Never,
    }
}

/// Whether reading and writing by the device's own instructions differ from what they should be.
fn compared(gpu: &Gpu) -> Result<Vec<u32>, Error> {
    let buffer = gpu.upload("batch_norm.native_f16", &[0_u32; 2])?;
    let launch = Launch::flat(NUMBERS, gpu.limits());
    let dispatch = Dispatch::new(gpu, &COMPARE, &Choice::of_vectors(), launch, |_| {
        Some(binding(buffer.slice(..)))
    })?;
    gpu.submit(|encoder| {
        dispatch.record(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()));
    })?;
    pollster::block_on(gpu.download(buffer.slice(..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a device's instructions come to is its own affair, but it must be possible to ask.
    #[test]
    fn every_adapter_can_be_asked() {
        for adapter in Gpu::adapters_blocking() {
            let Ok(gpu) = Gpu::from_adapter_blocking(&adapter) else {
                continue;
            };
            let differences = compared(&gpu).unwrap();
            println!("{}: {differences:?}", gpu.name());
            assert_eq!(differences.len(), 2);
        }
    }
}
