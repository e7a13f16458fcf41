//! States in safetensors files: those that PyTorch wrote, and our own. No GPU needed.

mod common;

use std::borrow::Cow;
use std::collections::HashMap;

use common::{Outcome, ensure_close};
use ndarray::{Array1, ArrayD, array};
use safetensors::tensor::{Dtype, SafeTensors, View, serialize};
use serde::Deserialize;
use wgpu_batchnorm::{Error, Layout, Mode, Options, Parameter, State, cpu, half};

/// A file that PyTorch wrote, by `tests/data/state.py`.
const FILE: &[u8] = include_bytes!("data/state.safetensors");

/// `tests/data/state.json`, written by the same script.
#[derive(Deserialize)]
struct Data {
    cases: Vec<Case>,
}

/// A batch normalization in the file, with an evaluation of it in PyTorch.
#[derive(Deserialize)]
struct Case {
    prefix: String,
    affine: bool,
    track_running_stats: bool,
    eps: f64,
    state: Values,
    shape: Vec<usize>,
    x: Vec<f32>,
    y: Vec<f64>,
}

/// What PyTorch's `state_dict` holds.
#[derive(Deserialize)]
struct Values {
    weight: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
    running_mean: Option<Vec<f32>>,
    running_var: Option<Vec<f32>>,
    num_batches_tracked: Option<u64>,
}

impl Case {
    fn load_all() -> Vec<Self> {
        let text = include_str!("data/state.json");
        let data: Data =
            serde_json::from_str(text).expect("the data has the form that its script writes");
        data.cases
    }

    fn options(&self) -> Options {
        let parameter = match self.affine {
            true => Parameter::Learned,
            false => Parameter::Absent,
        };
        Options::default()
            .eps(self.eps)
            .gamma(parameter)
            .beta(parameter)
            .running_statistics(self.track_running_stats)
    }

    /// What is absent is as in a new layer.
    fn state(&self) -> State {
        let or = |values: &Option<Vec<f32>>, value: f32| match values {
            Some(values) => Array1::from(values.clone()),
            None => Array1::from_elem(self.shape[1], value),
        };
        State {
            gamma: or(&self.state.weight, 1.0),
            beta: or(&self.state.bias, 0.0),
            running_mean: or(&self.state.running_mean, 0.0),
            running_var: or(&self.state.running_var, 1.0),
            num_batches_tracked: self.state.num_batches_tracked.unwrap_or(0),
        }
    }
}

/// A tensor to put into a file.
#[derive(Clone, Debug)]
struct Tensor(Dtype, Vec<usize>, Vec<u8>);

impl View for &Tensor {
    fn dtype(&self) -> Dtype {
        self.0
    }
    fn shape(&self) -> &[usize] {
        &self.1
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.2)
    }
    fn data_len(&self) -> usize {
        self.2.len()
    }
}

fn f32s(values: &[f32]) -> Tensor {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    Tensor(Dtype::F32, vec![values.len()], bytes.collect())
}

fn i64_scalar(value: i64) -> Tensor {
    Tensor(Dtype::I64, vec![], value.to_le_bytes().to_vec())
}

/// The tensors of a layer of two channels.
fn two_channels() -> HashMap<&'static str, Tensor> {
    HashMap::from([
        ("weight", f32s(&[1.5, -2.0])),
        ("bias", f32s(&[0.25, 0.0])),
        ("running_mean", f32s(&[3.0, 1e-30])),
        ("running_var", f32s(&[0.5, 7.0])),
        ("num_batches_tracked", i64_scalar(12)),
    ])
}

fn file(tensors: &HashMap<&'static str, Tensor>) -> Vec<u8> {
    serialize(tensors.iter().map(|(name, tensor)| (*name, tensor)), None)
        .expect("the tensors have the sizes that they say")
}

/// Loads two channels after a change to their tensors.
fn load_changed(
    options: &Options,
    change: impl FnOnce(&mut HashMap<&'static str, Tensor>),
) -> Result<State, Error> {
    let mut tensors = two_channels();
    change(&mut tensors);
    State::from_safetensors(&file(&tensors), options, "")
}

fn ensure_bad_tensor(found: Result<State, Error>, expected: &str, part: &str) -> Outcome {
    ensure!(
        matches!(
            &found,
            Err(Error::StateTensor { name, problem }) if name == expected && problem.contains(part)
        ),
        "{expected}: {found:?}"
    );
    Ok(())
}

#[test]
fn states_that_pytorch_wrote_are_loaded() -> Outcome {
    let cases = Case::load_all();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let state = State::from_safetensors(FILE, &case.options(), &case.prefix)?;
        assert_eq!(state, case.state(), "{}", case.prefix);

        let mut layer = cpu::BatchNorm::new(case.shape[1], case.options())?;
        layer.set_state(&state)?;
        // Without running statistics, evaluation normalizes as training does.
        if case.track_running_stats {
            layer.set_mode(Mode::Eval);
        }
        let x = ArrayD::from_shape_vec(case.shape.as_slice(), case.x)?;
        let y = layer.forward(&x, Layout::ChannelsFirst)?;
        ensure_close(&case.prefix, &y, &case.y, |_, y| 1e-6 * y.abs().max(1.0))?;
    }
    Ok(())
}

#[test]
fn a_state_comes_back_as_it_was() -> Outcome {
    let state = State {
        gamma: array![f32::NAN, f32::INFINITY, -0.0],
        beta: array![f32::MIN_POSITIVE, f32::MAX, f32::from_bits(1)],
        running_mean: array![1.0 / 3.0, -7.0, f32::NEG_INFINITY],
        running_var: array![0.1, 2.0, 1e30],
        num_batches_tracked: i64::MAX as u64,
    };
    let bits = |vector: &Array1<f32>| vector.mapv(f32::to_bits);
    let (learned, frozen, absent) = (Parameter::Learned, Parameter::Frozen, Parameter::Absent);
    for (gamma, beta, running) in [
        (learned, frozen, true),
        (absent, learned, true),
        (frozen, absent, true),
        (absent, absent, true),
        (learned, learned, false),
        (absent, learned, false),
        (learned, absent, false),
    ] {
        let options = Options::default().gamma(gamma).beta(beta);
        let options = options.running_statistics(running);
        for prefix in ["", "layer1.0.bn1."] {
            let bytes = state.to_safetensors(&options, prefix)?;
            let found = State::from_safetensors(&bytes, &options, prefix)?;
            let mut expected = State::new(3);
            if gamma != absent {
                expected.gamma = state.gamma.clone();
            }
            if beta != absent {
                expected.beta = state.beta.clone();
            }
            if running {
                expected.running_mean = state.running_mean.clone();
                expected.running_var = state.running_var.clone();
                expected.num_batches_tracked = state.num_batches_tracked;
            }
            assert_eq!(bits(&found.gamma), bits(&expected.gamma));
            assert_eq!(bits(&found.beta), bits(&expected.beta));
            assert_eq!(found.running_mean, expected.running_mean);
            assert_eq!(found.running_var, expected.running_var);
            assert_eq!(found.num_batches_tracked, expected.num_batches_tracked);
        }
    }
    Ok(())
}

/// The names, types and shapes of the file that PyTorch wrote, and its bytes.
#[test]
fn files_are_as_pytorch_writes_them() -> Outcome {
    let cases = Case::load_all();
    let theirs = SafeTensors::deserialize(FILE)?;
    let mut written = Vec::new();
    for case in &cases[..3] {
        written.push((case.prefix.as_str(), case.state(), case.options()));
    }
    let written: Vec<_> = written.iter().map(|(p, s, o)| (*p, s, o)).collect();
    let bytes = State::to_safetensors_all(&written)?;
    let ours = SafeTensors::deserialize(&bytes)?;

    let mut expected: Vec<_> = theirs.names();
    expected.retain(|name| cases[..3].iter().any(|case| name.starts_with(&case.prefix)));
    let mut found = ours.names();
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(found.len(), 5 + 3 + 2);
    for name in found {
        // The same type, shape and bytes.
        assert_eq!(ours.tensor(name)?, theirs.tensor(name)?, "{name}");
    }
    Ok(())
}

/// Writes what `tests/data/state_back.py` loads into PyTorch.
#[test]
#[ignore = "writes a file for tests/data/state_back.py"]
fn writes_a_file_for_pytorch() -> Outcome {
    let cases = Case::load_all();
    let mut states = Vec::new();
    for case in &cases[..3] {
        let state = State::from_safetensors(FILE, &case.options(), &case.prefix)?;
        states.push((case.prefix.as_str(), state, case.options()));
    }
    let layers: Vec<_> = states.iter().map(|(p, s, o)| (*p, s, o)).collect();
    std::fs::create_dir_all("out")?;
    let bytes = State::to_safetensors_all(&layers)?;
    std::fs::write("out/state_back.safetensors", bytes)?;
    Ok(())
}

#[test]
fn several_layers_share_a_file() -> Outcome {
    let options = Options::default();
    let (small, large) = (State::new(1), State::new(3));
    let layers = [("a.", &small, &options), ("b.", &large, &options)];
    let bytes = State::to_safetensors_all(&layers)?;
    assert_eq!(State::from_safetensors(&bytes, &options, "a.")?, small);
    assert_eq!(State::from_safetensors(&bytes, &options, "b.")?, large);

    let twice = [("a.", &small, &options), ("a.", &large, &options)];
    let found = State::to_safetensors_all(&twice);
    assert!(
        matches!(&found, Err(Error::StateTensor { name, .. }) if name == "a.weight"),
        "{found:?}"
    );
    Ok(())
}

#[test]
fn other_types_are_converted() -> Outcome {
    let options = Options::default();
    let found = load_changed(&options, |tensors| {
        // Between two numbers of f32, the nearer one, or the even one, and beyond all of them.
        let f64s = [1.0 + 0.6 * f64::powi(2.0, -23), 1.0 + f64::powi(2.0, -24)];
        let bytes = f64s.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.insert("weight", Tensor(Dtype::F64, vec![2], bytes));
        let f16s = [half::f16::from_f32(0.1), half::f16::MIN_POSITIVE_SUBNORMAL];
        let bytes = f16s.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.insert("bias", Tensor(Dtype::F16, vec![2], bytes));
        let bf16s = [half::bf16::from_f32(3.1), half::bf16::NEG_INFINITY];
        let bytes = bf16s.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.insert("running_mean", Tensor(Dtype::BF16, vec![2], bytes));
        let bytes = [-0.0_f64, 1e300]
            .iter()
            .flat_map(|value| value.to_le_bytes());
        tensors.insert("running_var", Tensor(Dtype::F64, vec![2], bytes.collect()));
        let bytes = 70_000_i32.to_le_bytes().to_vec();
        tensors.insert("num_batches_tracked", Tensor(Dtype::I32, vec![], bytes));
    })?;
    assert_eq!(found.gamma, array![1.0 + f32::EPSILON, 1.0]);
    assert_eq!(found.beta, array![0.099975586, 5.9604645e-8]);
    assert_eq!(found.running_mean, array![3.09375, f32::NEG_INFINITY]);
    assert_eq!(found.running_var, array![0.0, f32::INFINITY]);
    assert_eq!(found.num_batches_tracked, 70_000);
    Ok(())
}

#[test]
fn a_missing_number_of_batches_is_zero() -> Outcome {
    let mut expected = load_changed(&Options::default(), |_| ())?;
    assert_eq!(expected.num_batches_tracked, 12);
    expected.num_batches_tracked = 0;
    let found = load_changed(&Options::default(), |tensors| {
        tensors.remove("num_batches_tracked");
    })?;
    assert_eq!(found, expected);
    Ok(())
}

#[test]
fn missing_tensors_are_named() -> Outcome {
    let options = Options::default();
    for name in ["weight", "bias", "running_mean", "running_var"] {
        let found = load_changed(&options, |tensors| {
            tensors.remove(name);
        });
        ensure_bad_tensor(found, name, "missing")?;
    }
    let found = State::from_safetensors(FILE, &options, "2.");
    ensure_bad_tensor(found, "2.weight", "missing")?;
    // A prefix without its dot.
    let found = State::from_safetensors(FILE, &options, "1");
    ensure_bad_tensor(found, "1weight", "missing")
}

#[test]
fn tensors_that_should_not_be_there_are_named() -> Outcome {
    let with_only = |name: &'static str, options: &Options| {
        load_changed(options, |tensors| {
            let absent: &[&str] = match name {
                "weight" | "bias" => &["weight", "bias"],
                _ => &["running_mean", "running_var", "num_batches_tracked"],
            };
            tensors.retain(|key, _| *key == name || !absent.contains(key));
        })
    };
    let bare = Options::default()
        .gamma(Parameter::Absent)
        .beta(Parameter::Absent);
    for name in ["weight", "bias"] {
        ensure_bad_tensor(with_only(name, &bare), name, "should not be there")?;
    }
    let untracked = Options::default().running_statistics(false);
    for name in ["running_mean", "running_var", "num_batches_tracked"] {
        ensure_bad_tensor(with_only(name, &untracked), name, "should not be there")?;
    }
    // Under another prefix they are someone else's.
    let mut tensors = two_channels();
    tensors.retain(|name, _| name.starts_with("running"));
    tensors.insert("next.weight", f32s(&[1.0]));
    tensors.insert("note", Tensor(Dtype::U8, vec![1], vec![7]));
    let found = State::from_safetensors(&file(&tensors), &bare, "")?;
    assert_eq!(found.running_mean, array![3.0, 1e-30]);
    assert_eq!(found.gamma, array![1.0, 1.0]);
    Ok(())
}

#[test]
fn wrong_types_and_shapes_are_named() -> Outcome {
    let options = Options::default();
    let with = |name: &'static str, tensor: Tensor| {
        load_changed(&options, |tensors| {
            tensors.insert(name, tensor);
        })
    };
    let count = "num_batches_tracked";
    let integers = Tensor(Dtype::I64, vec![2], vec![0; 16]);
    ensure_bad_tensor(with("bias", integers), "bias", "I64")?;
    let float = Tensor(Dtype::F32, vec![], vec![0; 4]);
    ensure_bad_tensor(with(count, float), count, "F32")?;
    ensure_bad_tensor(with(count, i64_scalar(-1)), count, "-1")?;
    let negative = Tensor(Dtype::I32, vec![], (-5_i32).to_le_bytes().to_vec());
    ensure_bad_tensor(with(count, negative), count, "-5")?;

    let mismatch = |found: Result<State, Error>, name: &str, shape: &[usize]| {
        assert!(
            matches!(
                &found,
                Err(Error::ShapeMismatch { tensor, found, .. }) if *tensor == name && found == shape
            ),
            "{name}: {found:?}"
        );
    };
    for name in ["bias", "running_mean", "running_var"] {
        mismatch(with(name, f32s(&[1.0])), name, &[1]);
        mismatch(with(name, f32s(&[1.0, 2.0, 3.0])), name, &[3]);
    }
    mismatch(with("weight", f32s(&[1.0])), "bias", &[2]);
    let scalar = Tensor(Dtype::F32, vec![], vec![0; 4]);
    mismatch(with("weight", scalar), "weight", &[]);
    let matrix = Tensor(Dtype::F32, vec![1, 2], vec![0; 8]);
    mismatch(with("weight", matrix), "weight", &[1, 2]);
    let vector = Tensor(Dtype::I64, vec![1], vec![0; 8]);
    mismatch(with(count, vector), count, &[1]);

    let empty = load_changed(&options, |tensors| {
        for name in ["weight", "bias", "running_mean", "running_var"] {
            tensors.insert(name, f32s(&[]));
        }
    });
    assert!(matches!(empty, Err(Error::ZeroChannels { .. })));
    Ok(())
}

#[test]
fn a_layer_without_anything_is_written_but_not_loaded() -> Outcome {
    let options = Options::default()
        .gamma(Parameter::Absent)
        .beta(Parameter::Absent)
        .running_statistics(false);
    let bytes = State::new(2).to_safetensors(&options, "")?;
    assert!(SafeTensors::deserialize(&bytes)?.is_empty());
    let found = State::from_safetensors(&bytes, &options, "");
    assert!(matches!(found, Err(Error::Conflict { .. })), "{found:?}");
    Ok(())
}

#[test]
fn states_that_cannot_be_written_are_refused() {
    let write = |change: fn(&mut State)| {
        let mut state = State::new(2);
        change(&mut state);
        state.to_safetensors(&Options::default(), "").err()
    };
    let found = write(|state| state.running_var = Array1::ones(3));
    let mismatch = matches!(
        found,
        Some(Error::ShapeMismatch {
            tensor: "running_var",
            ..
        })
    );
    assert!(mismatch, "{found:?}");
    let found = write(|state| state.num_batches_tracked = 1 << 63);
    let parameter = matches!(found, Some(Error::InvalidParameter { .. }));
    assert!(parameter, "{found:?}");
    let found = write(|state| *state = State::new(0));
    assert!(matches!(found, Some(Error::ZeroChannels { .. })));
}

/// Every beginning of a file, every file with one byte changed: an error or a state, no panic.
#[test]
fn broken_files_are_errors() {
    let options = Options::default();
    let load = |bytes: &[u8]| State::from_safetensors(bytes, &options, "");
    let whole = file(&two_channels());
    assert!(load(&whole).is_ok());
    for length in 0..whole.len() {
        let found = load(&whole[..length]);
        assert!(matches!(found, Err(Error::StateFile { .. })), "{length}");
    }
    let longer = [whole.as_slice(), &[0]].concat();
    assert!(matches!(load(&longer), Err(Error::StateFile { .. })));
    for place in 0..whole.len() {
        for byte in [0, b'"', b'9', b'}', 0x7f, 0xff] {
            let mut broken = whole.clone();
            broken[place] = byte;
            let _ = load(&broken);
        }
    }
}

/// Headers that lie about where tensors are.
#[test]
fn lying_headers_are_errors() {
    let file = |header: &str, values: &[u8]| {
        let length = (header.len() as u64).to_le_bytes();
        [&length, header.as_bytes(), values].concat()
    };
    let entry = |shape: u64, start: u64, end: u64| {
        format!(r#"{{"dtype":"U8","shape":[{shape}],"data_offsets":[{start},{end}]}}"#)
    };
    // Eight tensors, which fill the range of u64 but for eight bytes.
    let size = (1_u64 << 61) - 1;
    let huge: Vec<String> = (0..8)
        .map(|i| format!(r#""{i}":{}"#, entry(size, i * size, (i + 1) * size)))
        .collect();
    let headers = [
        format!("{{{}}}", huge.join(",")),
        format!(r#"{{"weight":{}}}"#, entry(4, 0, 4)),
        format!(r#"{{"weight":{}}}"#, entry(8, 4, 12)),
        format!(r#"{{"weight":{}}}"#, entry(8, 8, 0)),
        format!(r#"{{"weight":{}}}"#, entry(u64::MAX, 0, 8)),
        format!(
            r#"{{"weight":{},"bias":{}}}"#,
            entry(8, 0, 8),
            entry(8, 0, 8)
        ),
        r#"{"weight":{"dtype":"F128","shape":[1],"data_offsets":[0,8]}}"#.to_owned(),
        "[".repeat(100_000),
        String::new(),
    ];
    for header in headers {
        let found = State::from_safetensors(&file(&header, &[0; 8]), &Options::default(), "");
        let shown = &header[..header.len().min(100)];
        assert!(
            matches!(found, Err(Error::StateFile { .. })),
            "{shown}: {found:?}"
        );
    }
    let all = [0xff; 64];
    let found = State::from_safetensors(&all, &Options::default(), "");
    assert!(matches!(found, Err(Error::StateFile { .. })));
}
