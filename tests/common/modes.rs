//! `tests/data/modes.json`: what PyTorch and Flax answer in the modes of the layer.

use ndarray::{Array1, ArrayD, IxDyn};
use serde::Deserialize;
use wgpu_batchnorm::{Activation, Layout, Momentum, Options, Parameter, RunningVariance, State};

/// All cases.
pub fn load() -> Vec<ModeCase> {
    #[derive(Deserialize)]
    struct Modes {
        cases: Vec<ModeCase>,
    }
    let text = include_str!("../data/modes.json");
    let modes: Modes =
        serde_json::from_str(text).expect("the data has the form that its script writes");
    modes.cases
}

/// A training step in some modes, and an evaluation after it. All lists in memory order.
#[derive(Clone, Deserialize)]
pub struct ModeCase {
    pub name: String,
    /// Who answered: `pytorch` or `flax`.
    pub source: String,
    layout: String,
    pub shape: Vec<usize>,
    pub eps: f64,
    activation: ActivationCase,
    /// The statistics are the running ones, constants for the gradients.
    pub frozen: bool,
    /// The weight of the new batch; without, the running statistics are the average of all batches.
    pub momentum: Option<f64>,
    /// How many batches came before.
    pub num_batches_tracked: u64,
    /// Whether the running variance takes the sample variance, not the population's.
    pub unbiased: bool,
    /// One per position, which is the shape without the channels; without, all are valid.
    valid: Option<Vec<bool>>,
    pub x: Vec<f64>,
    pub dy: Vec<f64>,
    pub residual: Option<Vec<f64>>,
    pub gamma: Option<Vec<f64>>,
    pub beta: Option<Vec<f64>>,
    pub running_mean: Option<Vec<f64>>,
    pub running_var: Option<Vec<f64>>,
    pub y: Vec<f64>,
    pub dx: Vec<f64>,
    pub d_residual: Option<Vec<f64>>,
    pub dgamma: Option<Vec<f64>>,
    pub dbeta: Option<Vec<f64>>,
    pub running_mean_after: Option<Vec<f64>>,
    pub running_var_after: Option<Vec<f64>>,
    pub y_eval: Vec<f64>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum ActivationCase {
    Identity,
    Relu,
    LeakyRelu { slope: f64 },
    Clamp { min: f64, max: f64 },
}

impl ModeCase {
    pub fn options(&self) -> Options {
        let momentum = match self.momentum {
            Some(momentum) => Momentum::OfNew(momentum),
            None => Momentum::Cumulative,
        };
        let running_variance = match self.unbiased {
            true => RunningVariance::Unbiased,
            false => RunningVariance::Population,
        };
        let parameter = |values: &Option<Vec<f64>>| match values {
            Some(_) => Parameter::Learned,
            None => Parameter::Absent,
        };
        Options::default()
            .eps(self.eps)
            .momentum(momentum)
            .running_variance(running_variance)
            .running_statistics(self.running_mean.is_some())
            .frozen_statistics(self.frozen)
            .gamma(parameter(&self.gamma))
            .beta(parameter(&self.beta))
            .activation(self.activation())
    }

    pub fn activation(&self) -> Activation {
        match self.activation {
            ActivationCase::Identity => Activation::Identity,
            ActivationCase::Relu => Activation::Relu,
            ActivationCase::LeakyRelu { slope } => Activation::LeakyRelu { slope },
            ActivationCase::Clamp { min, max } => Activation::Clamp { min, max },
        }
    }

    pub fn layout(&self) -> Layout {
        match self.layout.as_str() {
            "channels_first" => Layout::ChannelsFirst,
            "channels_last" => Layout::ChannelsLast,
            other => panic!("unknown layout {other}"),
        }
    }

    /// Which dimension the channels are.
    fn axis(&self) -> usize {
        match self.layout() {
            Layout::ChannelsFirst => 1,
            Layout::ChannelsLast => self.shape.len() - 1,
        }
    }

    pub fn channels(&self) -> usize {
        self.shape[self.axis()]
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

    /// Which positions are valid, in the shape without the channels.
    pub fn valid(&self) -> Option<ArrayD<bool>> {
        let mut positions = self.shape.clone();
        positions.remove(self.axis());
        let valid = self.valid.clone()?;
        let valid = ArrayD::from_shape_vec(IxDyn(&positions), valid);
        Some(valid.expect("there are as many booleans as positions"))
    }

    /// The state before the step. What is absent has the values of a new layer.
    pub fn state(&self) -> State {
        let new = State::new(self.channels());
        let vector = |values: &Option<Vec<f64>>, absent: Array1<f32>| match values {
            Some(values) => values.iter().map(|&value| value as f32).collect(),
            None => absent,
        };
        State {
            gamma: vector(&self.gamma, new.gamma),
            beta: vector(&self.beta, new.beta),
            running_mean: vector(&self.running_mean, new.running_mean),
            running_var: vector(&self.running_var, new.running_var),
            num_batches_tracked: self.num_batches_tracked,
        }
    }
}
