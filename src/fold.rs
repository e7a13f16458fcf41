//! Folding for deployment: a batch normalization becomes part of the layer before it.
//!
//! In evaluation a batch normalization is one multiplication and one addition per channel, by
//! numbers that no longer change. A convolution or linear layer right before it can take both in.
//! With the `weight` and `bias` of that layer, per output channel:
//!
//! ```text
//! scale  = γ / √(running_var + eps)
//! weight ← weight·scale
//! bias   ← (bias − running_mean)·scale + β
//! ```
//!
//! A layer without a bias counts as one with zeros; the folded layer always has one. Stride,
//! padding, dilation, output padding and groups stay as they are: the padding lies before the sum
//! that is normalized, so folding holds at the borders too.
//!
//! Arithmetic is f64. Each result is rounded once, to the type of the weight.
//!
//! What a caller must know:
//!
//! - It is evaluation that is folded, by the running statistics. Training normalizes by the batch,
//!   and so does evaluation without running statistics: no weight can stand for that.
//! - An activation that is fused in the options is not a part of the weight. Apply it to the
//!   output of the folded layer.
//! - The folded layer subtracts the mean after its own sum, in its own arithmetic. Where the mean
//!   is many deviations off, that costs digits which the batch normalization kept.
//!
//! Source: Jacob et al. 2018, *Quantization and Training of Neural Networks for Efficient
//! Integer-Arithmetic-Only Inference*, section 3.2. PyTorch's `fuse_conv_bn_weights` and
//! `fuse_linear_bn_weights` compute the same.
//!
//! ```
//! use ndarray::{Array1, array};
//! use wgpu_batchnorm::{Options, State, fold};
//!
//! // What a layer has learned; a trained one gives it as its state.
//! let state = State {
//!     gamma: array![2.0, 1.0],
//!     beta: array![0.5, 0.0],
//!     running_mean: array![1.0, -1.0],
//!     running_var: array![4.0, 0.25],
//!     num_batches_tracked: 100,
//! };
//! let options = Options::default().eps(0.0);
//!
//! // A linear layer of three inputs and two outputs.
//! let weight = array![[1.0_f32, 2.0, 3.0], [0.0, 1.0, 0.0]];
//! let bias = array![0.0_f32, 1.0];
//! let folded = fold::linear(&weight, Some(&bias), &state, &options)?;
//! assert_eq!(folded.weight, array![[1.0, 2.0, 3.0], [0.0, 2.0, 0.0]]);
//! assert_eq!(folded.bias, array![-0.5, 4.0]);
//! # Ok::<(), wgpu_batchnorm::Error>(())
//! ```

use ndarray::{Array, Array1, ArrayBase, ArrayViewMut, Axis, Data, Dimension, Ix2, RemoveAxis};

use crate::cpu::Element;
use crate::layer::check_length;
use crate::{Error, Options, Parameter, State};

/// A layer that has taken in the batch normalization behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Folded<T, D: Dimension> {
    /// The weight, in the shape that it had.
    pub weight: Array<T, D>,
    /// The bias, one value per output channel.
    pub bias: Array1<T>,
}

/// Folds a batch normalization into the convolution before it, of any spatial rank from 1 on.
///
/// `weight` is `[out, in/groups, kernel…]`, as in PyTorch and ONNX. `bias` is `[out]`. How many
/// groups there are does not matter, so this serves depthwise convolutions too. `state` and
/// `options` are those of the batch normalization, of `out` channels.
///
/// # Errors
/// [`Error::InvalidParameter`] for a weight of fewer than three dimensions,
/// [`Error::ZeroChannels`] for one without output channels; [`Error::ShapeMismatch`] names the
/// vector that does not have one value per output channel; [`Error::NotFoldable`] names the value
/// that cannot be folded: a statistic, γ or β that is not finite, a negative variance, a variance
/// that is 0 with `eps` = 0, or a result that is not finite in the type of the weight;
/// [`Error::Conflict`] for options without running statistics; all of [`Options::validate`].
pub fn convolution<T: Element, S: Data<Elem = T>, D: RemoveAxis>(
    weight: &ArrayBase<S, D>,
    bias: Option<&Array1<T>>,
    state: &State,
    options: &Options,
) -> Result<Folded<T, D>, Error> {
    check_rank(weight.ndim())?;
    by_first_axis(weight, bias, state, options)
}

/// Folds a batch normalization into the transposed convolution before it, of any spatial rank
/// from 1 on.
///
/// `weight` is `[in, out/groups, kernel…]`, as in PyTorch and ONNX; group `g` reads the `g`-th run
/// of `in/groups` inputs and writes the `g`-th run of `out/groups` outputs. `bias` is `[out]`.
/// `state` and `options` are those of the batch normalization, of `out` channels.
///
/// # Errors
/// Those of [`convolution`]; [`Error::InvalidParameter`] for `groups` that do not divide `in`.
pub fn transposed_convolution<T: Element, S: Data<Elem = T>, D: RemoveAxis>(
    weight: &ArrayBase<S, D>,
    bias: Option<&Array1<T>>,
    groups: usize,
    state: &State,
    options: &Options,
) -> Result<Folded<T, D>, Error> {
    check_rank(weight.ndim())?;
    let (inputs, per_group) = (weight.len_of(Axis(0)), weight.len_of(Axis(1)));
    if inputs == 0 || groups == 0 || inputs % groups != 0 {
        return Err(Error::InvalidParameter {
            name: "groups",
            expected: "a divisor of the weight's first dimension, the input channels",
            value: groups as f64,
        });
    }
    let channels = channels(state, options, weight.shape(), groups * per_group)?;
    let mut folded = weight.to_owned();
    let groups = folded.axis_chunks_iter_mut(Axis(0), inputs / groups);
    for (group, mut weights) in groups.enumerate() {
        for (index, weights) in weights.axis_iter_mut(Axis(1)).enumerate() {
            channels[group * per_group + index].fold_weights(weights)?;
        }
    }
    Ok(Folded {
        weight: folded,
        bias: fold_bias(bias, &channels)?,
    })
}

/// Folds a batch normalization into the linear layer before it.
///
/// `weight` is `[out, in]`, as in PyTorch: the layer computes `x·weightᵀ + bias`. `bias` is
/// `[out]`. `state` and `options` are those of the batch normalization, of `out` channels.
///
/// # Errors
/// Those of [`convolution`], but for the number of dimensions.
pub fn linear<T: Element, S: Data<Elem = T>>(
    weight: &ArrayBase<S, Ix2>,
    bias: Option<&Array1<T>>,
    state: &State,
    options: &Options,
) -> Result<Folded<T, Ix2>, Error> {
    by_first_axis(weight, bias, state, options)
}

/// Folds into a weight whose first axis is that of the output channels.
fn by_first_axis<T: Element, S: Data<Elem = T>, D: RemoveAxis>(
    weight: &ArrayBase<S, D>,
    bias: Option<&Array1<T>>,
    state: &State,
    options: &Options,
) -> Result<Folded<T, D>, Error> {
    let channels = channels(state, options, weight.shape(), weight.len_of(Axis(0)))?;
    let mut folded = weight.to_owned();
    for (weights, channel) in folded.outer_iter_mut().zip(&channels) {
        channel.fold_weights(weights)?;
    }
    Ok(Folded {
        weight: folded,
        bias: fold_bias(bias, &channels)?,
    })
}

/// What the batch normalization does to one channel: `(x − mean)·scale + beta`.
struct Channel {
    index: usize,
    mean: f64,
    scale: f64,
    beta: f64,
}

impl Channel {
    /// The channel `index` of a state whose vectors are long enough.
    fn new(state: &State, options: &Options, index: usize) -> Result<Self, Error> {
        let finite = |vector: &'static str, value: f32| {
            let value = f64::from(value);
            match value.is_finite() {
                true => Ok(value),
                false => Err(not_foldable(vector, index, value, "it should be finite")),
            }
        };
        let gamma = match options.gamma {
            Parameter::Absent => 1.0,
            _ => finite("gamma", state.gamma[index])?,
        };
        let beta = match options.beta {
            Parameter::Absent => 0.0,
            _ => finite("beta", state.beta[index])?,
        };
        let mean = finite("running_mean", state.running_mean[index])?;
        let var = finite("running_var", state.running_var[index])?;
        if var < 0.0 {
            let reason = "a variance should not be negative";
            return Err(not_foldable("running_var", index, var, reason));
        }
        if var + options.eps == 0.0 {
            let reason = "eps is 0 too, so there is nothing to divide by";
            return Err(not_foldable("running_var", index, var, reason));
        }
        Ok(Self {
            index,
            mean,
            scale: gamma / (var + options.eps).sqrt(),
            beta,
        })
    }

    /// Scales the weights that lead to this channel.
    fn fold_weights<T: Element, D: Dimension>(
        &self,
        weights: ArrayViewMut<'_, T, D>,
    ) -> Result<(), Error> {
        for weight in weights {
            *weight = self.rounded("the folded weight", weight.to_f64() * self.scale)?;
        }
        Ok(())
    }

    /// The bias behind which no batch normalization is needed.
    fn fold_bias<T: Element>(&self, bias: f64) -> Result<T, Error> {
        let bias = (bias - self.mean) * self.scale + self.beta;
        self.rounded("the folded bias", bias)
    }

    /// The nearest number of the layer's type, which must be finite.
    fn rounded<T: Element>(&self, vector: &'static str, value: f64) -> Result<T, Error> {
        let rounded = T::from_f64(value);
        if rounded.to_f64().is_finite() {
            return Ok(rounded);
        }
        let reason = "it should be finite in the type of the weight";
        Err(not_foldable(vector, self.index, value, reason))
    }
}

/// What the batch normalization does to each of the `count` output channels of a weight of shape
/// `dims`.
fn channels(
    state: &State,
    options: &Options,
    dims: &[usize],
    count: usize,
) -> Result<Vec<Channel>, Error> {
    options.validate()?;
    if !options.running_statistics {
        return Err(Error::Conflict {
            first: "folding",
            second: "running_statistics(false)",
            reason: "the running statistics are what is folded",
        });
    }
    if count == 0 {
        return Err(Error::ZeroChannels {
            dims: dims.to_vec(),
        });
    }
    let channels = state.gamma.len();
    if channels != count && state.check(channels).is_ok() {
        return Err(Error::ShapeMismatch {
            tensor: "the weight's output channels (or is it a transposed convolution, or of groups?)",
            expected: vec![channels],
            found: vec![count],
        });
    }
    state.check(count)?;
    (0..count)
        .map(|index| Channel::new(state, options, index))
        .collect()
}

fn fold_bias<T: Element>(
    bias: Option<&Array1<T>>,
    channels: &[Channel],
) -> Result<Array1<T>, Error> {
    let Some(bias) = bias else {
        return channels
            .iter()
            .map(|channel| channel.fold_bias(0.0))
            .collect();
    };
    check_length("bias", bias.len(), channels.len())?;
    let folded = bias.iter().zip(channels);
    folded
        .map(|(bias, channel)| channel.fold_bias(bias.to_f64()))
        .collect()
}

fn check_rank(dims: usize) -> Result<(), Error> {
    if dims >= 3 {
        return Ok(());
    }
    Err(Error::InvalidParameter {
        name: "the number of the weight's dimensions",
        expected: "at least 3: two of channels and one or more of the kernel",
        value: dims as f64,
    })
}

fn not_foldable(vector: &'static str, channel: usize, value: f64, reason: &'static str) -> Error {
    Error::NotFoldable {
        vector,
        channel,
        value,
        reason,
    }
}
