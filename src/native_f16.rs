//! Conversions between f16 and f32, by the device's own instructions where these are exact.

use crate::{Error, Gpu};

/// Which conversions between f16 and f32 are made by the device's own instructions, not by integer
/// arithmetic.
///
/// WGSL leaves open which way `pack2x16float` rounds (some GPUs round towards 0), and whether
/// `unpack2x16float` takes numbers below 2⁻¹⁴ for 0. So a device is asked, once, before it first computes
/// in f16: an instruction is used only if it gives, for all numbers of 16 bits and for all that lies halfway
/// between two or next to that, the very bits that integer arithmetic gives; which NaN a NaN becomes is left
/// to it. A browser is not asked, since it cannot be waited for.
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
///
/// # Errors
/// What keeps the device from being asked.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn of_device(gpu: &Gpu) -> Result<NativeF16, Error> {
    use crate::kernels::native_f16::NUMBERS;

    let agreements = agreements(gpu)?;
    Ok(match agreements.as_slice() {
        [NUMBERS, NUMBERS] => NativeF16::Always,
        [NUMBERS, _] => NativeF16::Reads,
        _ => NativeF16::Never,
    })
}

#[cfg(target_arch = "wasm32")]
pub(crate) fn of_device(_: &Gpu) -> Result<NativeF16, Error> {
    Ok(NativeF16::Never)
}

/// At how many numbers reading and writing by the device's own instructions are what they should be.
#[cfg(not(target_arch = "wasm32"))]
fn agreements(gpu: &Gpu) -> Result<Vec<u32>, Error> {
    use crate::division::Launch;
    use crate::kernels::native_f16::{COMPARE, NUMBERS};
    use crate::kernels::{Choice, Dispatch};
    use crate::plan::binding;

    let counts = gpu.upload("batch_norm.native_f16", &[0_u32; 2])?;
    let launch = Launch::flat(NUMBERS.into(), gpu.limits());
    launch.check(gpu.limits())?;
    let dispatch = Dispatch::new(gpu, &COMPARE, &Choice::of_vectors(), launch, |_| {
        Some(binding(counts.slice(..)))
    })?;
    gpu.submit(|encoder| {
        dispatch.record(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()));
    })?;
    pollster::block_on(gpu.download(counts.slice(..)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::native_f16::NUMBERS;

    /// What a device's instructions come to is its own affair, but all numbers are tried; and software
    /// adapters read them all.
    #[test]
    fn every_adapter_is_asked() {
        for adapter in Gpu::adapters_blocking() {
            let Ok(gpu) = Gpu::from_adapter_blocking(&adapter) else {
                continue;
            };
            let agreements = agreements(&gpu).unwrap();
            println!("{}: {agreements:?}", gpu.name());
            assert!(agreements.iter().all(|&count| count <= NUMBERS));
            if gpu.info().device_type == wgpu::DeviceType::Cpu {
                assert_eq!(agreements[0], NUMBERS);
            }
            let found = std::thread::scope(|scope| {
                let other = scope.spawn(|| gpu.native_f16());
                [gpu.native_f16(), other.join().unwrap()]
            });
            assert_eq!(found[0], found[1]);
        }
    }

    /// A device that is lost has no instructions that could be relied on.
    #[test]
    fn lost_devices_do_not_answer() {
        for adapter in Gpu::adapters_blocking() {
            let Ok(gpu) = Gpu::from_adapter_blocking(&adapter) else {
                continue;
            };
            gpu.device().destroy();
            assert_eq!(agreements(&gpu), Err(Error::DeviceLost));
            assert_eq!(gpu.native_f16(), NativeF16::Never);
        }
    }
}
