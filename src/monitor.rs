//! Statistics for people: what a layer sees, read while it trains.

use std::future::Future;

use ndarray::Array1;

use crate::gpu::Polling;
use crate::kernels::statistics::SAVED_ROWS;
use crate::{BatchNorm, Error};

/// What a batch was like in each channel: see [`BatchNorm::channel_statistics`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ChannelStatistics {
    /// The mean of the batch, or the running one where statistics are frozen.
    pub mean: Array1<f32>,
    /// The population variance of the batch, or the running one where statistics are frozen.
    pub var: Array1<f32>,
    /// γ, as it is at the call.
    pub gamma: Array1<f32>,
}

impl ChannelStatistics {
    /// The channels whose output does not depend on their input: all values of the batch are the
    /// same, or γ is 0. They learn nothing from it.
    pub fn dead(&self) -> Vec<usize> {
        self.channels(|var, gamma, _| var == 0.0 || gamma == 0.0)
    }

    /// The channels whose mean or variance is infinite or no number: so are their outputs.
    pub fn non_finite(&self) -> Vec<usize> {
        self.channels(|var, _, mean| !var.is_finite() || !mean.is_finite())
    }

    /// The channels for which something holds of variance, γ and mean.
    fn channels(&self, holds: impl Fn(f32, f32, f32) -> bool) -> Vec<usize> {
        (0..self.mean.len())
            .filter(|&channel| holds(self.var[channel], self.gamma[channel], self.mean[channel]))
            .collect()
    }
}

impl BatchNorm {
    /// Reads what the last batch in training was like, for monitoring.
    ///
    /// The call takes a copy on the GPU, behind the work submitted so far, and returns at once. The
    /// future may be awaited whenever it suits, on any thread: training goes on meanwhile and is not
    /// held up, and what comes out is of the batch before the call.
    ///
    /// ```
    /// use ndarray::array;
    /// use wgpu_batchnorm::{BatchNorm, Error, Gpu, Layout, Options, Tensor};
    ///
    /// let gpu = Gpu::open_blocking()?;
    /// let mut layer = BatchNorm::new(&gpu, 3, Options::default())?;
    /// let x = array![[1.0, 5.0, f32::NAN], [3.0, 5.0, 0.0]];
    /// let x = Tensor::from_array(&gpu, &x, Layout::ChannelsFirst)?;
    /// layer.forward(&x)?;
    /// let seen = layer.channel_statistics()?;
    /// layer.forward(&x)?; // the next step
    /// let seen = pollster::block_on(seen)?; // or `.await`
    /// assert_eq!((seen.mean[0], seen.var[0]), (2.0, 1.0));
    /// assert_eq!((seen.dead(), seen.non_finite()), (vec![1], vec![2]));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoForward`] if the last forward pass was not in training; of the future
    /// [`Error::DeviceLost`], or [`Error::Readback`] if the values cannot be read.
    pub fn channel_statistics(
        &self,
    ) -> Result<impl Future<Output = Result<ChannelStatistics, Error>> + Send + 'static, Error>
    {
        self.last().ok_or(Error::NoForward)?;
        let ranges = [self.saved.slice(..), self.gamma().slice(..)];
        let readback = self.gpu.read_back(&ranges, Polling::Gentle)?;
        let channels = self.channels();
        Ok(async move {
            let values = readback.finish::<f32>().await?;
            let [saved, gamma] = &values[..] else {
                return Err(Error::Readback {
                    message: "a range is missing".to_owned(),
                });
            };
            let rows: Vec<&[f32]> = saved.chunks_exact(channels).collect();
            debug_assert_eq!(rows.len() as u64, SAVED_ROWS);
            // The mean lies in two parts.
            let mean = rows[0]
                .iter()
                .zip(rows[1])
                .map(|(pivot, rest)| pivot + rest);
            Ok(ChannelStatistics {
                mean: mean.collect(),
                var: rows[3].iter().copied().collect(),
                gamma: gamma.iter().copied().collect(),
            })
        })
    }

    /// [`BatchNorm::channel_statistics`], waiting.
    ///
    /// # Errors
    /// As [`BatchNorm::channel_statistics`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn channel_statistics_blocking(&self) -> Result<ChannelStatistics, Error> {
        pollster::block_on(self.channel_statistics()?)
    }
}
