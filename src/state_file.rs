//! A layer's state in files of the safetensors format, under the names that PyTorch gives.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use ndarray::Array1;
use safetensors::tensor::{Dtype, Metadata, TensorInfo, View, serialize};

use crate::layer::check_length;
use crate::{Error, Options, Parameter, State};

/// The names within a layer.
const WEIGHT: &str = "weight";
const BIAS: &str = "bias";
const RUNNING_MEAN: &str = "running_mean";
const RUNNING_VAR: &str = "running_var";
const NUM_BATCHES_TRACKED: &str = "num_batches_tracked";

impl State {
    /// The state as the bytes of a safetensors file, which PyTorch loads into a `BatchNorm1d`,
    /// `2d` or `3d`.
    ///
    /// The names are PyTorch's, each behind `prefix`: `weight` (γ), `bias` (β), `running_mean` and
    /// `running_var`, as F32 of shape `[channels]`, and `num_batches_tracked`, as an I64 without
    /// dimensions. The prefix ends with a dot (`"layer1.0.bn1."`) or is empty. In Python,
    /// `safetensors.torch.load_file` reads such a file as a `state_dict`, and
    /// `safetensors.torch.save_file(model.state_dict(), path)` writes one.
    ///
    /// What the options say is not there is not written: γ and β that are
    /// [`Parameter::Absent`], and, without running statistics, the last three. So it is with
    /// PyTorch's `affine=False` and `track_running_stats=False`.
    ///
    /// ```
    /// use wgpu_batchnorm::{Options, State};
    ///
    /// let (state, options) = (State::new(64), Options::default());
    /// let bytes = state.to_safetensors(&options, "bn1.")?;
    /// assert_eq!(State::from_safetensors(&bytes, &options, "bn1.")?, state);
    /// # Ok::<(), wgpu_batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] names the vector that has another length than γ,
    /// [`Error::ZeroChannels`] where that is 0, and [`Error::InvalidParameter`] a number of batches
    /// that no I64 holds.
    pub fn to_safetensors(&self, options: &Options, prefix: &str) -> Result<Vec<u8>, Error> {
        Self::to_safetensors_all(&[(prefix, self, options)])
    }

    /// The states of several layers as the bytes of one safetensors file, each with its own
    /// prefix. See [`State::to_safetensors`]; [`State::from_safetensors`] loads them one by one.
    ///
    /// # Errors
    /// Those of [`State::to_safetensors`]; [`Error::StateTensor`] names a tensor that two layers
    /// would write.
    pub fn to_safetensors_all(layers: &[(&str, &Self, &Options)]) -> Result<Vec<u8>, Error> {
        let mut tensors = BTreeMap::new();
        for (prefix, state, options) in layers {
            for (name, tensor) in state.tensors(options)? {
                let name = format!("{prefix}{name}");
                if tensors.contains_key(&name) {
                    let problem = "would be written twice; give each layer a prefix of its own";
                    return Err(bad_tensor(name, problem));
                }
                tensors.insert(name, tensor);
            }
        }
        // Some loaders ask whose conventions names and shapes follow.
        let conventions = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        serialize(tensors, Some(conventions)).map_err(|error| not_a_file(error.to_string()))
    }

    /// Loads the state of one layer from the bytes of a safetensors file, as PyTorch and
    /// [`State::to_safetensors`] write it.
    ///
    /// Names and prefix are those of [`State::to_safetensors`]. Vectors may be F32, F16, BF16 or
    /// F64, and are rounded to f32, to nearest; values that are not finite stay so. The number of
    /// batches may be I64 or I32; where it is missing, as in the files of old versions of PyTorch, it
    /// is 0.
    ///
    /// What the options say is not there must not be in the file, and is here as in
    /// [`State::new`]. Tensors of other names are ignored.
    ///
    /// # Errors
    /// [`Error::StateFile`] for bytes that are no safetensors file. [`Error::StateTensor`] names a
    /// tensor that is missing, that should not be there, that is of another type, or a negative
    /// number of batches. [`Error::ShapeMismatch`] names a vector that has not one dimension or
    /// another length than those before it, [`Error::ZeroChannels`] is for vectors without values.
    /// [`Error::Conflict`] for options by which a layer has no vector at all: then there is nothing
    /// to load.
    pub fn from_safetensors(bytes: &[u8], options: &Options, prefix: &str) -> Result<Self, Error> {
        let file = File::open(bytes)?;
        let present = Present::new(options);
        let vector = |name: &'static str, there: bool| file.vector(prefix, name, there);
        let weight = vector(WEIGHT, present.weight)?;
        let bias = vector(BIAS, present.bias)?;
        let mean = vector(RUNNING_MEAN, present.running)?;
        let var = vector(RUNNING_VAR, present.running)?;
        let num_batches_tracked = file.count(prefix, present.running)?;

        let first = [&weight, &bias, &mean].into_iter().flatten().next();
        let Some(channels) = first.map(Array1::len) else {
            return Err(Error::Conflict {
                first: "loading a state",
                second: "options without γ, β and running statistics",
                reason: "there is nothing to load",
            });
        };
        if channels == 0 {
            return Err(Error::ZeroChannels { dims: vec![0] });
        }
        let names = [WEIGHT, BIAS, RUNNING_MEAN, RUNNING_VAR];
        for (name, vector) in names.into_iter().zip([&weight, &bias, &mean, &var]) {
            let found = vector.as_ref().map_or(channels, Array1::len);
            check_length(name, found, channels)?;
        }
        let new = Self::new(channels);
        Ok(Self {
            gamma: weight.unwrap_or(new.gamma),
            beta: bias.unwrap_or(new.beta),
            running_mean: mean.unwrap_or(new.running_mean),
            running_var: var.unwrap_or(new.running_var),
            num_batches_tracked,
        })
    }

    /// What is written of this state, by its names within the layer.
    fn tensors(&self, options: &Options) -> Result<Vec<(&'static str, Tensor)>, Error> {
        let channels = self.gamma.len();
        if channels == 0 {
            return Err(Error::ZeroChannels { dims: vec![0] });
        }
        self.check(channels)?;
        let present = Present::new(options);
        let mut tensors = Vec::new();
        if present.weight {
            tensors.push((WEIGHT, Tensor::vector(&self.gamma)));
        }
        if present.bias {
            tensors.push((BIAS, Tensor::vector(&self.beta)));
        }
        if present.running {
            tensors.push((RUNNING_MEAN, Tensor::vector(&self.running_mean)));
            tensors.push((RUNNING_VAR, Tensor::vector(&self.running_var)));
            let count = Tensor::count(self.num_batches_tracked)?;
            tensors.push((NUM_BATCHES_TRACKED, count));
        }
        Ok(tensors)
    }
}

/// Which tensors a layer has.
struct Present {
    weight: bool,
    bias: bool,
    running: bool,
}

impl Present {
    fn new(options: &Options) -> Self {
        Self {
            weight: options.gamma != Parameter::Absent,
            bias: options.beta != Parameter::Absent,
            running: options.running_statistics,
        }
    }
}

/// A tensor to write. The format is little-endian.
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn vector(values: &Array1<f32>) -> Self {
        Self {
            dtype: Dtype::F32,
            shape: vec![values.len()],
            bytes: values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        }
    }

    fn count(count: u64) -> Result<Self, Error> {
        let count = i64::try_from(count).map_err(|_| Error::InvalidParameter {
            name: NUM_BATCHES_TRACKED,
            expected: "at most 2⁶³ − 1, the largest I64",
            value: count as f64,
        })?;
        Ok(Self {
            dtype: Dtype::I64,
            shape: Vec::new(),
            bytes: count.to_le_bytes().to_vec(),
        })
    }
}

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A file to read: eight bytes with the length of a header, the header in JSON, the values.
///
/// `SafeTensors::deserialize` does the same, but adds up lengths that a file claims without
/// looking for overflow.
struct File<'a> {
    header: Metadata,
    values: &'a [u8],
}

impl<'a> File<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, Error> {
        let too_short = || not_a_file(format!("{} bytes are too few", bytes.len()));
        let (length, rest) = bytes.split_first_chunk().ok_or_else(too_short)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| too_short())?;
        let (header, values) = rest.split_at_checked(length).ok_or_else(too_short)?;
        // This checks that each tensor starts where the one before it ends, and has the size of its
        // type and shape.
        let header: Metadata =
            serde_json::from_slice(header).map_err(|error| not_a_file(error.to_string()))?;
        if header.data_len() != values.len() {
            let (expected, found) = (header.data_len(), values.len());
            return Err(not_a_file(format!(
                "the header says that {expected} bytes follow it, but there are {found}"
            )));
        }
        Ok(Self { header, values })
    }

    /// A tensor's description and its bytes, if it is there; an error if it should not be.
    fn tensor(&self, name: &str, allowed: bool) -> Result<Option<(&TensorInfo, &'a [u8])>, Error> {
        let Some(info) = self.header.info(name) else {
            return Ok(None);
        };
        if !allowed {
            let problem = "should not be there: by the options the layer has none";
            return Err(bad_tensor(name, problem));
        }
        let (start, end) = info.data_offsets;
        let bytes = self.values.get(start..end);
        let bytes = bytes.ok_or_else(|| bad_tensor(name, "lies outside of the file"))?;
        Ok(Some((info, bytes)))
    }

    /// A vector that must be there, or must not be.
    fn vector(
        &self,
        prefix: &str,
        name: &'static str,
        there: bool,
    ) -> Result<Option<Array1<f32>>, Error> {
        let full_name = format!("{prefix}{name}");
        let Some((info, bytes)) = self.tensor(&full_name, there)? else {
            return match there {
                true => Err(bad_tensor(full_name, "is missing")),
                false => Ok(None),
            };
        };
        let values = values(info.dtype, bytes).ok_or_else(|| {
            let problem = format!("is {}, expected F32, F16, BF16 or F64", info.dtype);
            bad_tensor(full_name, problem)
        })?;
        check_shape(name, &info.shape, &[values.len()])?;
        Ok(Some(values))
    }

    /// The number of batches, which may be missing, and must be if not `allowed`.
    fn count(&self, prefix: &str, allowed: bool) -> Result<u64, Error> {
        let name = format!("{prefix}{NUM_BATCHES_TRACKED}");
        let Some((info, bytes)) = self.tensor(&name, allowed)? else {
            return Ok(0);
        };
        check_shape(NUM_BATCHES_TRACKED, &info.shape, &[])?;
        let count = match info.dtype {
            Dtype::I64 => bytes.first_chunk().map(|bytes| i64::from_le_bytes(*bytes)),
            Dtype::I32 => bytes
                .first_chunk()
                .map(|bytes| i32::from_le_bytes(*bytes).into()),
            _ => None,
        };
        let Some(count) = count else {
            let problem = format!("is {}, expected I64 or I32", info.dtype);
            return Err(bad_tensor(name, problem));
        };
        u64::try_from(count).map_err(|_| bad_tensor(name, format!("is negative: {count}")))
    }
}

/// The values of a tensor as f32, or nothing if it is of another type than one of floats.
fn values(dtype: Dtype, bytes: &[u8]) -> Option<Array1<f32>> {
    let values = match dtype {
        Dtype::F32 => convert(bytes, f32::from_le_bytes),
        Dtype::F64 => convert(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
        Dtype::F16 => convert(bytes, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => convert(bytes, |bytes| half::bf16::from_le_bytes(bytes).to_f32()),
        _ => return None,
    };
    Some(values)
}

/// Every `N` bytes by `read`.
fn convert<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Array1<f32> {
    let (values, _) = bytes.as_chunks();
    values.iter().copied().map(read).collect()
}

fn check_shape(tensor: &'static str, found: &[usize], expected: &[usize]) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(Error::ShapeMismatch {
        tensor,
        expected: expected.to_vec(),
        found: found.to_vec(),
    })
}

fn not_a_file(message: String) -> Error {
    Error::StateFile { message }
}

fn bad_tensor(name: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::StateTensor {
        name: name.into(),
        problem: problem.into(),
    }
}
