//! The operations as burn's backends dispatch them.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType, backend_extension};

use crate::device::Planned;

/// A tensor that may be absent.
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub enum Maybe<B: Backend> {
    There(FloatTensor<B>),
    Absent,
}

impl<B: Backend> Maybe<B> {
    pub(crate) fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::There(tensor) => Some(tensor),
            Self::Absent => None,
        }
    }
}

impl<B: Backend> From<Option<FloatTensor<B>>> for Maybe<B> {
    fn from(tensor: Option<FloatTensor<B>>) -> Self {
        tensor.map_or(Self::Absent, Self::There)
    }
}

/// What the activation cut, where the backward pass cannot compute it anew.
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub enum Mask<B: Backend> {
    Kept(IntTensor<B>),
    Absent,
}

impl<B: Backend> Mask<B> {
    pub(crate) fn into_option(self) -> Option<IntTensor<B>> {
        match self {
            Self::Kept(mask) => Some(mask),
            Self::Absent => None,
        }
    }

    pub(crate) fn new(mask: Option<IntTensor<B>>) -> Self {
        mask.map_or(Self::Absent, Self::Kept)
    }
}

/// What a forward pass gives.
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct Forward<B: Backend> {
    /// Of the shape of `x`.
    pub y: FloatTensor<B>,
    /// What the backward pass needs of the statistics, f32.
    pub saved: FloatTensor<B>,
    #[extension_type]
    pub mask: Mask<B>,
    /// After the step, `[channels]` f32.
    pub running_mean: FloatTensor<B>,
    /// After the step, `[channels]` f32.
    pub running_var: FloatTensor<B>,
}

/// What a backward pass gives: what is wanted.
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct Gradients<B: Backend> {
    #[extension_type]
    pub x: Maybe<B>,
    /// `[channels]` f32.
    #[extension_type]
    pub gamma: Maybe<B>,
    /// `[channels]` f32.
    #[extension_type]
    pub beta: Maybe<B>,
    #[extension_type]
    pub residual: Maybe<B>,
}

/// Which gradients a backward pass gives.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub x: bool,
    pub gamma: bool,
    pub beta: bool,
    /// That of what was added, where there is a mask. Without one it is `dy`.
    pub residual: bool,
}

/// Batch normalization on a backend. `x`, `residual` and `dy` have the plan's shape and type; the
/// vectors are `[channels]` f32.
#[backend_extension(Cube, Autodiff, Fusion: cfg(feature = "fusion"))]
pub trait BatchNormOps: Backend {
    /// `y = act((x − mean)·γ/√(var + eps) + β [+ residual])` by the statistics of the batch, with
    /// a step of the running ones; or by the running ones, where the plan says so.
    #[fusion(meta = specs::forward)]
    #[allow(
        clippy::too_many_arguments,
        reason = "the macro takes no references in structs"
    )]
    fn wgpu_batch_norm_forward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        #[extension_type] residual: Maybe<Self>,
        running_mean: FloatTensor<Self>,
        running_var: FloatTensor<Self>,
        planned: Planned,
    ) -> Forward<Self>;

    /// The same by the running statistics, where there is no backward pass.
    #[fusion(meta = specs::inference)]
    #[allow(clippy::too_many_arguments, reason = "as above")]
    fn wgpu_batch_norm_inference(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        #[extension_type] residual: Maybe<Self>,
        running_mean: FloatTensor<Self>,
        running_var: FloatTensor<Self>,
        planned: Planned,
    ) -> FloatTensor<Self>;

    /// The gradients of a forward pass.
    #[fusion(meta = specs::backward)]
    #[allow(clippy::too_many_arguments, reason = "as above")]
    fn wgpu_batch_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        saved: FloatTensor<Self>,
        #[extension_type] mask: Mask<Self>,
        dy: FloatTensor<Self>,
        wanted: Wanted,
        planned: Planned,
    ) -> Gradients<Self>;
}

/// What kernel fusion must know of an operation's outputs before it runs.
#[cfg(feature = "fusion")]
mod specs {
    use burn::backend::fusion::custom::TensorSpec;
    use burn::tensor::DType;

    use super::{ForwardMetadata, GradientsMetadata, MaskMetadata, MaybeMetadata, Planned, Wanted};

    pub(super) fn forward(
        x: &TensorSpec,
        _gamma: &TensorSpec,
        _beta: &TensorSpec,
        residual: &MaybeMetadata,
        running_mean: &TensorSpec,
        running_var: &TensorSpec,
        planned: &Planned,
    ) -> ForwardMetadata {
        let residual = matches!(residual, MaybeMetadata::There(_));
        let mask = TensorSpec::new([planned.mask_words()].into(), DType::U32);
        ForwardMetadata {
            y: x.clone(),
            saved: TensorSpec::new([planned.saved_values()].into(), DType::F32),
            mask: match residual && planned.relu() {
                true => MaskMetadata::Kept(mask),
                false => MaskMetadata::Absent,
            },
            running_mean: running_mean.clone(),
            running_var: running_var.clone(),
        }
    }

    pub(super) fn inference(
        x: &TensorSpec,
        _gamma: &TensorSpec,
        _beta: &TensorSpec,
        _residual: &MaybeMetadata,
        _running_mean: &TensorSpec,
        _running_var: &TensorSpec,
        _planned: &Planned,
    ) -> TensorSpec {
        x.clone()
    }

    #[allow(clippy::too_many_arguments, reason = "those of the operation")]
    pub(super) fn backward(
        x: &TensorSpec,
        gamma: &TensorSpec,
        beta: &TensorSpec,
        _saved: &TensorSpec,
        _mask: &MaskMetadata,
        _dy: &TensorSpec,
        wanted: &Wanted,
        _planned: &Planned,
    ) -> GradientsMetadata {
        let maybe = |wanted, spec: &TensorSpec| match wanted {
            true => MaybeMetadata::There(spec.clone()),
            false => MaybeMetadata::Absent,
        };
        GradientsMetadata {
            x: maybe(wanted.x, x),
            gamma: maybe(wanted.gamma, gamma),
            beta: maybe(wanted.beta, beta),
            residual: maybe(wanted.residual, x),
        }
    }
}
