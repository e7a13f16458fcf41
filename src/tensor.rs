//! A range of a GPU buffer with a shape.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ndarray::{ArrayBase, ArrayD, Data, Dimension, IxDyn};

use crate::plan::check_storage;
use crate::{DType, Error, Gpu, Layout, Shape, Stored};

/// A tensor on the GPU, row-major in the order of its dimensions, stored as f32, f16 or bf16.
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
    dtype: DType,
    /// How often this crate has written over it. Clones share it.
    writes: Arc<AtomicU64>,
}

impl Tensor {
    /// Uploads an array, of any memory order, of f32, [`half::f16`] or [`half::bf16`].
    ///
    /// # Errors
    /// Those of [`Shape::new`]; [`Error::TooLarge`] beyond the device's limits,
    /// [`Error::OutOfMemory`] if it does not fit.
    pub fn from_array<T, S, D>(
        gpu: &Gpu,
        array: &ArrayBase<S, D>,
        layout: Layout,
    ) -> Result<Self, Error>
    where
        T: Stored,
        S: Data<Elem = T>,
        D: Dimension,
    {
        let shape = Shape::new(array.shape(), layout)?;
        let buffer = match array.as_slice() {
            Some(values) => gpu.upload("batch_norm.tensor", values)?,
            None => {
                let values: Vec<T> = array.iter().copied().collect();
                gpu.upload("batch_norm.tensor", &values)?
            }
        };
        Ok(Self {
            gpu: gpu.clone(),
            buffer,
            offset: 0,
            shape,
            dtype: T::DTYPE,
            writes: Arc::default(),
        })
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond the device's limits, [`Error::OutOfMemory`] if it does not fit.
    pub fn zeros(gpu: &Gpu, shape: &Shape, dtype: DType) -> Result<Self, Error> {
        Ok(Self {
            gpu: gpu.clone(),
            buffer: gpu.tensor_buffer("batch_norm.tensor", shape.bytes(dtype))?,
            offset: 0,
            shape: shape.clone(),
            dtype,
            writes: Arc::default(),
        })
    }

    /// A tensor in a buffer of the caller's on the device of `gpu`, from `offset` (in bytes) on, of
    /// [`Shape::bytes`].
    ///
    /// # Errors
    /// [`Error::BufferSize`] if the buffer ends before the tensor, [`Error::Misaligned`] or
    /// [`Error::MissingUsage`] if it cannot be bound as storage.
    pub fn from_buffer(
        gpu: &Gpu,
        buffer: &wgpu::Buffer,
        offset: u64,
        shape: &Shape,
        dtype: DType,
    ) -> Result<Self, Error> {
        let available = buffer.size().saturating_sub(offset);
        if shape.bytes(dtype) > available || offset > buffer.size() {
            return Err(Error::BufferSize {
                tensor: "tensor",
                expected: shape.bytes(dtype),
                found: available,
            });
        }
        let tensor = Self {
            gpu: gpu.clone(),
            buffer: buffer.clone(),
            offset,
            shape: shape.clone(),
            dtype,
            writes: Arc::default(),
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

    /// How the values are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The buffer that the tensor lies in.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// Where the tensor starts in its buffer, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The tensor's buffer range; of an empty tensor, some range that nobody looks at.
    pub(crate) fn range(&self) -> wgpu::BufferSlice<'_> {
        match self.shape.bytes(self.dtype) {
            0 => self.buffer.slice(..),
            bytes => self.buffer.slice(self.offset..self.offset + bytes),
        }
    }

    /// How often this crate has written over it.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Says that it is written over.
    pub(crate) fn count_write(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether both are the same memory.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.buffer == other.buffer && self.offset == other.offset
    }

    /// Downloads the values, after all work submitted so far, as f32, which holds those of every
    /// storage type exactly.
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
            match self.dtype {
                DType::F32 => self.gpu.download(self.range()).await?,
                DType::F16 => self.downloaded::<half::f16>().await?,
                DType::Bf16 => self.downloaded::<half::bf16>().await?,
            }
        };
        ArrayD::from_shape_vec(IxDyn(self.shape.dims()), values).map_err(|error| Error::Readback {
            message: error.to_string(),
        })
    }

    async fn downloaded<T: Stored>(&self) -> Result<Vec<f32>, Error> {
        let values = self.gpu.download::<T>(self.range()).await?;
        let values = values.into_iter().take(self.shape.len());
        Ok(values.map(|value| value.to_f64() as f32).collect())
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
