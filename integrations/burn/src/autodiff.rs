//! The operations under automatic differentiation.

use burn::backend::Autodiff;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients as Collected;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};

use crate::device::Planned;
use crate::ops::{BatchNormOps, Forward, Gradients, Mask, Maybe, Wanted};

/// A tensor with its place in burn's graph, which depends on no checkpointing.
type AutodiffTensor<B> = FloatTensor<Autodiff<B>>;

/// The backward pass, as a step of burn's graph. Its parents are x, γ, β, and the residual if there
/// is one.
#[derive(Debug)]
struct BatchNorm;

/// What the backward pass needs of the forward pass.
#[derive(Clone, Debug)]
struct State<F, I> {
    x: NodeId,
    gamma: NodeId,
    beta: NodeId,
    saved: F,
    mask: Option<I>,
    planned: Planned,
}

impl<B: BatchNormOps, const N: usize> Backward<B, N> for BatchNorm {
    type State = State<FloatTensor<B>, IntTensor<B>>;

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        gradients: &mut Collected,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = gradients.consume::<B>(&ops.node);
        let parent = |index| ops.parents.get(index).and_then(Option::as_ref);
        let (x, gamma, beta, residual) = (parent(0), parent(1), parent(2), parent(3));
        let state = ops.state;
        // Without a mask nothing was cut.
        let passes = state.mask.is_none();
        let wanted = Wanted {
            x: x.is_some(),
            gamma: gamma.is_some(),
            beta: beta.is_some(),
            residual: residual.is_some() && !passes,
        };
        if let Some(residual) = residual
            && passes
        {
            gradients.register::<B>(residual.id, dy.clone());
        }
        if !(wanted.x || wanted.gamma || wanted.beta || wanted.residual) {
            return;
        }
        let mut kept = |node| checkpointer.retrieve_node_output::<FloatTensor<B>>(node);
        let found = B::wgpu_batch_norm_backward(
            kept(state.x),
            kept(state.gamma),
            kept(state.beta),
            state.saved,
            Mask::new(state.mask),
            dy,
            wanted,
            state.planned,
        );
        for (node, gradient) in [
            (x, found.x),
            (gamma, found.gamma),
            (beta, found.beta),
            (residual, found.residual),
        ] {
            if let (Some(node), Some(gradient)) = (node, gradient.into_option()) {
                gradients.register::<B>(node.id, gradient);
            }
        }
    }
}

/// Runs the forward pass and puts its backward pass into the graph, behind `nodes`.
fn tracked<B: BatchNormOps, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    [x, gamma, beta]: [AutodiffTensor<B>; 3],
    residual: Option<AutodiffTensor<B>>,
    [mean, var]: [AutodiffTensor<B>; 2],
    planned: Planned,
) -> Forward<Autodiff<B, C>> {
    let residual = Maybe::from(residual.map(|residual| residual.into_primitive()));
    let run = |x: AutodiffTensor<B>, gamma: AutodiffTensor<B>, beta: AutodiffTensor<B>| {
        B::wgpu_batch_norm_forward(
            x.into_primitive(),
            gamma.into_primitive(),
            beta.into_primitive(),
            residual,
            mean.into_primitive(),
            var.into_primitive(),
            planned.clone(),
        )
    };
    match BatchNorm
        .prepare::<C>(nodes)
        // Not to be run again to save memory: it would step the running statistics once more.
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(mut prepared) => {
            let kept = [&x, &gamma, &beta].map(|tensor| prepared.checkpoint(tensor));
            let found = run(x, gamma, beta);
            let mask = found.mask.into_option();
            let [x, gamma, beta] = kept;
            let state = State {
                x,
                gamma,
                beta,
                saved: found.saved.clone(),
                mask: mask.clone(),
                planned: planned.clone(),
            };
            Forward {
                y: prepared.finish(state, found.y),
                saved: AutodiffTensor::<B>::new(found.saved),
                mask: Mask::new(mask),
                running_mean: AutodiffTensor::<B>::new(found.running_mean),
                running_var: AutodiffTensor::<B>::new(found.running_var),
            }
        }
        OpsKind::UnTracked(prepared) => {
            let found = run(x, gamma, beta);
            Forward {
                y: prepared.finish(found.y),
                saved: AutodiffTensor::<B>::new(found.saved),
                mask: Mask::new(found.mask.into_option()),
                running_mean: AutodiffTensor::<B>::new(found.running_mean),
                running_var: AutodiffTensor::<B>::new(found.running_var),
            }
        }
    }
}

impl<B: BatchNormOps, C: CheckpointStrategy> BatchNormOps for Autodiff<B, C> {
    fn wgpu_batch_norm_forward(
        x: AutodiffTensor<B>,
        gamma: AutodiffTensor<B>,
        beta: AutodiffTensor<B>,
        residual: Maybe<Self>,
        running_mean: AutodiffTensor<B>,
        running_var: AutodiffTensor<B>,
        planned: Planned,
    ) -> Forward<Self> {
        let learned = [x.node(), gamma.node(), beta.node()];
        let (of, running) = ([x, gamma, beta], [running_mean, running_var]);
        match residual.into_option() {
            None => tracked::<B, C, 3>(learned, of, None, running, planned),
            Some(residual) => {
                let [x, gamma, beta] = learned;
                let nodes = [x, gamma, beta, residual.node()];
                tracked::<B, C, 4>(nodes, of, Some(residual), running, planned)
            }
        }
    }

    fn wgpu_batch_norm_inference(
        x: AutodiffTensor<B>,
        gamma: AutodiffTensor<B>,
        beta: AutodiffTensor<B>,
        residual: Maybe<Self>,
        running_mean: AutodiffTensor<B>,
        running_var: AutodiffTensor<B>,
        planned: Planned,
    ) -> AutodiffTensor<B> {
        let residual = residual.into_option();
        let parents = [Some(&x), Some(&gamma), Some(&beta), residual.as_ref()];
        if !parents
            .into_iter()
            .flatten()
            .any(|parent| parent.is_tracked())
        {
            let residual = Maybe::from(residual.map(|residual| residual.into_primitive()));
            return AutodiffTensor::<B>::new(B::wgpu_batch_norm_inference(
                x.into_primitive(),
                gamma.into_primitive(),
                beta.into_primitive(),
                residual,
                running_mean.into_primitive(),
                running_var.into_primitive(),
                planned,
            ));
        }
        // By constant statistics, with a backward pass.
        let residual = Maybe::from(residual);
        Self::wgpu_batch_norm_forward(x, gamma, beta, residual, running_mean, running_var, planned)
            .y
    }

    fn wgpu_batch_norm_backward(
        _x: AutodiffTensor<B>,
        _gamma: AutodiffTensor<B>,
        _beta: AutodiffTensor<B>,
        _saved: AutodiffTensor<B>,
        _mask: Mask<Self>,
        _dy: AutodiffTensor<B>,
        _wanted: Wanted,
        _planned: Planned,
    ) -> Gradients<Self> {
        panic!("FusedBatchNorm: its backward pass has no derivative of its own");
    }
}
