//! What the tests share: the machine's adapters as test trials, random arrays, reference data.

#![allow(dead_code, reason = "every test binary uses a part of this")]

pub mod modes;
pub mod operations;

use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Failed, Trial};
use ndarray::{Array1, ArrayD, IxDyn};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Normal};
use serde::Deserialize;
use wgpu_batchnorm::{Error, Gpu, Layout, Mode, Options, RunningVariance, State, wgpu};

/// An adapter of this machine. Its tests run one after the other: the software adapters use all
/// cores by themselves.
#[derive(Clone)]
pub struct Adapter {
    name: String,
    /// What wgpu says of it.
    pub info: wgpu::AdapterInfo,
    /// The open device, or why it does not open.
    gpu: Arc<Mutex<Result<Gpu, Error>>>,
}

impl Adapter {
    /// Every adapter of this machine.
    pub fn all() -> Vec<Self> {
        let adapters = Gpu::adapters_blocking();
        let opened = adapters.iter().map(|adapter| {
            let gpu = Gpu::from_adapter_blocking(adapter);
            let info = adapter.get_info();
            Self {
                name: format!("{:?}/{}", info.backend, info.name),
                gpu: Arc::new(Mutex::new(gpu)),
                info,
            }
        });
        opened.collect()
    }

    /// A test on this adapter, with the adapter in its name.
    pub fn trial(
        &self,
        name: impl std::fmt::Display,
        test: impl FnOnce(&Gpu) -> Outcome + Send + 'static,
    ) -> Trial {
        let gpu = Arc::clone(&self.gpu);
        Trial::test(format!("[{}] {name}", self.name), move || {
            // A test that failed leaves nothing behind in the device.
            let gpu = gpu.lock().unwrap_or_else(PoisonError::into_inner);
            let gpu = gpu
                .as_ref()
                .map_err(|error| format!("the adapter does not open: {error}"))?;
            test(gpu).map_err(|error| Failed::from(error.to_string()))
        })
    }
}

/// Which cases of a test an adapter takes: all, or where there are several software adapters, as many as the
/// others, so that together they take all.
///
/// Nearly every mode in every shape has kernels of its own, and to compile these takes nearly all of a test's
/// time on a software adapter. Mesa's, for Vulkan and for OpenGL, have one compiler; but OpenGL has no words of 64
/// bits, and there a case that asks for them goes without.
pub struct Turn {
    index: usize,
    adapters: usize,
}

impl Turn {
    pub fn of(gpu: &Gpu) -> Self {
        let software: Vec<_> = Gpu::adapters_blocking()
            .iter()
            .map(|adapter| adapter.get_info())
            .filter(|info| info.device_type == wgpu::DeviceType::Cpu)
            .map(|info| (info.backend, info.name))
            .collect();
        let own = (gpu.info().backend, gpu.info().name.clone());
        match software.iter().position(|other| *other == own) {
            Some(index) => Self {
                index,
                adapters: software.len(),
            },
            None => Self {
                index: 0,
                adapters: 1,
            },
        }
    }

    pub fn has(&self, case: usize) -> bool {
        case % self.adapters == self.index
    }
}

/// A test's result: any error fails it.
pub type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A test that shows as ignored where there is no adapter.
pub fn needs_an_adapter(name: &str) -> Trial {
    Trial::test(format!("[no GPU adapter found] {name}"), || {
        Err(Failed::from("no GPU adapter found"))
    })
    .with_ignored_flag(true)
}

/// Fails a test with a message if a condition does not hold.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err(format!($($message)+).into());
        }
    };
}

/// Normally distributed values, the same for the same seed.
pub fn normal(dims: &[usize], mean: f64, deviation: f64, seed: u64) -> ArrayD<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    let normal = Normal::new(mean, deviation).expect("the deviation is finite");
    ArrayD::from_shape_simple_fn(dims, || normal.sample(&mut random) as f32)
}

/// Normally distributed values, one per channel.
pub fn normal_vector(channels: usize, mean: f64, deviation: f64, seed: u64) -> Array1<f32> {
    Array1::from_iter(normal(&[channels], mean, deviation, seed))
}

/// Fails with the first value that is further from the expected one than allowed.
pub fn ensure_close<'a>(
    what: &str,
    found: impl IntoIterator<Item = &'a f32>,
    expected: impl IntoIterator<Item = &'a f64>,
    allowed: impl Fn(usize, f64) -> f64,
) -> Outcome {
    let mut found = found.into_iter();
    let mut expected = expected.into_iter();
    let mut index = 0;
    loop {
        match (found.next(), expected.next()) {
            (None, None) => return Ok(()),
            (Some(&found), Some(&expected)) => {
                let allowed = allowed(index, expected);
                let apart = (f64::from(found) - expected).abs();
                ensure!(
                    apart <= allowed,
                    "{what}[{index}] is {found:e}, expected {expected:e}: {apart:e} apart, {allowed:e} allowed"
                );
            }
            _ => return Err(format!("{what} ends at {index}, on one side only").into()),
        }
        index += 1;
    }
}

/// The largest magnitude.
pub fn largest<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    values
        .into_iter()
        .fold(0.0, |largest: f64, value| largest.max(value.abs()))
}

/// `tests/data/pytorch.json`, written by the script beside it.
#[derive(Deserialize)]
pub struct PyTorch {
    pub layers: Vec<LayerCase>,
    pub optimizers: Vec<OptimizerCase>,
}

impl PyTorch {
    pub fn load() -> Self {
        let text = include_str!("../data/pytorch.json");
        serde_json::from_str(text).expect("the data has the form that its script writes")
    }
}

/// A batch normalization in training, and an evaluation after it. All lists in memory order.
#[derive(Clone, Deserialize)]
pub struct LayerCase {
    pub name: String,
    layout: String,
    pub shape: Vec<usize>,
    pub eps: f64,
    pub momentum: f64,
    pub x: Vec<f64>,
    pub dy: Vec<f64>,
    pub gamma: Vec<f64>,
    pub beta: Vec<f64>,
    pub running_mean: Vec<f64>,
    pub running_var: Vec<f64>,
    pub y: Vec<f64>,
    pub dx: Vec<f64>,
    pub dgamma: Vec<f64>,
    pub dbeta: Vec<f64>,
    pub running_mean_after: Vec<f64>,
    pub running_var_after: Vec<f64>,
    pub y_eval: Vec<f64>,
}

impl LayerCase {
    pub fn layout(&self) -> Layout {
        match self.layout.as_str() {
            "channels_first" => Layout::ChannelsFirst,
            "channels_last" => Layout::ChannelsLast,
            other => panic!("unknown layout {other}"),
        }
    }

    /// A list of values as an array of the case's shape.
    pub fn array(&self, values: &[f64]) -> ArrayD<f64> {
        ArrayD::from_shape_vec(IxDyn(&self.shape), values.to_vec())
            .expect("a list has as many values as the shape says")
    }

    /// The same, in f32. The inputs of the data are f32 numbers, so this is exact for them.
    pub fn array_f32(&self, values: &[f64]) -> ArrayD<f32> {
        self.array(values).mapv(|value| value as f32)
    }

    /// The magnitude of what cancels in `dx`: |γ|·max|dy|/√(var + eps).
    pub fn dx_scale(&self, var: &Array1<f64>) -> f64 {
        let steepest = self
            .gamma
            .iter()
            .zip(var)
            .map(|(gamma, var)| gamma.abs() / (var + self.eps).sqrt())
            .fold(0.0, f64::max);
        steepest * largest(&self.dy)
    }
}

/// A descent of one parameter vector.
#[derive(Clone, Deserialize)]
pub struct OptimizerCase {
    pub name: String,
    algorithm: String,
    pub initial: Vec<f32>,
    pub gradients: Vec<Vec<f32>>,
    pub parameters: Vec<Vec<f64>>,
    lr: f64,
    #[serde(default)]
    momentum: f64,
    #[serde(default)]
    dampening: f64,
    weight_decay: f64,
    #[serde(default)]
    nesterov: bool,
    #[serde(default)]
    alpha: f64,
    #[serde(default)]
    eps: f64,
    #[serde(default)]
    centered: bool,
    #[serde(default)]
    betas: [f64; 2],
    #[serde(default)]
    amsgrad: bool,
}

impl OptimizerCase {
    pub fn algorithm(&self) -> wgpu_batchnorm::Algorithm {
        use wgpu_batchnorm::{Adam, RmsProp, Sgd};
        let &Self {
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            alpha,
            eps,
            centered,
            betas,
            amsgrad,
            ..
        } = self;
        match self.algorithm.as_str() {
            "sgd" => Sgd {
                lr,
                momentum,
                dampening,
                weight_decay,
                nesterov,
            }
            .into(),
            "rmsprop" => RmsProp {
                lr,
                alpha,
                eps,
                weight_decay,
                momentum,
                centered,
            }
            .into(),
            "adam" => Adam {
                lr,
                betas,
                eps,
                weight_decay,
                amsgrad,
            }
            .into(),
            other => panic!("unknown algorithm {other}"),
        }
    }
}

/// `tests/data/onnx_nodes.json`, written by the script beside it.
#[derive(Deserialize)]
pub struct Onnx {
    pub cases: Vec<OnnxCase>,
}

impl Onnx {
    pub fn load() -> Self {
        let text = include_str!("../data/onnx_nodes.json");
        serde_json::from_str(text).expect("the data has the form that its script writes")
    }
}

/// A node test of ONNX's BatchNormalization, channels first.
#[derive(Clone, Deserialize)]
pub struct OnnxCase {
    pub name: String,
    shape: Vec<usize>,
    epsilon: f64,
    /// The weight of the old value.
    momentum: f64,
    training_mode: bool,
    x: Vec<f32>,
    scale: Vec<f32>,
    bias: Vec<f32>,
    input_mean: Vec<f32>,
    input_var: Vec<f32>,
    pub y: Vec<f64>,
    #[serde(default)]
    pub running_mean: Vec<f64>,
    #[serde(default)]
    pub running_var: Vec<f64>,
}

impl OnnxCase {
    /// ONNX's conventions in ours: its momentum weighs the old value, its running variance is the
    /// population one.
    pub fn options(&self) -> Options {
        Options::default()
            .eps(self.epsilon)
            .momentum(1.0 - self.momentum)
            .running_variance(RunningVariance::Population)
    }

    pub fn mode(&self) -> Mode {
        match self.training_mode {
            true => Mode::Train,
            false => Mode::Eval,
        }
    }

    pub fn x(&self) -> ArrayD<f32> {
        ArrayD::from_shape_vec(IxDyn(&self.shape), self.x.clone())
            .expect("a list has as many values as the shape says")
    }

    pub fn state(&self) -> State {
        State {
            gamma: Array1::from(self.scale.clone()),
            beta: Array1::from(self.bias.clone()),
            running_mean: Array1::from(self.input_mean.clone()),
            running_var: Array1::from(self.input_var.clone()),
            num_batches_tracked: 0,
        }
    }

    /// Fails unless `y` and, in training, the running statistics are those of the case. ONNX
    /// computed them in f32, with errors of its own up to 1.1e-6.
    pub fn ensure(&self, y: &ArrayD<f32>, state: &State) -> Outcome {
        let allowed = |_, expected: f64| 2e-6 * expected.abs().max(1.0);
        ensure_close("y", y, &self.y, allowed)?;
        if self.training_mode {
            ensure_close("mean", &state.running_mean, &self.running_mean, allowed)?;
            ensure_close("var", &state.running_var, &self.running_var, allowed)?;
        }
        Ok(())
    }
}
