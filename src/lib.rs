#![doc = include_str!("../README.md")]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "a test fails by panicking"
    )
)]

mod activation;
pub mod cpu;
mod division;
mod dtype;
mod error;
pub mod fold;
mod gpu;
mod kernels;
mod layer;
mod monitor;
mod native_f16;
mod optimizer;
mod options;
#[cfg(not(target_arch = "wasm32"))]
mod pipeline_cache;
mod plan;
mod shape;
mod state_file;
mod synchronized;
mod tensor;
mod tuning;
mod valid;
pub mod verify;

pub use activation::Activation;
pub use dtype::{DType, Stored};
pub use error::Error;
pub use gpu::Gpu;
pub use kernels::{ShaderText, shader_texts};
pub use layer::{BatchNorm, Extra, Gradients, InputGradients, Mode, State, Wanted};
pub use monitor::ChannelStatistics;
pub use native_f16::NativeF16;
pub use optimizer::{Adam, Algorithm, Optimizer, RmsProp, Sgd};
pub use options::{Momentum, OneValue, Options, Parameter, RunningVariance};
pub use plan::{BackwardBuffers, Commands, ForwardBuffers, Plan};
pub use shape::{Layout, Shape, View};
pub use synchronized::{Moments, Sums};
pub use tensor::Tensor;
pub use tuning::Tuning;
pub use valid::Valid;
#[cfg(not(target_arch = "wasm32"))]
pub use verify::self_check_blocking;
pub use verify::{Checked, Mismatch, Report, Tolerance, self_check};
pub use {half, wgpu};
