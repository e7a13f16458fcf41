//! What the trainings show, in numbers.

use std::fmt;
use std::path::PathBuf;

use super::claims::{self, Claim};
use super::experiment::{Both, Comparison, Outcome, Snapshot};
use super::{Failure, Settings};

/// All that the experiment found.
#[derive(Clone, Debug)]
pub struct Findings {
    /// What was asked for.
    pub settings: Settings,
    /// Where batch norm ran.
    pub device: String,
    /// All trainings.
    pub comparisons: Vec<Comparison>,
    /// How the input of a typical hidden unit drifted in training.
    pub drift: Both<Drift>,
    /// What is said of batch norm, judged by these trainings.
    pub claims: Vec<Claim>,
    /// The pictures.
    pub files: Vec<PathBuf>,
}

impl Findings {
    /// Sums up the trainings. There are no pictures yet.
    pub fn new(
        settings: &Settings,
        device: String,
        comparisons: Vec<Comparison>,
    ) -> Result<Self, Failure> {
        let common = settings.common_trial();
        let Comparison { outcomes, .. } = comparisons
            .iter()
            .find(|comparison| comparison.trial == common)
            .ok_or("the common trial is missing")?;
        let drift = Both {
            without: Drift::typical(&outcomes.without.snapshots)?,
            with: Drift::typical(&outcomes.with.snapshots)?,
        };
        let mut findings = Self {
            settings: settings.clone(),
            device,
            comparisons,
            drift,
            claims: Vec::new(),
            files: Vec::new(),
        };
        findings.claims = claims::judge(&findings);
        Ok(findings)
    }

    /// The trainings of the common trial, with every seed.
    pub fn common(&self) -> Point<'_> {
        let common = self.settings.common_trial();
        self.point(
            common.learning_rate,
            common.learning_rate,
            common.init_scale,
        )
    }

    /// The trainings over the learning rate.
    pub fn over_rates(&self) -> Vec<Point<'_>> {
        let scale = self.settings.common_trial().init_scale;
        let rates = self.settings.learning_rates.iter();
        rates.map(|&rate| self.point(rate, rate, scale)).collect()
    }

    /// The trainings over the scale of the initial weights.
    pub fn over_scales(&self) -> Vec<Point<'_>> {
        let rate = self.settings.common_trial().learning_rate;
        let scales = self.settings.init_scales.iter();
        scales
            .map(|&scale| self.point(scale, rate, scale))
            .collect()
    }

    fn point(&self, value: f64, learning_rate: f64, init_scale: f64) -> Point<'_> {
        let here = || {
            self.comparisons
                .iter()
                .filter(move |Comparison { trial, .. }| {
                    trial.learning_rate == learning_rate && trial.init_scale == init_scale
                })
        };
        Point {
            value,
            outcomes: Both {
                without: here().map(|found| &found.outcomes.without).collect(),
                with: here().map(|found| &found.outcomes.with).collect(),
            },
        }
    }

    /// The best test accuracy of all trainings.
    pub fn best_test_accuracy(&self) -> Both<f64> {
        let best = |of: fn(&Both<Outcome>) -> &Outcome| {
            let all = self.comparisons.iter();
            all.map(|found| of(&found.outcomes).test_accuracy)
                .fold(0.0, f64::max)
        };
        Both {
            without: best(|both| &both.without),
            with: best(|both| &both.with),
        }
    }

    /// Whether batch norm reached the accuracy that it should.
    pub fn accurate_enough(&self) -> bool {
        self.best_test_accuracy().with >= self.settings.required_accuracy
    }
}

/// The trainings at one learning rate and one scale of the initial weights.
#[derive(Clone, Debug)]
pub struct Point<'a> {
    /// The learning rate or the scale: whichever varies.
    pub value: f64,
    /// What came of the trainings, one for each seed.
    pub outcomes: Both<Vec<&'a Outcome>>,
}

impl Point<'_> {
    /// The mean accuracy on the training images.
    pub fn train_accuracy(&self) -> Both<f64> {
        self.outcomes
            .map(|outcomes| mean(outcomes.iter().map(|outcome| outcome.train_accuracy)))
    }

    /// The mean accuracy on the test images.
    pub fn test_accuracy(&self) -> Both<f64> {
        self.outcomes
            .map(|outcomes| mean(outcomes.iter().map(|outcome| outcome.test_accuracy)))
    }

    /// The accuracy of each training on the test images.
    pub fn test_accuracies(&self) -> Both<Vec<f64>> {
        self.outcomes.map(|outcomes| {
            outcomes
                .iter()
                .map(|outcome| outcome.test_accuracy)
                .collect()
        })
    }

    /// The mean training loss of each epoch, as long as no training diverged.
    pub fn train_losses(&self) -> Both<Vec<f64>> {
        self.mean_curve(|outcome| &outcome.train_losses)
    }

    /// The mean test loss after each epoch, as long as no training diverged.
    pub fn test_losses(&self) -> Both<Vec<f64>> {
        self.mean_curve(|outcome| &outcome.test_losses)
    }

    fn mean_curve(&self, of: impl Fn(&Outcome) -> &[f32]) -> Both<Vec<f64>> {
        self.outcomes.map(|outcomes| {
            let epochs = outcomes.iter().map(|outcome| of(outcome).len()).min();
            (0..epochs.unwrap_or(0))
                .map(|epoch| mean(outcomes.iter().map(|outcome| of(outcome)[epoch].into())))
                .collect()
        })
    }
}

/// The mean; NaN of nothing.
pub fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// How the input of one hidden unit drifted in training.
#[derive(Clone, Debug)]
pub struct Drift {
    /// Steps of training, and the 15th, 50th and 85th percentile after so many.
    pub track: Vec<(usize, [f32; 3])>,
    /// The width of the range that each percentile went through, on average, in units of the
    /// mean distance from the 15th to the 85th.
    pub range: f64,
}

impl Drift {
    /// That of the unit whose range is the median of all units.
    fn typical(snapshots: &[Snapshot]) -> Result<Self, Failure> {
        let units = snapshots.first().map_or(0, |first| first.units.len());
        let mut drifts: Vec<_> = (0..units).map(|unit| Self::of(snapshots, unit)).collect();
        drifts.sort_by(|a, b| a.range.total_cmp(&b.range));
        let typical = drifts.into_iter().nth(units / 2);
        Ok(typical.ok_or("the common trial was not watched")?)
    }

    fn of(snapshots: &[Snapshot], unit: usize) -> Self {
        let track: Vec<_> = snapshots
            .iter()
            .map(|snapshot| (snapshot.step, snapshot.units[unit]))
            .collect();
        let width = |low: f32, high: f32| f64::from(high) - f64::from(low);
        let range = |index: usize| {
            let values = || track.iter().map(|(_, percentiles)| percentiles[index]);
            width(
                values().fold(f32::INFINITY, f32::min),
                values().fold(f32::NEG_INFINITY, f32::max),
            )
        };
        let distance = mean(track.iter().map(|&(_, [low, _, high])| width(low, high)));
        Self {
            range: mean((0..3).map(range)) / distance,
            track,
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Settings {
            epochs,
            seeds,
            learning_rate,
            required_accuracy,
            ..
        } = self.settings;
        writeln!(
            f,
            "Accuracy in % after {epochs} epochs, averaged (seeds: {seeds})\n"
        )?;
        writeln!(f, "Initial weights of scale 1 (He's):")?;
        write_table(f, "learning rate", &self.over_rates())?;
        writeln!(f, "\nLearning rate {learning_rate}:")?;
        write_table(f, "initial scale", &self.over_scales())?;
        writeln!(
            f,
            "\nWhat is said of batch norm, and what these trainings say:"
        )?;
        for claim in &self.claims {
            writeln!(f, "- {claim}")?;
        }
        writeln!(f, "\nPictures:")?;
        for file in &self.files {
            writeln!(f, "  {}", file.display())?;
        }
        let best = self.best_test_accuracy().map(|accuracy| 100.0 * accuracy);
        writeln!(
            f,
            "\nBest test accuracy: {:.1} % with batch norm, {:.1} % without.",
            best.with, best.without
        )?;
        write!(
            f,
            "Batch norm should reach {:.0} %, and did{}.",
            100.0 * required_accuracy,
            if self.accurate_enough() { "" } else { " not" }
        )
    }
}

fn write_table(f: &mut fmt::Formatter, variable: &str, points: &[Point]) -> fmt::Result {
    writeln!(f, "{:13}  {:^15}  {:^15}", "", "without", "with batch norm")?;
    writeln!(
        f,
        "{variable:13}  {0:>7} {1:>7}  {0:>7} {1:>7}",
        "train", "test"
    )?;
    for point in points {
        let train = point.train_accuracy().map(|accuracy| 100.0 * accuracy);
        let test = point.test_accuracy().map(|accuracy| 100.0 * accuracy);
        writeln!(
            f,
            "{:<13}  {:7.1} {:7.1}  {:7.1} {:7.1}",
            point.value, train.without, test.without, train.with, test.with
        )?;
    }
    Ok(())
}
