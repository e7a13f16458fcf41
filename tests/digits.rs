//! The digits example in its short form, on every adapter and on the CPU path.

mod common;

#[path = "../examples/digits.rs"]
#[allow(dead_code, reason = "the tests call neither main nor the full form")]
mod digits;

use std::path::Path;

use common::{Adapter, Outcome};
use libtest_mimic::{Failed, Trial};

fn main() {
    let arguments = libtest_mimic::Arguments::from_args();
    let adapters = Adapter::all();
    let mut trials = vec![Trial::test("digits on the CPU path", || {
        trains(&digits::Device::Cpu, "cpu").map_err(|error| Failed::from(error.to_string()))
    })];
    for (index, adapter) in adapters.iter().enumerate() {
        trials.push(adapter.trial("digits", move |gpu| {
            trains(&digits::Device::Gpu(gpu.clone()), &index.to_string())
        }));
    }
    if adapters.is_empty() {
        trials.push(common::needs_an_adapter("digits"));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// It learns, and every picture is drawn.
fn trains(device: &digits::Device, folder: &str) -> Outcome {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("digits")
        .join(folder);
    let findings = digits::run(&digits::Settings::short(&out), device)?;
    ensure!(
        findings.accurate_enough(),
        "test accuracy with batch norm: {}",
        findings.best_test_accuracy().with
    );
    ensure!(findings.files.len() == 4, "{:?}", findings.files);
    for file in &findings.files {
        let text = std::fs::read_to_string(file)?;
        ensure!(
            text.starts_with("<svg") && text.trim_end().ends_with("</svg>"),
            "{} is no picture",
            file.display()
        );
    }
    Ok(())
}
