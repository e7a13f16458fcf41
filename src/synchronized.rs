//! A batch that lies on several devices, normalized together: synchronized batch normalization.

use ndarray::{Array1, Array2};

use crate::kernels::gradients::SUMS_ROWS;
use crate::kernels::statistics::MOMENTS_ROWS;
use crate::layer::{clear, with_input_gradients};
use crate::{BatchNorm, Error, Extra, Gpu, InputGradients, Mode, Tensor, Valid, Wanted, cpu};

/// Fails unless all channels have the same count, as those of one batch do.
fn check_counts(moments: &Array2<f32>) -> Result<(), Error> {
    let counts = moments.row(0);
    let first = counts[0];
    let wrong = counts
        .iter()
        .find(|&&count| count != first || !(0.0..f32::INFINITY).contains(&count));
    match wrong {
        None => Ok(()),
        Some(&count) => Err(Error::InvalidParameter {
            name: "a count of the moments",
            expected: "at least 0, finite, and the same in all channels",
            value: count.into(),
        }),
    }
}

/// A few values per channel of one shard of a batch, to be exchanged with the other shards'.
macro_rules! exchanged {
    ($(#[$doc:meta])* $name:ident, $tensor:literal, $rows:expr, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            gpu: Gpu,
            buffer: wgpu::Buffer,
        }

        impl $name {
            /// Uploads what [`Self::to_array`] gave, on this device or another.
            ///
            /// # Errors
            /// [`Error::ShapeMismatch`] for another number of rows, [`Error::ZeroChannels`],
            /// [`Error::InvalidParameter`] for counts that no batch has;
            /// [`Error::OutOfMemory`] if it does not fit.
            pub fn from_array(gpu: &Gpu, array: &Array2<f32>) -> Result<Self, Error> {
                let (rows, channels) = array.dim();
                if rows != $rows as usize {
                    return Err(Error::ShapeMismatch {
                        tensor: $tensor,
                        expected: vec![$rows as usize, channels],
                        found: vec![rows, channels],
                    });
                }
                if channels == 0 {
                    return Err(Error::ZeroChannels {
                        dims: vec![rows, channels],
                    });
                }
                $check(array)?;
                let values: Vec<f32> = array.iter().copied().collect();
                Ok(Self {
                    gpu: gpu.clone(),
                    buffer: gpu.upload(concat!("batch_norm.", $tensor), &values)?,
                })
            }

            /// Downloads the values, one row after another.
            ///
            /// # Errors
            /// [`Error::DeviceLost`], or [`Error::Readback`] if the values cannot be read.
            pub async fn to_array(&self) -> Result<Array2<f32>, Error> {
                let values = self.gpu.download::<f32>(self.buffer.slice(..)).await?;
                let channels = values.len() / $rows as usize;
                Array2::from_shape_vec(($rows as usize, channels), values).map_err(|error| {
                    Error::Readback {
                        message: error.to_string(),
                    }
                })
            }

            /// [`Self::to_array`], waiting.
            ///
            /// # Errors
            /// As [`Self::to_array`].
            #[cfg(not(target_arch = "wasm32"))]
            pub fn to_array_blocking(&self) -> Result<Array2<f32>, Error> {
                pollster::block_on(self.to_array())
            }

            fn check(&self, gpu: &Gpu, channels: usize) -> Result<(), Error> {
                if self.gpu != *gpu {
                    return Err(Error::OtherDevice {
                        tensor: $tensor,
                        expected: gpu.name(),
                        found: self.gpu.name(),
                    });
                }
                let found = self.buffer.size() as usize / size_of::<f32>() / $rows as usize;
                crate::layer::check_length($tensor, found, channels)
            }
        }
    };
}

exchanged!(
    /// The moments of one shard of a batch, on the GPU: for each channel the count of its values, a
    /// pivot, the mean less the pivot, and `Σ(x − mean)²`, row by row.
    ///
    /// The mean lies in two parts because f32 does not hold that of values far from 0 with enough
    /// digits.
    Moments,
    "moments",
    MOMENTS_ROWS,
    check_counts
);

exchanged!(
    /// The sums of one shard's backward pass, on the GPU: for each channel `Σg` and `Σg·(x − mean)`,
    /// row by row, where `g` is the gradient of what enters the activation. Those of all shards may
    /// be given one by one, or added up.
    Sums,
    "sums",
    SUMS_ROWS,
    |_: &Array2<f32>| Ok::<(), Error>(())
);

impl Moments {
    /// Downloads them for the CPU path.
    ///
    /// # Errors
    /// As [`Moments::to_array`].
    pub async fn to_cpu(&self) -> Result<cpu::Moments, Error> {
        let rows = self.to_array().await?;
        let row = |index| rows.row(index).mapv(f64::from);
        let mean: Array1<f64> = row(1) + row(2);
        Ok(cpu::Moments {
            count: f64::from(rows[[0, 0]]),
            mean,
            m2: row(3),
        })
    }

    /// [`Moments::to_cpu`], waiting.
    ///
    /// # Errors
    /// As [`Moments::to_array`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn to_cpu_blocking(&self) -> Result<cpu::Moments, Error> {
        pollster::block_on(self.to_cpu())
    }
}

/// Synchronized batch normalization: each device has a layer and a shard of the batch, and calls
/// these in turn; what is returned as [`Moments`] and [`Sums`] the program brings to all devices,
/// by whatever it has for that.
///
/// # Accuracy
/// As of one device ([`crate::Plan::bind_forward`], [`crate::Plan::bind_backward`]): shards, of any
/// sizes, give what the whole batch gives, `y` within 2e-6 and gradients within 1e-5 of their largest
/// magnitude (`tests/gpu/synchronized.rs`).
///
/// # Example
/// ```
/// use ndarray::array;
/// use wgpu_batchnorm::{BatchNorm, Error, Extra, Gpu, Layout, Options, Tensor, Wanted};
///
/// // Two shards of one batch; here, both on one device.
/// let gpu = Gpu::open_blocking()?;
/// let tensor = |rows| Tensor::from_array(&gpu, &rows, Layout::ChannelsFirst);
/// let shards = [tensor(array![[1.0], [2.0]])?, tensor(array![[6.0], [7.0]])?];
/// let mut layers = [
///     BatchNorm::new(&gpu, 1, Options::default())?,
///     BatchNorm::new(&gpu, 1, Options::default())?,
/// ];
///
/// let mut moments = Vec::new();
/// for (layer, x) in layers.iter_mut().zip(&shards) {
///     moments.push(layer.moments(x, None)?);
/// }
/// // The mean of all is 4.
/// let y = layers[0].forward_synchronized(&shards[0], Extra::default(), &moments)?;
/// assert!(y.to_array_blocking()?[[0, 0]] < -1.0);
/// layers[1].forward_synchronized(&shards[1], Extra::default(), &moments)?;
///
/// let dy = tensor(array![[1.0], [0.0]])?;
/// let sums = [layers[0].backward_sums(&dy)?, layers[1].backward_sums(&dy)?];
/// let dx = layers[0].backward_synchronized(&dy, &sums, &Wanted::default())?.dx;
/// # assert!(dx.is_some());
/// # Ok::<(), Error>(())
/// ```
impl BatchNorm {
    /// The moments of one shard of a batch. The layer stays as it is.
    ///
    /// # Errors
    /// As [`BatchNorm::forward_with`], but the shard may be of any size, even empty;
    /// [`Error::Conflict`] if statistics are frozen.
    pub fn moments(&mut self, x: &Tensor, valid: Option<&Valid>) -> Result<Moments, Error> {
        let extra = Extra {
            residual: None,
            valid,
        };
        self.check_input(x, extra)?;
        let plan = self.plan(x)?;
        let moments = Moments {
            buffer: self
                .gpu
                .vector_buffer("batch_norm.moments", plan.moments_bytes())?,
            gpu: self.gpu.clone(),
        };
        let valid = valid.map(Valid::range);
        let commands = plan.bind_moments(x.range(), valid, moments.buffer.slice(..))?;
        self.gpu.submit(|encoder| commands.record(encoder))?;
        Ok(moments)
    }

    /// [`BatchNorm::forward_with`] in training, of one shard, by the moments of all shards of the
    /// batch, its own among them, with the same valid positions as in [`BatchNorm::moments`]. The
    /// running statistics move as by the whole batch, on every device alike; it counts as a batch even
    /// if it has fewer than two values in all, which only the GPU knows.
    ///
    /// # Errors
    /// As [`BatchNorm::moments`]; [`Error::InvalidParameter`] without any moments,
    /// [`Error::Conflict`] in evaluation. The layer is then as it was.
    pub fn forward_synchronized(
        &mut self,
        x: &Tensor,
        extra: Extra<'_>,
        moments: &[Moments],
    ) -> Result<Tensor, Error> {
        if self.mode() == Mode::Eval {
            return Err(Error::Conflict {
                first: "a synchronized forward pass",
                second: "Mode::Eval",
                reason: "evaluation needs no statistics of the batch: forward it on each device",
            });
        }
        self.check_input(x, extra)?;
        for moments in moments {
            moments.check(&self.gpu, self.channels())?;
        }
        let plan = self.plan(x)?;
        let all_of: Vec<_> = moments.iter().map(|moments| &moments.buffer).collect();
        let all = self.gathered("batch_norm.moments", &all_of)?;
        let y = Tensor::zeros(&self.gpu, x.shape(), x.dtype())?;
        let mask = match extra.residual {
            Some(_) => self.mask(&plan)?,
            None => None,
        };
        let saved = self.saved.slice(..);
        let shards = moments.len() as u32;
        let statistics = plan.bind_statistics(all.slice(..), shards, self.running(), saved)?;
        let buffers = self.forward_buffers(x, extra, &y, mask.as_ref());
        let normalize = plan.bind_normalize(&buffers.saved(saved))?;
        self.tell_batches(&plan)?;
        self.gpu.submit(|encoder| {
            gather(encoder, &all_of, &all);
            statistics.record(encoder);
            normalize.record(encoder);
        })?;
        // How many values there are in all, only the GPU knows where moments came from elsewhere.
        self.count_batch(2);
        self.set_synchronized(x, extra, mask);
        Ok(y)
    }

    /// The sums of the backward pass over one shard, after [`BatchNorm::forward_synchronized`].
    ///
    /// The gradients of γ and β that [`BatchNorm::gradients`] then reads are those of this shard, until
    /// [`BatchNorm::backward_synchronized`] replaces them.
    ///
    /// # Errors
    /// As [`BatchNorm::backward`], but [`Error::Conflict`] unless the forward pass was synchronized.
    /// The layer is then as it was.
    pub fn backward_sums(&mut self, dy: &Tensor) -> Result<Sums, Error> {
        let last = self.last_for(dy, true)?;
        let plan = self.plan(&last.x)?;
        let sums = Sums {
            buffer: self
                .gpu
                .vector_buffer("batch_norm.sums", plan.sums_bytes())?,
            gpu: self.gpu.clone(),
        };
        let buffers = self.backward_buffers(&last, dy);
        let (buffers, unwanted) = self.with_parameter_gradients(buffers, &Wanted::default());
        let commands = plan.bind_sums(&buffers, sums.buffer.slice(..))?;
        self.gpu.submit(|encoder| {
            clear(encoder, &unwanted);
            commands.record(encoder);
        })?;
        self.set_has_gradients();
        Ok(sums)
    }

    /// The gradients of one shard's input and residual, by the sums of all shards of the batch: of
    /// each, or added up to one. Those of γ and β are then the whole batch's, on every device alike,
    /// so that an optimizer's step keeps the layers alike too. (For a loss that is a mean over
    /// devices, divide `dy` by their number.)
    ///
    /// # Errors
    /// As [`BatchNorm::backward_sums`]; [`Error::InvalidParameter`] without any sums.
    pub fn backward_synchronized(
        &mut self,
        dy: &Tensor,
        sums: &[Sums],
        wanted: &Wanted,
    ) -> Result<InputGradients, Error> {
        let last = self.last_for(dy, true)?;
        for sums in sums {
            sums.check(&self.gpu, self.channels())?;
        }
        let plan = self.plan(&last.x)?;
        let all_of: Vec<_> = sums.iter().map(|sums| &sums.buffer).collect();
        let all = self.gathered("batch_norm.sums", &all_of)?;
        let dx = Tensor::zeros(&self.gpu, dy.shape(), dy.dtype())?;
        let residual = self.residual_gradient(&last, dy, wanted.residual, false)?;
        let buffers = self.backward_buffers(&last, dy);
        let buffers = with_input_gradients(buffers, dy, Some(&dx), residual.as_ref());
        let (buffers, unwanted) = self.with_parameter_gradients(buffers, wanted);
        let shards = sums.len() as u32;
        let commands = plan.bind_input_gradient(&buffers, all.slice(..), shards)?;
        self.gpu.submit(|encoder| {
            clear(encoder, &unwanted);
            gather(encoder, &all_of, &all);
            commands.record(encoder);
        })?;
        self.set_has_gradients();
        Ok(InputGradients {
            dx: wanted.x.then_some(dx),
            residual,
        })
    }

    /// A buffer as large as these together.
    fn gathered(&self, label: &str, parts: &[&wgpu::Buffer]) -> Result<wgpu::Buffer, Error> {
        let bytes = parts.iter().map(|part| part.size()).sum();
        self.gpu.vector_buffer(label, bytes)
    }
}

/// Copies parts one behind the other.
fn gather(encoder: &mut wgpu::CommandEncoder, parts: &[&wgpu::Buffer], whole: &wgpu::Buffer) {
    let mut offset = 0;
    for part in parts {
        encoder.copy_buffer_to_buffer(part, 0, whole, offset, None);
        offset += part.size();
    }
}
