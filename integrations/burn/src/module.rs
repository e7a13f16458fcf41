//! The module, in the place of burn's `BatchNorm`.

use burn::backend::Dispatch;
use burn::config::{Config, config_to_json};
use burn::module::{
    Content, DisplaySettings, Flag, Initializer, Module, ModuleDisplay, Param, RunningState,
};
use burn::nn::BatchNormConfig;
use burn::serde::{Deserialize, Serialize};
use burn::tensor::{DType, Device, Tensor, activation, assert_shape};

use crate::device::{Settings, Site, site};
use crate::ops::{BatchNormOps, Maybe};

/// Which variance of a batch enters the running variance. Normalization itself always uses that of
/// the population.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(crate = "burn::serde")]
pub enum RunningVariance {
    /// `Σ(x − mean)² / M`: burn's, and the default.
    #[default]
    Population,
    /// `Σ(x − mean)² / (M − 1)`: PyTorch's.
    Unbiased,
}

impl From<RunningVariance> for wgpu_batchnorm::RunningVariance {
    fn from(variance: RunningVariance) -> Self {
        match variance {
            RunningVariance::Population => Self::Population,
            RunningVariance::Unbiased => Self::Unbiased,
        }
    }
}

/// The config of a [`FusedBatchNorm`]: that of burn's `BatchNorm`, and what is fused. A file with burn's
/// config loads as one in which nothing is.
// Not derived: burn's derive reads only files in which every field is.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(crate = "burn::serde")]
pub struct FusedBatchNormConfig {
    /// The number of channels. At least 1.
    pub num_features: usize,
    /// What is added to the variance, finite and positive. Default: 1e-5
    pub epsilon: f64,
    /// The weight of a batch in the running statistics, in 0 … 1. Default: 0.1
    pub momentum: f64,
    /// Whether a ReLU follows, without a pass over memory of its own. Default: no
    #[serde(default)]
    pub relu: bool,
    /// Which variance enters the running one. Default: burn's
    #[serde(default)]
    pub running_variance: RunningVariance,
}

impl Config for FusedBatchNormConfig {}

impl std::fmt::Display for FusedBatchNormConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&config_to_json(self))
    }
}

impl From<BatchNormConfig> for FusedBatchNormConfig {
    fn from(config: BatchNormConfig) -> Self {
        Self {
            num_features: config.num_features,
            epsilon: config.epsilon,
            momentum: config.momentum,
            relu: false,
            running_variance: RunningVariance::default(),
        }
    }
}

impl FusedBatchNormConfig {
    /// Of so many channels, with the defaults.
    pub fn new(num_features: usize) -> Self {
        BatchNormConfig::new(num_features).into()
    }

    /// Sets what is added to the variance.
    pub fn with_epsilon(self, epsilon: f64) -> Self {
        Self { epsilon, ..self }
    }

    /// Sets the weight of a batch in the running statistics.
    pub fn with_momentum(self, momentum: f64) -> Self {
        Self { momentum, ..self }
    }

    /// Sets whether a ReLU follows.
    pub fn with_relu(self, relu: bool) -> Self {
        Self { relu, ..self }
    }

    /// Sets which variance enters the running one.
    pub fn with_running_variance(self, running_variance: RunningVariance) -> Self {
        Self {
            running_variance,
            ..self
        }
    }

    /// A module with γ = 1, β = 0, running mean 0 and running variance 1.
    ///
    /// # Panics
    /// For no features, an epsilon that is not finite and positive as an f32, or a momentum out of
    /// 0 … 1.
    pub fn init(&self, device: &Device) -> FusedBatchNorm {
        let features = self.num_features;
        assert!(features > 0, "num_features must be at least 1");
        let (relu, variance) = (self.relu, self.running_variance);
        let settings = Settings::new(self.epsilon, self.momentum, relu, variance, false);
        if let Err(error) = settings.options().validate() {
            panic!("FusedBatchNormConfig: {error}");
        }
        FusedBatchNorm {
            gamma: Initializer::Ones.init([features], device),
            beta: Initializer::Zeros.init([features], device),
            training: Param::from_bool(true),
            running_mean: RunningState::new(Tensor::zeros([features], device)),
            running_var: RunningState::new(Tensor::ones([features], device)),
            momentum: self.momentum,
            epsilon: self.epsilon,
            relu: self.relu,
            running_variance: self.running_variance,
        }
    }
}

/// Batch normalization as one operator: `y = act((x − mean)·γ/√(var + eps) + β [+ residual])`.
///
/// It stands in the place of burn's `BatchNorm`: the same parameters, the same records, the same
/// choice of what is done. On an autodiff device, unless the module is frozen, it normalizes by the
/// mean and the population variance of the batch and steps the running statistics; else by the
/// running ones. Made by [`FusedBatchNormConfig`]. Where it runs, the [crate's page](crate) says.
///
/// # Shapes
/// `[batch, num_features, …]`, of any rank from 2 on, f32, f16 or bf16.
///
/// # Accuracy
/// On a known wgpu device that of [`wgpu_batchnorm::Plan`], at any offset of `x`. burn's own loses digits
/// where the mean is large against the deviation.
///
/// # Differences
/// Of a batch with one value per channel the running statistics stay as they are, since it has no
/// variance. burn takes it for 0. An empty batch in training is a panic, and steps nothing.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct FusedBatchNorm {
    /// The scale γ, `[num_features]`.
    pub gamma: Param<Tensor<1>>,
    /// The shift β, `[num_features]`.
    pub beta: Param<Tensor<1>>,
    /// Whether the module trains, where the device does.
    pub training: Param<Flag>,
    /// The running mean, `[num_features]`.
    pub running_mean: RunningState<Tensor<1>>,
    /// The running variance, `[num_features]`.
    pub running_var: RunningState<Tensor<1>>,
    /// The weight of a batch in the running statistics.
    pub momentum: f64,
    /// What is added to the variance.
    pub epsilon: f64,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// Which variance enters the running one.
    #[module(skip)]
    pub running_variance: RunningVariance,
}

impl FusedBatchNorm {
    /// Normalizes `input`.
    ///
    /// # Panics
    /// Unless `input` is `[batch, num_features, …]`; in training for an empty batch; on a wgpu
    /// device that is not known, see [`crate::register`]; for a tensor that is too large for it.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.apply(input, None)
    }

    /// Normalizes `input` and adds `residual` before the activation, which is how a residual block
    /// ends.
    ///
    /// # Panics
    /// As [`FusedBatchNorm::forward`], and unless `residual` has the shape and type of `input`.
    pub fn forward_residual<const D: usize>(
        &self,
        input: Tensor<D>,
        residual: Tensor<D>,
    ) -> Tensor<D> {
        assert_eq!(
            (input.dims(), input.dtype()),
            (residual.dims(), residual.dtype()),
            "FusedBatchNorm: a residual has the shape and type of the input"
        );
        self.apply(input, Some(residual))
    }

    fn apply<const D: usize>(&self, input: Tensor<D>, residual: Option<Tensor<D>>) -> Tensor<D> {
        let [num_features] = self.gamma.shape().dims();
        assert_shape!(input, [_, num_features, ..]);
        let device = input.device();
        let trains = device.is_autodiff() && self.training.is_enabled();
        let empty = input.shape().num_elements() == 0;
        assert!(
            !(trains && empty),
            "FusedBatchNorm: an empty batch has no statistics"
        );
        match site(&device, input.dtype()) {
            // Of an empty batch there is nothing to bind.
            Some((site, dtype)) if !empty => self.fused(&site, dtype, input, residual, trains),
            _ => self.composed(input, residual, trains),
        }
    }

    /// By the one operator.
    fn fused<const D: usize>(
        &self,
        site: &Site,
        dtype: wgpu_batchnorm::DType,
        input: Tensor<D>,
        residual: Option<Tensor<D>>,
        trains: bool,
    ) -> Tensor<D> {
        let device = input.device();
        let settings = Settings::new(
            self.epsilon,
            self.momentum,
            self.relu,
            self.running_variance,
            !trains,
        );
        let planned = site.plan(&input.dims(), dtype, settings);
        let vector = |vector: Tensor<1>| cast(vector, DType::F32).into_dispatch();
        let residual = Maybe::from(residual.map(Tensor::into_dispatch));
        let (gamma, beta) = (vector(self.gamma.val()), vector(self.beta.val()));
        let input = input.into_dispatch();
        if !trains {
            let mean = vector(self.running_mean.value().to_device(&device));
            let var = vector(self.running_var.value().to_device(&device));
            return Tensor::from_dispatch(Dispatch::wgpu_batch_norm_inference(
                input, gamma, beta, residual, mean, var, planned,
            ));
        }
        let [mean, var] =
            [&self.running_mean, &self.running_var].map(|state| before(state, &device));
        let (mean_dtype, var_dtype) = (mean.dtype(), var.dtype());
        let found = Dispatch::wgpu_batch_norm_forward(
            input,
            gamma,
            beta,
            residual,
            vector(mean),
            vector(var),
            planned,
        );
        let step = |state: &RunningState<Tensor<1>>, stepped, dtype: DType| {
            let stepped = Tensor::<1>::from_dispatch(stepped);
            state.update(cast(stepped, dtype).detach());
        };
        step(&self.running_mean, found.running_mean, mean_dtype);
        step(&self.running_var, found.running_var, var_dtype);
        Tensor::from_dispatch(found.y)
    }

    /// By burn's own operations, in the type of `input`.
    fn composed<const D: usize>(
        &self,
        input: Tensor<D>,
        residual: Option<Tensor<D>>,
        trains: bool,
    ) -> Tensor<D> {
        let device = input.device();
        let vector = |vector: Tensor<1>| cast(vector, input.dtype());
        let (gamma, beta) = (vector(self.gamma.val()), vector(self.beta.val()));
        let output = if trains {
            let values = input.shape().num_elements() / self.gamma.shape().num_elements();
            let found = burn::tensor::module::batch_norm_train(input, gamma, beta, self.epsilon);
            if values > 1 {
                let degrees = match self.running_variance {
                    RunningVariance::Population => values,
                    RunningVariance::Unbiased => values - 1,
                };
                let variance = found.variance.mul_scalar(values as f64 / degrees as f64);
                let step = |state: &RunningState<Tensor<1>>, batch: Tensor<1>| {
                    let old = before(state, &device);
                    let batch = cast(batch.detach(), old.dtype());
                    let new = old
                        .mul_scalar(1.0 - self.momentum)
                        .add(batch.mul_scalar(self.momentum));
                    state.update(new.detach());
                };
                step(&self.running_mean, found.mean);
                step(&self.running_var, variance);
            }
            found.output
        } else {
            let mean = vector(self.running_mean.value().to_device(&device));
            let var = vector(self.running_var.value().to_device(&device));
            burn::tensor::module::batch_norm(input, gamma, beta, mean, var, self.epsilon)
        };
        let output = match residual {
            Some(residual) => output.add(residual),
            None => output,
        };
        match self.relu {
            true => activation::relu(output),
            false => output,
        }
    }
}

/// A vector in another type, for which one that is quantized has to be a float first. It costs nothing
/// where it has the type.
fn cast(vector: Tensor<1>, dtype: DType) -> Tensor<1> {
    vector.dequantize().cast(dtype)
}

/// Running statistics before a step, which leaves them floats if they were quantized.
fn before(state: &RunningState<Tensor<1>>, device: &Device) -> Tensor<1> {
    state.value_sync().to_device(device).dequantize()
}

impl ModuleDisplay for FusedBatchNorm {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_new_line_after_attribute(false)
            .optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [num_features] = self.beta.shape().dims();
        let content = content
            .add("num_features", &num_features)
            .add("momentum", &self.momentum)
            .add("epsilon", &self.epsilon)
            .add("relu", &self.relu)
            .add("running_variance", &format!("{:?}", self.running_variance));
        match self.training.is_enabled() {
            true => content.optional(),
            false => content.add("training", &self.training).optional(),
        }
    }
}
