//! Lists the adapters that can be used here, by the names that `WGPU_ADAPTER_NAME` takes.
//!
//! `cargo run --example adapters`. Fails if there is none; `WGPU_BACKEND` narrows the search.

use std::process::ExitCode;

use wgpu_batchnorm::Gpu;

fn main() -> ExitCode {
    let adapters = Gpu::adapters_blocking();
    for adapter in &adapters {
        let info = adapter.get_info();
        println!(
            "{:?}: {} ({:?}, {})",
            info.backend, info.name, info.device_type, info.driver_info
        );
    }
    if adapters.is_empty() {
        eprintln!("no GPU adapter found");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
