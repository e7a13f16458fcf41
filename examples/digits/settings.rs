//! How much is trained, and what is expected of it.

use std::path::PathBuf;

use super::experiment::Trial;

/// What the whole experiment varies and what it holds fixed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder for the pictures.
    pub out: PathBuf,
    /// Units of each of the two hidden layers.
    pub hidden_units: usize,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images per step.
    pub batch: usize,
    /// How many trainings of each kind, which differ in initial weights and order of images.
    pub seeds: u64,
    /// The learning rates to compare, with weights of scale 1.
    pub learning_rates: Vec<f64>,
    /// The initial weights to compare, in units of He's, at the learning rate below.
    pub init_scales: Vec<f64>,
    /// The learning rate of all but the comparison of rates.
    pub learning_rate: f64,
    /// Steps from one look at the hidden layers to the next.
    pub steps_per_snapshot: usize,
    /// The test accuracy from which on a training counts as successful.
    pub good_accuracy: f64,
    /// The test accuracy that the best training with batch norm must reach.
    pub required_accuracy: f64,
}

impl Settings {
    /// The form to learn from: a minute or so on two cores without a real GPU.
    ///
    /// Of these learning rates, 0.3 suits the network without batch norm best.
    pub fn full(out: impl Into<PathBuf>) -> Self {
        Self {
            out: out.into(),
            hidden_units: 128,
            epochs: 20,
            batch: 96,
            seeds: 3,
            learning_rates: vec![0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
            init_scales: vec![0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
            learning_rate: 0.3,
            steps_per_snapshot: 3,
            good_accuracy: 0.95,
            required_accuracy: 0.97,
        }
    }

    /// The form to test by: some seconds even without optimization.
    pub fn short(out: impl Into<PathBuf>) -> Self {
        Self {
            hidden_units: 32,
            epochs: 4,
            batch: 48,
            seeds: 1,
            learning_rates: vec![0.3, 3.0],
            init_scales: vec![0.03, 1.0],
            good_accuracy: 0.9,
            required_accuracy: 0.9,
            ..Self::full(out)
        }
    }

    /// Where the two comparisons cross: the trial whose hidden layers are watched.
    pub fn common_trial(&self) -> Trial {
        Trial {
            learning_rate: self.learning_rate,
            init_scale: 1.0,
            seed: 0,
        }
    }
}
