//! [`wgpu_batchnorm`] as a module of [burn](https://burn.dev): batch normalization as one operator, on
//! burn's own wgpu device, over burn's own buffers, with automatic differentiation.
//!
//! burn's `BatchNorm` is a chain of primitives: means, differences, squares, products. [`FusedBatchNorm`]
//! stands in its place: it has the same parameters under the same names, so that a saved record of either
//! loads into the other, the same config, and the same way to keep its running statistics.
//!
//! ```
//! use burn::prelude::*;
//! use burn::tensor::Distribution;
//! use wgpu_batchnorm_burn::FusedBatchNormConfig;
//!
//! # fn main() -> Result<(), wgpu_batchnorm_burn::Error> {
//! // burn's default wgpu device, opened so that its queue is known here. Once, and first.
//! let device = wgpu_batchnorm_burn::device()?.autodiff();
//!
//! // In the place of burn's BatchNormConfig.
//! let norm = FusedBatchNormConfig::new(16).init(&device);
//!
//! let x = Tensor::<4>::random([8, 16, 5, 5], Distribution::Default, &device).require_grad();
//! let y = norm.forward(x.clone());
//! let gradients = y.sum().backward();
//! assert!(x.grad(&gradients).is_some() && norm.gamma.grad(&gradients).is_some());
//! # Ok(())
//! # }
//! ```
//!
//! # The device
//! burn hands out the wgpu device and queue of a runtime when it is opened, and never after. So it
//! must be opened by [`device`], or be made known by [`register`] with the handles that
//! `burn::tensor::Device::wgpu_options().init_with_setup()` returned. A [`FusedBatchNorm`] on a wgpu device
//! that is not known panics and says so.
//!
//! # What runs where
//! On a known wgpu device, with tensors of f32, f16 or bf16 (of which burn computes nothing there itself, so
//! that no gradient comes from the operations behind), the work is that of
//! [`wgpu_batchnorm::Plan`], recorded between burn's own work and submitted to burn's queue in
//! order. Tensors are bound where they lie, with the channels second in memory or last, as burn's
//! convolutions leave them; what is strided in another way (a transposed view, say) is made contiguous
//! first, by a copy. y lies as x does. γ, β and the running statistics are read and written as f32; a
//! module of another type has them cast.
//!
//! On every other backend (CPU, CUDA), with any other type, and while burn captures a graph, burn's own
//! batch normalization is what runs, followed by burn's addition and ReLU: the same operation, with burn's
//! speed and accuracy.
//!
//! # Features
//! `fusion` must be on exactly where burn's `fusion` is; `autotune` is burn's. Both are on by
//! default, as they are in burn.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod autodiff;
mod cube;
mod device;
mod module;
mod ops;

#[cfg(not(target_family = "wasm"))]
pub use device::device;
pub use device::{Error, register};
pub use module::{FusedBatchNorm, FusedBatchNormConfig, RunningVariance};
pub use wgpu_batchnorm;
