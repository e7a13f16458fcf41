//! A range of a GPU buffer with a shape.

use ndarray::{ArrayBase, ArrayD, Data, Dimension, IxDyn};

use crate::plan::check_storage;
use crate::{Error, Gpu, Layout, Shape};

/// A tensor of f32 on the GPU, row-major in the order of its dimensions.
///
/// Clones share the memory.
///
/// ```
/// use ndarray::array;
/// use wgpu_batchnorm::{Error, Gpu, Layout, Tensor};
///
/// let gpu = Gpu::open_blocking()?;
/// let values = array![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]];
/// let tensor = Tensor::from_array(&gpu, &values, Layout::ChannelsFirst)?;
/// assert_eq!(tensor.to_array_blocking()?, values.into_dyn());
///
/// // A vector has no channels to normalize by.
/// let vector = Tensor::from_array(&gpu, &array![1.0, 2.0], Layout::ChannelsFirst);
/// assert!(matches!(vector, Err(Error::Rank { .. })));
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tensor {
    gpu: Gpu,
    buffer: wgpu::Buffer,
    offset: u64,
    shape: Shape,
}

impl Tensor {
    /// Uploads an array, of any memory order.
    ///
    /// # Errors
    /// Those of [`Shape::new`]; [`Error::TooLarge`] beyond the device's limits,
    /// [`Error::OutOfMemory`] if it does not fit.
    pub fn from_array<S, D>(
        gpu: &Gpu,
        array: &ArrayBase<S, D>,
        layout: Layout,
    ) -> Result<Self, Error>
    where
        S: Data<Elem = f32>,
        D: Dimension,
    {
        let shape = Shape::new(array.shape(), layout)?;
        let buffer = match array.as_slice() {
            Some(values) => gpu.upload("batch_norm.tensor", values)?,
            None => {
                let values: Vec<f32> = array.iter().copied().collect();
                gpu.upload("batch_norm.tensor", &values)?
            }
        };
        Ok(Self {
            gpu: gpu.clone(),
            buffer,
            offset: 0,
            shape,
        })
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond the device's limits, [`Error::OutOfMemory`] if it does not fit.
    pub fn zeros(gpu: &Gpu, shape: &Shape) -> Result<Self, Error> {
        Ok(Self {
            gpu: gpu.clone(),
            buffer: gpu.tensor_buffer("batch_norm.tensor", shape.bytes())?,
            offset: 0,
            shape: shape.clone(),
        })
    }

    /// A tensor in a buffer of the caller's on the device of `gpu`, from `offset` (in bytes) on.
    ///
    /// # Errors
    /// [`Error::BufferSize`] if the buffer ends before the tensor, [`Error::Misaligned`] or
    /// [`Error::MissingUsage`] if it cannot be bound as storage.
    pub fn from_buffer(
        gpu: &Gpu,
        buffer: &wgpu::Buffer,
        offset: u64,
        shape: &Shape,
    ) -> Result<Self, Error> {
        let available = buffer.size().saturating_sub(offset);
        if shape.bytes() > available || offset > buffer.size() {
            return Err(Error::BufferSize {
                tensor: "tensor",
                expected: shape.bytes(),
                found: available,
            });
        }
        let tensor = Self {
            gpu: gpu.clone(),
            buffer: buffer.clone(),
            offset,
            shape: shape.clone(),
        };
        if !shape.is_empty() {
            check_storage(gpu, "tensor", tensor.range())?;
        }
        Ok(tensor)
    }

    /// The GPU that the tensor lives on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The shape and layout.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The buffer that the tensor lies in.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// Where the tensor starts in its buffer, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The tensor's buffer range. It must not be empty.
    pub(crate) fn range(&self) -> wgpu::BufferSlice<'_> {
        self.buffer
            .slice(self.offset..self.offset + self.shape.bytes())
    }

    /// Downloads the values, after all work submitted so far.
    ///
    /// # Errors
    /// [`Error::MissingUsage`] if the tensor's buffer is the caller's and lacks `COPY_SRC`,
    /// [`Error::DeviceLost`], or [`Error::Readback`] if the values cannot be read.
    pub async fn to_array(&self) -> Result<ArrayD<f32>, Error> {
        let usage = wgpu::BufferUsages::COPY_SRC;
        if !self.buffer.usage().contains(usage) {
            return Err(Error::MissingUsage {
                tensor: "tensor",
                usage,
            });
        }
        let values = if self.shape.is_empty() {
            Vec::new()
        } else {
            self.gpu.download(self.range()).await?
        };
        ArrayD::from_shape_vec(IxDyn(self.shape.dims()), values).map_err(|error| Error::Readback {
            message: error.to_string(),
        })
    }

    /// Fails unless the tensor lives on `gpu`.
    pub(crate) fn check_gpu(&self, gpu: &Gpu, tensor: &'static str) -> Result<(), Error> {
        if self.gpu == *gpu {
            return Ok(());
        }
        Err(Error::OtherDevice {
            tensor,
            expected: gpu.name(),
            found: self.gpu.name(),
        })
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod blocking {
    use super::*;

    impl Tensor {
        /// [`Tensor::to_array`], waiting.
        ///
        /// # Errors
        /// As [`Tensor::to_array`].
        pub fn to_array_blocking(&self) -> Result<ArrayD<f32>, Error> {
            pollster::block_on(self.to_array())
        }
    }
}
