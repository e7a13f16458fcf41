//! The three operations of a plan, with buffers to run them on.

use wgpu_batchnorm::{
    BackwardBuffers, Commands, Error, ForwardBuffers, Gpu, Layout, Plan, Tensor, wgpu,
};

/// An operation of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Inference,
    Forward,
    Backward,
}

impl Operation {
    pub const ALL: [Self; 3] = [Self::Inference, Self::Forward, Self::Backward];

    pub fn name(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Forward => "forward",
            Self::Backward => "backward",
        }
    }
}

/// Buffers for every operation of a plan.
pub struct Buffers {
    x: Tensor,
    dy: Tensor,
    /// y, or dx: only one is written at a time.
    written: Tensor,
    /// Ones: γ, β, running mean, running variance; then dγ and dβ.
    vectors: [Tensor; 6],
    saved: wgpu::Buffer,
}

impl Buffers {
    pub fn new(gpu: &Gpu, plan: &Plan) -> Result<Self, Error> {
        let tensor = || Tensor::zeros(gpu, plan.shape(), plan.dtype());
        let vector = || {
            let ones = ndarray::Array2::<f32>::ones((1, plan.shape().channels()));
            Tensor::from_array(gpu, &ones, Layout::ChannelsFirst)
        };
        let buffers = Self {
            x: tensor()?,
            dy: tensor()?,
            written: tensor()?,
            vectors: [
                vector()?,
                vector()?,
                vector()?,
                vector()?,
                vector()?,
                vector()?,
            ],
            saved: gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("bench.saved"),
                size: plan.saved_bytes(),
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            }),
        };
        fill(gpu, &buffers.x);
        fill(gpu, &buffers.dy);
        Ok(buffers)
    }

    /// Binds an operation of a plan of the shape and storage type that these were made for.
    pub fn bind(&self, plan: &Plan, operation: Operation) -> Result<Commands, Error> {
        let [gamma, beta, mean, var, dgamma, dbeta] = self.vectors.each_ref().map(whole);
        let (x, written, saved) = (whole(&self.x), whole(&self.written), self.saved.slice(..));
        let forward = ForwardBuffers::new(x, written)
            .gamma(gamma)
            .beta(beta)
            .running_mean(mean)
            .running_var(var);
        match operation {
            Operation::Inference => plan.bind_inference(&forward),
            Operation::Forward => plan.bind_forward(&forward.saved(saved)),
            Operation::Backward => plan.bind_backward(
                &BackwardBuffers::new(x, whole(&self.dy), saved)
                    .gamma(gamma)
                    .dx(written)
                    .dgamma(dgamma)
                    .dbeta(dbeta),
            ),
        }
    }

    /// What all operations read.
    pub fn x(&self) -> &Tensor {
        &self.x
    }

    /// y, or dx, whichever was computed last.
    pub fn result(&self) -> &Tensor {
        &self.written
    }
}

/// All of a tensor's buffer.
fn whole(tensor: &Tensor) -> wgpu::BufferSlice<'_> {
    tensor.buffer().slice(..)
}

/// Writes values between 1 and 2, in f16 between 1.875 and 2, a part at a time, so that the host needs no second tensor.
fn fill(gpu: &Gpu, tensor: &Tensor) {
    const PART: u64 = 1 << 24;
    let bytes = tensor.shape().bytes(tensor.dtype());
    let part: Vec<u8> = (0..bytes.min(PART) as u32 / 4)
        .flat_map(|index| {
            // Weyl's sequence, as bits that are such numbers in every storage type: of each half, no sign, and an
            // exponent of its own in f16.
            let spread = index.wrapping_mul(0x9e37_79b9) >> 9;
            (0x3f80_3f80 | spread & 0x007f_007f).to_ne_bytes()
        })
        .collect();
    for start in (0..bytes).step_by(PART as usize) {
        let part = &part[..PART.min(bytes - start) as usize];
        gpu.queue().write_buffer(tensor.buffer(), start, part);
        gpu.queue().submit([]);
        wait(gpu);
    }
}

/// Waits for all that was submitted.
pub fn wait(gpu: &Gpu) {
    gpu.device()
        .poll(wgpu::PollType::wait_indefinitely())
        .expect("the device is there");
}
