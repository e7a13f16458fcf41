//! What is said of batch norm, judged by the measured numbers alone.

use std::fmt;

use super::experiment::{Both, Outcome};
use super::findings::{Findings, Point, mean};

/// A training loss that tells that most has been learned.
const LEARNED: f64 = 0.1;

/// Two networks are compared in how they generalize where both have learned the training images.
const FITTED: f64 = 0.98;

/// Something said of batch norm.
#[derive(Clone, Debug)]
pub struct Claim {
    /// What is said.
    pub claim: &'static str,
    /// What the trainings say to it.
    pub verdict: Verdict,
    /// The measured numbers.
    pub evidence: String,
}

/// What the trainings say to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They show it.
    Shown,
    /// They show a part of it.
    Partly,
    /// They do not show it.
    NotShown,
}

impl Verdict {
    fn shown_if(condition: bool) -> Self {
        if condition {
            Self::Shown
        } else {
            Self::NotShown
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Shown => "shown",
            Self::Partly => "shown in part",
            Self::NotShown => "not shown",
        })
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}. {}", self.claim, self.verdict, self.evidence)
    }
}

/// Judges every claim.
pub fn judge(findings: &Findings) -> Vec<Claim> {
    vec![
        speed(findings),
        tolerance(
            "Learning rates matter less",
            "learning rates",
            &findings.over_rates(),
            findings.settings.good_accuracy,
        ),
        tolerance(
            "Initial weights matter less",
            "initial scales",
            &findings.over_scales(),
            findings.settings.good_accuracy,
        ),
        steadiness(findings),
        regularization(findings),
    ]
}

/// Fewer epochs until the training loss is small?
fn speed(findings: &Findings) -> Claim {
    let common = findings.common();
    let needed = common.train_losses().map(|losses| {
        let first = losses.iter().position(|&loss| loss < LEARNED);
        first.map(|epoch| epoch + 1)
    });
    let words = needed.map(|epoch| match epoch {
        Some(epoch) => format!("in epoch {epoch}"),
        None => "in no epoch".to_owned(),
    });
    Claim {
        claim: "Training is faster",
        verdict: Verdict::shown_if(match (needed.with, needed.without) {
            (Some(with), Some(without)) => with < without,
            (with, _) => with.is_some(),
        }),
        evidence: format!(
            "At learning rate {}, the training loss first falls below {LEARNED} {} with batch norm, \
             {} without.",
            common.value, words.with, words.without
        ),
    }
}

/// Good accuracy at more values of what varies?
fn tolerance(claim: &'static str, variable: &str, points: &[Point], good: f64) -> Claim {
    let good_at = |of: fn(&Both<f64>) -> f64| -> Vec<String> {
        points
            .iter()
            .filter(|point| of(&point.test_accuracy()) >= good)
            .map(|point| point.value.to_string())
            .collect()
    };
    let values = Both {
        without: good_at(|accuracy| accuracy.without),
        with: good_at(|accuracy| accuracy.with),
    };
    let words = values.map(|values| match values.len() {
        0 => "at none".to_owned(),
        count => format!("at {count} ({})", values.join(", ")),
    });
    Claim {
        claim,
        verdict: Verdict::shown_if(values.with.len() > values.without.len()),
        evidence: format!(
            "Of {} {variable}, the mean test accuracy is at least {:.0} % {} with batch norm, {} \
             without.",
            points.len(),
            100.0 * good,
            words.with,
            words.without
        ),
    }
}

/// Less drift of what enters a hidden unit?
fn steadiness(findings: &Findings) -> Claim {
    let range = findings.drift.map(|drift| drift.range);
    // A training that diverged was watched for a shorter time.
    let length = findings.drift.map(|drift| drift.track.len());
    Claim {
        claim: "Inputs of hidden units are steadier",
        verdict: Verdict::shown_if(range.with < range.without && length.with >= length.without),
        evidence: format!(
            "In training, the percentiles (15th, 50th, 85th) of what enters a typical hidden ReLU \
             move within ranges of {:.2} times the distance of the outer two with batch norm, {:.2} \
             times without.",
            range.with, range.without
        ),
    }
}

/// Better on the test images, with less of a gap between them and the training images?
fn regularization(findings: &Findings) -> Claim {
    let fitted = |outcome: &Outcome| outcome.train_accuracy >= FITTED;
    let pairs: Vec<_> = findings
        .comparisons
        .iter()
        .map(|comparison| &comparison.outcomes)
        .filter(|pair| fitted(&pair.without) && fitted(&pair.with))
        .collect();
    let test = Estimate::of(&pairs, |outcome| outcome.test_accuracy);
    let gap = Estimate::of(&pairs, |outcome| {
        outcome.train_accuracy - outcome.test_accuracy
    });
    Claim {
        claim: "It regularizes",
        verdict: match (test.sign(), gap.sign()) {
            (1, -1) => Verdict::Shown,
            (1, _) | (0, -1) => Verdict::Partly,
            _ => Verdict::NotShown,
        },
        evidence: format!(
            "Where both networks read at least {:.0} % of the training images correctly ({} pairs \
             of trainings), the test accuracy with batch norm less that without is {test}; the gap \
             from training to test accuracy, with less without, is {gap}.",
            100.0 * FITTED,
            pairs.len(),
        ),
    }
}

/// The mean of some differences, with batch norm less without.
///
/// Its error is that of the trainings alone: all are tested on the same images.
struct Estimate {
    mean: f64,
    /// Two standard errors.
    error: f64,
}

impl Estimate {
    fn of(pairs: &[&Both<Outcome>], quantity: impl Fn(&Outcome) -> f64) -> Self {
        let differences = pairs
            .iter()
            .map(|pair| quantity(&pair.with) - quantity(&pair.without));
        let mean_difference = mean(differences.clone());
        let variance = mean(differences.map(|difference| (difference - mean_difference).powi(2)));
        Self {
            mean: mean_difference,
            error: 2.0 * (variance / (pairs.len() as f64 - 1.0)).sqrt(),
        }
    }

    /// The sign of the mean, or 0 if it could be chance; also if there are too few pairs to tell.
    fn sign(&self) -> i32 {
        if self.mean > self.error {
            1
        } else if self.mean < -self.error {
            -1
        } else {
            0
        }
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if !self.error.is_finite() {
            return f.write_str("unknown (too few pairs)");
        }
        let judgement = match self.sign() {
            0 => "no clear difference",
            1 => "clearly more",
            _ => "clearly less",
        };
        write!(
            f,
            "{:+.1} ± {:.1} points ({judgement})",
            100.0 * self.mean,
            100.0 * self.error
        )
    }
}
