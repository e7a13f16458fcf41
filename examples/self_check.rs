//! Runs the library's self-check on every adapter of this machine and prints the reports.
//!
//! `cargo run --release --example self_check`. Fails if a check fails or there is no adapter.

use std::process::ExitCode;

use wgpu_batchnorm::{Gpu, self_check_blocking};

fn main() -> ExitCode {
    let adapters = Gpu::adapters_blocking();
    if adapters.is_empty() {
        eprintln!("no GPU adapter found");
        return ExitCode::FAILURE;
    }
    let mut passed = true;
    for adapter in adapters {
        match Gpu::from_adapter_blocking(&adapter) {
            Ok(gpu) => {
                let report = self_check_blocking(&gpu);
                println!("{report}\n");
                passed &= report.passed();
            }
            Err(error) => {
                println!("{error}\n");
                passed = false;
            }
        }
    }
    match passed {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
