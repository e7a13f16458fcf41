//! Handwritten digits, learned with batch norm and without.
//!
//! Two networks that differ in nothing but batch norm learn to read 8x8 images of digits, over
//! learning rates and initial weights that range from too small to too large. The program prints
//! which of the known effects of batch norm (Ioffe & Szegedy 2015) these trainings show, and
//! draws them.
//!
//! The linear layers run in ndarray on the CPU; every batch norm and the descent of its γ and β
//! run on the GPU by this library, or on its CPU path where there is no GPU. How a network calls
//! the library is in `digits/normalization.rs`.
//!
//! `cargo run --release --example digits [-- [--short] [OUT]]` writes its pictures to the folder
//! OUT, or else to `out/digits`. It fails if batch norm does not reach the accuracy that it
//! should: 97 % on the test images, in the short form 90 %.

#[path = "digits/chart.rs"]
mod chart;
#[path = "digits/claims.rs"]
mod claims;
#[path = "digits/data.rs"]
mod data;
#[path = "digits/experiment.rs"]
mod experiment;
#[path = "digits/findings.rs"]
mod findings;
#[path = "digits/network.rs"]
mod network;
#[path = "digits/normalization.rs"]
mod normalization;
#[path = "digits/pictures.rs"]
mod pictures;
#[path = "digits/settings.rs"]
mod settings;

use std::path::PathBuf;
use std::process::ExitCode;

use wgpu_batchnorm::{Error, Gpu};

pub use findings::Findings;
pub use normalization::Device;
pub use settings::Settings;

/// Any error: of the library, of a file, of a picture.
pub type Failure = Box<dyn std::error::Error>;

fn main() -> Result<ExitCode, Failure> {
    let settings = parse(std::env::args().skip(1))?;
    let device = match Gpu::open_blocking() {
        Ok(gpu) => Device::Gpu(gpu),
        Err(Error::NoAdapter { reason }) => {
            println!("There is no GPU adapter ({reason}): all runs on the CPU.");
            Device::Cpu
        }
        Err(other) => return Err(other.into()),
    };
    println!("Batch norm runs on {}.\n", device.name());

    let findings = run(&settings, &device)?;
    println!("{findings}");
    Ok(if findings.accurate_enough() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Trains all networks, draws the pictures and returns what was found.
pub fn run(settings: &Settings, device: &Device) -> Result<Findings, Failure> {
    let comparisons = experiment::compare_all(settings, device)?;
    let mut findings = Findings::new(settings, device.name(), comparisons)?;
    findings.files = pictures::draw_all(&findings)?;
    Ok(findings)
}

/// The settings that the command line asks for.
fn parse(arguments: impl Iterator<Item = String>) -> Result<Settings, Failure> {
    let mut short = false;
    let mut out = PathBuf::from("out/digits");
    for argument in arguments {
        match argument.as_str() {
            "--short" => short = true,
            option if option.starts_with('-') => {
                return Err(
                    format!("unknown option {option}; usage: digits [--short] [OUT]").into(),
                );
            }
            folder => out = folder.into(),
        }
    }
    Ok(if short {
        Settings::short(out)
    } else {
        Settings::full(out)
    })
}
