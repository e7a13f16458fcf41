//! [`FusedBatchNorm`] beside burn's own `BatchNorm`, on one device: the same values and gradients.
//!
//! burn's is the yardstick only where it is right itself: for data whose mean is no larger than its
//! deviation. How right the kernels are elsewhere, the tests of `wgpu-batchnorm` say.

use burn::backend::Cube;
use burn::backend::wgpu::{AutoCompiler, CubeBackend, CubeTensor};
use burn::config::Config;
use burn::cubecl::wgpu::WgpuServer;
use burn::module::{Module, Param, ParamGroup, RunningState};
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::store::ModuleRecord;
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData, Tolerance, activation};
use wgpu_batchnorm_burn::wgpu_batchnorm::half::f16;
use wgpu_batchnorm_burn::{FusedBatchNorm, FusedBatchNormConfig, RunningVariance, device};

type Parameter = Param<Tensor<1>>;

/// The device of all tests, with gradients.
fn training_device() -> Device {
    device().expect("a wgpu device").autodiff()
}

/// `count` numbers spread over -1 … 1 (Weyl's sequence), others for another seed.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let step = 0x9e37_79b9_u32.wrapping_add(2 * 0x0101_0101 * seed) | 1;
    let mut next = seed.wrapping_mul(0x7f4a_7c15);
    std::iter::repeat_with(|| {
        next = next.wrapping_add(step);
        (next as i32) as f32 / 2_147_483_648.0
    })
    .take(count)
    .collect()
}

/// A tensor of such numbers, times `scale`, plus `offset`.
fn tensor<const D: usize>(
    dims: [usize; D],
    seed: u32,
    scale: f32,
    offset: f32,
    device: &Device,
) -> Tensor<D> {
    let values: Vec<_> = numbers(dims.iter().product(), seed)
        .into_iter()
        .map(|value| value * scale + offset)
        .collect();
    Tensor::from_data(TensorData::new(values, dims), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data().convert_dtype(DType::F32);
    data.try_to_vec::<f32>().expect("f32")
}

/// Fails unless both are the same within `bound` of the largest magnitude, which must be there.
#[track_caller]
fn assert_same<const D: usize>(what: &str, found: Tensor<D>, expected: Tensor<D>, bound: f32) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (values(found), values(expected));
    let largest = expected
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    assert!(
        largest > 0.0 && largest.is_finite(),
        "{what}: nothing to compare"
    );
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let error = (found - expected).abs();
        assert!(
            error <= bound * largest,
            "{what}[{index}] is {found}, expected {expected}; largest {largest}"
        );
    }
}

/// What two ways to compute in f32 may differ by.
const BOUND: f32 = 1e-5;

/// Both modules with the same parameters and running statistics, none of them trivial.
fn pair(
    features: usize,
    config: FusedBatchNormConfig,
    device: &Device,
) -> (FusedBatchNorm, BatchNorm) {
    let mut theirs = BatchNormConfig::new(features)
        .with_epsilon(config.epsilon)
        .with_momentum(config.momentum)
        .init(device);
    let vector = |seed, scale, offset| tensor([features], seed, scale, offset, device);
    theirs.gamma = Parameter::from_tensor(vector(1, 0.5, 1.25));
    theirs.beta = Parameter::from_tensor(vector(2, 0.5, 0.1));
    theirs.running_mean = RunningState::new(vector(3, 0.3, 0.2));
    theirs.running_var = RunningState::new(vector(4, 0.3, 1.0));
    let ours = config
        .init(device)
        .load_record(theirs.clone().into_record());
    (ours, theirs)
}

fn config(features: usize) -> FusedBatchNormConfig {
    FusedBatchNormConfig::new(features)
        .with_momentum(0.3)
        .with_epsilon(1e-4)
}

/// burn's own, with what follows it.
fn composed<const D: usize>(
    module: &BatchNorm,
    x: Tensor<D>,
    residual: Option<Tensor<D>>,
    relu: bool,
) -> Tensor<D> {
    let y = module.forward(x);
    let y = match residual {
        Some(residual) => y + residual,
        None => y,
    };
    if relu { activation::relu(y) } else { y }
}

fn fused<const D: usize>(
    module: &FusedBatchNorm,
    x: Tensor<D>,
    residual: Option<Tensor<D>>,
) -> Tensor<D> {
    match residual {
        Some(residual) => module.forward_residual(x, residual),
        None => module.forward(x),
    }
}

/// One forward and backward pass of both: y, every gradient, and the running statistics after it.
fn step_is_same<const D: usize>(
    dims: [usize; D],
    relu: bool,
    residual: bool,
    frozen: bool,
    device: &Device,
) {
    let (mut ours, mut theirs) = pair(dims[1], config(dims[1]).with_relu(relu), device);
    if frozen {
        // Without their gradients, γ and β would not be compared.
        let flags = |path: &'static str| ParamGroup::from_path(path);
        ours = ours.freeze_group(flags("training"));
        theirs = theirs.freeze_group(flags("training"));
        assert!(!ours.training.is_enabled() && ours.gamma.is_require_grad());
    }
    let leaf = |seed| tensor(dims, seed, 2.0, 0.5, device).require_grad();
    let (x, r) = (leaf(5), residual.then(|| leaf(6)));
    let (x2, r2) = (leaf(5), residual.then(|| leaf(6)));
    let weight = tensor(dims, 7, 1.0, 0.0, device);

    let y = fused(&ours, x.clone(), r.clone());
    let y2 = composed(&theirs, x2.clone(), r2.clone(), relu);
    assert_same("y", y.clone(), y2.clone(), BOUND);
    let found = (y * weight.clone()).sum().backward();
    let expected = (y2 * weight).sum().backward();
    let same = |what, found: Option<Tensor<D>>, expected: Option<Tensor<D>>| {
        assert_same(what, found.expect(what), expected.expect(what), BOUND);
    };
    same("dx", x.grad(&found), x2.grad(&expected));
    if let (Some(r), Some(r2)) = (r, r2) {
        same("d residual", r.grad(&found), r2.grad(&expected));
    }
    for (what, ours, theirs) in [
        ("dgamma", &ours.gamma, &theirs.gamma),
        ("dbeta", &ours.beta, &theirs.beta),
    ] {
        let (found, expected) = (ours.grad(&found), theirs.grad(&expected));
        assert_same(what, found.expect(what), expected.expect(what), BOUND);
    }
    running_is_same(&ours, &theirs);
}

#[track_caller]
fn running_is_same(ours: &FusedBatchNorm, theirs: &BatchNorm) {
    let (found, expected) = (
        ours.running_mean.value_sync(),
        theirs.running_mean.value_sync(),
    );
    assert_same("running mean", found.inner(), expected.inner(), BOUND);
    let (found, expected) = (
        ours.running_var.value_sync(),
        theirs.running_var.value_sync(),
    );
    assert_same("running var", found.inner(), expected.inner(), BOUND);
}

#[test]
fn training_is_the_same_in_any_rank() {
    let device = training_device();
    step_is_same([37, 5], false, false, false, &device);
    step_is_same([9, 4, 7], false, false, false, &device);
    step_is_same([4, 6, 9, 9], false, false, false, &device);
    step_is_same([2, 3, 4, 5, 6], false, false, false, &device);
}

/// A channel of several workgroups, and of so many values that burn's sums lose digits.
#[test]
fn training_is_the_same_in_large() {
    let device = training_device();
    let dims = [8, 4, 64, 64];
    let (ours, theirs) = pair(4, config(4).with_relu(true), &device);
    let run = |norm: &dyn Fn(Tensor<4>) -> Tensor<4>| {
        let x = tensor(dims, 5, 2.0, 0.5, &device).require_grad();
        let y = norm(x.clone());
        let weight = tensor(dims, 7, 1.0, 0.3, &device);
        let gradients = (y.clone() * weight).sum().backward();
        (y.inner(), x.grad(&gradients).expect("dx"), gradients)
    };
    let (y, dx, found) = run(&|x| ours.forward(x));
    let (y2, dx2, expected) = run(&|x| composed(&theirs, x, None, true));
    assert_same("y", y, y2, BOUND);
    assert_same("dx", dx, dx2, 1e-4);
    for (what, ours, theirs) in [
        ("dgamma", &ours.gamma, &theirs.gamma),
        ("dbeta", &ours.beta, &theirs.beta),
    ] {
        let (found, expected) = (ours.grad(&found), theirs.grad(&expected));
        assert_same(what, found.expect(what), expected.expect(what), 1e-4);
    }
    running_is_same(&ours, &theirs);
}

#[test]
fn relu_and_residual_are_the_same() {
    let device = training_device();
    for (relu, residual) in [(true, false), (false, true), (true, true)] {
        step_is_same([4, 6, 9, 9], relu, residual, false, &device);
        step_is_same([33, 8], relu, residual, false, &device);
    }
}

#[test]
fn frozen_statistics_have_gradients() {
    let device = training_device();
    for (relu, residual) in [(false, false), (true, false), (true, true)] {
        step_is_same([4, 6, 9, 9], relu, residual, true, &device);
    }
}

#[test]
fn evaluation_is_the_same() {
    let training = training_device();
    let device = training.clone().without_autodiff();
    let (ours, theirs) = pair(6, config(6), &training);
    let relu = FusedBatchNorm {
        relu: true,
        ..ours.clone()
    };
    let (ours, theirs, relu) = (ours.valid(), theirs.valid(), relu.valid());
    let x = || tensor([3, 6, 5, 5], 5, 2.0, 0.5, &device);
    let r = || tensor([3, 6, 5, 5], 6, 2.0, 0.5, &device);
    assert_same("y", ours.forward(x()), theirs.forward(x()), BOUND);
    let expected = composed(&theirs, x(), Some(r()), true);
    assert_same(
        "relu(y + r)",
        relu.forward_residual(x(), r()),
        expected,
        BOUND,
    );
}

#[test]
fn going_between_training_and_evaluation_is_the_same() {
    let training = training_device();
    let device = training.clone().without_autodiff();
    let (mut ours, mut theirs) = pair(4, config(4), &training);
    for round in 0..3 {
        let x = |device: &Device| tensor([5, 4, 3, 3], 10 + round, 3.0, -0.5, device);
        for _ in 0..2 {
            let expected = theirs.forward(x(&training));
            assert_same("y in training", ours.forward(x(&training)), expected, BOUND);
        }
        let (evaluating, their_evaluating) = (ours.valid(), theirs.valid());
        let expected = their_evaluating.forward(x(&device));
        assert_same(
            "y in evaluation",
            evaluating.forward(x(&device)),
            expected,
            BOUND,
        );
        (ours, theirs) = (evaluating.train(), their_evaluating.train());
        running_is_same(&ours, &theirs);
    }
}

#[test]
fn a_clone_shares_the_running_statistics_as_burns_does() {
    let device = training_device();
    let (ours, theirs) = pair(4, config(4), &device);
    let (our_clone, their_clone) = (ours.clone(), theirs.clone());
    for seed in [20, 21, 22] {
        let x = || tensor([5, 4, 3, 3], seed, 3.0, -0.5, &device);
        let _ = (our_clone.forward(x()), their_clone.forward(x()));
        let _ = (ours.forward(x()), theirs.forward(x()));
    }
    running_is_same(&our_clone, &their_clone);
    running_is_same(&ours, &theirs);
}

/// Three layers in one graph, with burn's operations between them and its gradients through them.
fn layers<const N: usize>(
    x: Tensor<4>,
    norms: [&dyn Fn(Tensor<4>, Option<Tensor<4>>) -> Tensor<4>; N],
) -> Tensor<1> {
    let mut h = x;
    for norm in norms {
        // Memory bound, so that checkpointing computes it anew.
        let before = (h.clone() * 1.5).exp().sqrt() + h.clone();
        h = norm(before.swap_dims(2, 3), Some(h));
    }
    h.powi_scalar(2).mean()
}

fn many_steps(device: &Device) {
    let (mut ours, mut theirs) = ([0, 1, 2].map(|_| pair(4, config(4).with_relu(true), device)))
        .into_iter()
        .collect::<(Vec<_>, Vec<_>)>();
    for step in 0..40 {
        let x = || tensor([6, 4, 5, 5], 30 + step, 0.5, 0.1, device).require_grad();
        let (x, x2) = (x(), x());
        let norm = |index: usize| {
            let module = &ours[index];
            move |x, residual| fused(module, x, residual)
        };
        let loss = layers(x.clone(), [&norm(0), &norm(1), &norm(2)]);
        let norm = |index: usize| {
            let module = &theirs[index];
            move |x, residual| composed(module, x, residual, true)
        };
        let expected = layers(x2.clone(), [&norm(0), &norm(1), &norm(2)]);
        assert_same("loss", loss.clone(), expected.clone(), 1e-4);
        let (found, expected) = (loss.backward(), expected.backward());
        let bound = 1e-3;
        let (dx, dx2) = (x.grad(&found).expect("dx"), x2.grad(&expected).expect("dx"));
        assert_same("dx", dx, dx2, bound);
        ours = descended(ours, found);
        theirs = descended(theirs, expected);
    }
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_same(
            "gamma",
            ours.gamma.val().inner(),
            theirs.gamma.val().inner(),
            1e-3,
        );
        let (found, expected) = (
            ours.running_var.value_sync(),
            theirs.running_var.value_sync(),
        );
        assert_same("running var", found.inner(), expected.inner(), 1e-3);
    }
}

/// A step of gradient descent.
fn descended<M: Module>(module: M, gradients: Gradients) -> M {
    let gradients = GradientsParams::from_grads(gradients, &module);
    SgdConfig::new().init().step(0.05, module, gradients)
}

#[test]
fn many_steps_of_several_layers_are_the_same() {
    many_steps(&training_device());
}

#[test]
fn many_steps_under_checkpointing_are_the_same() {
    many_steps(&training_device().gradient_checkpointing());
}

#[test]
fn records_load_into_each_other() {
    let device = training_device();
    let (ours, theirs) = pair(4, config(4), &device);
    let x = || tensor([5, 4, 3], 5, 2.0, 0.5, &device);
    // Beyond the initial statistics.
    let _ = (ours.forward(x()), theirs.forward(x()));
    running_is_same(&ours, &theirs);
    let bytes = |record: ModuleRecord| record.into_bytes().expect("a record");
    let read = |bytes| ModuleRecord::from_bytes(bytes).expect("a record");
    let theirs_from_ours = BatchNormConfig::new(4)
        .with_epsilon(1e-4)
        .init(&device)
        .load_record(read(bytes(ours.clone().into_record())));
    let ours_from_theirs = config(4)
        .init(&device)
        .load_record(read(bytes(theirs.clone().into_record())));
    let (a, b) = (ours.valid(), theirs_from_ours.valid());
    let inner = device.clone().without_autodiff();
    let x = || tensor([5, 4, 3], 6, 2.0, 0.5, &inner);
    assert_same("theirs from ours", b.forward(x()), a.forward(x()), BOUND);
    let (a, b) = (theirs.valid(), ours_from_theirs.valid());
    assert_same("ours from theirs", b.forward(x()), a.forward(x()), BOUND);
}

#[test]
fn strided_tensors_are_made_contiguous() {
    let device = training_device();
    let (ours, theirs) = pair(4, config(4).with_relu(true), &device);
    let leaf = |seed| tensor([7, 5, 4, 3], seed, 2.0, 0.5, &device).require_grad();
    let turned = |tensor: &Tensor<4>| tensor.clone().swap_dims(1, 2);
    assert!(!cube_tensor(turned(&leaf(5)).inner()).is_contiguous());
    type Norm<'a> = &'a dyn Fn(Tensor<4>, Tensor<4>) -> Tensor<4>;
    let run = |norm: Norm<'_>| {
        let (x, r) = (leaf(5), leaf(6));
        let y = norm(turned(&x), turned(&r));
        // The gradient of y comes strided, too.
        let gradients = (y.clone().swap_dims(1, 2) * leaf(7)).sum().backward();
        let of = |leaf: &Tensor<4>| leaf.grad(&gradients).expect("a gradient");
        [y.inner(), of(&x), of(&r)]
    };
    let found = run(&|x, r| ours.forward_residual(x, r));
    let expected = run(&|x, r| composed(&theirs, x, Some(r), true));
    for (found, expected) in found.into_iter().zip(expected) {
        assert_same("strided", found, expected, BOUND);
    }
}

/// What has its channels last in memory, as after a convolution, is taken and given so; a residual and
/// gradients may lie otherwise.
#[test]
fn channels_last_stay_last() {
    let device = training_device();
    for channels in [4, 3] {
        let (ours, theirs) = pair(channels, config(channels).with_relu(true), &device);
        let leaf = |seed| tensor([5, 6, 7, channels], seed, 2.0, 0.5, &device).require_grad();
        let channels_second = |tensor: Tensor<4>| tensor.permute([0, 3, 1, 2]);
        let other = || tensor([5, channels, 6, 7], 6, 2.0, 0.5, &device).require_grad();
        let weight = || tensor([5, channels, 6, 7], 7, 1.0, 0.0, &device);
        type Norm<'a> = &'a dyn Fn(Tensor<4>, Tensor<4>) -> Tensor<4>;
        let run = |norm: Norm<'_>| {
            let (x, r, first) = (leaf(5), leaf(8), other());
            let y = norm(channels_second(x.clone()), channels_second(r.clone()));
            let z = norm(channels_second(x.clone()), first.clone());
            let gradients = ((y.clone() + z.clone()) * weight()).sum().backward();
            let of = |leaf: &Tensor<4>| leaf.grad(&gradients).expect("a gradient");
            [y.inner(), z.inner(), of(&x), of(&r), of(&first)]
        };
        let found = run(&|x, r| ours.forward_residual(x, r));
        let expected = run(&|x, r| composed(&theirs, x, Some(r), true));
        let strides = cube_tensor(found[0].clone()).meta.strides().to_vec();
        assert_eq!(strides, [42 * channels, 1, 7 * channels, channels]);
        for (found, expected) in found.into_iter().zip(expected) {
            assert_same("channels last", found, expected, BOUND);
        }
        running_is_same(&ours, &theirs);
        let (ours, theirs) = (ours.valid(), theirs.valid());
        let x = || channels_second(leaf(5).inner());
        let r = || other().inner();
        let found = ours.forward_residual(x(), r());
        assert_same(
            "evaluated",
            found,
            composed(&theirs, x(), Some(r()), true),
            BOUND,
        );
    }
}

#[test]
fn unbiased_running_variance_is_pytorchs() {
    let device = training_device();
    let unbiased = config(3).with_running_variance(RunningVariance::Unbiased);
    let module = unbiased.with_momentum(1.0).init(&device);
    let x = Tensor::<2>::from_data([[1.0, 2.0, 0.0], [3.0, 6.0, 1.0]], &device);
    let _ = module.forward(x);
    // Of two values: half the square of their difference.
    let expected = TensorData::from([2.0_f32, 8.0, 0.5]);
    let found = module.running_var.value_sync().into_data();
    found.assert_approx_eq::<f32>(&expected, Tolerance::relative(1e-6));
}

#[test]
fn one_value_per_channel_gives_beta() {
    let device = training_device();
    let (ours, theirs) = pair(5, config(5), &device);
    let before = ours.running_var.value_sync();
    let x = || tensor([1, 5], 5, 2.0, 0.5, &device);
    assert_same("y", ours.forward(x()), theirs.forward(x()), BOUND);
    assert_same(
        "y is beta",
        ours.forward(x()).squeeze::<1>(),
        ours.beta.val(),
        BOUND,
    );
    assert_same("running var", ours.running_var.value_sync(), before, 0.0);
}

/// Of a frozen module that nothing is learned through, y is that of evaluation.
#[test]
fn frozen_without_gradients_is_evaluation() {
    let device = training_device();
    let (ours, theirs) = pair(3, config(3).with_relu(true), &device);
    let ours = ours.no_grad();
    let ours = ours.freeze_group(ParamGroup::from_path("training"));
    let (x, r) = (
        tensor([5, 3, 7], 5, 2.0, 0.5, &device),
        tensor([5, 3, 7], 6, 2.0, 0.5, &device),
    );
    let theirs = theirs.valid();
    let expected = composed(&theirs, x.clone().inner(), Some(r.clone().inner()), true);
    assert_same("y", ours.forward_residual(x, r).inner(), expected, BOUND);
}

/// One tensor may be both input and residual, and gets both gradients.
#[test]
fn the_input_may_be_the_residual() {
    let device = training_device();
    let (ours, theirs) = pair(3, config(3).with_relu(true), &device);
    let leaf = || tensor([5, 3, 7], 5, 2.0, 0.5, &device).require_grad();
    let weight = tensor([5, 3, 7], 7, 1.0, 0.0, &device);
    let (x, x2) = (leaf(), leaf());
    let found = ours.forward_residual(x.clone(), x.clone());
    let expected = composed(&theirs, x2.clone(), Some(x2.clone()), true);
    assert_same("y", found.clone(), expected.clone(), BOUND);
    let found = x.grad(&(found * weight.clone()).sum().backward());
    let expected = x2.grad(&(expected * weight).sum().backward());
    assert_same("dx", found.expect("dx"), expected.expect("dx"), BOUND);
}

/// A captured graph holds burn's operations, so that a replay computes from what is there then; also in
/// another type than the parameters'.
#[test]
fn captured_graphs_replay() {
    let device = training_device().without_autodiff();
    let (ours, _) = pair(3, config(3), &device);
    for (dtype, bound) in [(DType::F32, BOUND), (DType::F16, 1e-2)] {
        let start = || tensor([5, 3, 7], 5, 2.0, 0.5, &device).cast(dtype);
        let mut x = start();
        let mut graph = burn::tensor::capture(&device, || {
            x.inplace(|x| x.add_scalar(1.0));
            ours.forward(x.clone())
        });
        assert!(graph.is_hardware(), "nothing was captured");
        // Three runs come before the capture.
        #[allow(unsafe_code, reason = "burn's: all that the graph reads is alive")]
        let found = unsafe { graph.replay() }.clone();
        assert_eq!(found.dtype(), dtype);
        assert_same("y", found, ours.forward(start().add_scalar(4.0)), bound);
    }
}

/// A batch without samples has an output without any, and gradients that are 0.
#[test]
fn an_empty_batch_is_evaluated() {
    let device = training_device();
    let (ours, _) = pair(3, config(3).with_relu(true), &device);
    let ours = ours.freeze_group(ParamGroup::from_path("training"));
    let leaf = || Tensor::<3>::zeros([0, 3, 7], &device).require_grad();
    let (x, r) = (leaf(), leaf());
    let y = ours.forward_residual(x.clone(), r.clone());
    assert_eq!(y.dims(), [0, 3, 7]);
    let gradients = y.sum().backward();
    for leaf in [x, r] {
        assert_eq!(leaf.grad(&gradients).expect("a gradient").dims(), [0, 3, 7]);
    }
    let gamma = ours.gamma.grad(&gradients).expect("dgamma");
    assert_eq!(values(gamma), [0.0; 3]);
}

#[test]
#[should_panic(expected = "an empty batch has no statistics")]
fn an_empty_batch_is_not_trained_on() {
    let device = training_device();
    let module = FusedBatchNormConfig::new(3).init(&device);
    let _ = module.forward(Tensor::<2>::zeros([0, 3], &device));
}

/// In 16 bits, of sizes that do not fill a word: the f32 result, rounded.
#[test]
fn half_precision_is_the_rounded_result() {
    let device = training_device();
    let (ours, _) = pair(3, config(3).with_relu(true), &device);
    let dims = [3, 3, 5];
    let half = |seed| {
        let values: Vec<_> = numbers(dims.iter().product(), seed)
            .into_iter()
            .map(f16::from_f32)
            .collect();
        TensorData::new(values, dims)
    };
    let run = |dtype: DType| {
        let leaf = |seed| {
            let data = half(seed).convert_dtype(dtype);
            Tensor::<3>::from_data(data, (&device, dtype)).require_grad()
        };
        let (x, r) = (leaf(5), leaf(6));
        let y = ours.forward_residual(x.clone(), r.clone());
        assert_eq!(y.dtype(), dtype);
        let gradients = y.backward();
        let gamma = ours.gamma.grad(&gradients).expect("dgamma");
        let of = |leaf: &Tensor<3>| leaf.grad(&gradients).expect("a gradient");
        ([y.inner(), of(&x), of(&r)], gamma)
    };
    let evaluated = |dtype: DType| {
        let x = Tensor::<3>::from_data(half(5).convert_dtype(dtype), (&device, dtype));
        ours.valid().forward(x.inner())
    };
    // burn computes nothing in bf16 on wgpu, not even a gradient to begin with.
    for (dtype, bound) in [(DType::F16, 1e-3), (DType::BF16, 1e-2)] {
        let (found, expected) = (evaluated(dtype), evaluated(DType::F32));
        assert_eq!(found.dtype(), dtype);
        assert_same("evaluated", found, expected, bound);
    }
    let (found, found_gamma) = run(DType::F16);
    let (expected, expected_gamma) = run(DType::F32);
    for (found, expected) in found.into_iter().zip(expected) {
        assert_eq!(found.dtype(), DType::F16);
        assert_same("trained", found, expected, 1e-3);
    }
    assert_same("dgamma", found_gamma, expected_gamma, 1e-3);
}

/// γ, β and running statistics in 16 bits are read, and what belongs to them is, in 16 bits too.
#[test]
fn parameters_in_half_precision_are_cast() {
    let device = training_device();
    let (ours, _) = pair(3, config(3), &device);
    let half = |vector: Tensor<1>| {
        let data = vector.into_data().convert_dtype(DType::F16);
        Tensor::<1>::from_data(data, (&device, DType::F16))
    };
    let halved = FusedBatchNorm {
        gamma: Parameter::from_tensor(half(ours.gamma.val())),
        beta: Parameter::from_tensor(half(ours.beta.val())),
        running_mean: RunningState::new(half(ours.running_mean.value())),
        running_var: RunningState::new(half(ours.running_var.value())),
        ..config(3).init(&device)
    };
    let run = |module: &FusedBatchNorm| {
        let x = tensor([5, 3, 7], 5, 2.0, 0.5, &device).require_grad();
        let y = module.forward(x.clone());
        let gradients = (y.clone() * tensor([5, 3, 7], 6, 1.0, 0.0, &device))
            .sum()
            .backward();
        let dx = x.grad(&gradients).expect("dx");
        let gamma = module.gamma.grad(&gradients).expect("dgamma");
        (
            y.inner(),
            dx,
            [gamma, module.running_mean.value_sync().inner()],
        )
    };
    let (found, expected) = (run(&halved), run(&ours));
    assert_same("y", found.0, expected.0, 1e-3);
    assert_same("dx", found.1, expected.1, 1e-3);
    for (found, expected) in found.2.into_iter().zip(expected.2) {
        assert_eq!(found.dtype(), DType::F16);
        assert_same("a vector", found, expected, 1e-3);
    }
}

/// A quantized module is evaluated with what its vectors stand for.
#[test]
fn quantized_vectors_are_read() {
    let device = training_device().without_autodiff();
    let (mut ours, mut theirs) = pair(8, config(8), &device);
    let scheme = burn::tensor::quantization::QuantScheme::default();
    let quantized = ours.gamma.val().quantize_dynamic(&scheme);
    ours.gamma = Parameter::from_tensor(quantized.clone());
    theirs.gamma = Parameter::from_tensor(quantized);
    let x = tensor([5, 8, 7], 5, 2.0, 0.5, &device);
    assert_same("y", ours.forward(x.clone()), theirs.forward(x), BOUND);
}

/// A step leaves quantized running statistics floats.
#[test]
fn quantized_running_statistics_are_stepped() {
    let device = training_device();
    let (mut ours, mut theirs) = pair(8, config(8), &device);
    let scheme = burn::tensor::quantization::QuantScheme::default();
    let quantized = ours.running_mean.value().quantize_dynamic(&scheme);
    ours.running_mean = RunningState::new(quantized.clone());
    theirs.running_mean = RunningState::new(quantized.dequantize());
    let x = tensor([5, 8, 7], 5, 2.0, 0.5, &device);
    assert_same("y", ours.forward(x.clone()), theirs.forward(x), BOUND);
    running_is_same(&ours, &theirs);
}

/// In types that the kernels do not know, burn's operations do.
#[test]
fn other_types_are_left_to_burn() {
    let device = training_device();
    let module = || {
        let config = config(3).with_relu(true);
        config
            .with_running_variance(RunningVariance::Unbiased)
            .init(&device)
    };
    let vector = |value: f64| {
        let data = TensorData::from([value; 3]);
        Tensor::<1>::from_data(data, (&device, DType::F64))
    };
    let single = module();
    let double = FusedBatchNorm {
        gamma: Parameter::from_tensor(vector(1.0)),
        beta: Parameter::from_tensor(vector(0.0)),
        running_mean: RunningState::new(vector(0.0)),
        running_var: RunningState::new(vector(1.0)),
        ..module()
    };
    let run = |module: &FusedBatchNorm, dtype: DType| {
        let leaf = |seed| {
            let data = TensorData::new(numbers(3 * 3 * 5, seed), [3, 3, 5]).convert_dtype(dtype);
            Tensor::<3>::from_data(data, (&device, dtype)).require_grad()
        };
        let (x, r) = (leaf(5), leaf(6));
        let y = module.forward_residual(x.clone(), r.clone());
        assert_eq!(y.dtype(), dtype);
        let gradients = y.powi_scalar(2).sum().backward();
        let of = |leaf: &Tensor<3>| leaf.grad(&gradients).expect("a gradient");
        let var = module.running_var.value_sync().inner();
        (of(&x), of(&r), var)
    };
    let (found, expected) = (run(&double, DType::F64), run(&single, DType::F32));
    assert_same("dx", found.0, expected.0, BOUND);
    assert_same("d residual", found.1, expected.1, BOUND);
    assert_same("running var", found.2, expected.2, BOUND);
}

/// A tensor below fusion and autodiff.
fn cube_tensor<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    let primitive = tensor
        .try_into_primitive::<Cube>()
        .expect("a tensor of wgpu");
    #[cfg(feature = "fusion")]
    let primitive = {
        let client = primitive.client.clone();
        client.resolve_tensor_float::<CubeBackend>(primitive)
    };
    #[cfg(not(feature = "fusion"))]
    let primitive: <CubeBackend as burn::backend::BackendTypes>::FloatTensorPrimitive = primitive;
    primitive
}

/// What the tests above meet: one buffer for what a pass reads and what it writes.
#[test]
fn burns_tensors_share_buffers() {
    let device = training_device().without_autodiff();
    let (ours, _) = pair(4, config(4), &device);
    let x = tensor([5, 4, 3, 3], 5, 2.0, 0.5, &device);
    let y = ours.forward(x.clone());
    let [x, y] = [x, y].map(|tensor| {
        let tensor = cube_tensor(tensor);
        let resource = tensor
            .client
            .get_resource::<WgpuServer<AutoCompiler>>(tensor.handle.clone())
            .expect("a resource");
        resource.resource().clone()
    });
    assert_eq!(x.buffer, y.buffer, "burn cuts tensors out of one buffer");
    assert_ne!(x.offset, y.offset);
}

#[test]
fn threads_train_side_by_side() {
    let threads: Vec<_> = (0..3)
        .map(|_| {
            std::thread::spawn(|| {
                for channels in 4..8 {
                    let device = training_device();
                    // The same plan on all threads.
                    step_is_same([3, channels, 5, 5], true, true, false, &device);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("the same on every thread");
    }
}

/// A module and its input may come from another thread, of another of burn's streams.
#[test]
fn tensors_go_from_thread_to_thread() {
    let device = training_device();
    let (ours, theirs) = pair(3, config(3).with_relu(true), &device);
    for seed in 0..20 {
        let x = tensor([5, 3, 7], seed, 2.0, 0.5, &device) + 1.0;
        let (ours, theirs, input) = (ours.clone(), theirs.clone(), x.clone());
        let worker = std::thread::spawn(move || ours.forward(input) * 2.0);
        let found = worker.join().expect("it works there") + 1.0;
        let worker = std::thread::spawn(move || composed(&theirs, x, None, true) * 2.0);
        let expected = worker.join().expect("it works there") + 1.0;
        assert_same("y", found.inner(), expected.inner(), BOUND);
    }
    running_is_same(&ours, &theirs);
}

#[test]
#[should_panic(expected = "axis 1 expected 3, got 4")]
fn other_channels_are_refused() {
    let device = training_device();
    let module = FusedBatchNormConfig::new(3).init(&device);
    let _ = module.forward(Tensor::<3>::zeros([1, 4, 2], &device));
}

#[test]
#[should_panic(expected = "shape and type")]
fn another_residual_is_refused() {
    let device = training_device();
    let module = FusedBatchNormConfig::new(3).init(&device);
    let zeros = |size| Tensor::<3>::zeros([1, 3, size], &device);
    let _ = module.forward_residual(zeros(2), zeros(3));
}

#[test]
fn burns_config_is_taken() {
    let theirs = BatchNormConfig::new(7)
        .with_epsilon(1e-3)
        .with_momentum(0.2);
    let ours = FusedBatchNormConfig::from(theirs);
    assert_eq!(
        (ours.num_features, ours.epsilon, ours.momentum),
        (7, 1e-3, 0.2)
    );
}

/// A file with burn's config loads, and one with ours says all.
#[test]
fn configs_are_saved_and_loaded() {
    let file = std::env::temp_dir().join(format!("batch_norm_config_{}", std::process::id()));
    let load = || {
        FusedBatchNormConfig::load(&file)
            .expect("a config")
            .to_string()
    };
    let theirs = BatchNormConfig::new(7)
        .with_epsilon(1e-3)
        .with_momentum(0.2);
    theirs.save(&file).expect("a file");
    assert_eq!(load(), FusedBatchNormConfig::from(theirs).to_string());
    let ours = config(3)
        .with_relu(true)
        .with_running_variance(RunningVariance::Unbiased);
    ours.save(&file).expect("a file");
    assert_eq!(load(), ours.to_string());
    std::fs::remove_file(&file).expect("it is there");
}
