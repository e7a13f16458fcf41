//! Properties that hold for every shape, layout, offset of the data and division of the work.
//!
//! 1,000 random cases a run; `WGPU_BATCHNORM_CASES` asks for another number. A case that fails is
//! made as small as it can be before it is shown.

use libtest_mimic::Trial;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use wgpu_batchnorm::verify::Checked;
use wgpu_batchnorm::{
    BatchNorm, DType, Gpu, Layout, Mode, Options, RunningVariance, Shape, State, Tensor, Tuning,
};

use crate::common::{Adapter, Outcome, normal, normal_vector};
use crate::plan::{Work, plan_agrees_with_layer};

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    vec![adapter.trial(
        "random cases agree with f64, repeat and stay in bounds",
        |gpu| {
            let config = Config {
                cases: cases()?,
                failure_persistence: None,
                ..Config::default()
            };
            let run = |case: Case| {
                holds(gpu, &case).map_err(|error| TestCaseError::fail(error.to_string()))
            };
            TestRunner::new_with_rng(config, rng()).run(&Case::any(), run)?;
            Ok(())
        },
    )]
}

/// How many random cases to run.
pub fn cases() -> Result<u32, std::num::ParseIntError> {
    match std::env::var("WGPU_BATCHNORM_CASES") {
        Ok(number) => number.parse(),
        Err(_) => Ok(1000),
    }
}

/// The same cases in every run, so that a failure can be run again; another number of cases goes
/// further along the same sequence.
fn rng() -> proptest::test_runner::TestRng {
    proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha)
}

#[derive(Clone, Debug)]
struct Case {
    dims: Vec<usize>,
    layout: Layout,
    mean: f64,
    deviation: f64,
    eps: f64,
    momenta: [f64; 2],
    running_variance: RunningVariance,
    tuning: Tuning,
    /// How many alignments of the device lie between the tensors in a buffer.
    gap: usize,
    seed: u64,
}

impl Case {
    fn any() -> impl Strategy<Value = Self> {
        let dims = prop_oneof![
            prop::collection::vec(1..12_usize, 2..=5),
            prop::collection::vec(1..70_usize, 2..=3),
            (1..3000_usize, 1..9_usize).prop_map(|(batch, channels)| vec![batch, channels]),
            (1..3_usize, 1..4_usize, 1..5000_usize).prop_map(|(n, c, l)| vec![n, c, l]),
        ];
        let layout = prop_oneof![Just(Layout::ChannelsFirst), Just(Layout::ChannelsLast)];
        let mean = (-1.0..1.0, 0..8).prop_map(|(digits, power)| digits * 10_f64.powi(power));
        let deviation = (-2..4).prop_map(|power| 10_f64.powi(power));
        let eps = prop_oneof![Just(1e-5), Just(1e-3), Just(1e-12)];
        let running_variance = prop_oneof![
            Just(RunningVariance::Unbiased),
            Just(RunningVariance::Population)
        ];
        let dims = dims.prop_filter("two values per channel", |dims| {
            [Layout::ChannelsFirst, Layout::ChannelsLast]
                .iter()
                .all(|&layout| {
                    Shape::new(dims, layout).is_ok_and(|shape| shape.values_per_channel() > 1)
                })
        });
        let rest = (running_variance, tuning(), 0..3_usize, any::<u64>());
        (
            dims,
            layout,
            mean,
            deviation,
            eps,
            [0.0..=1.0, 0.0..=1.0],
            rest,
        )
            .prop_map(|(dims, layout, mean, deviation, eps, momenta, rest)| {
                let (running_variance, tuning, gap, seed) = rest;
                Self {
                    dims,
                    layout,
                    mean,
                    deviation,
                    eps,
                    momenta,
                    running_variance,
                    tuning,
                    gap,
                    seed,
                }
            })
    }
}

fn tuning() -> impl Strategy<Value = Tuning> {
    let chosen = prop_oneof![Just(Tuning::gpu()), Just(Tuning::cpu())];
    let wide_words = any::<bool>();
    let whole = any::<bool>();
    let free = (
        0..3_u32,
        (0..3_u32, any::<bool>()),
        wide_words,
        1..200_u32,
        1..9_u32,
        1..40_u32,
        whole,
        prop_oneof![Just(1), Just(u32::MAX)],
    )
        .prop_map(
            |(lanes, (across, spread), wide_words, workgroups, packs, map_packs, whole, mixed)| {
                let mut tuning = Tuning::gpu();
                // Few shapes of workgroups: each is another pipeline to compile.
                tuning.lanes = 1 << (3 * lanes);
                tuning.bytes_across = 16 << (2 * across);
                tuning.spread = spread;
                tuning.wide_words = wide_words;
                tuning.reduction_workgroups = workgroups;
                tuning.reduction_packs_min = packs;
                tuning.reduction_packs_max = 8 * packs;
                tuning.map_packs = map_packs;
                tuning.whole_bytes = if whole { u64::MAX } else { 0 };
                tuning.whole_workgroups = 1;
                // Zero half of the time: then kernels are not joined.
                tuning.map_partials_max = packs.saturating_sub(4);
                tuning.mixed_rows_min = mixed;
                tuning
            },
        );
    prop_oneof![2 => chosen, 1 => free]
}

fn holds(gpu: &Gpu, case: &Case) -> Outcome {
    let shape = Shape::new(&case.dims, case.layout)?;
    let channels = shape.channels();
    let options = Options::default()
        .eps(case.eps)
        .momentum_mean(case.momenta[0])
        .momentum_var(case.momenta[1])
        .running_variance(case.running_variance)
        .tuning(case.tuning.clone());
    let state = State {
        gamma: normal_vector(channels, 1.0, 0.5, case.seed ^ 1),
        beta: normal_vector(channels, 0.0, 1.0, case.seed ^ 2),
        running_mean: normal_vector(channels, case.mean, case.deviation, case.seed ^ 3),
        running_var: normal_vector(channels, 1.0, 0.2, case.seed ^ 4).mapv(f32::abs),
        num_batches_tracked: 0,
    };
    let x = normal(&case.dims, case.mean, case.deviation, case.seed ^ 5);
    let dy = normal(&case.dims, 0.2, 1.0, case.seed ^ 6);

    // As f64 has it.
    let mut layer = BatchNorm::new(gpu, channels, options.clone())?;
    layer.set_state(&state)?;
    let x_tensor = Tensor::from_array(gpu, &x, case.layout)?;
    let mut checked = Checked::new(&mut layer);
    checked.forward_blocking(&x_tensor)?;
    checked.backward_blocking(&Tensor::from_array(gpu, &dy, case.layout)?)?;
    layer.set_mode(Mode::Eval);
    Checked::new(&mut layer).forward_blocking(&x_tensor)?;

    // The same bits in a second run, from ranges elsewhere in other buffers, and nothing written
    // outside of them.
    plan_agrees_with_layer(
        gpu,
        &Work {
            shape: &shape,
            dtype: DType::F32,
            options: &options,
            state: &state,
            x,
            dy,
            residual: None,
            valid: None,
            gap: case.gap,
        },
    )
}
