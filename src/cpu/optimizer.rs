//! Steps of gradient descent. Twin: `shaders/optimizer.wgsl`.

use ndarray::Array1;

use super::BatchNorm;
use crate::{Adam, Algorithm, Error, Gradients, Options, Parameter, RmsProp, Sgd, State};

/// Updates γ and β on the CPU, in f64: the twin of [`crate::Optimizer`].
///
/// A parameter that is frozen or absent stays as it is.
#[derive(Clone, Debug)]
pub struct Optimizer {
    algorithm: Algorithm,
    learned: Learned,
    step: u64,
    gamma: Vec<Memory>,
    beta: Vec<Memory>,
}

/// Which parameters of a layer are learned.
#[derive(Clone, Copy, Debug)]
struct Learned {
    gamma: bool,
    beta: bool,
}

impl Learned {
    fn new(options: &Options) -> Self {
        Self {
            gamma: options.gamma == Parameter::Learned,
            beta: options.beta == Parameter::Learned,
        }
    }
}

/// What an algorithm remembers of one parameter.
#[derive(Clone, Debug, Default)]
struct Memory {
    mean: f64,
    square: f64,
    largest_square: f64,
    velocity: f64,
}

impl Optimizer {
    /// An optimizer for `layer`, before its first step.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for a number out of range.
    pub fn new(layer: &BatchNorm, algorithm: impl Into<Algorithm>) -> Result<Self, Error> {
        let algorithm = algorithm.into();
        algorithm.validate()?;
        let channels = layer.channels();
        Ok(Self {
            algorithm,
            learned: Learned::new(layer.options()),
            step: 0,
            gamma: vec![Memory::default(); channels],
            beta: vec![Memory::default(); channels],
        })
    }

    /// The twin of a GPU optimizer after `step` steps, with the state that the shader keeps for
    /// γ and for β: slot after slot, `channels` values each. Both are learned, until
    /// [`Optimizer::for_options`] says otherwise.
    pub(crate) fn resume(algorithm: &Algorithm, step: u64, states: [&[f32]; 2]) -> Self {
        let [gamma, beta] = states.map(|state| Memory::from_slots(algorithm, state));
        Self {
            algorithm: algorithm.clone(),
            learned: Learned::new(&Options::default()),
            step,
            gamma,
            beta,
        }
    }

    /// The optimizer for a layer of these options.
    pub(crate) fn for_options(mut self, options: &Options) -> Self {
        self.learned = Learned::new(options);
        self
    }

    /// How much the last step magnified relative errors of its state, for each γ and each β:
    /// 1, but for centered RMSProp, which takes a difference.
    pub(crate) fn condition(&self) -> [Vec<f64>; 2] {
        let centered = matches!(&self.algorithm, Algorithm::RmsProp(found) if found.centered);
        [&self.gamma, &self.beta].map(|memories| {
            memories
                .iter()
                .map(|memory| match centered {
                    true => memory.square / (memory.square - memory.mean.powi(2)),
                    false => 1.0,
                })
                .collect()
        })
    }

    /// The algorithm, with its numbers.
    pub fn algorithm(&self) -> &Algorithm {
        &self.algorithm
    }

    /// Sets the learning rate from the next step on.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] if it is not finite or below 0.
    pub fn set_lr(&mut self, lr: f64) -> Result<(), Error> {
        self.algorithm.set_lr(lr)
    }

    /// Updates the layer's γ and β by the gradients of its last backward pass.
    ///
    /// # Errors
    /// [`Error::NoBackward`] before the first backward pass; [`Error::ShapeMismatch`] for a layer
    /// of other channels. Nothing is then changed.
    pub fn step(&mut self, layer: &mut BatchNorm) -> Result<(), Error> {
        crate::layer::check_length("gamma", layer.channels(), self.gamma.len())?;
        if !layer.has_gradients() {
            return Err(Error::NoBackward);
        }
        let gradients = layer.gradients();
        let learned = Learned::new(layer.options());
        self.descend(layer.state_mut(), &gradients, learned)
    }

    /// Updates γ and β of a layer's state by given gradients, each if it is learned in the layer
    /// that the optimizer was made for.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for a vector of another length; nothing is then changed.
    pub fn update(&mut self, state: &mut State, gradients: &Gradients) -> Result<(), Error> {
        self.descend(state, gradients, self.learned)
    }

    fn descend(
        &mut self,
        state: &mut State,
        gradients: &Gradients,
        learned: Learned,
    ) -> Result<(), Error> {
        let channels = self.gamma.len();
        state.check(channels)?;
        crate::layer::check_length("dgamma", gradients.gamma.len(), channels)?;
        crate::layer::check_length("dbeta", gradients.beta.len(), channels)?;
        self.step += 1;
        let both: [(_, _, &mut Array1<f32>, _); 2] = [
            (
                learned.gamma,
                &mut self.gamma,
                &mut state.gamma,
                &gradients.gamma,
            ),
            (
                learned.beta,
                &mut self.beta,
                &mut state.beta,
                &gradients.beta,
            ),
        ];
        for (learned, memories, parameters, gradients) in both {
            if !learned {
                continue;
            }
            for ((memory, parameter), &gradient) in
                memories.iter_mut().zip(parameters).zip(gradients)
            {
                let (p, g) = (f64::from(*parameter), f64::from(gradient));
                *parameter = memory.updated(&self.algorithm, self.step, p, g) as f32;
            }
        }
        Ok(())
    }
}

impl Memory {
    fn from_slots(algorithm: &Algorithm, state: &[f32]) -> Vec<Self> {
        let slots = match algorithm {
            Algorithm::Sgd(_) => 1,
            Algorithm::RmsProp(_) | Algorithm::Adam(_) => 3,
        };
        let channels = state.len() / slots;
        (0..channels)
            .map(|channel| {
                let slot = |index: usize| f64::from(state[index * channels + channel]);
                match algorithm {
                    Algorithm::Sgd(_) => Self {
                        velocity: slot(0),
                        ..Self::default()
                    },
                    Algorithm::RmsProp(_) => Self {
                        square: slot(0),
                        velocity: slot(1),
                        mean: slot(2),
                        ..Self::default()
                    },
                    Algorithm::Adam(_) => Self {
                        mean: slot(0),
                        square: slot(1),
                        largest_square: slot(2),
                        ..Self::default()
                    },
                }
            })
            .collect()
    }

    /// The parameter `p` after step `step`, the first being 1, with the gradient `g`.
    fn updated(&mut self, algorithm: &Algorithm, step: u64, p: f64, g: f64) -> f64 {
        match algorithm {
            Algorithm::Sgd(sgd) => self.sgd(sgd, step, p, g),
            Algorithm::RmsProp(rmsprop) => self.rmsprop(rmsprop, p, g),
            Algorithm::Adam(adam) => self.adam(adam, step, p, g),
        }
    }

    fn sgd(&mut self, sgd: &Sgd, step: u64, p: f64, g: f64) -> f64 {
        let g = g + sgd.weight_decay * p;
        if sgd.momentum == 0.0 {
            return p - sgd.lr * g;
        }
        self.velocity = if step == 1 {
            g
        } else {
            sgd.momentum * self.velocity + (1.0 - sgd.dampening) * g
        };
        if sgd.nesterov {
            p - sgd.lr * (g + sgd.momentum * self.velocity)
        } else {
            p - sgd.lr * self.velocity
        }
    }

    fn rmsprop(&mut self, rmsprop: &RmsProp, p: f64, g: f64) -> f64 {
        let g = g + rmsprop.weight_decay * p;
        self.square = rmsprop.alpha * self.square + (1.0 - rmsprop.alpha) * g.powi(2);
        let mut spread = self.square;
        if rmsprop.centered {
            self.mean = rmsprop.alpha * self.mean + (1.0 - rmsprop.alpha) * g;
            spread = (spread - self.mean.powi(2)).max(0.0);
        }
        self.velocity = rmsprop.momentum * self.velocity + g / (spread.sqrt() + rmsprop.eps);
        p - rmsprop.lr * self.velocity
    }

    fn adam(&mut self, adam: &Adam, step: u64, p: f64, g: f64) -> f64 {
        let [beta_1, beta_2] = adam.betas;
        let g = g + adam.weight_decay * p;
        self.mean = beta_1 * self.mean + (1.0 - beta_1) * g;
        self.square = beta_2 * self.square + (1.0 - beta_2) * g.powi(2);
        self.largest_square = self.largest_square.max(self.square);
        let square = if adam.amsgrad {
            self.largest_square
        } else {
            self.square
        };
        let mean_unbiased = self.mean / (1.0 - beta_1.powf(step as f64));
        let square_unbiased = square / (1.0 - beta_2.powf(step as f64));
        p - adam.lr * mean_unbiased / (square_unbiased.sqrt() + adam.eps)
    }
}
