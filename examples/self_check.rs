//! Runs the library's self-check on every adapter of this machine and prints the reports.
//!
//! `cargo run --release --example self_check`. Fails if a check fails or there is no adapter.

use std::process::ExitCode;

use wgpu_batchnorm::{Gpu, self_check};

fn main() -> ExitCode {
    pollster::block_on(async {
        let adapters = Gpu::adapters().await;
        if adapters.is_empty() {
            eprintln!("no GPU adapter found");
            return ExitCode::FAILURE;
        }
        let mut passed = true;
        for adapter in adapters {
            match Gpu::from_adapter(&adapter).await {
                Ok(gpu) => {
                    let report = self_check(&gpu).await;
                    println!("{report}\n");
                    passed &= report.passed();
                }
                Err(error) => {
                    println!("{error}\n");
                    passed = false;
                }
            }
        }
        if passed {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    })
}
