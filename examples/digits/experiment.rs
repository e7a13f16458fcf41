//! Trains networks and measures them.

use indicatif::{ProgressBar, ProgressStyle};
use ndarray::{Array2, ArrayView1};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use wgpu_batchnorm::Mode;

use super::data::{CLASSES, Digits, Images, PIXELS};
use super::network::{Design, Network, cross_entropy};
use super::normalization::Device;
use super::{Failure, Settings};

/// Enough for the running statistics, of which a tenth is new in each step, to forget their start.
const WARM_UP_STEPS: usize = 50;

/// Something of the network without batch norm and the same of the network with it.
#[derive(Clone, Copy, Debug)]
pub struct Both<T> {
    /// Without batch norm.
    pub without: T,
    /// With batch norm.
    pub with: T,
}

impl<T> Both<T> {
    /// Applies `f` to both.
    pub fn map<U>(&self, f: impl Fn(&T) -> U) -> Both<U> {
        Both {
            without: f(&self.without),
            with: f(&self.with),
        }
    }

    /// Without, with.
    pub fn into_array(self) -> [T; 2] {
        [self.without, self.with]
    }
}

/// What varies from training to training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// The learning rate of every parameter.
    pub learning_rate: f64,
    /// The initial weights' standard deviation, in units of He's.
    pub init_scale: f64,
    /// The seed of the initial weights and of the order of images.
    pub seed: u64,
}

/// What came of one training.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The mean loss of each epoch's steps. It ends early if training diverged.
    pub train_losses: Vec<f32>,
    /// The loss on the test images after each epoch.
    pub test_losses: Vec<f32>,
    /// The fraction of training images that the trained network reads correctly.
    pub train_accuracy: f64,
    /// The fraction of test images that the trained network reads correctly.
    pub test_accuracy: f64,
    /// What enters the last hidden ReLU, through training, if it was watched.
    pub snapshots: Vec<Snapshot>,
}

/// What enters the last hidden ReLU on the test images.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// After how many steps of training.
    pub step: usize,
    /// The 15th, 50th and 85th percentile of each unit.
    pub units: Vec<[f32; 3]>,
}

/// One trial of both networks.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What both have in common.
    pub trial: Trial,
    /// What came of it.
    pub outcomes: Both<Outcome>,
}

/// Compares the networks in all trials of the settings.
pub fn compare_all(settings: &Settings, device: &Device) -> Result<Vec<Comparison>, Failure> {
    let digits = Digits::load()?;
    let trials = trials(settings);
    let common = settings.common_trial();
    let progress = progress_bar(2 * trials.len())?;
    let mut comparisons = Vec::with_capacity(trials.len());
    for trial in trials {
        let train = |batch_norm| {
            let mut training = Training::new(settings, device, &digits, trial, batch_norm)?;
            let outcome = training.run(trial == common);
            progress.inc(1);
            outcome
        };
        let outcomes = Both {
            without: train(false)?,
            with: train(true)?,
        };
        comparisons.push(Comparison { trial, outcomes });
    }
    progress.finish_and_clear();
    Ok(comparisons)
}

/// The common trial, and those that differ from it in the learning rate or in the initial weights;
/// each once, with every seed.
fn trials(settings: &Settings) -> Vec<Trial> {
    let common = settings.common_trial();
    let rates = settings.learning_rates.iter().map(|&learning_rate| Trial {
        learning_rate,
        ..common
    });
    let scales = settings.init_scales.iter().map(|&init_scale| Trial {
        init_scale,
        ..common
    });
    let mut trials = Vec::new();
    for trial in std::iter::once(common).chain(rates).chain(scales) {
        if !trials.contains(&trial) {
            trials.push(trial);
        }
    }
    let with_seeds = |trial| (0..settings.seeds).map(move |seed| Trial { seed, ..trial });
    trials.into_iter().flat_map(with_seeds).collect()
}

/// A progress bar, which shows only on a terminal.
fn progress_bar(trainings: usize) -> Result<ProgressBar, Failure> {
    let style = ProgressStyle::with_template("training {pos} of {len} {wide_bar} {eta} to go")?;
    let bar = ProgressBar::new(trainings.try_into()?).with_style(style);
    bar.tick();
    Ok(bar)
}

/// One network in training.
struct Training<'a> {
    settings: &'a Settings,
    digits: &'a Digits,
    network: Network,
    rng: StdRng,
    steps: usize,
    outcome: Outcome,
}

impl<'a> Training<'a> {
    fn new(
        settings: &'a Settings,
        device: &Device,
        digits: &'a Digits,
        trial: Trial,
        batch_norm: bool,
    ) -> Result<Self, Failure> {
        let mut rng = StdRng::seed_from_u64(trial.seed);
        let design = Design {
            sizes: [
                PIXELS,
                settings.hidden_units,
                settings.hidden_units,
                CLASSES,
            ],
            batch_norm,
            init_scale: trial.init_scale as f32,
            learning_rate: trial.learning_rate,
        };
        Ok(Self {
            settings,
            digits,
            network: Network::new(device, &design, &mut rng)?,
            rng,
            steps: 0,
            outcome: Outcome::default(),
        })
    }

    /// Trains for all epochs, or until the loss is no number any more.
    fn run(&mut self, watch: bool) -> Result<Outcome, Failure> {
        if watch {
            self.warm_up()?;
        }
        let digits = self.digits;
        let mut order: Vec<usize> = (0..digits.train.labels.len()).collect();
        for _ in 0..self.settings.epochs {
            order.shuffle(&mut self.rng);
            let loss = self.epoch(&order, watch)?;
            if !loss.is_finite() {
                break;
            }
            self.outcome.train_losses.push(loss);
            let (loss, _) = self.evaluate(&digits.test)?;
            self.outcome.test_losses.push(loss);
        }
        (_, self.outcome.train_accuracy) = self.evaluate(&digits.train)?;
        (_, self.outcome.test_accuracy) = self.evaluate(&digits.test)?;
        Ok(std::mem::take(&mut self.outcome))
    }

    /// Brings the running statistics of batch norm to those of the initial weights, and changes
    /// nothing else. They start at mean 0 and variance 1, which fit no weights: the first
    /// snapshots would show how they leave there, not how training moves them.
    fn warm_up(&mut self) -> Result<(), Failure> {
        let pixels = &self.digits.train.pixels;
        for _ in 0..WARM_UP_STEPS {
            self.network.forward(pixels, Mode::Train)?;
        }
        Ok(())
    }

    /// Trains on each batch of the images in this order; returns the mean loss.
    fn epoch(&mut self, order: &[usize], watch: bool) -> Result<f32, Failure> {
        let mut losses = Vec::new();
        // The order is new in each epoch, so an incomplete batch may be left out.
        for batch in order.chunks_exact(self.settings.batch) {
            if watch && self.steps.is_multiple_of(self.settings.steps_per_snapshot) {
                self.look()?;
            }
            let loss = self.step(batch)?;
            if !loss.is_finite() {
                return Ok(loss);
            }
            losses.push(loss);
        }
        Ok(losses.iter().sum::<f32>() / losses.len() as f32)
    }

    /// One step of gradient descent; returns the loss before it.
    fn step(&mut self, batch: &[usize]) -> Result<f32, Failure> {
        let images = self.digits.train.select(batch);
        let scores = self.network.forward(&images.pixels, Mode::Train)?;
        let (loss, gradient) = cross_entropy(&scores, &images.labels);
        if loss.is_finite() {
            self.network.backward(&gradient)?;
            self.network.step()?;
            self.steps += 1;
        }
        Ok(loss)
    }

    /// Takes a snapshot of what enters the last hidden ReLU.
    fn look(&mut self) -> Result<(), Failure> {
        self.network.forward(&self.digits.test.pixels, Mode::Eval)?;
        let inputs = self.network.last_relu_input();
        if inputs.iter().all(|value| value.is_finite()) {
            self.outcome.snapshots.push(Snapshot {
                step: self.steps,
                units: inputs.columns().into_iter().map(percentiles).collect(),
            });
        }
        Ok(())
    }

    /// The loss and the accuracy of the network as it is.
    fn evaluate(&mut self, images: &Images) -> Result<(f32, f64), Failure> {
        let scores = self.network.forward(&images.pixels, Mode::Eval)?;
        let (loss, _) = cross_entropy(&scores, &images.labels);
        Ok((loss, accuracy(&scores, &images.labels)))
    }
}

/// The fraction of rows whose largest score is that of the label.
fn accuracy(scores: &Array2<f32>, labels: &[usize]) -> f64 {
    let hits = scores
        .rows()
        .into_iter()
        .zip(labels)
        .filter(|&(row, &label)| largest(row) == label)
        .count();
    hits as f64 / labels.len() as f64
}

/// The index of the largest value; the first if they are not numbers, which is to guess.
fn largest(values: ArrayView1<f32>) -> usize {
    (1..values.len()).fold(0, |best, index| {
        if values[index] > values[best] {
            index
        } else {
            best
        }
    })
}

/// The 15th, 50th and 85th percentile.
fn percentiles(values: ArrayView1<f32>) -> [f32; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let last = (sorted.len() - 1) as f64;
    [0.15, 0.50, 0.85].map(|fraction| sorted[(fraction * last).round() as usize])
}
