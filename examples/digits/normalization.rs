//! Batch normalization on the GPU, or on the CPU where there is none.

use ndarray::{Array2, Ix2};
use wgpu_batchnorm::{BatchNorm, Gpu, Layout, Mode, Optimizer, Options, Sgd, Tensor, cpu};

use super::Failure;

/// Where batch normalization runs.
#[derive(Clone)]
pub enum Device {
    /// In compute shaders.
    Gpu(Gpu),
    /// In ndarray.
    Cpu,
}

impl Device {
    /// The device in words.
    pub fn name(&self) -> String {
        match self {
            Self::Gpu(gpu) => gpu.name(),
            Self::Cpu => "the CPU".to_owned(),
        }
    }
}

/// A batch-norm layer, with the optimizer of its γ and β.
pub enum Normalization {
    /// All of it lives on the GPU.
    Gpu(Box<BatchNorm>, Optimizer),
    /// The twin on the CPU.
    Cpu(Box<cpu::BatchNorm>, cpu::Optimizer),
}

impl Normalization {
    /// A new layer, to be trained by plain gradient descent.
    pub fn new(device: &Device, channels: usize, learning_rate: f64) -> Result<Self, Failure> {
        let options = Options::default();
        let sgd = Sgd {
            lr: learning_rate,
            ..Sgd::default()
        };
        match device {
            Device::Gpu(gpu) => {
                let layer = Box::new(BatchNorm::new(gpu, channels, options)?);
                let optimizer = Optimizer::new(&layer, sgd)?;
                Ok(Self::Gpu(layer, optimizer))
            }
            Device::Cpu => {
                let layer = Box::new(cpu::BatchNorm::new(channels, options)?);
                let optimizer = cpu::Optimizer::new(&layer, sgd)?;
                Ok(Self::Cpu(layer, optimizer))
            }
        }
    }

    /// Normalizes `x`, one image per row and one channel per column.
    pub fn forward(&mut self, x: &Array2<f32>, mode: Mode) -> Result<Array2<f32>, Failure> {
        let y = match self {
            Self::Gpu(layer, _) => {
                layer.set_mode(mode);
                let x = Tensor::from_array(layer.gpu(), x, Layout::ChannelsFirst)?;
                layer.forward(&x)?.to_array_blocking()?
            }
            Self::Cpu(layer, _) => {
                layer.set_mode(mode);
                layer.forward(x, Layout::ChannelsFirst)?
            }
        };
        Ok(y.into_dimensionality::<Ix2>()?)
    }

    /// The gradient with respect to the last input in training, from that of the output.
    pub fn backward(&mut self, dy: &Array2<f32>) -> Result<Array2<f32>, Failure> {
        let dx = match self {
            Self::Gpu(layer, _) => {
                let dy = Tensor::from_array(layer.gpu(), dy, Layout::ChannelsFirst)?;
                layer.backward(&dy)?.to_array_blocking()?
            }
            Self::Cpu(layer, _) => layer.backward(dy)?,
        };
        Ok(dx.into_dimensionality::<Ix2>()?)
    }

    /// Updates γ and β by the gradients of the last backward pass.
    pub fn step(&mut self) -> Result<(), Failure> {
        match self {
            Self::Gpu(layer, optimizer) => optimizer.step(layer)?,
            Self::Cpu(layer, optimizer) => optimizer.step(layer)?,
        }
        Ok(())
    }
}
