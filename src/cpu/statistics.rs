//! Mean and variance of each channel, and the running statistics. Twin: `shaders/statistics.wgsl`.

use std::ops::Range;

use ndarray::{Array1, ArrayBase, ArrayD, Data, Dimension};

use super::walk::{Block, PerChannel, Terms, Walk};
use super::{Element, Valid, Values};
use crate::layer::check_length;
use crate::{Error, Layout, Options};

/// The mean and the population variance of each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// `Σx / M`.
    pub mean: Array1<f64>,
    /// `Σ(x − mean)² / M`.
    pub var: Array1<f64>,
    /// M: how many values of each channel they were taken over. A gradient through them divides by
    /// it. Infinite for constants, through which no gradient flows.
    pub count: f64,
}

impl Statistics {
    /// Statistics that do not depend on the batch: running ones, say.
    pub fn constant(mean: Array1<f64>, var: Array1<f64>) -> Self {
        Self {
            mean,
            var,
            count: f64::INFINITY,
        }
    }

    /// Fails unless there is one value per channel, and the count is one.
    pub(super) fn check(&self, channels: usize) -> Result<(), Error> {
        check_length("mean", self.mean.len(), channels)?;
        check_length("var", self.var.len(), channels)?;
        if self.count >= 0.0 {
            return Ok(());
        }
        Err(Error::InvalidParameter {
            name: "count",
            expected: "at least 0",
            value: self.count,
        })
    }

    /// Whether they move with the values that they were taken over.
    pub(super) fn depend_on_batch(&self) -> bool {
        self.count > 0.0 && self.count.is_finite()
    }

    /// `√(var + eps)` of a channel.
    pub(super) fn deviation(&self, channel: usize, eps: f64) -> f64 {
        (self.var[channel] + eps).sqrt()
    }
}

/// How many values each channel has, their mean and their spread: what is known of a batch, or of a
/// part of one, which can be merged with others.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// M: how many values of each channel.
    pub count: f64,
    /// `Σx / M`; 0 without values.
    pub mean: Array1<f64>,
    /// `Σ(x − mean)²`
    pub m2: Array1<f64>,
}

impl Moments {
    /// The moments of all parts together, by Chan's formula (Chan, Golub & LeVeque 1979): as those
    /// of one batch, but for roundings. A part without values contributes nothing, whatever its
    /// mean.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] if there is no part, or the count of one is negative or not
    /// finite; [`Error::ShapeMismatch`] if the vectors differ in length.
    pub fn merge(parts: &[Self]) -> Result<Self, Error> {
        let Some(first) = parts.first() else {
            return Err(Error::InvalidParameter {
                name: "the number of parts",
                expected: "at least 1",
                value: 0.0,
            });
        };
        let channels = first.mean.len();
        let mut whole = Self {
            count: 0.0,
            mean: Array1::zeros(channels),
            m2: Array1::zeros(channels),
        };
        for part in parts {
            check_length("mean", part.mean.len(), channels)?;
            check_length("m2", part.m2.len(), channels)?;
            if !(0.0..f64::INFINITY).contains(&part.count) {
                return Err(Error::InvalidParameter {
                    name: "count",
                    expected: "at least 0 and finite",
                    value: part.count,
                });
            }
            if part.count > 0.0 {
                whole.add(part);
            }
        }
        Ok(whole)
    }

    /// Adds a part that has values.
    fn add(&mut self, part: &Self) {
        let count = self.count + part.count;
        let share = part.count / count;
        for channel in 0..self.mean.len() {
            let apart = part.mean[channel] - self.mean[channel];
            self.mean[channel] += apart * share;
            self.m2[channel] += part.m2[channel] + apart.powi(2) * self.count * share;
        }
        self.count = count;
    }

    /// The mean and the population variance; 0 and 0 without values.
    pub fn statistics(&self) -> Statistics {
        if self.count == 0.0 {
            return Statistics {
                mean: Array1::zeros(self.mean.len()),
                var: Array1::zeros(self.mean.len()),
                count: 0.0,
            };
        }
        Statistics {
            mean: self.mean.clone(),
            var: &self.m2 / self.count,
            count: self.count,
        }
    }
}

/// The moments of each channel of `x`, over the positions that count.
///
/// `valid` has the dimensions of `x` without that of the channels, and says which positions count;
/// without it all do. What lies at the others is not read. Without any valid position the count,
/// the means and the sums of squares are 0.
///
/// # Errors
/// Those of [`crate::Shape::new`]; [`Error::ShapeMismatch`] if `valid` has other dimensions.
pub fn moments<T: Element, S: Data<Elem = T>, D: Dimension>(
    x: &ArrayBase<S, D>,
    layout: Layout,
    valid: Option<&ArrayD<bool>>,
) -> Result<Moments, Error> {
    let x = Values::new(x, layout)?;
    let valid = Valid::new(valid, &x.shape)?;
    let channels = x.shape.channels();
    let parts = parts_of(&x.walk(&valid), &x.values, channels);
    // Means are sums over counts, so that no mean is rounded twice.
    let mut mean = Array1::zeros(channels);
    let mut counts = vec![0; channels];
    for part in &parts {
        for (channel, sum) in part.channels.clone().zip(&part.sum) {
            mean[channel] += sum;
            counts[channel] += part.count;
        }
    }
    // All channels have the same count.
    let count = counts[0] as f64;
    let mut m2 = Array1::zeros(channels);
    if count > 0.0 {
        mean /= count;
        for part in &parts {
            for (index, channel) in part.channels.clone().enumerate() {
                let apart: f64 = part.mean[index] - mean[channel];
                m2[channel] += part.m2[index] + part.count as f64 * apart.powi(2);
            }
        }
    }
    Ok(Moments { count, mean, m2 })
}

/// What is known of each part of the batch.
fn parts_of<T: Element>(walk: &Walk<'_>, values: &[T], channels: usize) -> Vec<Part> {
    walk.each_block(0..channels, |block| PartOf {
        walk,
        values,
        block,
    })
}

/// What is known of some channels of a part of the batch.
struct Part {
    channels: Range<usize>,
    /// How many values of each channel.
    count: usize,
    sum: Vec<f64>,
    /// 0 without values.
    mean: Vec<f64>,
    /// `Σ(x − mean)²`, about the part's own mean: that of the batch is not known yet.
    m2: Vec<f64>,
}

/// The sums of a block, in two passes over what is then in the cache.
struct PartOf<'a, T> {
    walk: &'a Walk<'a>,
    values: &'a [T],
    block: Block,
}

impl<T: Element> pulp::NullaryFnOnce for PartOf<'_, T> {
    type Output = Part;

    #[inline(always)]
    fn call(self) -> Part {
        let Self {
            walk,
            values,
            block,
        } = self;
        let count = walk.count(&block);
        let [sum] = walk.sums(&block, Sum(values), []);
        let mut mean = sum.clone();
        for mean in &mut mean {
            *mean /= count.max(1) as f64;
        }
        let [m2] = walk.sums(&block, Squares(values), [&mean]);
        Part {
            channels: block.channels,
            count,
            sum,
            mean,
            m2,
        }
    }
}

/// `x`
#[derive(Clone, Copy)]
struct Sum<'a, T>(&'a [T]);

impl<T: Element> Terms<0, 1> for Sum<'_, T> {
    #[inline(always)]
    fn add<P: PerChannel, const L: usize>(
        self,
        start: usize,
        valid: bool,
        _: [P; 0],
        [sums]: &mut [[f64; L]; 1],
    ) {
        if valid {
            for (sum, x) in sums.iter_mut().zip(&self.0[start..start + L]) {
                *sum += x.to_f64();
            }
        }
    }
}

/// `(x − mean)²`
#[derive(Clone, Copy)]
struct Squares<'a, T>(&'a [T]);

impl<T: Element> Terms<1, 1> for Squares<'_, T> {
    #[inline(always)]
    fn add<P: PerChannel, const L: usize>(
        self,
        start: usize,
        valid: bool,
        [mean]: [P; 1],
        [sums]: &mut [[f64; L]; 1],
    ) {
        if valid {
            let values = &self.0[start..start + L];
            for (lane, (sum, x)) in sums.iter_mut().zip(values).enumerate() {
                let apart = x.to_f64() - mean.at(lane);
                *sum += apart * apart;
            }
        }
    }
}

/// The mean and the population variance of each channel of `x`: those of [`moments`] over all
/// positions.
///
/// # Errors
/// Those of [`crate::Shape::new`]; [`Error::EmptyBatch`] or [`Error::OneValuePerChannel`] with
/// fewer than two values per channel.
pub fn statistics<T: Element, S: Data<Elem = T>, D: Dimension>(
    x: &ArrayBase<S, D>,
    layout: Layout,
) -> Result<Statistics, Error> {
    crate::Shape::new(x.shape(), layout)?.check_trainable()?;
    Ok(moments(x, layout, None)?.statistics())
}

/// Moves running statistics towards those of a batch: `running ← (1 − m)·running + m·batch`, with
/// the momenta and the kind of variance that the options say. `batches` is how many came before.
///
/// Statistics over fewer than two values say nothing of a variance, and leave them as they are.
///
/// # Errors
/// [`Error::ShapeMismatch`] if the vectors differ in length, [`Error::InvalidParameter`] for options
/// out of range or a negative count.
pub fn update_running<T: Element>(
    running_mean: &mut Array1<T>,
    running_var: &mut Array1<T>,
    batch: &Statistics,
    options: &Options,
    batches: u64,
) -> Result<(), Error> {
    options.validate()?;
    let channels = running_mean.len();
    check_length("running_var", running_var.len(), channels)?;
    batch.check(channels)?;
    if batch.count < 2.0 {
        return Ok(());
    }
    // M / (M − lost), which is 1 for an infinite M.
    let correction = 1.0 / (1.0 - options.running_variance.degrees_lost() / batch.count);
    let step = |running: &mut Array1<T>, batch: &Array1<f64>, momentum: f64, factor: f64| {
        running.zip_mut_with(batch, |running, &batch| {
            let moved = (1.0 - momentum) * running.to_f64() + momentum * (factor * batch);
            *running = T::from_f64(moved);
        });
    };
    let [weight_mean, weight_var] =
        [options.momentum_mean, options.momentum_var].map(|momentum| momentum.weight(batches));
    step(running_mean, &batch.mean, weight_mean, 1.0);
    step(running_var, &batch.var, weight_var, correction);
    Ok(())
}
