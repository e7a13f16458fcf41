//! Gradient descent on γ and β, on the GPU.
//!
//! The formulas are those of PyTorch's `torch.optim`; so are the names and the defaults.

use crate::division::Launch;
use crate::kernels::optimizer::{ADAM, RMSPROP, SGD, Settings};
use crate::kernels::{Choice, Dispatch, EntryPoint};
use crate::options::{fraction, not_negative};
use crate::plan::binding;
use crate::{BatchNorm, Error, Gpu};

/// Stochastic gradient descent, with momentum if it is not 0.
///
/// `g = gradient + weight_decay·p`; `v ← momentum·v + (1 − dampening)·g`, in the first step
/// `v ← g`; `p ← p − lr·v`, or with Nesterov momentum `p ← p − lr·(g + momentum·v)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate, at least 0. Default: 1e-3.
    pub lr: f64,
    /// Default: 0.
    pub momentum: f64,
    /// Default: 0.
    pub dampening: f64,
    /// Default: 0.
    pub weight_decay: f64,
    /// Default: false. It needs a momentum and no dampening.
    pub nesterov: bool,
}

impl Default for Sgd {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            momentum: 0.0,
            dampening: 0.0,
            weight_decay: 0.0,
            nesterov: false,
        }
    }
}

/// RMSProp.
///
/// `g = gradient + weight_decay·p`; `s ← alpha·s + (1 − alpha)·g²`;
/// `v ← momentum·v + g/(√s + eps)`; `p ← p − lr·v`. Centered: `s` less the square of the mean
/// `m ← alpha·m + (1 − alpha)·g` under the root.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsProp {
    /// Learning rate, at least 0. Default: 1e-2.
    pub lr: f64,
    /// Decay of the mean square, in 0 … 1. Default: 0.99.
    pub alpha: f64,
    /// Default: 1e-8.
    pub eps: f64,
    /// Default: 0.
    pub weight_decay: f64,
    /// Default: 0.
    pub momentum: f64,
    /// Default: false.
    pub centered: bool,
}

impl Default for RmsProp {
    fn default() -> Self {
        Self {
            lr: 1e-2,
            alpha: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
            momentum: 0.0,
            centered: false,
        }
    }
}

/// Adam (Kingma & Ba 2015), and AMSGrad (Reddi et al. 2018).
///
/// `g = gradient + weight_decay·p`; `m ← β₁·m + (1 − β₁)·g`; `s ← β₂·s + (1 − β₂)·g²`; in step `t`
/// `p ← p − lr·m/(1 − β₁ᵗ)/(√(s/(1 − β₂ᵗ)) + eps)`. AMSGrad: the largest `s` so far under the root.
#[derive(Clone, Debug, PartialEq)]
pub struct Adam {
    /// Learning rate, at least 0. Default: 1e-3.
    pub lr: f64,
    /// β₁ and β₂, in 0 … 1 without 1. Default: 0.9 and 0.999.
    pub betas: [f64; 2],
    /// Default: 1e-8.
    pub eps: f64,
    /// Default: 0. Added to the gradient (not AdamW's).
    pub weight_decay: f64,
    /// Default: false.
    pub amsgrad: bool,
}

impl Default for Adam {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            amsgrad: false,
        }
    }
}

/// Which descent an [`Optimizer`] does.
#[derive(Clone, Debug, PartialEq)]
pub enum Algorithm {
    /// Stochastic gradient descent, with or without momentum.
    Sgd(Sgd),
    /// RMSProp.
    RmsProp(RmsProp),
    /// Adam.
    Adam(Adam),
}

impl From<Sgd> for Algorithm {
    fn from(sgd: Sgd) -> Self {
        Self::Sgd(sgd)
    }
}

impl From<RmsProp> for Algorithm {
    fn from(rmsprop: RmsProp) -> Self {
        Self::RmsProp(rmsprop)
    }
}

impl From<Adam> for Algorithm {
    fn from(adam: Adam) -> Self {
        Self::Adam(adam)
    }
}

impl Algorithm {
    /// Fails where a number is not finite or out of its range.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] names the parameter, its value and what it should be.
    pub fn validate(&self) -> Result<(), Error> {
        match self {
            Self::Sgd(sgd) => {
                not_negative("lr", sgd.lr)?;
                not_negative("momentum", sgd.momentum)?;
                not_negative("weight_decay", sgd.weight_decay)?;
                fraction("dampening", sgd.dampening)?;
                if sgd.nesterov && sgd.momentum == 0.0 {
                    return Err(Error::InvalidParameter {
                        name: "momentum",
                        expected: "above 0 with nesterov",
                        value: sgd.momentum,
                    });
                }
                if sgd.nesterov && sgd.dampening != 0.0 {
                    return Err(Error::InvalidParameter {
                        name: "dampening",
                        expected: "0 with nesterov",
                        value: sgd.dampening,
                    });
                }
                Ok(())
            }
            Self::RmsProp(rmsprop) => {
                not_negative("lr", rmsprop.lr)?;
                fraction("alpha", rmsprop.alpha)?;
                not_negative("eps", rmsprop.eps)?;
                not_negative("weight_decay", rmsprop.weight_decay)?;
                not_negative("momentum", rmsprop.momentum)
            }
            Self::Adam(adam) => {
                not_negative("lr", adam.lr)?;
                below_one("betas[0]", adam.betas[0])?;
                below_one("betas[1]", adam.betas[1])?;
                not_negative("eps", adam.eps)?;
                not_negative("weight_decay", adam.weight_decay)
            }
        }
    }

    pub(crate) fn set_lr(&mut self, lr: f64) -> Result<(), Error> {
        not_negative("lr", lr)?;
        match self {
            Self::Sgd(sgd) => sgd.lr = lr,
            Self::RmsProp(rmsprop) => rmsprop.lr = lr,
            Self::Adam(adam) => adam.lr = lr,
        }
        Ok(())
    }

    fn entry_point(&self) -> &'static EntryPoint {
        match self {
            Self::Sgd(_) => &SGD,
            Self::RmsProp(_) => &RMSPROP,
            Self::Adam(_) => &ADAM,
        }
    }

    /// Values of state for each parameter.
    fn state_slots(&self) -> u64 {
        match self {
            Self::Sgd(_) => 1,
            Self::RmsProp(_) | Self::Adam(_) => 3,
        }
    }

    /// What the shader needs to know for step `step`, the first being 1.
    fn settings(&self, length: usize, step: u64) -> Settings {
        let common = Settings {
            length: length as u32,
            ..Settings::default()
        };
        match self {
            Self::Sgd(sgd) => Settings {
                learning_rate: sgd.lr as f32,
                weight_decay: sgd.weight_decay as f32,
                momentum: sgd.momentum as f32,
                gradient_weight: if step == 1 || sgd.momentum == 0.0 {
                    1.0
                } else {
                    (1.0 - sgd.dampening) as f32
                },
                variant: sgd.nesterov.into(),
                ..common
            },
            Self::RmsProp(rmsprop) => Settings {
                learning_rate: rmsprop.lr as f32,
                weight_decay: rmsprop.weight_decay as f32,
                eps: rmsprop.eps as f32,
                momentum: rmsprop.momentum as f32,
                gradient_weight: 1.0,
                decay: rmsprop.alpha as f32,
                square_weight: (1.0 - rmsprop.alpha) as f32,
                variant: rmsprop.centered.into(),
                ..common
            },
            Self::Adam(adam) => {
                let [beta_1, beta_2] = adam.betas;
                let t = step as f64;
                Settings {
                    learning_rate: adam.lr as f32,
                    weight_decay: adam.weight_decay as f32,
                    eps: adam.eps as f32,
                    momentum: beta_1 as f32,
                    gradient_weight: (1.0 - beta_1) as f32,
                    decay: beta_2 as f32,
                    square_weight: (1.0 - beta_2) as f32,
                    bias_correction_1: (1.0 - beta_1.powf(t)) as f32,
                    bias_correction_2_sqrt: (1.0 - beta_2.powf(t)).sqrt() as f32,
                    variant: adam.amsgrad.into(),
                    ..common
                }
            }
        }
    }
}

/// Fails unless `value` lies in 0 … 1 without 1, also once it is rounded to f32.
fn below_one(name: &'static str, value: f64) -> Result<(), Error> {
    if value >= 0.0 && (value as f32) < 1.0 {
        return Ok(());
    }
    Err(Error::InvalidParameter {
        name,
        expected: "at least 0 and below 1 in f32",
        value,
    })
}

/// Updates the γ and β of one layer on the GPU, by the gradients of its last backward pass.
///
/// # Example
/// ```
/// use ndarray::array;
/// use wgpu_batchnorm::{BatchNorm, Error, Gpu, Layout, Optimizer, Options, Sgd, Tensor};
///
/// let gpu = Gpu::open_blocking()?;
/// let mut layer = BatchNorm::new(&gpu, 1, Options::default())?;
/// let mut optimizer = Optimizer::new(&layer, Sgd { lr: 0.5, ..Sgd::default() })?;
/// assert_eq!(optimizer.step(&mut layer).unwrap_err(), Error::NoBackward);
///
/// let x = Tensor::from_array(&gpu, &array![[-1.0], [1.0]], Layout::ChannelsFirst)?;
/// layer.forward(&x)?;
/// layer.backward(&x)?; // dβ = Σdy = 0, dγ = Σdy·x̂ ≈ 2
/// optimizer.step(&mut layer)?;
/// assert!(layer.state_blocking()?.gamma[0].abs() < 1e-4); // 1 − 0.5·2
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct Optimizer {
    gpu: Gpu,
    algorithm: Algorithm,
    channels: usize,
    step: u64,
    settings: wgpu::Buffer,
    /// For γ and for β.
    states: [wgpu::Buffer; 2],
}

impl Optimizer {
    /// An optimizer for `layer`, before its first step.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for a number out of range, [`Error::OutOfMemory`] if the state
    /// does not fit.
    pub fn new(layer: &BatchNorm, algorithm: impl Into<Algorithm>) -> Result<Self, Error> {
        let algorithm = algorithm.into();
        algorithm.validate()?;
        let gpu = layer.gpu().clone();
        let bytes = algorithm.state_slots() * (layer.channels() * size_of::<f32>()) as u64;
        let state = || gpu.vector_buffer("batch_norm.optimizer.state", bytes);
        Ok(Self {
            settings: gpu.uniform_buffer(
                "batch_norm.optimizer.settings",
                bytemuck::bytes_of(&Settings::default()),
            )?,
            states: [state()?, state()?],
            gpu,
            algorithm,
            channels: layer.channels(),
            step: 0,
        })
    }

    /// The algorithm, with its numbers.
    pub fn algorithm(&self) -> &Algorithm {
        &self.algorithm
    }

    /// The twin on the CPU, in the same state.
    pub(crate) async fn twin(&self) -> Result<crate::cpu::Optimizer, Error> {
        let gamma = self.gpu.download(self.states[0].slice(..)).await?;
        let beta = self.gpu.download(self.states[1].slice(..)).await?;
        Ok(crate::cpu::Optimizer::resume(
            &self.algorithm,
            self.step,
            [&gamma, &beta],
        ))
    }

    /// Sets the learning rate from the next step on.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] if it is not finite or below 0.
    pub fn set_lr(&mut self, lr: f64) -> Result<(), Error> {
        self.algorithm.set_lr(lr)
    }

    /// Updates the layer's γ and β, as far as they are learned.
    ///
    /// # Errors
    /// [`Error::NoBackward`] before the layer's first backward pass; [`Error::ShapeMismatch`] or
    /// [`Error::OtherDevice`] for a layer of other channels or another device than the one that the
    /// optimizer was made for;
    /// [`Error::DeviceLost`]. Nothing is then changed.
    ///
    /// # Accuracy
    /// Within 1e-6 of `|p| + 10·|step|` against the formula in f64 on the same state; centered RMSProp
    /// takes a difference and magnifies the step's part (`tests/gpu/operations.rs`).
    pub fn step(&mut self, layer: &mut BatchNorm) -> Result<(), Error> {
        crate::layer::check_length("gamma", layer.channels(), self.channels)?;
        if *layer.gpu() != self.gpu {
            return Err(Error::OtherDevice {
                tensor: "gamma",
                expected: self.gpu.name(),
                found: layer.gpu().name(),
            });
        }
        let limits = self.gpu.limits();
        let launch = Launch::flat(self.channels as u64, limits);
        launch.check(limits)?;
        let dispatches = layer
            .parameters()?
            .into_iter()
            .zip(&self.states)
            .filter_map(|(parameter, state)| Some((parameter?, state)))
            .map(|((parameter, gradient), state)| {
                let buffer = |name: &'static str| {
                    let buffer = match name {
                        "settings" => &self.settings,
                        "gradient" => gradient,
                        "parameter" => parameter,
                        "state" => state,
                        _ => return None,
                    };
                    Some(binding(buffer.slice(..)))
                };
                let entry = self.algorithm.entry_point();
                Dispatch::new(&self.gpu, entry, &Choice::of_vectors(), launch, buffer)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let settings = self.algorithm.settings(self.channels, self.step + 1);
        self.gpu.submit(|encoder| {
            // The write comes before all that is submitted with it.
            let bytes = bytemuck::bytes_of(&settings);
            self.gpu.queue().write_buffer(&self.settings, 0, bytes);
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some("batch_norm.optimizer"),
                timestamp_writes: None,
            });
            for dispatch in &dispatches {
                dispatch.record(&mut pass);
            }
        })?;
        self.step += 1;
        Ok(())
    }
}
