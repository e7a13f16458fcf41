//! Folding against PyTorch: its fused layers, and the output of layer and batch norm. No GPU
//! needed.

mod common;

use common::Outcome;
use ndarray::{Array1, Array2, ArrayD, ArrayViewD, ArrayViewMutD, Axis, IxDyn, Slice, array};
use serde::Deserialize;
use wgpu_batchnorm::cpu::{self, Element};
use wgpu_batchnorm::fold::{self, Folded};
use wgpu_batchnorm::{Error, Layout, Mode, Options, Parameter, State, half};

/// `tests/data/fold.json`, written by the script beside it.
#[derive(Deserialize)]
struct Data {
    cases: Vec<Case>,
}

/// A layer and a batch normalization in evaluation behind it. All lists in memory order.
#[derive(Clone, Deserialize)]
struct Case {
    name: String,
    kind: Kind,
    groups: usize,
    eps: f64,
    x_shape: Vec<usize>,
    weight_shape: Vec<usize>,
    y_shape: Vec<usize>,
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
    gamma: Option<Vec<f64>>,
    beta: Option<Vec<f64>>,
    running_mean: Vec<f64>,
    running_var: Vec<f64>,
    y: Vec<f64>,
    fused_weight: Vec<f64>,
    fused_bias: Vec<f64>,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Convolution,
    Transposed,
    Linear,
}

impl Case {
    fn load_all() -> Vec<Self> {
        let text = include_str!("data/fold.json");
        let data: Data =
            serde_json::from_str(text).expect("the data has the form that its script writes");
        data.cases
    }

    fn weight(&self) -> ArrayD<f64> {
        shaped(&self.weight_shape, &self.weight)
    }

    fn bias(&self) -> Option<Array1<f64>> {
        self.bias.clone().map(Array1::from)
    }

    /// The data are f32 numbers. What is absent is NaN, and must not be read.
    fn state(&self) -> State {
        let channels = self.running_mean.len();
        let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect();
        let or_nan = |values: &Option<Vec<f64>>| match values {
            Some(values) => narrow(values),
            None => Array1::from_elem(channels, f32::NAN),
        };
        State {
            gamma: or_nan(&self.gamma),
            beta: or_nan(&self.beta),
            running_mean: narrow(&self.running_mean),
            running_var: narrow(&self.running_var),
            num_batches_tracked: 1,
        }
    }

    fn options(&self) -> Options {
        let parameter = |values: &Option<Vec<f64>>| match values {
            Some(_) => Parameter::Learned,
            None => Parameter::Absent,
        };
        Options::default()
            .eps(self.eps)
            .gamma(parameter(&self.gamma))
            .beta(parameter(&self.beta))
    }

    /// The folded layer, in another type than the data's if one is asked for.
    fn fold<T: Element>(&self) -> Result<Folded<T, IxDyn>, Error> {
        let weight = self.weight().mapv(T::from_f64);
        let bias = self.bias().map(|bias| bias.mapv(T::from_f64));
        let (bias, state, options) = (bias.as_ref(), &self.state(), &self.options());
        match self.kind {
            Kind::Convolution => fold::convolution(&weight, bias, state, options),
            Kind::Transposed => {
                fold::transposed_convolution(&weight, bias, self.groups, state, options)
            }
            Kind::Linear => {
                let weight = weight
                    .into_dimensionality()
                    .expect("the weight of a linear layer has two dimensions");
                let folded = fold::linear(&weight, bias, state, options)?;
                Ok(Folded {
                    weight: folded.weight.into_dyn(),
                    bias: folded.bias,
                })
            }
        }
    }
}

fn shaped(dims: &[usize], values: &[f64]) -> ArrayD<f64> {
    ArrayD::from_shape_vec(dims, values.to_vec()).expect("a list has as many values as its shape")
}

fn ensure_close(what: &str, found: &ArrayD<f64>, expected: &ArrayD<f64>, apart: f64) -> Outcome {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        ensure!(
            (found - expected).abs() <= apart * expected.abs().max(1.0),
            "{what}: {found:e}, expected {expected:e}"
        );
    }
    Ok(())
}

/// Adds to `y` what the layer gives without a bias, at stride 1 without padding. A linear layer is
/// a convolution of no spatial rank. `x` is `[batch, in, …]`, `y` is `[batch, out, …]`.
fn apply(kind: Kind, groups: usize, x: &ArrayD<f64>, weight: &ArrayD<f64>, y: &mut ArrayD<f64>) {
    let inputs = x.len_of(Axis(1)) / groups;
    let outputs = y.len_of(Axis(1)) / groups;
    for (x, mut y) in x.outer_iter().zip(y.outer_iter_mut()) {
        for (output, y) in y.outer_iter_mut().enumerate() {
            let group = output / outputs;
            let own = Slice::from(group * inputs..(group + 1) * inputs);
            let x = x.slice_axis(Axis(0), own);
            if kind == Kind::Transposed {
                let kernel = weight.slice_axis(Axis(0), own);
                let kernel = kernel.index_axis(Axis(1), output % outputs);
                scatter(x, kernel, y);
            } else {
                gather(x, weight.index_axis(Axis(0), output), y);
            }
        }
    }
}

/// A convolution with one output: each of its values is the sum over a window. `x` and `kernel`
/// are `[in, …]`.
fn gather(x: ArrayViewD<f64>, kernel: ArrayViewD<f64>, mut y: ArrayViewMutD<f64>) {
    for (y, window) in y.iter_mut().zip(x.windows(kernel.raw_dim())) {
        *y += (&window * &kernel).sum();
    }
}

/// A transposed convolution with one output: each value of `x` adds a multiple of its kernel. `x`
/// and `kernel` are `[in, …]`.
fn scatter(x: ArrayViewD<f64>, kernel: ArrayViewD<f64>, mut y: ArrayViewMutD<f64>) {
    for (x, kernel) in x.outer_iter().zip(kernel.outer_iter()) {
        for (place, &x) in x.indexed_iter() {
            let mut reached = y.slice_each_axis_mut(|axis| {
                let start = place[axis.axis.index()];
                Slice::from(start..start + kernel.len_of(axis.axis))
            });
            reached.scaled_add(x, &kernel);
        }
    }
}

#[test]
fn folded_layers_are_those_of_pytorch() -> Outcome {
    for case in Case::load_all() {
        let folded = case.fold::<f64>()?;
        let weight = shaped(&case.weight_shape, &case.fused_weight);
        let bias = shaped(&[case.running_mean.len()], &case.fused_bias);
        ensure_close(&case.name, &folded.weight, &weight, 1e-14)?;
        ensure_close(&case.name, &folded.bias.into_dyn(), &bias, 1e-14)?;
    }
    Ok(())
}

#[test]
fn a_folded_layer_does_what_both_did() -> Outcome {
    for case in Case::load_all() {
        let Folded { weight, bias } = case.fold::<f64>()?;
        let x = shaped(&case.x_shape, &case.x);
        let mut y = ArrayD::zeros(IxDyn(&case.y_shape));
        apply(case.kind, case.groups, &x, &weight, &mut y);
        for (mut y, bias) in y.axis_iter_mut(Axis(1)).zip(&bias) {
            y += *bias;
        }
        let expected = shaped(&case.y_shape, &case.y);
        ensure_close(&case.name, &y, &expected, 1e-12)?;
    }
    Ok(())
}

/// Arithmetic is f64 whatever the type: the result is that of f64, rounded once.
#[test]
fn results_are_rounded_once() -> Outcome {
    fn rounded<T: Element + PartialEq + std::fmt::Debug>(case: &Case) -> Outcome {
        // What the type holds of the inputs, folded in f64.
        let held = |values: &[f64]| -> Vec<f64> {
            let values = values.iter().map(|&value| T::from_f64(value).to_f64());
            values.collect()
        };
        let case_held = Case {
            weight: held(&case.weight),
            bias: case.bias.as_deref().map(held),
            ..case.clone()
        };
        let (found, expected) = (case.fold::<T>()?, case_held.fold::<f64>()?);
        assert_eq!(found.weight, expected.weight.mapv(T::from_f64));
        assert_eq!(found.bias, expected.bias.mapv(T::from_f64));
        Ok(())
    }
    for case in Case::load_all() {
        rounded::<f32>(&case)?;
        rounded::<half::f16>(&case)?;
        rounded::<half::bf16>(&case)?;
    }
    Ok(())
}

#[test]
fn a_linear_layer_folds_what_the_cpu_path_evaluates() -> Outcome {
    let x = common::normal(&[7, 5], 0.0, 1.0, 1).into_dimensionality()?;
    let weight: Array2<f32> = common::normal(&[3, 5], 0.0, 1.0, 2).into_dimensionality()?;
    let bias = common::normal_vector(3, 0.0, 1.0, 3);
    let state = State {
        gamma: array![1.5, -0.5, 0.0],
        beta: array![0.0, 2.0, -1.0],
        running_mean: array![0.3, -2.0, 0.1],
        running_var: array![0.5, 3.0, 0.0],
        num_batches_tracked: 9,
    };
    let linear = |x: &Array2<f32>, weight: &Array2<f32>, bias: &Array1<f32>| {
        x.mapv(f64::from).dot(&weight.t().mapv(f64::from)) + bias.mapv(f64::from)
    };
    let mut layer = cpu::BatchNorm::new(3, Options::default())?;
    layer.set_state(&state)?;
    layer.set_mode(Mode::Eval);
    let y = linear(&x, &weight, &bias).mapv(|value| value as f32);
    let y = layer.forward(&y, Layout::ChannelsFirst)?;

    let folded = fold::linear(&weight, Some(&bias), layer.state(), layer.options())?;
    let found = linear(&x, &folded.weight, &folded.bias);
    ensure_close("y", &found.into_dyn(), &y.mapv(f64::from), 2e-6)
}

/// A weight in another memory order, and one of a fixed number of dimensions.
#[test]
fn memory_order_does_not_matter() -> Outcome {
    for case in Case::load_all() {
        if case.kind != Kind::Transposed || case.weight_shape.len() != 4 {
            continue;
        }
        let weight = case.weight();
        let reversed = weight.t().as_standard_layout().into_owned();
        let weight = reversed.t().into_dimensionality::<ndarray::Ix4>()?;
        assert!(!weight.is_standard_layout());
        let bias = case.bias();
        let (state, options) = (case.state(), case.options());
        let found =
            fold::transposed_convolution(&weight, bias.as_ref(), case.groups, &state, &options)?;
        assert_eq!(found.weight.into_dyn(), case.fold::<f64>()?.weight);
    }
    Ok(())
}

/// One of a state's vectors.
type VectorOf = fn(&mut State) -> &mut Array1<f32>;

const VECTORS: [(&str, VectorOf); 4] = [
    ("gamma", |state| &mut state.gamma),
    ("beta", |state| &mut state.beta),
    ("running_mean", |state| &mut state.running_mean),
    ("running_var", |state| &mut state.running_var),
];

/// A value that is no number, in each vector.
#[test]
fn what_is_not_finite_is_refused() {
    let weight = Array2::<f32>::ones((3, 2));
    for (name, vector_of) in VECTORS {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut state = State::new(3);
            vector_of(&mut state)[1] = bad;
            let found = fold::linear(&weight, None, &state, &Options::default());
            assert!(
                matches!(
                    found,
                    Err(Error::NotFoldable { vector, channel: 1, value, .. })
                        if vector == name && value.to_bits() == f64::from(bad).to_bits()
                ),
                "{name} {bad}: {found:?}"
            );
        }
    }
}

#[test]
fn variances_that_have_no_root_to_divide_by_are_refused() -> Outcome {
    let weight = Array2::<f32>::ones((2, 2));
    let fold = |var: f32, eps: f64| {
        let mut state = State::new(2);
        state.running_var[1] = var;
        fold::linear(&weight, None, &state, &Options::default().eps(eps))
    };
    for (var, eps) in [(-1e-9, 1e-3), (-1.0, 0.0), (0.0, 0.0), (-0.0, 0.0)] {
        let found = fold(var, eps);
        assert!(
            matches!(
                found,
                Err(Error::NotFoldable { vector: "running_var", channel: 1, value, .. })
                    if value == f64::from(var)
            ),
            "{var} {eps}: {found:?}"
        );
    }
    assert_eq!(fold(0.0, 0.25)?.weight[[1, 0]], 2.0);
    assert_eq!(fold(0.25, 0.0)?.weight[[1, 0]], 2.0);
    Ok(())
}

#[test]
fn results_that_the_type_does_not_hold_are_refused() -> Outcome {
    let mut state = State::new(2);
    state.running_var[1] = 1e-6;
    state.running_mean[1] = 100.0;
    let options = Options::default().eps(0.0);
    let weight = |value: f32| array![[1.0, 1.0], [0.0, value]];
    let narrow = |value: f32| weight(value).mapv(half::f16::from_f32);

    // 70 · 1000 is more than f16 holds, 100 · 1000 too.
    let found = fold::linear(&narrow(70.0), None, &state, &options);
    assert!(
        matches!(
            found,
            Err(Error::NotFoldable { vector: "the folded weight", channel: 1, value, .. })
                if (value - 70_000.0).abs() < 1.0
        ),
        "{found:?}"
    );
    let found = fold::linear(&narrow(0.0), None, &state, &options);
    assert!(
        matches!(
            found,
            Err(Error::NotFoldable { vector: "the folded bias", channel: 1, value, .. })
                if (value + 100_000.0).abs() < 1.0
        ),
        "{found:?}"
    );
    fold::linear(&weight(70.0), None, &state, &options)?;
    // What was not finite before is not either.
    let found = fold::linear(&weight(f32::NAN), None, &state, &options);
    assert!(matches!(found, Err(Error::NotFoldable { .. })), "{found:?}");
    let bias = array![0.0, f32::INFINITY];
    let found = fold::linear(&weight(1.0), Some(&bias), &state, &options);
    assert!(matches!(found, Err(Error::NotFoldable { .. })), "{found:?}");
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let ones = |dims: &[usize]| ArrayD::<f32>::ones(dims);
    let options = Options::default();
    let convolution = |dims: &[usize], channels: usize| {
        fold::convolution(&ones(dims), None, &State::new(channels), &options)
    };
    let transposed = |dims: &[usize], groups: usize, channels: usize| {
        let state = State::new(channels);
        fold::transposed_convolution(&ones(dims), None, groups, &state, &options)
    };
    let mismatch = |found: Result<Folded<f32, IxDyn>, Error>, name: &str| {
        assert!(
            matches!(&found, Err(Error::ShapeMismatch { tensor, .. }) if tensor.starts_with(name)),
            "{name}: {found:?}"
        );
    };
    let parameter = |found: Result<Folded<f32, IxDyn>, Error>, start: &str| {
        assert!(
            matches!(&found, Err(Error::InvalidParameter { name, .. }) if name.starts_with(start)),
            "{start}: {found:?}"
        );
    };

    // Input and output channels taken for one another.
    mismatch(convolution(&[3, 2, 1], 2), "the weight");
    mismatch(transposed(&[3, 2, 1], 1, 3), "the weight");
    mismatch(transposed(&[4, 3, 1], 2, 3), "the weight");
    for dims in [&[][..], &[2], &[2, 2]] {
        parameter(convolution(dims, 2), "the number of");
        parameter(transposed(dims, 1, 2), "the number of");
    }
    for groups in [0, 3, 5, usize::MAX] {
        parameter(transposed(&[4, 2, 1], groups, 8), "groups");
    }
    parameter(transposed(&[0, 2, 1], usize::MAX, 8), "groups");
    for found in [convolution(&[0, 2, 1], 0), transposed(&[2, 0, 1], 1, 0)] {
        let zero = matches!(found, Err(Error::ZeroChannels { .. }));
        assert!(zero, "{found:?}");
    }

    let bias = Array1::ones(3);
    let state = State::new(2);
    let found = fold::convolution(&ones(&[2, 3, 1]), Some(&bias), &state, &options);
    mismatch(found, "bias");
    for (name, vector_of) in &VECTORS[1..] {
        let mut state = State::new(2);
        *vector_of(&mut state) = Array1::ones(1);
        let found = fold::convolution(&ones(&[2, 3, 1]), None, &state, &options);
        mismatch(found, name);
    }
}

#[test]
fn options_without_running_statistics_are_refused() {
    let weight = Array2::<f32>::ones((2, 2));
    let fold = |options: &Options| fold::linear(&weight, None, &State::new(2), options).err();
    let found = fold(&Options::default().running_statistics(false));
    assert!(matches!(found, Some(Error::Conflict { .. })), "{found:?}");
    let found = fold(&Options::default().eps(f64::NAN));
    let eps = matches!(found, Some(Error::InvalidParameter { name: "eps", .. }));
    assert!(eps, "{found:?}");
}
