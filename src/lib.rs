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

pub mod cpu;
mod division;
mod error;
mod gpu;
mod kernels;
mod layer;
mod optimizer;
mod options;
mod plan;
mod shape;
mod tensor;
mod tuning;
pub mod verify;

pub use error::Error;
pub use gpu::Gpu;
pub use kernels::{ShaderText, shader_texts};
pub use layer::{BatchNorm, Gradients, Mode, State};
pub use optimizer::{Adam, Algorithm, Optimizer, RmsProp, Sgd};
pub use options::{Options, RunningVariance};
pub use plan::{BackwardBuffers, Commands, ForwardBuffers, InferenceBuffers, Plan};
pub use shape::{Layout, Shape, View};
pub use tensor::Tensor;
pub use tuning::{LaneOrder, Tuning};
#[cfg(not(target_arch = "wasm32"))]
pub use verify::self_check_blocking;
pub use verify::{Checked, Mismatch, Report, Tolerance, self_check};
pub use wgpu;
