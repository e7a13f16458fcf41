//! Arbitrary calls of the public API, on a device that runs nothing: whatever comes in, nothing
//! panics, and what fails changes nothing.
//!
//! 2,000 random cases a run; `WGPU_BATCHNORM_CASES` asks for another number.

use ndarray::{Array1, ArrayD};
use proptest::prelude::*;
use wgpu_batchnorm::{
    Adam, Algorithm, BackwardBuffers, BatchNorm, ForwardBuffers, Gpu, InferenceBuffers, LaneOrder,
    Layout, Mode, Optimizer, Options, Plan, RmsProp, RunningVariance, Sgd, Shape, State, Tensor,
    Tuning, cpu, wgpu,
};

fn gpu(limits: wgpu::Limits) -> Gpu {
    let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor {
        required_limits: limits,
        ..Default::default()
    });
    Gpu::from_device(device, queue).expect("the limits suffice")
}

fn config() -> ProptestConfig {
    let cases = std::env::var("WGPU_BATCHNORM_CASES");
    ProptestConfig {
        cases: cases.map_or(2000, |number| number.parse().expect("a number of cases")),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::ChannelsFirst), Just(Layout::ChannelsLast)]
}

/// Sizes from nothing to beyond all memory.
fn any_size() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0..6_usize,
        2 => 0..70_000_usize,
        1 => (0..64_u32).prop_map(|power| 1 << power),
        1 => any::<usize>(),
    ]
}

fn small_dims() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..5_usize, 0..5)
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.0..1.0,
        1 => any::<f64>(),
        1 => prop::sample::select(vec![0.0, 1.0, -1.0, f64::NAN, f64::INFINITY, 1e-320]),
    ]
}

fn tuning() -> impl Strategy<Value = Tuning> {
    let order = prop_oneof![Just(LaneOrder::SideBySide), Just(LaneOrder::Runs)];
    let lanes = prop_oneof![any::<u32>(), (0..12_u32).prop_map(|power| 1 << power)];
    let count = || prop_oneof![4 => 1..300_u32, 1 => any::<u32>()];
    (lanes, count(), order, count(), count(), count(), count()).prop_map(
        |(lanes, across, order, workgroups, min, max, map)| {
            let mut tuning = Tuning::gpu();
            tuning.lanes = lanes;
            tuning.lanes_across = across;
            tuning.order = order;
            tuning.reduction_workgroups = workgroups;
            tuning.reduction_packs_min = min;
            tuning.reduction_packs_max = max;
            tuning.map_packs = map;
            tuning
        },
    )
}

fn options() -> impl Strategy<Value = Options> {
    let variance = prop_oneof![
        Just(RunningVariance::Unbiased),
        Just(RunningVariance::Population)
    ];
    let tuning = prop_oneof![3 => Just(None), 1 => tuning().prop_map(Some)];
    (number(), number(), number(), variance, tuning).prop_map(|(eps, mean, var, kind, tuning)| {
        let options = Options::default()
            .eps(eps)
            .momentum_mean(mean)
            .momentum_var(var)
            .running_variance(kind);
        match tuning {
            Some(tuning) => options.tuning(tuning),
            None => options,
        }
    })
}

fn algorithm() -> impl Strategy<Value = Algorithm> {
    let numbers = [number(), number(), number(), number()];
    (0..3, numbers, any::<bool>()).prop_map(|(kind, [lr, a, b, c], flag)| match kind {
        0 => Sgd {
            lr,
            momentum: a,
            dampening: b,
            weight_decay: c,
            nesterov: flag,
        }
        .into(),
        1 => RmsProp {
            lr,
            alpha: a,
            eps: b,
            weight_decay: c,
            momentum: 0.5,
            centered: flag,
        }
        .into(),
        _ => Adam {
            lr,
            betas: [a, b],
            eps: c,
            weight_decay: 0.0,
            amsgrad: flag,
        }
        .into(),
    })
}

/// A call of a layer.
#[derive(Clone, Debug)]
enum Call {
    Forward(Vec<usize>, Layout),
    Backward(Vec<usize>, Layout),
    Step,
    SetMode(Mode),
    SetState([usize; 4]),
    SetLr(f64),
}

fn call() -> impl Strategy<Value = Call> {
    let length = || 0..6_usize;
    prop_oneof![
        4 => (small_dims(), layout()).prop_map(|(dims, layout)| Call::Forward(dims, layout)),
        3 => (small_dims(), layout()).prop_map(|(dims, layout)| Call::Backward(dims, layout)),
        1 => Just(Call::Step),
        1 => prop_oneof![Just(Mode::Train), Just(Mode::Eval)].prop_map(Call::SetMode),
        1 => [length(), length(), length(), length()].prop_map(Call::SetState),
        1 => number().prop_map(Call::SetLr),
    ]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn shapes_and_plans_of_any_size(
        dims in prop::collection::vec(any_size(), 0..6),
        layout in layout(),
        options in options(),
        binding in prop_oneof![Just(4096_u64), Just(65_536), Just(128 << 20)],
    ) {
        let gpu = gpu(wgpu::Limits {
            max_storage_buffer_binding_size: binding,
            ..wgpu::Limits::default()
        });
        if let Ok(shape) = Shape::new(&dims, layout) {
            prop_assert_eq!(shape.is_empty(), dims.contains(&0));
            // On a noop device memory is the host's: leave alone what would fill it.
            if shape.channels() < 1 << 20 {
                let _ = Plan::new(&gpu, &shape, &options);
                let _ = BatchNorm::new(&gpu, shape.channels(), options);
            }
            if shape.bytes() < 1 << 20 || shape.bytes() > gpu.limits().max_buffer_size {
                let _ = Tensor::zeros(&gpu, &shape);
            }
        }
    }

    #[test]
    fn layers_take_any_calls(
        channels in 0..5_usize,
        options in options(),
        algorithm in algorithm(),
        calls in prop::collection::vec(call(), 0..12),
    ) {
        let gpu = gpu(wgpu::Limits::default());
        let layer = BatchNorm::new(&gpu, channels, options.clone());
        let twin = cpu::BatchNorm::new(channels, options);
        // The CPU path takes the same, but for the division of work.
        prop_assert!(twin.is_ok() || layer.is_err());
        let (Ok(mut layer), Ok(mut twin)) = (layer, twin) else {
            return Ok(());
        };
        let optimizer = Optimizer::new(&layer, algorithm.clone());
        let twin_optimizer = cpu::Optimizer::new(&twin, algorithm);
        prop_assert_eq!(optimizer.is_ok(), twin_optimizer.is_ok());
        let (Ok(mut optimizer), Ok(mut twin_optimizer)) = (optimizer, twin_optimizer) else {
            return Ok(());
        };
        for call in calls {
            let before = twin.state().clone();
            let array = |dims: &[usize]| ArrayD::<f32>::zeros(dims);
            let results = match call.clone() {
                Call::Forward(dims, layout) => (
                    Tensor::from_array(&gpu, &array(&dims), layout)
                        .and_then(|x| layer.forward(&x))
                        .map(drop),
                    twin.forward(&array(&dims), layout).map(drop),
                ),
                Call::Backward(dims, layout) => {
                    let result = Tensor::from_array(&gpu, &array(&dims), layout)
                        .and_then(|dy| layer.backward(&dy))
                        .map(drop);
                    // The twin takes its layout from the forward pass.
                    let other_layout = matches!(
                        result,
                        Err(wgpu_batchnorm::Error::LayoutMismatch { .. })
                    );
                    let twin = match other_layout {
                        true => result.clone(),
                        false => twin.backward(&array(&dims)).map(drop),
                    };
                    (result, twin)
                }
                Call::Step => (
                    optimizer.step(&mut layer),
                    twin_optimizer.step(&mut twin),
                ),
                Call::SetMode(mode) => {
                    layer.set_mode(mode);
                    twin.set_mode(mode);
                    (Ok(()), Ok(()))
                }
                Call::SetState(lengths) => {
                    let [gamma, beta, running_mean, running_var] = lengths.map(Array1::zeros);
                    let state = State {
                        gamma,
                        beta,
                        running_mean,
                        running_var,
                        num_batches_tracked: u64::MAX,
                    };
                    (layer.set_state(&state), twin.set_state(&state))
                }
                Call::SetLr(lr) => (optimizer.set_lr(lr), twin_optimizer.set_lr(lr)),
            };
            // Both paths refuse the same.
            prop_assert_eq!(results.0.is_ok(), results.1.is_ok(), "{:?}: {:?}", call, results);
            prop_assert_eq!(layer.num_batches_tracked(), twin.state().num_batches_tracked);
            if results.0.is_err() {
                prop_assert_eq!(twin.state(), &before);
            }
        }
    }

    /// Ranges that would do, up to two of them disturbed.
    #[test]
    fn plans_take_any_ranges(
        dims in prop::collection::vec(1..4_usize, 2..5),
        layout in layout(),
        disturbed in prop::collection::vec(
            (0..7_usize, 0..4_usize, 0..40_u64, prop::sample::select(vec![0, 0, 0, 4, 8, 400])),
            0..3,
        ),
    ) {
        let gpu = gpu(wgpu::Limits::default());
        let shape = Shape::new(&dims, layout).expect("a shape with channels");
        let plan = Plan::new(&gpu, &shape, &Options::default()).expect("a small plan");
        let buffer = |usage| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 16_384,
                usage,
                mapped_at_creation: false,
            })
        };
        let storage = wgpu::BufferUsages::STORAGE;
        let buffers = [
            buffer(storage),
            buffer(storage),
            buffer(storage),
            buffer(wgpu::BufferUsages::COPY_DST),
        ];
        // Each operation's tensors: its buffer, its offset, its size.
        let (tensor, vector) = (shape.bytes(), 4 * shape.channels() as u64);
        let disturb = |valid: [(usize, u64, u64); 7]| {
            let mut ranges = valid;
            for &(index, buffer, offset, more) in &disturbed {
                // In steps of the alignment, or of one value.
                let offset = if offset < 32 { 256 * offset } else { 4 * offset };
                ranges[index] = (buffer, offset, ranges[index].2 + more);
            }
            ranges
        };
        let slice = |range: (usize, u64, u64)| buffers[range.0].slice(range.1..range.1 + range.2);
        let overlap = |a: (usize, u64, u64), b: (usize, u64, u64)| {
            a.0 == b.0 && a.1 < b.1 + b.2 && b.1 < a.1 + a.2
        };
        // What was bound has the sizes, alignments and usages it needs, and no output overlaps.
        let valid = |ranges: &[(usize, u64, u64)], sizes: &[u64], outputs: &[usize]| {
            ranges.iter().zip(sizes).all(|(range, &size)| {
                range.2 == size && range.1 % 256 == 0 && range.0 != 3
            }) && outputs.iter().all(|&output| {
                (0..ranges.len()).all(|other| {
                    other == output || !overlap(ranges[output], ranges[other])
                })
            })
        };
        let trainable = shape.values_per_channel() > 1;

        let sizes = [tensor, vector, vector, tensor, vector, vector, plan.saved_bytes()];
        let forward = disturb([
            (0, 0, tensor),
            (0, 2048, vector),
            (0, 4096, vector),
            (1, 0, tensor),
            (1, 2048, vector),
            (1, 4096, vector),
            (2, 0, plan.saved_bytes()),
        ]);
        let result = plan.bind_forward(&ForwardBuffers {
            x: slice(forward[0]),
            gamma: slice(forward[1]),
            beta: slice(forward[2]),
            y: slice(forward[3]),
            running_mean: slice(forward[4]),
            running_var: slice(forward[5]),
            saved: slice(forward[6]),
        });
        prop_assert!(result.is_err() || valid(&forward, &sizes, &[3, 4, 5, 6]));
        prop_assert!(result.is_ok() || !disturbed.is_empty() || !trainable);

        let result = plan.bind_inference(&InferenceBuffers {
            x: slice(forward[0]),
            gamma: slice(forward[1]),
            beta: slice(forward[2]),
            y: slice((2, 8192, tensor)),
            running_mean: slice(forward[4]),
            running_var: slice(forward[5]),
        });
        prop_assert!(result.is_ok() || !disturbed.is_empty());

        let sizes = [tensor, tensor, vector, plan.saved_bytes(), tensor, vector, vector];
        let backward = disturb([
            (0, 0, tensor),
            (0, 2048, tensor),
            (0, 4096, vector),
            (2, 0, plan.saved_bytes()),
            (1, 0, tensor),
            (1, 2048, vector),
            (1, 4096, vector),
        ]);
        let result = plan.bind_backward(&BackwardBuffers {
            x: slice(backward[0]),
            dy: slice(backward[1]),
            gamma: slice(backward[2]),
            saved: slice(backward[3]),
            dx: slice(backward[4]),
            dgamma: slice(backward[5]),
            dbeta: slice(backward[6]),
        });
        prop_assert!(result.is_err() || valid(&backward, &sizes, &[4, 5, 6]));
        prop_assert!(result.is_ok() || !disturbed.is_empty() || !trainable);
    }
}
