//! The operations on burn's own buffers: `wgpu_batchnorm`'s commands in burn's queue.

use burn::backend::wgpu::{AutoCompiler, CubeBackend, CubeTensor, WgpuResource, into_contiguous};
use burn::cubecl::wgpu::WgpuServer;
use burn::tensor::{DType, Shape};
use wgpu_batchnorm::{BackwardBuffers, Commands, Error, ForwardBuffers, Layout, wgpu};

use crate::device::Planned;
use crate::ops::{BatchNormOps, Forward, Gradients, Mask, Maybe, Wanted};

/// A tensor's memory, held in place.
struct Bound<H> {
    resource: WgpuResource,
    bytes: u64,
    /// While this is there, burn neither moves the memory nor gives it to another tensor.
    _held: H,
}

impl<H> Bound<H> {
    /// The tensor's bytes, in whole words: what fills up the last one is the tensor's own, for burn
    /// cuts its memory at multiples of a binding's alignment.
    fn slice(&self) -> wgpu::BufferSlice<'_> {
        self.first(self.bytes)
    }

    /// The first of the tensor's bytes.
    fn first(&self, bytes: u64) -> wgpu::BufferSlice<'_> {
        let start = self.resource.offset;
        let end = start + bytes.next_multiple_of(4);
        self.resource.buffer.slice(start..end)
    }
}

/// Where a contiguous tensor lies. What burn has queued for it on this thread and on the one that made
/// it is submitted before this returns.
fn bind(tensor: &CubeTensor) -> Bound<impl Sized + use<>> {
    let held = tensor
        .client
        .get_resource::<WgpuServer<AutoCompiler>>(tensor.handle.clone())
        .unwrap_or_else(|error| panic!("FusedBatchNorm: burn's memory is out of reach: {error}"));
    Bound {
        resource: held.resource().clone(),
        bytes: (tensor.meta.shape().num_elements() * tensor.dtype.size()) as u64,
        _held: held,
    }
}

/// A new tensor beside another, of any content.
fn empty(beside: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    let handle = beside.client.empty(shape.num_elements() * dtype.size());
    let (client, device) = (beside.client.clone(), beside.device.clone());
    CubeTensor::new_contiguous(client, device, shape, handle, dtype)
}

/// A new vector of f32.
fn vector(beside: &CubeTensor, length: usize) -> CubeTensor {
    empty(beside, [length].into(), DType::F32)
}

/// A new vector like another.
fn like(vector: &CubeTensor) -> CubeTensor {
    empty(vector, vector.meta.shape().clone(), vector.dtype)
}

/// The same memory, its channels moved from the second dimension to the last.
fn with_channels_last(mut tensor: CubeTensor) -> CubeTensor {
    let rank = tensor.meta.shape().num_dims();
    let axes: Vec<_> = [0].into_iter().chain(2..rank).chain([1]).collect();
    tensor.meta.permute(&axes).expect("each axis once");
    tensor
}

/// And back.
fn with_channels_second(mut tensor: CubeTensor) -> CubeTensor {
    let rank = tensor.meta.shape().num_dims();
    let axes: Vec<_> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    tensor.meta.permute(&axes).expect("each axis once");
    tensor
}

/// How `[batch, channels, …]` lies in memory: with the channels last if that is how it is contiguous, as
/// burn's convolutions leave it.
fn layout_of(tensor: &CubeTensor) -> Layout {
    let is_tiled = tensor.meta.is_tiled();
    if !is_tiled && !tensor.is_contiguous() && with_channels_last(tensor.clone()).is_contiguous() {
        Layout::ChannelsLast
    } else {
        Layout::ChannelsFirst
    }
}

/// A tensor `[batch, channels, …]` as it is, if it lies in memory like this, or a copy that does.
fn laid_out(tensor: CubeTensor, layout: Layout) -> CubeTensor {
    match layout {
        Layout::ChannelsFirst => into_contiguous(tensor),
        Layout::ChannelsLast if layout_of(&tensor) == layout => tensor,
        Layout::ChannelsLast => {
            // What is tiled cannot be permuted.
            let tensor = match tensor.meta.is_tiled() {
                true => into_contiguous(tensor),
                false => tensor,
            };
            with_channels_second(into_contiguous(with_channels_last(tensor)))
        }
    }
}

/// A new tensor like one that lies in memory like this.
fn laid_out_like(tensor: &CubeTensor, layout: Layout) -> CubeTensor {
    match layout {
        Layout::ChannelsFirst => like(tensor),
        Layout::ChannelsLast => with_channels_second(like(&with_channels_last(tensor.clone()))),
    }
}

/// What was checked before the operation was queued does not fail; the rest is burn's way to say it.
fn bound(commands: Result<Commands, Error>) -> Commands {
    commands.unwrap_or_else(|error| panic!("FusedBatchNorm: {error}"))
}

/// Submits commands behind all that burn has submitted: so behind the work of every tensor that was
/// bound.
fn submit(planned: &Planned, record: impl FnOnce(&mut wgpu::CommandEncoder)) {
    let mut encoder =
        planned
            .gpu()
            .device()
            .create_command_encoder(&wgpu::CommandEncoderDescriptor {
                label: Some("batch_norm"),
            });
    record(&mut encoder);
    planned.gpu().queue().submit([encoder.finish()]);
}

/// Copies the bytes of one range over another.
fn copy(
    encoder: &mut wgpu::CommandEncoder,
    from: wgpu::BufferSlice<'_>,
    to: wgpu::BufferSlice<'_>,
) {
    encoder.copy_buffer_to_buffer(
        from.buffer(),
        from.offset(),
        to.buffer(),
        to.offset(),
        Some(from.size()),
    );
}

impl BatchNormOps for CubeBackend {
    fn wgpu_batch_norm_forward(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        residual: Maybe<Self>,
        running_mean: CubeTensor,
        running_var: CubeTensor,
        planned: Planned,
    ) -> Forward<Self> {
        let layout = layout_of(&x);
        planned.keep_layout(layout);
        let plan = planned.plan(layout);
        let x = laid_out(x, layout);
        let residual = residual
            .into_option()
            .map(|residual| laid_out(residual, layout));
        let [gamma, beta, running_mean, running_var] =
            [gamma, beta, running_mean, running_var].map(into_contiguous);
        let y = laid_out_like(&x, layout);
        let saved = vector(&x, planned.saved_values());
        let mask = (residual.is_some() && planned.relu())
            .then(|| empty(&x, [planned.mask_words()].into(), DType::U32));
        // Others may hold the running statistics as they were: the step makes new ones.
        let after = match planned.frozen() {
            true => [running_mean.clone(), running_var.clone()],
            false => [like(&running_mean), like(&running_var)],
        };
        {
            let before = [&running_mean, &running_var].map(bind);
            let after = (!planned.frozen()).then(|| after.each_ref().map(bind));
            let steps = planned.running();
            // Constants are read where they lie; others are stepped on the side.
            let [mean, var] = match planned.frozen() {
                true => before.each_ref().map(Bound::slice),
                false => steps,
            };
            let [x, y, gamma, beta, saved] = [&x, &y, &gamma, &beta, &saved].map(bind);
            let (residual, mask) = (residual.as_ref().map(bind), mask.as_ref().map(bind));
            let mut buffers = ForwardBuffers::new(x.slice(), y.slice())
                .gamma(gamma.slice())
                .beta(beta.slice())
                .running_mean(mean)
                .running_var(var)
                .saved(saved.slice());
            if let Some(residual) = &residual {
                buffers = buffers.residual(residual.slice());
            }
            if let Some(mask) = &mask {
                buffers = buffers.mask(mask.first(plan.mask_bytes()));
            }
            let commands = bound(plan.bind_forward(&buffers));
            submit(&planned, |encoder| {
                let Some(after) = &after else {
                    return commands.record(encoder);
                };
                for (from, to) in before.iter().zip(steps) {
                    copy(encoder, from.slice(), to);
                }
                commands.record(encoder);
                for (from, to) in steps.into_iter().zip(after) {
                    copy(encoder, from, to.slice());
                }
            });
        }
        let [running_mean, running_var] = after;
        Forward {
            y,
            saved,
            mask: Mask::new(mask),
            running_mean,
            running_var,
        }
    }

    fn wgpu_batch_norm_inference(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        residual: Maybe<Self>,
        running_mean: CubeTensor,
        running_var: CubeTensor,
        planned: Planned,
    ) -> CubeTensor {
        let layout = layout_of(&x);
        let x = laid_out(x, layout);
        let residual = residual
            .into_option()
            .map(|residual| laid_out(residual, layout));
        let vectors = [gamma, beta, running_mean, running_var].map(into_contiguous);
        let y = laid_out_like(&x, layout);
        {
            let [x, y] = [&x, &y].map(bind);
            let [gamma, beta, mean, var] = vectors.each_ref().map(bind);
            let residual = residual.as_ref().map(bind);
            let mut buffers = ForwardBuffers::new(x.slice(), y.slice())
                .gamma(gamma.slice())
                .beta(beta.slice())
                .running_mean(mean.slice())
                .running_var(var.slice());
            if let Some(residual) = &residual {
                buffers = buffers.residual(residual.slice());
            }
            let commands = bound(planned.plan(layout).bind_inference(&buffers));
            submit(&planned, |encoder| commands.record(encoder));
        }
        y
    }

    fn wgpu_batch_norm_backward(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        saved: CubeTensor,
        mask: Mask<Self>,
        dy: CubeTensor,
        wanted: Wanted,
        planned: Planned,
    ) -> Gradients<Self> {
        // That of the forward pass, whose mask it is; x may have been computed anew.
        let layout = planned.kept_layout();
        let plan = planned.plan(layout);
        let [x, dy] = [x, dy].map(|tensor| laid_out(tensor, layout));
        let [gamma, beta] = [gamma, beta].map(into_contiguous);
        let mask = mask.into_option();
        // One kernel writes both.
        let dx = (wanted.x || wanted.residual).then(|| laid_out_like(&x, layout));
        let dgamma = wanted.gamma.then(|| like(&gamma));
        let dbeta = wanted.beta.then(|| like(&beta));
        let dresidual = wanted.residual.then(|| laid_out_like(&x, layout));
        {
            let maybe = |tensor: &Option<CubeTensor>| tensor.as_ref().map(bind);
            let [x, dy, saved, gamma, beta] = [&x, &dy, &saved, &gamma, &beta].map(bind);
            let (mask, dx, dresidual) = (maybe(&mask), maybe(&dx), maybe(&dresidual));
            let (dgamma, dbeta) = (maybe(&dgamma), maybe(&dbeta));
            let mut buffers = BackwardBuffers::new(x.slice(), dy.slice(), saved.slice())
                .gamma(gamma.slice())
                .beta(beta.slice());
            if let Some(mask) = &mask {
                buffers = buffers.mask(mask.first(plan.mask_bytes()));
            }
            if let Some(dx) = &dx {
                buffers = buffers.dx(dx.slice());
            }
            if let Some(dresidual) = &dresidual {
                buffers = buffers.residual_gradient(dresidual.slice());
            }
            if let Some(dgamma) = &dgamma {
                buffers = buffers.dgamma(dgamma.slice());
            }
            if let Some(dbeta) = &dbeta {
                buffers = buffers.dbeta(dbeta.slice());
            }
            let commands = bound(plan.bind_backward(&buffers));
            submit(&planned, |encoder| commands.record(encoder));
        }
        Gradients {
            x: dx.filter(|_| wanted.x).into(),
            gamma: dgamma.into(),
            beta: dbeta.into(),
            residual: dresidual.into(),
        }
    }
}
