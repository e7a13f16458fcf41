//! Arbitrary calls of the public API, on a device that runs nothing: whatever comes in, nothing
//! panics, and what fails changes nothing.
//!
//! 2,000 random cases a run; `WGPU_BATCHNORM_CASES` asks for another number.

mod common;

use common::operations::{
    NAMES, NO_STORAGE, Operation, Place, Rule, Storage, bytes_of, good_place,
};
use ndarray::{Array1, ArrayD};
use proptest::prelude::*;
use wgpu_batchnorm::half::{bf16, f16};
use wgpu_batchnorm::{
    Activation, Adam, Algorithm, BatchNorm, Commands, DType, Error, Extra, Gpu, Layout, Mode,
    Moments, Momentum, OneValue, Optimizer, Options, Parameter, Plan, RmsProp, RunningVariance,
    Sgd, Shape, State, Stored, Sums, Tensor, Tuning, Valid, Wanted, cpu, wgpu,
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
    let lanes = prop_oneof![any::<u32>(), (0..12_u32).prop_map(|power| 1 << power)];
    let count = || prop_oneof![4 => 1..300_u32, 1 => any::<u32>()];
    let whole = (
        any::<u64>(),
        any::<u64>(),
        count(),
        count(),
        count(),
        any::<u32>(),
    );
    let across = (count(), any::<u64>(), any::<bool>());
    let map = (count(), count());
    (lanes, across, count(), count(), count(), map, whole).prop_map(
        |(lanes, across, workgroups, min, max, map, whole)| {
            let mut tuning = Tuning::gpu();
            tuning.lanes = lanes;
            (tuning.bytes_across, tuning.rows_bytes, tuning.spread) = across;
            tuning.reduction_workgroups = workgroups;
            tuning.reduction_packs_min = min;
            tuning.reduction_packs_max = max;
            (tuning.map_packs, tuning.map_planes_max) = map;
            (
                tuning.whole_bytes,
                tuning.whole_bytes_of_few,
                tuning.whole_packs_min,
                tuning.whole_workgroups,
                tuning.mixed_rows_min,
                tuning.map_partials_max,
            ) = whole;
            tuning
        },
    )
}

fn activation() -> impl Strategy<Value = Activation> {
    prop_oneof![
        3 => Just(Activation::Identity),
        3 => Just(Activation::Relu),
        1 => number().prop_map(|slope| Activation::LeakyRelu { slope }),
        1 => (number(), number()).prop_map(|(min, max)| Activation::Clamp { min, max }),
        1 => Just(Activation::RELU6),
    ]
}

fn parameter() -> impl Strategy<Value = Parameter> {
    prop::sample::select(vec![
        Parameter::Learned,
        Parameter::Learned,
        Parameter::Frozen,
        Parameter::Absent,
    ])
}

fn momentum() -> impl Strategy<Value = Momentum> {
    prop_oneof![
        4 => number().prop_map(Momentum::OfNew),
        1 => number().prop_map(Momentum::OfOld),
        1 => Just(Momentum::Cumulative),
    ]
}

/// Options of which the numbers are as they should be.
fn good_options() -> impl Strategy<Value = Options> {
    let flags = [prop::bool::weighted(0.7), prop::bool::weighted(0.3)];
    let activation = prop::sample::select(vec![
        Activation::Identity,
        Activation::Relu,
        Activation::LeakyRelu { slope: 0.1 },
        Activation::RELU6,
    ]);
    (flags, any::<bool>(), parameter(), parameter(), activation).prop_map(
        |([running, frozen], one_value, gamma, beta, activation)| {
            Options::default()
                .running_statistics(running)
                .frozen_statistics(running && frozen)
                .one_value(match one_value {
                    true => OneValue::GiveBeta,
                    false => OneValue::Refuse,
                })
                .gamma(gamma)
                .beta(beta)
                .activation(activation)
        },
    )
}

/// Any options, with bad numbers too, and such as collide.
fn options() -> impl Strategy<Value = Options> {
    let variance = prop_oneof![
        Just(RunningVariance::Unbiased),
        Just(RunningVariance::Population)
    ];
    let tuning = prop_oneof![3 => Just(None), 1 => tuning().prop_map(Some)];
    let collide = prop::bool::weighted(0.1);
    let rest = (activation(), variance, tuning, collide);
    (good_options(), number(), momentum(), momentum(), rest).prop_map(
        |(options, eps, mean, var, (activation, kind, tuning, collide))| {
            let frozen = options.frozen_statistics || collide;
            let options = options
                .eps(eps)
                .momentum_mean(mean)
                .momentum_var(var)
                .running_variance(kind)
                .frozen_statistics(frozen)
                .activation(activation);
            match tuning {
                Some(tuning) => options.tuning(tuning),
                None => options,
            }
        },
    )
}

fn dtype() -> impl Strategy<Value = DType> {
    prop::sample::select(vec![DType::F32, DType::F32, DType::F16, DType::Bf16])
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

/// A tensor to be made.
#[derive(Clone, Debug)]
struct Made {
    dims: Vec<usize>,
    layout: Layout,
    dtype: DType,
}

fn made() -> impl Strategy<Value = Made> {
    (small_dims(), layout(), dtype()).prop_map(|(dims, layout, dtype)| Made {
        dims,
        layout,
        dtype,
    })
}

impl Made {
    fn tensor(&self, gpu: &Gpu) -> Result<Tensor, Error> {
        Tensor::zeros(gpu, &Shape::new(&self.dims, self.layout)?, self.dtype)
    }

    fn array<T: Stored>(&self) -> ArrayD<T> {
        ArrayD::from_elem(self.dims.as_slice(), T::from_f64(0.0))
    }
}

/// What goes with an input: mostly what fits.
#[derive(Clone, Debug)]
struct With {
    /// A residual, and how many values it has too many along its first dimension.
    residual: Option<usize>,
    /// A mask of all positions or of none, and how many it has too many.
    valid: Option<(bool, usize)>,
    in_place: bool,
}

fn with() -> impl Strategy<Value = With> {
    let more = || prop_oneof![9 => Just(0_usize), 1 => 1..3_usize];
    let residual = prop::option::of(more());
    let valid = prop::option::weighted(0.3, (any::<bool>(), more()));
    (residual, valid, prop::bool::weighted(0.2)).prop_map(|(residual, valid, in_place)| With {
        residual,
        valid,
        in_place,
    })
}

impl With {
    /// The residual of an input.
    fn residual(&self, x: &Made) -> Option<Made> {
        let mut residual = x.clone();
        if let Some(size) = residual.dims.first_mut() {
            *size += self.residual?;
        }
        self.residual.map(|_| residual)
    }

    /// The mask of an input.
    fn valid(&self, x: &Made) -> Option<ArrayD<bool>> {
        let (valid, more) = self.valid?;
        let mut dims = x.dims.clone();
        let axis = match x.layout {
            Layout::ChannelsFirst => 1,
            Layout::ChannelsLast => dims.len().saturating_sub(1),
        };
        if axis < dims.len() {
            dims.remove(axis);
        }
        if let Some(size) = dims.first_mut() {
            *size += more;
        }
        Some(ArrayD::from_elem(dims, valid))
    }

    fn forward(&self, layer: &mut BatchNorm, x: &Made) -> Result<(), Error> {
        let gpu = layer.gpu().clone();
        let tensor = x.tensor(&gpu)?;
        let residual = self.residual(x).map(|made| made.tensor(&gpu)).transpose()?;
        let valid = self.valid(x).map(|mask| Valid::from_mask(&gpu, &mask));
        let valid = valid.transpose()?;
        let extra = Extra {
            residual: residual.as_ref(),
            valid: valid.as_ref(),
        };
        match self.in_place {
            true => layer.forward_in_place(&tensor, extra),
            false => layer.forward_with(&tensor, extra).map(drop),
        }
    }

    fn twin_forward<T: Stored>(&self, twin: &mut cpu::BatchNorm, x: &Made) -> Result<(), Error> {
        let residual = self.residual(x).map(|made| made.array::<T>());
        let valid = self.valid(x);
        let extra = cpu::Extra {
            residual: residual.as_ref(),
            valid: valid.as_ref(),
        };
        twin.forward_with(&x.array::<T>(), x.layout, extra)
            .map(drop)
    }
}

fn backward(
    layer: &mut BatchNorm,
    dy: &Made,
    wanted: &Wanted,
    in_place: bool,
) -> Result<(), Error> {
    let dy = dy.tensor(layer.gpu())?;
    match in_place {
        true => layer.backward_in_place(&dy, wanted).map(drop),
        false => layer.backward_with(&dy, wanted).map(drop),
    }
}

fn wanted() -> impl Strategy<Value = Wanted> {
    any::<[bool; 4]>().prop_map(|[x, residual, gamma, beta]| Wanted {
        x,
        residual,
        gamma,
        beta,
    })
}

/// A call of a layer.
#[derive(Clone, Debug)]
enum Call {
    Forward(Made, With),
    Backward(Made, Wanted, bool),
    Step,
    SetMode(Mode),
    SetState([usize; 4]),
    SetLr(f64),
}

fn call() -> impl Strategy<Value = Call> {
    let length = || 0..6_usize;
    prop_oneof![
        4 => (made(), with()).prop_map(|(x, with)| Call::Forward(x, with)),
        3 => (made(), wanted(), any::<bool>())
            .prop_map(|(dy, wanted, in_place)| Call::Backward(dy, wanted, in_place)),
        1 => Just(Call::Step),
        1 => prop_oneof![Just(Mode::Train), Just(Mode::Eval)].prop_map(Call::SetMode),
        1 => [length(), length(), length(), length()].prop_map(Call::SetState),
        1 => number().prop_map(Call::SetLr),
    ]
}

/// Whether the CPU path does not know what is wrong: it takes layout and storage type from the
/// forward pass, and never works in place.
fn is_of_gpu_alone(result: &Result<(), Error>) -> bool {
    use Error::{DTypeMismatch, LayoutMismatch, Overwritten};
    matches!(
        result,
        Err(LayoutMismatch { .. } | DTypeMismatch { .. } | Overwritten)
    )
}

/// A call of a layer that has a shard of a batch.
#[derive(Clone, Debug)]
enum Shared {
    Plain(Call),
    Moments(Made, With),
    /// Of as many shards.
    Forward(Made, With, usize),
    Sums(Made),
    Backward(Made, Wanted, usize),
}

fn shared() -> impl Strategy<Value = Shared> {
    let shards = || 0..4_usize;
    prop_oneof![
        1 => call().prop_map(Shared::Plain),
        2 => (made(), with()).prop_map(|(x, with)| Shared::Moments(x, with)),
        3 => (made(), with(), shards()).prop_map(|(x, with, n)| Shared::Forward(x, with, n)),
        2 => made().prop_map(Shared::Sums),
        2 => (made(), wanted(), shards()).prop_map(|(dy, wanted, n)| Shared::Backward(dy, wanted, n)),
    ]
}

impl Shared {
    fn call(&self, layer: &mut BatchNorm) -> Result<(), Error> {
        let gpu = layer.gpu().clone();
        // Of another number of channels now and then.
        let rows = |rows, channels| ndarray::Array2::zeros((rows, channels));
        let channels = layer.channels();
        match self {
            Self::Plain(Call::Forward(x, with)) => with.forward(layer, x),
            Self::Plain(Call::Backward(dy, wanted, in_place)) => {
                backward(layer, dy, wanted, *in_place)
            }
            Self::Plain(_) => Ok(()),
            Self::Moments(x, with) => {
                let valid = with.valid(x).map(|mask| Valid::from_mask(&gpu, &mask));
                let valid = valid.transpose()?;
                layer.moments(&x.tensor(&gpu)?, valid.as_ref()).map(drop)
            }
            Self::Forward(x, with, shards) => {
                let residual = with.residual(x).map(|made| made.tensor(&gpu)).transpose()?;
                let extra = Extra {
                    residual: residual.as_ref(),
                    valid: None,
                };
                let of = if with.in_place {
                    channels + 1
                } else {
                    channels
                };
                let moments = Moments::from_array(&gpu, &rows(4, of))?;
                let moments = vec![moments; *shards];
                let x = x.tensor(&gpu)?;
                layer.forward_synchronized(&x, extra, &moments).map(drop)
            }
            Self::Sums(dy) => layer.backward_sums(&dy.tensor(&gpu)?).map(drop),
            Self::Backward(dy, wanted, shards) => {
                let sums = vec![Sums::from_array(&gpu, &rows(2, channels))?; *shards];
                let dy = dy.tensor(&gpu)?;
                layer.backward_synchronized(&dy, &sums, wanted).map(drop)
            }
        }
    }
}

/// How the ranges of one operation come: which of those that need not be, which of the others for
/// all that, and what is done to some.
#[derive(Clone, Debug)]
struct Ranges {
    operation: Operation,
    optional: u32,
    /// Of those that are needed, or not taken, one that is left out, or added.
    wrong: Option<usize>,
    shards: u32,
    in_place: bool,
    /// Of those that are given, one that begins where another should.
    onto: Option<[prop::sample::Index; 2]>,
    disturbed: Vec<(usize, usize, u64, u64)>,
}

fn ranges() -> impl Strategy<Value = Ranges> {
    let disturbed = prop::collection::vec(
        (
            0..NAMES.len(),
            0..=NO_STORAGE,
            0..40_u64,
            prop::sample::select(vec![0, 0, 0, 4, 8, 400]),
        ),
        0..3,
    );
    (
        prop::sample::select(Operation::ALL.to_vec()),
        any::<u32>(),
        prop::option::weighted(0.2, 0..NAMES.len()),
        0..4_u32,
        prop::bool::weighted(0.3),
        prop::option::of(any::<[prop::sample::Index; 2]>()),
        prop_oneof![disturbed, Just(Vec::new())],
    )
        .prop_map(
            |(operation, optional, wrong, shards, in_place, onto, disturbed)| Ranges {
                operation,
                optional,
                wrong,
                shards,
                in_place,
                onto,
                disturbed,
            },
        )
}

impl Ranges {
    /// The names that are given.
    fn names(&self, options: &Options) -> Vec<&'static str> {
        let mut names: Vec<&str> = Vec::new();
        // In this order a rule asks only for what was decided before.
        for (index, name) in NAMES.into_iter().enumerate() {
            let given = |other: &str| names.contains(&other);
            let takes = match self.operation.rule(name, options, &given) {
                Rule::Must => true,
                Rule::May => self.optional >> index & 1 == 1,
                Rule::Not => false,
            };
            let can_be_wrong =
                self.operation.has_place_for(name) && !self.operation.fixed().contains(&name);
            let wrong = self.wrong == Some(index) && can_be_wrong;
            if takes != wrong {
                names.push(name);
            }
        }
        // The signature takes both running statistics or none.
        let both = ["running_mean", "running_var"];
        let all = both.iter().all(|name| names.contains(name));
        if self.operation == Operation::Statistics && !all {
            names.retain(|name| !both.contains(name));
        }
        names
    }

    /// How many shards' results an operation takes or gives.
    fn parts(&self) -> u32 {
        match self.operation {
            Operation::Statistics | Operation::InputGradient => self.shards,
            _ => 1,
        }
    }

    fn places(&self, plan: &Plan, options: &Options) -> Vec<(&'static str, Place)> {
        let names = self.names(options);
        let onto = self.onto.map(|both| both.map(|index| *index.get(&names)));
        let places = names.iter().map(|&name| {
            let bytes = bytes_of(plan, name, self.parts().max(1));
            let mut place = match (self.in_place, name) {
                (true, "x" | "y") if self.operation.fixed() == ["x", "y"] => (5, 0, bytes),
                (true, "dy" | "dx") => (4, 0, bytes),
                _ => good_place(name, bytes),
            };
            if let Some([moved, other]) = onto
                && moved == name
            {
                place = good_place(other, bytes);
            }
            for &(index, buffer, offset, more) in &self.disturbed {
                if NAMES[index] == name {
                    // In steps of the alignment, or of one value.
                    let offset = if offset < 32 {
                        256 * offset
                    } else {
                        4 * offset
                    };
                    place = (buffer, offset, place.2 + more);
                }
            }
            (name, place)
        });
        places.collect()
    }

    /// Whether the operation takes just these ranges.
    fn are_taken(&self, options: &Options, names: &[&str]) -> bool {
        let given = |name: &str| names.contains(&name);
        NAMES
            .into_iter()
            .all(|name| match self.operation.rule(name, options, &given) {
                Rule::Must => given(name),
                Rule::May => true,
                Rule::Not => !given(name),
            })
    }

    /// Whether the operation is defined at all.
    fn is_defined(&self, shape: &Shape, options: &Options, names: &[&str]) -> bool {
        use Operation::{Backward, Forward, Inference, InputGradient, Moments, Statistics};
        let frozen = options.frozen_statistics;
        let least = match options.one_value {
            OneValue::GiveBeta => 1,
            // A mask may leave one value in any case.
            OneValue::Refuse if names.contains(&"valid") => 1,
            OneValue::Refuse => 2,
        };
        match self.operation {
            Forward | Backward => frozen || shape.values_per_channel() >= least,
            Inference => options.running_statistics,
            Moments => !frozen,
            Statistics => !frozen && self.shards > 0,
            InputGradient => self.shards > 0,
            _ => true,
        }
    }

    /// Whether ranges have the sizes, alignments and usages that they need, and none that is written
    /// overlaps another.
    fn can_be_bound(&self, plan: &Plan, options: &Options, places: &[(&str, Place)]) -> bool {
        let tensors = ["x", "y", "dy", "dx", "residual", "residual_gradient"];
        let nowhere = |name: &str| {
            // Of an empty shard the moments do not depend on a mask.
            let unused = self.operation == Operation::Moments && name == "valid";
            plan.shape().is_empty() && (tensors.contains(&name) || unused)
        };
        let counted = || places.iter().filter(|(name, _)| !nowhere(name));
        let overlap = |a: Place, b: Place| a.0 == b.0 && a.1 < b.1 + b.2 && b.1 < a.1 + a.2;
        let alone = |name: &str, place: Place| {
            counted().all(|&(other, range)| {
                let in_place =
                    place == range && [("y", "x"), ("dx", "dy")].contains(&(name, other));
                name == other || in_place || !overlap(place, range)
            })
        };
        counted().all(|&(name, place)| {
            let fits = place.2 == bytes_of(plan, name, self.parts())
                && place.1 % 256 == 0
                && place.0 != NO_STORAGE;
            fits && (!self.writes(name, plan.shape(), options) || alone(name, place))
        })
    }

    /// Whether the operation writes a range. Of an empty batch all but vectors is empty.
    fn writes(&self, name: &str, shape: &Shape, options: &Options) -> bool {
        use Operation::{Forward, Moments, Statistics, Sums};
        match name {
            "y" | "dx" | "residual_gradient" | "dgamma" | "dbeta" => true,
            "mask" => self.operation.fixed() == ["x", "y"] && !shape.is_empty(),
            "saved" => match self.operation {
                // Frozen statistics are saved for any batch.
                Forward => options.frozen_statistics || !shape.is_empty(),
                operation => operation == Statistics,
            },
            "running_mean" | "running_var" => match self.operation {
                Forward => !options.frozen_statistics && !shape.is_empty(),
                operation => operation == Statistics,
            },
            "moments" => self.operation == Moments,
            "sums" => self.operation == Sums,
            _ => false,
        }
    }
}

/// What wgpu says if an operation is recorded and submitted.
fn complaint(gpu: &Gpu, commands: &Commands) -> Option<wgpu::Error> {
    let scope = gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    commands.record(&mut encoder);
    gpu.queue().submit([encoder.finish()]);
    pollster::block_on(scope.pop())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn shapes_and_plans_of_any_size(
        dims in prop::collection::vec(any_size(), 0..6),
        layout in layout(),
        dtype in dtype(),
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
                let _ = Plan::new(&gpu, &shape, dtype, &options);
                let _ = BatchNorm::new(&gpu, shape.channels(), options);
            }
            let bytes = shape.bytes(dtype);
            if bytes < 1 << 20 || bytes > gpu.limits().max_buffer_size {
                let _ = Tensor::zeros(&gpu, &shape, dtype);
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
            let results = match call.clone() {
                Call::Forward(x, with) => {
                    let result = with.forward(&mut layer, &x);
                    let twin = match x.dtype {
                        _ if is_of_gpu_alone(&result) => result.clone(),
                        DType::F32 => with.twin_forward::<f32>(&mut twin, &x),
                        DType::F16 => with.twin_forward::<f16>(&mut twin, &x),
                        DType::Bf16 => with.twin_forward::<bf16>(&mut twin, &x),
                    };
                    (result, twin)
                }
                Call::Backward(dy, wanted, in_place) => {
                    let result = backward(&mut layer, &dy, &wanted, in_place);
                    let twin = match is_of_gpu_alone(&result) {
                        true => result.clone(),
                        false => twin.backward_with(&dy.array::<f32>(), &wanted).map(drop),
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

    #[test]
    fn shards_take_any_calls(
        channels in 1..4_usize,
        options in good_options(),
        calls in prop::collection::vec(shared(), 0..12),
    ) {
        let gpu = gpu(wgpu::Limits::default());
        let mut layer = BatchNorm::new(&gpu, channels, options).expect("good options");
        for call in calls {
            let before = layer.num_batches_tracked();
            let result = call.call(&mut layer);
            let stays = result.is_err() || layer.num_batches_tracked() >= before;
            prop_assert!(stays && layer.num_batches_tracked() <= before + 1);
            prop_assert!(result.is_ok() || layer.num_batches_tracked() == before, "{call:?}");
            let ours = !matches!(result, Err(Error::Wgpu { .. }));
            prop_assert!(ours, "{call:?}: {result:?}");
        }
    }

    /// Ranges that would do, some left out or added, up to two of them disturbed.
    #[test]
    fn plans_take_any_ranges(
        dims in prop::collection::vec(0..4_usize, 2..5),
        layout in layout(),
        dtype in dtype(),
        options in good_options(),
        ranges in ranges(),
    ) {
        let gpu = gpu(wgpu::Limits::default());
        let Ok(shape) = Shape::new(&dims, layout) else {
            return Ok(());
        };
        let plan = Plan::new(&gpu, &shape, dtype, &options).expect("a small plan");
        let storage = Storage::new(&gpu);
        let places = ranges.places(&plan, &options);
        let given: Vec<_> = places
            .iter()
            .map(|&(name, place)| (name, storage.range(place)))
            .collect();
        let result = ranges.operation.bind(&plan, &given, ranges.shards);

        let names: Vec<_> = places.iter().map(|(name, _)| *name).collect();
        let taken = ranges.are_taken(&options, &names);
        let defined = ranges.is_defined(&shape, &options, &names);
        let good = taken && defined && ranges.can_be_bound(&plan, &options, &places);
        prop_assert_eq!(result.is_ok(), good, "{:?}: {:?}", places, result);
        match result {
            Ok(commands) => {
                let complaint = complaint(&gpu, &commands);
                prop_assert!(complaint.is_none(), "{places:?}: {complaint:?}");
            }
            // What can be known before is not left to wgpu.
            Err(error) => prop_assert!(!matches!(error, Error::Wgpu { .. }), "{error}"),
        }
    }
}
