//! Mistakes of a caller: errors with data, and nothing changed.

use libtest_mimic::Trial;
use ndarray::{Array1, ArrayD};
use wgpu_batchnorm::{
    Activation, Adam, BackwardBuffers, BatchNorm, Commands, DType, Error, Extra, ForwardBuffers,
    Gpu, Layout, Mode, Moments, Momentum, OneValue, Optimizer, Options, Parameter, Plan, RmsProp,
    Sgd, Shape, State, Sums, Tensor, Tuning, Valid, Wanted, cpu, wgpu,
};

use crate::common::operations::{
    NAMES, NO_STORAGE, Operation, Place, Rule, SLOT, Storage, bytes_of, good_place,
};
use crate::common::{Adapter, Outcome, normal};
use crate::ensure;

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    vec![
        adapter.trial("bad input to a layer", layer),
        adapter.trial("bad numbers in options", options),
        adapter.trial("options that collide", colliding_options),
        adapter.trial("bad residuals and masks", bad_extras),
        adapter.trial("bad backward passes and shards", bad_backward),
        adapter.trial("a state with what is absent", absent_state),
        adapter.trial(
            "a range too few or too many for a plan",
            ranges_few_and_many,
        ),
        adapter.trial("ranges that collide with a plan's options", collisions),
        adapter.trial("ranges that cannot be bound together", bad_ranges),
        adapter.trial("in place is by the very range", in_place),
        adapter.trial("bad batches and shards for a plan", bad_batches),
        adapter.trial("bad buffers for a tensor", tensor),
        adapter.trial("evaluation of small and empty batches", small_batches),
        adapter.trial("a tensor beyond the limits", too_large),
    ]
}

/// Fails unless the result is the error of this pattern.
macro_rules! ensure_error {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {
        match $result {
            Err($pattern) $(if $guard)? => {}
            Err(other) => return Err(format!("unexpected error: {other:?}").into()),
            Ok(_) => return Err(concat!("no error: ", stringify!($result)).into()),
        }
    };
}

fn layer(gpu: &Gpu) -> Outcome {
    let first = Layout::ChannelsFirst;
    let zeros = |dims: &[usize]| Tensor::from_array(gpu, &ArrayD::<f32>::zeros(dims), first);
    ensure_error!(zeros(&[4]), Error::Rank { dims } if dims == [4]);
    ensure_error!(zeros(&[4, 0]), Error::ZeroChannels { .. });
    ensure_error!(
        BatchNorm::new(gpu, 0, Options::default()),
        Error::ZeroChannels { .. }
    );
    for channels in [1 << 34, 1 << 40, usize::MAX] {
        ensure_error!(
            BatchNorm::new(gpu, channels, Options::default()),
            Error::TooLarge { .. }
        );
    }

    let mut layer = BatchNorm::new(gpu, 3, Options::default())?;
    let mut optimizer = Optimizer::new(&layer, Sgd::default())?;
    let before = layer.state_blocking()?;
    ensure_error!(layer.backward(&zeros(&[4, 3])?), Error::NoForward);
    ensure_error!(optimizer.step(&mut layer), Error::NoBackward);
    ensure_error!(
        layer.forward(&zeros(&[4, 2, 5])?),
        Error::ShapeMismatch { tensor: "x", expected, found }
            if expected == [4, 3, 5] && found == [4, 2, 5]
    );
    ensure_error!(
        layer.forward(&zeros(&[0, 3])?),
        Error::EmptyBatch { dims } if dims == [0, 3]
    );
    ensure_error!(layer.forward(&zeros(&[2, 3, 0])?), Error::EmptyBatch { .. });
    ensure_error!(
        layer.forward(&zeros(&[1, 3])?),
        Error::OneValuePerChannel { dims } if dims == [1, 3]
    );
    for (name, shorten) in [
        ("gamma", (|s| s.gamma = Array1::zeros(2)) as fn(&mut State)),
        ("beta", |s| s.beta = Array1::zeros(4)),
        ("running_mean", |s| s.running_mean = Array1::zeros(0)),
        ("running_var", |s| s.running_var = Array1::zeros(6)),
    ] {
        let mut state = State::new(3);
        state.gamma.fill(7.0);
        shorten(&mut state);
        ensure_error!(
            layer.set_state(&state),
            Error::ShapeMismatch { tensor, .. } if tensor == name
        );
    }
    ensure!(
        layer.state_blocking()? == before,
        "an error changed the state"
    );

    // A failed step leaves the forward pass before it in place.
    let x = Tensor::from_array(gpu, &normal(&[4, 3, 2], 0.0, 1.0, 1), first)?;
    layer.forward(&x)?;
    ensure_error!(
        layer.forward(&zeros(&[1, 3])?),
        Error::OneValuePerChannel { .. }
    );
    ensure_error!(
        layer.backward(&zeros(&[4, 3])?),
        Error::ShapeMismatch { tensor: "dy", .. }
    );
    let last = Tensor::from_array(
        gpu,
        &ArrayD::<f32>::zeros(vec![4, 3, 2]),
        Layout::ChannelsLast,
    )?;
    ensure_error!(
        layer.backward(&last),
        Error::LayoutMismatch { tensor: "dy", .. }
    );
    ensure_error!(optimizer.step(&mut layer), Error::NoBackward);
    layer.backward(&x)?;
    ensure!(
        layer.state_blocking()?.num_batches_tracked == 1,
        "one batch"
    );

    let mut other = BatchNorm::new(gpu, 4, Options::default())?;
    ensure_error!(optimizer.step(&mut other), Error::ShapeMismatch { .. });
    Ok(())
}

fn options(gpu: &Gpu) -> Outcome {
    let layer = |options| BatchNorm::new(gpu, 3, options);
    let shape = Shape::new(&[4, 3], Layout::ChannelsFirst)?;
    for bad in [f64::NAN, f64::INFINITY, -1e-9, 1e300, 1e-40] {
        let options = Options::default().eps(bad);
        ensure_error!(
            Plan::new(gpu, &shape, DType::F32, &options),
            Error::InvalidParameter { name: "eps", .. }
        );
        ensure_error!(layer(options), Error::InvalidParameter { name: "eps", .. });
    }
    for bad in [f64::NAN, f64::NEG_INFINITY, -0.1, 1.1] {
        let mean = Options::default().momentum_mean(bad);
        ensure_error!(
            layer(mean),
            Error::InvalidParameter {
                name: "momentum_mean",
                ..
            }
        );
        let var = Options::default().momentum_var(bad);
        ensure_error!(
            layer(var),
            Error::InvalidParameter {
                name: "momentum_var",
                ..
            }
        );
    }
    for bad in [0, 3, 2048] {
        let mut tuning = Tuning::gpu();
        tuning.lanes = bad;
        ensure_error!(
            layer(Options::default().tuning(tuning)),
            Error::InvalidParameter {
                name: "tuning.lanes",
                ..
            }
        );
    }
    let mut tuning = Tuning::gpu();
    tuning.map_packs = 0;
    ensure_error!(
        layer(Options::default().tuning(tuning)),
        Error::InvalidParameter {
            name: "tuning.map_packs",
            ..
        }
    );

    let layer = layer(Options::default())?;
    let invalid = |algorithm: wgpu_batchnorm::Algorithm, expected: &str| -> Outcome {
        match Optimizer::new(&layer, algorithm) {
            Err(Error::InvalidParameter { name, .. }) if name == expected => Ok(()),
            other => Err(format!("{expected}: {other:?}").into()),
        }
    };
    let nan = f64::NAN;
    invalid(
        Sgd {
            lr: -1.0,
            ..Sgd::default()
        }
        .into(),
        "lr",
    )?;
    invalid(
        Sgd {
            momentum: nan,
            ..Sgd::default()
        }
        .into(),
        "momentum",
    )?;
    invalid(
        Sgd {
            nesterov: true,
            ..Sgd::default()
        }
        .into(),
        "momentum",
    )?;
    invalid(
        RmsProp {
            alpha: 1.5,
            ..RmsProp::default()
        }
        .into(),
        "alpha",
    )?;
    invalid(
        RmsProp {
            eps: nan,
            ..RmsProp::default()
        }
        .into(),
        "eps",
    )?;
    invalid(
        Adam {
            betas: [1.0, 0.9],
            ..Adam::default()
        }
        .into(),
        "betas[0]",
    )?;
    invalid(
        Adam {
            betas: [0.9, nan],
            ..Adam::default()
        }
        .into(),
        "betas[1]",
    )?;
    let mut optimizer = Optimizer::new(&layer, Adam::default())?;
    ensure_error!(
        optimizer.set_lr(nan),
        Error::InvalidParameter { name: "lr", .. }
    );
    Ok(())
}

/// An error in a few words.
fn said(error: &Error) -> String {
    match error {
        Error::MissingBuffer { tensor } => format!("no {tensor}"),
        Error::Conflict { first, second, .. } => format!("{first} with {second}"),
        Error::BufferSize {
            tensor,
            expected,
            found,
        } => format!("{tensor}: {found} bytes for {expected}"),
        Error::Misaligned { tensor, offset, .. } => format!("{tensor} at {offset}"),
        Error::MissingUsage { tensor, usage } => format!("{tensor} without {usage:?}"),
        Error::Overlap { output, other } => format!("{output} over {other}"),
        Error::InvalidParameter { name, .. } => format!("bad {name}"),
        other => format!("{other:?}"),
    }
}

/// Fails unless the result is the error of these words.
fn ensure_said<T: std::fmt::Debug>(result: Result<T, Error>, expected: &str) -> Outcome {
    match result {
        Err(error) if said(&error) == expected => Ok(()),
        Err(error) => Err(format!("expected {expected}, found {}", said(&error)).into()),
        Ok(_) => Err(format!("no error: expected {expected}").into()),
    }
}

/// Options with these names, for tables.
fn options_by_name(name: &str) -> Options {
    let plain = Options::default();
    match name {
        "relu" => plain.activation(Activation::Relu),
        "frozen" => plain.frozen_statistics(true),
        "frozen relu" => plain.frozen_statistics(true).activation(Activation::Relu),
        "no running" => plain.running_statistics(false),
        "absent" => plain.gamma(Parameter::Absent).beta(Parameter::Absent),
        "absent relu" => options_by_name("absent").activation(Activation::Relu),
        "constant" => plain.gamma(Parameter::Frozen).beta(Parameter::Frozen),
        _ => plain,
    }
}

/// A plan, and memory for its operations.
struct Subject {
    plan: Plan,
    options: Options,
    storage: Storage,
}

impl Subject {
    /// Of 4 × 3 × 5 values: 240 bytes a tensor and 12 a vector.
    fn new(gpu: &Gpu, options: Options) -> Result<Self, Error> {
        let shape = Shape::new(&[4, 3, 5], Layout::ChannelsFirst)?;
        Ok(Self {
            plan: Plan::new(gpu, &shape, DType::F32, &options)?,
            options,
            storage: Storage::new(gpu),
        })
    }

    /// The ranges that an operation needs, and these.
    fn good(&self, operation: Operation, more: &[&'static str]) -> Vec<(&'static str, Place)> {
        let mut names = more.to_vec();
        let needs = |name: &str| {
            let given = |other: &str| more.contains(&other);
            operation.rule(name, &self.options, &given) == Rule::Must
        };
        names.extend(NAMES.into_iter().filter(|name| needs(name)));
        names.dedup();
        let place = |name| (name, good_place(name, bytes_of(&self.plan, name, 1)));
        names.into_iter().map(place).collect()
    }

    fn bind(
        &self,
        operation: Operation,
        places: &[(&'static str, Place)],
    ) -> Result<Commands, Error> {
        let ranges: Vec<_> = places
            .iter()
            .map(|&(name, place)| (name, self.storage.range(place)))
            .collect();
        operation.bind(&self.plan, &ranges, 1)
    }
}

/// Every operation with every range too few and too many, and with everything that it may take.
fn ranges_few_and_many(gpu: &Gpu) -> Outcome {
    for options in [
        "plain",
        "relu",
        "frozen",
        "frozen relu",
        "no running",
        "absent",
        "absent relu",
        "constant",
    ] {
        let subject = Subject::new(gpu, options_by_name(options))?;
        for operation in Operation::ALL {
            few_and_many(&subject, operation)
                .map_err(|error| format!("{options} {operation:?}: {error}"))?;
        }
    }
    Ok(())
}

fn few_and_many(subject: &Subject, operation: Operation) -> Outcome {
    use Operation::{Inference, Moments, Statistics};
    let options = &subject.options;
    let good = subject.good(operation, &[]);
    if operation == Inference && !options.running_statistics {
        let expected = "bind_inference with running_statistics(false)";
        return ensure_said(subject.bind(operation, &good), expected);
    }
    if [Moments, Statistics].contains(&operation) && options.frozen_statistics {
        let error = subject.bind(operation, &good);
        ensure_error!(
            error,
            Error::Conflict {
                second: "frozen_statistics(true)",
                ..
            }
        );
        return Ok(());
    }
    subject.bind(operation, &good)?;
    for name in NAMES {
        let given = |other: &str| good.iter().any(|(name, _)| *name == other);
        let rule = operation.rule(name, options, &given);
        let one_of_two = operation == Statistics && name.starts_with("running");
        if rule == Rule::Must && !operation.fixed().contains(&name) {
            let mut few = good.clone();
            few.retain(|(found, _)| *found != name);
            // The signature takes both or none.
            let first = if one_of_two { "running_mean" } else { name };
            ensure_said(subject.bind(operation, &few), &format!("no {first}"))?;
        }
        if rule == Rule::Not && operation.has_place_for(name) && !one_of_two {
            let many = subject.good(operation, &[name]);
            let error = subject.bind(operation, &many);
            ensure_error!(error, Error::Conflict { first, .. } if first == name);
        }
        if rule == Rule::May {
            let cuts = options.activation != Activation::Identity;
            let with = match name {
                "residual_gradient" if cuts => vec![name, "mask"],
                _ => vec![name],
            };
            subject
                .bind(operation, &subject.good(operation, &with))
                .map_err(|error| format!("with {name}: {error}"))?;
            if with.contains(&"mask") && name != "mask" {
                let mut few = subject.good(operation, &with);
                few.retain(|(found, _)| *found != "mask");
                ensure_said(subject.bind(operation, &few), "no mask")?;
            }
        }
    }
    Ok(())
}

/// What an error says of ranges that collide with options or with each other.
fn collisions(gpu: &Gpu) -> Outcome {
    use Operation::{Backward, Forward, Inference, Moments, Statistics, Sums};
    type Row = (
        &'static str,
        Operation,
        &'static [&'static str],
        &'static str,
    );
    let rows: [Row; 20] = [
        (
            "absent",
            Forward,
            &["gamma"],
            "gamma with gamma(Parameter::Absent)",
        ),
        (
            "absent",
            Inference,
            &["beta"],
            "beta with beta(Parameter::Absent)",
        ),
        (
            "absent",
            Backward,
            &["gamma"],
            "gamma with gamma(Parameter::Absent)",
        ),
        (
            "absent relu",
            Backward,
            &["beta"],
            "beta with beta(Parameter::Absent)",
        ),
        ("relu", Forward, &["mask"], "mask with no residual"),
        (
            "plain",
            Forward,
            &["mask"],
            "mask with activation(Activation::Identity)",
        ),
        (
            "plain",
            Forward,
            &["mask", "residual"],
            "mask with activation(Activation::Identity)",
        ),
        (
            "plain",
            Backward,
            &["mask"],
            "mask with activation(Activation::Identity)",
        ),
        (
            "frozen",
            Forward,
            &["valid"],
            "valid with frozen_statistics(true)",
        ),
        (
            "frozen",
            Backward,
            &["valid"],
            "valid with frozen_statistics(true)",
        ),
        (
            "no running",
            Forward,
            &["running_mean"],
            "running_mean with running_statistics(false)",
        ),
        (
            "no running",
            Statistics,
            &["running_mean", "running_var"],
            "running_mean with running_statistics(false)",
        ),
        ("plain", Inference, &["saved"], "saved with bind_inference"),
        ("plain", Inference, &["valid"], "valid with bind_inference"),
        (
            "relu",
            Inference,
            &["residual", "mask"],
            "mask with bind_inference",
        ),
        (
            "plain",
            Backward,
            &["residual_gradient"],
            "residual_gradient with no dx",
        ),
        (
            "constant",
            Backward,
            &["dgamma"],
            "dgamma with gamma that is not learned",
        ),
        (
            "absent",
            Backward,
            &["dbeta"],
            "dbeta with beta that is not learned",
        ),
        (
            "frozen",
            Moments,
            &[],
            "bind_moments with frozen_statistics(true)",
        ),
        ("plain", Sums, &["dx"], "dx with bind_sums"),
    ];
    for (options, operation, more, expected) in rows {
        let subject = Subject::new(gpu, options_by_name(options))?;
        let places = subject.good(operation, more);
        ensure_said(subject.bind(operation, &places), expected)
            .map_err(|error| format!("{options} {operation:?} {more:?}: {error}"))?;
    }
    Ok(())
}

/// Ranges of the wrong size, place or buffer, one or two at a time.
fn bad_ranges(gpu: &Gpu) -> Outcome {
    use Operation::{
        Backward, Forward, Inference, InputGradient, Moments, Normalize, Statistics, Sums,
    };
    type Row = (Operation, &'static [(&'static str, Place)], &'static str);
    let rows: [Row; 39] = [
        // Sizes.
        (Forward, &[("x", (0, 0, 236))], "x: 236 bytes for 240"),
        (Forward, &[("y", (1, 0, 244))], "y: 244 bytes for 240"),
        (Forward, &[("gamma", (0, 3072, 8))], "gamma: 8 bytes for 12"),
        (Forward, &[("beta", (0, 3072, 16))], "beta: 16 bytes for 12"),
        (
            Forward,
            &[("running_mean", (6, 0, 4))],
            "running_mean: 4 bytes for 12",
        ),
        (
            Forward,
            &[("running_var", (6, 0, 4))],
            "running_var: 4 bytes for 12",
        ),
        (Forward, &[("saved", (2, 0, 4))], "saved: 4 bytes for 60"),
        (Forward, &[("valid", (0, 5120, 8))], "valid: 8 bytes for 4"),
        (
            Forward,
            &[("residual", (0, 2048, 120))],
            "residual: 120 bytes for 240",
        ),
        (
            Inference,
            &[("running_var", (6, 0, 60))],
            "running_var: 60 bytes for 12",
        ),
        (
            Normalize,
            &[("saved", (2, 0, 48))],
            "saved: 48 bytes for 60",
        ),
        (Backward, &[("dy", (0, 1024, 4))], "dy: 4 bytes for 240"),
        (Backward, &[("dx", (1, 0, 256))], "dx: 256 bytes for 240"),
        (
            Backward,
            &[("dgamma", (1, 1024, 4))],
            "dgamma: 4 bytes for 12",
        ),
        (
            Backward,
            &[("dbeta", (1, 1024, 4))],
            "dbeta: 4 bytes for 12",
        ),
        (
            Moments,
            &[("moments", (4, 0, 60))],
            "moments: 60 bytes for 48",
        ),
        (
            Statistics,
            &[("moments", (4, 0, 96))],
            "moments: 96 bytes for 48",
        ),
        (Sums, &[("sums", (5, 0, 48))], "sums: 48 bytes for 24"),
        (
            InputGradient,
            &[("sums", (5, 0, 12))],
            "sums: 12 bytes for 24",
        ),
        // Offsets and usages.
        (Forward, &[("gamma", (0, 4, 12))], "gamma at 4"),
        (Sums, &[("sums", (5, 8, 24))], "sums at 8"),
        (
            Forward,
            &[("beta", (NO_STORAGE, 0, 12))],
            "beta without BufferUsages(STORAGE)",
        ),
        (
            Moments,
            &[("moments", (NO_STORAGE, 0, 48))],
            "moments without BufferUsages(STORAGE)",
        ),
        // Written over another range.
        (
            Inference,
            &[("running_mean", (1, 0, 12))],
            "y over running_mean",
        ),
        (Normalize, &[("gamma", (1, 0, 12))], "y over gamma"),
        (Backward, &[("dx", (0, 0, 240))], "dx over x"),
        (
            Backward,
            &[("dx", (0, 5120, 240)), ("valid", (0, 5120, 4))],
            "dx over valid",
        ),
        (Backward, &[("dgamma", (0, 3072, 12))], "dgamma over gamma"),
        (Sums, &[("sums", (2, 0, 24))], "sums over saved"),
        (InputGradient, &[("sums", (1, 1024, 24))], "dx over sums"),
        (
            Moments,
            &[("moments", (4, 0, 48)), ("x", (4, 0, 240))],
            "moments over x",
        ),
        (
            Forward,
            &[("running_var", (6, 0, 12))],
            "running_mean over running_var",
        ),
        (
            Forward,
            &[("running_var", (1, 0, 12))],
            "y over running_var",
        ),
        (
            Forward,
            &[("running_mean", (0, 3072, 12))],
            "running_mean over gamma",
        ),
        (
            Forward,
            &[("running_var", (0, 0, 12))],
            "running_var over x",
        ),
        (
            Backward,
            &[("dgamma", (1, 0, 12)), ("dbeta", (1, 0, 12))],
            "dgamma over dbeta",
        ),
        (Backward, &[("dgamma", (0, 0, 12))], "dgamma over x"),
        (Statistics, &[("saved", (4, 0, 60))], "saved over moments"),
        // In place, but not quite.
        (
            Backward,
            &[("dy", (4, 0, 240)), ("dx", (4, 0, 244))],
            "dx: 244 bytes for 240",
        ),
    ];
    let subject = Subject::new(gpu, Options::default())?;
    for (operation, changes, expected) in rows {
        let names: Vec<_> = changes.iter().map(|(name, _)| *name).collect();
        let mut places = subject.good(operation, &names);
        for (name, place) in &mut places {
            let change = changes.iter().find(|(changed, _)| changed == name);
            *place = change.map_or(*place, |(_, changed)| *changed);
        }
        ensure_said(subject.bind(operation, &places), expected)
            .map_err(|error| format!("{operation:?} {changes:?}: {error}"))?;
    }
    Ok(())
}

/// In place is by the very range, and not with an overlap.
fn in_place(gpu: &Gpu) -> Outcome {
    let alignment = u64::from(gpu.limits().min_storage_buffer_offset_alignment);
    // Long enough that a range can begin within another.
    let shape = Shape::new(&[alignment as usize, 2], Layout::ChannelsFirst)?;
    let bytes = shape.bytes(DType::F32);
    let plan = Plan::new(gpu, &shape, DType::F32, &options_by_name("absent"))?;
    let storage = Storage::new(gpu);
    let long = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 2 * bytes,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let over = |offset| long.slice(offset..offset + bytes);
    let running = |slot: u64| storage.range((6, slot * SLOT, 8));
    let inference = |x, y| {
        let buffers = ForwardBuffers::new(x, y);
        plan.bind_inference(&buffers.running_mean(running(0)).running_var(running(1)))
    };
    inference(over(alignment), over(alignment))?;
    ensure_said(inference(over(0), over(alignment)), "y over x")?;
    ensure_said(inference(over(alignment), over(0)), "y over x")?;

    let other = Tensor::zeros(gpu, &shape, DType::F32)?;
    let saved = storage.range((2, 0, plan.saved_bytes()));
    let backward = |dy, dx| {
        let x = other.buffer().slice(..);
        plan.bind_backward(&BackwardBuffers::new(x, dy, saved).dx(dx))
    };
    backward(over(0), over(0))?;
    ensure_said(backward(over(0), over(alignment)), "dx over dy")?;

    // Over anything but dy it is an overlap.
    let buffers = BackwardBuffers::new(over(0), other.buffer().slice(..), saved).dx(over(0));
    ensure_said(plan.bind_backward(&buffers), "dx over x")?;
    let buffers = BackwardBuffers::new(other.buffer().slice(..), over(0), saved).dx(over(0));
    let buffers = buffers.residual_gradient(over(0));
    ensure_said(plan.bind_backward(&buffers), "dx over residual_gradient")
}

/// No shards, and one value per channel.
fn bad_batches(gpu: &Gpu) -> Outcome {
    let subject = Subject::new(gpu, Options::default())?;
    for operation in [Operation::Statistics, Operation::InputGradient] {
        let places = subject.good(operation, &[]);
        let ranges: Vec<_> = places
            .iter()
            .map(|&(name, place)| (name, subject.storage.range(place)))
            .collect();
        let found = operation.bind(&subject.plan, &ranges, 0);
        ensure_said(found, "bad shards")?;
    }

    // Training is not defined for one value per channel, evaluation is.
    let one = Shape::new(&[1, 60], Layout::ChannelsFirst)?;
    let subject = Subject {
        plan: Plan::new(gpu, &one, DType::F32, &Options::default())?,
        ..subject
    };
    for operation in [Operation::Forward, Operation::Backward] {
        let places = subject.good(operation, &[]);
        let found = subject.bind(operation, &places);
        ensure_error!(found, Error::OneValuePerChannel { .. });
    }
    let places = subject.good(Operation::Inference, &[]);
    subject.bind(Operation::Inference, &places)?;

    let none = Shape::new(&[0, 60], Layout::ChannelsFirst)?;
    let subject = Subject {
        plan: Plan::new(gpu, &none, DType::F32, &Options::default())?,
        ..subject
    };
    for operation in [Operation::Forward, Operation::Backward] {
        let places = subject.good(operation, &[]);
        let found = subject.bind(operation, &places);
        ensure_error!(found, Error::EmptyBatch { .. });
    }
    Ok(())
}

/// Options that collide or have a bad number are refused by plans, layers and the CPU path.
fn colliding_options(gpu: &Gpu) -> Outcome {
    let plain = Options::default;
    let leaky = |slope| plain().activation(Activation::LeakyRelu { slope });
    let clamp = |min, max| plain().activation(Activation::Clamp { min, max });
    let shape = Shape::new(&[4, 3], Layout::ChannelsFirst)?;
    for (options, expected) in [
        (
            plain().frozen_statistics(true).running_statistics(false),
            "frozen_statistics(true) with running_statistics(false)",
        ),
        (
            plain().one_value(OneValue::GiveBeta).eps(0.0),
            "one_value(OneValue::GiveBeta) with eps(0.0)",
        ),
        (leaky(f64::NAN), "bad activation.slope"),
        (leaky(1e39), "bad activation.slope"),
        (clamp(1.0, 1.0), "bad activation.max"),
        (clamp(2.0, 1.0), "bad activation.max"),
        (clamp(f64::NAN, 1.0), "bad activation.min"),
        (clamp(f64::NEG_INFINITY, 1.0), "bad activation.min"),
        (clamp(0.0, f64::INFINITY), "bad activation.max"),
        // Different in f64, but not in f32.
        (clamp(1.0, 1.0 + 1e-12), "bad activation.max"),
        (plain().momentum(Momentum::OfOld(1.5)), "bad momentum_mean"),
        (
            plain().momentum_var(Momentum::OfOld(-0.5)),
            "bad momentum_var",
        ),
    ] {
        ensure_said(options.validate(), expected)?;
        ensure_said(Plan::new(gpu, &shape, DType::F32, &options), expected)?;
        ensure_said(BatchNorm::new(gpu, 3, options.clone()), expected)?;
        ensure_said(cpu::BatchNorm::new(3, options), expected)?;
    }
    Ok(())
}

/// What goes with the input must be like it, and of its device.
fn bad_extras(gpu: &Gpu) -> Outcome {
    let first = Layout::ChannelsFirst;
    let x = Tensor::from_array(gpu, &normal(&[4, 3, 2], 0.0, 1.0, 1), first)?;
    let options = Options::default().activation(Activation::Relu);
    let mut layer = BatchNorm::new(gpu, 3, options)?;
    let before = layer.state_blocking()?;

    let zeros = |dims: &[usize], layout, dtype| {
        let shape = Shape::new(dims, layout)?;
        Tensor::zeros(gpu, &shape, dtype)
    };
    let other_gpu = Gpu::from_adapter_blocking(&crate::device::adapter_of(gpu)?)?;
    let foreign = Tensor::zeros(&other_gpu, x.shape(), DType::F32)?;
    for (residual, expected) in [
        (zeros(&[4, 3, 1], first, DType::F32)?, "ShapeMismatch"),
        (zeros(&[4, 3], first, DType::F32)?, "ShapeMismatch"),
        (
            zeros(&[4, 3, 2], Layout::ChannelsLast, DType::F32)?,
            "LayoutMismatch",
        ),
        (zeros(&[4, 3, 2], first, DType::F16)?, "DTypeMismatch"),
        (foreign, "OtherDevice"),
    ] {
        let extra = Extra {
            residual: Some(&residual),
            valid: None,
        };
        let expected = format!("{expected} {{ tensor: \"residual\"");
        for found in [
            layer.forward_with(&x, extra).map(drop),
            layer.forward_in_place(&x, extra),
            layer.forward_synchronized(&x, extra, &[]).map(drop),
        ] {
            let found = format!("{:?}", found.err());
            ensure!(
                found.contains(&expected),
                "expected {expected}, found {found}"
            );
        }
    }

    let valid_of =
        |gpu: &Gpu, dims: &[usize]| Valid::from_mask(gpu, &ArrayD::from_elem(dims, true));
    for (valid, expected) in [
        (valid_of(gpu, &[4, 3])?, "ShapeMismatch"),
        (valid_of(gpu, &[8])?, "ShapeMismatch"),
        (valid_of(gpu, &[2, 4])?, "ShapeMismatch"),
        (valid_of(gpu, &[])?, "ShapeMismatch"),
        (valid_of(&other_gpu, &[4, 2])?, "OtherDevice"),
    ] {
        let extra = Extra {
            residual: None,
            valid: Some(&valid),
        };
        let expected = format!("{expected} {{ tensor: \"valid\"");
        for found in [
            layer.forward_with(&x, extra).err(),
            layer.moments(&x, Some(&valid)).err(),
        ] {
            let found = format!("{found:?}");
            ensure!(
                found.contains(&expected),
                "expected {expected}, found {found}"
            );
        }
    }
    let padded = Shape::new(&[4, 2, 3], Layout::ChannelsLast)?;
    for lengths in [&[1, 1, 1][..], &[2; 5]] {
        ensure_error!(
            Valid::from_lengths(gpu, &padded, lengths),
            Error::ShapeMismatch {
                tensor: "lengths",
                ..
            }
        );
    }
    ensure_error!(
        Valid::from_lengths(gpu, &padded, &[1, 2, 3, 0]),
        Error::InvalidParameter { name: "length", .. }
    );
    let rows = Shape::new(&[4, 2], first)?;
    ensure_error!(
        Valid::from_lengths(gpu, &rows, &[1; 4]),
        Error::InvalidParameter {
            name: "the number of dimensions",
            ..
        }
    );

    ensure!(
        layer.state_blocking()? == before,
        "an error changed the state"
    );
    ensure_error!(layer.backward(&x), Error::NoForward);
    Ok(())
}

/// A backward pass must be like its forward pass, and that must have left its input.
fn bad_backward(gpu: &Gpu) -> Outcome {
    let first = Layout::ChannelsFirst;
    let array = normal(&[4, 3, 2], 0.0, 1.0, 1);
    let x = Tensor::from_array(gpu, &array, first)?;
    let mut layer = BatchNorm::new(gpu, 3, Options::default())?;
    layer.forward(&x)?;
    for dtype in [DType::F16, DType::Bf16] {
        let dy = Tensor::zeros(gpu, x.shape(), dtype)?;
        let expected = |found| {
            matches!(
                found,
                Error::DTypeMismatch { tensor: "dy", expected: DType::F32, found } if found == dtype
            )
        };
        ensure!(layer.backward(&dy).is_err_and(expected), "{dtype:?}");
        ensure!(layer.backward_sums(&dy).is_err_and(expected), "{dtype:?}");
        let found = layer.backward_in_place(&dy, &Wanted::default());
        ensure!(found.is_err_and(expected), "{dtype:?}");
    }
    layer.backward(&x)?;

    // An input that was overwritten is gone until the next forward pass.
    let over = Tensor::from_array(gpu, &array, first)?;
    layer.forward_in_place(&over, Extra::default())?;
    let all = Wanted::default();
    ensure_error!(layer.backward(&x), Error::Overwritten);
    ensure_error!(layer.backward_in_place(&x, &all), Error::Overwritten);
    ensure_error!(layer.backward_sums(&x), Error::Overwritten);
    ensure_error!(
        layer.backward_synchronized(&x, &[], &all),
        Error::Overwritten
    );
    layer.forward(&x)?;
    layer.backward(&x)?;

    // No shards, and those of another device or of other channels.
    let moments = [layer.moments(&x, None)?];
    layer.forward_synchronized(&x, Extra::default(), &moments)?;
    ensure_said(layer.backward_synchronized(&x, &[], &all), "bad shards")?;
    let found = layer.forward_synchronized(&x, Extra::default(), &[]);
    ensure_said(found, "bad shards")?;
    let of = |channels| Sums::from_array(gpu, &ndarray::Array2::zeros((2, channels)));
    let found = layer.backward_synchronized(&x, &[of(4)?], &all);
    ensure_error!(found, Error::ShapeMismatch { tensor: "sums", .. });
    let of = |channels| Moments::from_array(gpu, &ndarray::Array2::zeros((4, channels)));
    let found = layer.forward_synchronized(&x, Extra::default(), &[of(3)?, of(2)?]);
    ensure_error!(
        found,
        Error::ShapeMismatch {
            tensor: "moments",
            ..
        }
    );
    let rows = ndarray::Array2::zeros((3, 3));
    let (sums, moments) = (
        Sums::from_array(gpu, &rows),
        Moments::from_array(gpu, &rows),
    );
    ensure_error!(sums, Error::ShapeMismatch { tensor: "sums", .. });
    ensure_error!(
        moments,
        Error::ShapeMismatch {
            tensor: "moments",
            ..
        }
    );
    let none = ndarray::Array2::zeros((2, 0));
    ensure_error!(Sums::from_array(gpu, &none), Error::ZeroChannels { .. });

    let mut frozen = BatchNorm::new(gpu, 3, Options::default().frozen_statistics(true))?;
    let expected = "bind_moments with frozen_statistics(true)";
    ensure_said(frozen.moments(&x, None), expected)?;
    // The layer is as it was.
    layer.backward_sums(&x)?;
    Ok(())
}

/// A state may not say anything of what is absent.
fn absent_state(gpu: &Gpu) -> Outcome {
    for (options, set, expected) in [
        (
            Options::default().gamma(Parameter::Absent),
            (|state| state.gamma[1] = 2.0) as fn(&mut State),
            "gamma(Parameter::Absent) with a state with γ other than 1",
        ),
        (
            Options::default().beta(Parameter::Absent),
            |state| state.beta[2] = f32::NAN,
            "beta(Parameter::Absent) with a state with β other than 0",
        ),
    ] {
        let mut layer = BatchNorm::new(gpu, 3, options.clone())?;
        let mut twin = cpu::BatchNorm::new(3, options)?;
        let mut state = State::new(3);
        state.running_mean.fill(5.0);
        set(&mut state);
        ensure_said(layer.set_state(&state), expected)?;
        ensure_said(twin.set_state(&state), expected)?;
        ensure!(
            layer.state_blocking()? == State::new(3),
            "the state changed"
        );
    }
    Ok(())
}

fn tensor(gpu: &Gpu) -> Outcome {
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 1024,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let shape = Shape::new(&[16, 8], Layout::ChannelsFirst)?;
    let at = |offset| Tensor::from_buffer(gpu, &buffer, offset, &shape, DType::F32);
    ensure_error!(at(4), Error::Misaligned { offset: 4, .. });
    ensure_error!(
        at(768),
        Error::BufferSize {
            expected: 512,
            found: 256,
            ..
        }
    );
    ensure_error!(at(u64::MAX - 3), Error::BufferSize { found: 0, .. });
    ensure_error!(
        at(512)?.to_array_blocking(),
        Error::MissingUsage {
            usage: wgpu::BufferUsages::COPY_SRC,
            ..
        }
    );
    Ok(())
}

fn small_batches(gpu: &Gpu) -> Outcome {
    let mut layer = BatchNorm::new(gpu, 2, Options::default().eps(0.0))?;
    layer.set_mode(Mode::Eval);
    for dims in [&[0, 2][..], &[0, 2, 3], &[3, 2, 0], &[1, 2], &[1, 2, 1, 1]] {
        let x = ArrayD::from_elem(dims, 0.5);
        let y = layer.forward(&Tensor::from_array(gpu, &x, Layout::ChannelsFirst)?)?;
        ensure!(y.to_array_blocking()? == x, "{dims:?}");
    }
    ensure_error!(
        layer.backward(&Tensor::from_array(
            gpu,
            &ndarray::array![[1.0, 1.0]],
            Layout::ChannelsFirst
        )?),
        Error::NoForward
    );
    Ok(())
}

fn too_large(gpu: &Gpu) -> Outcome {
    // No memory is asked for: the error comes before.
    let bytes = gpu.limits().max_buffer_size;
    let shape = Shape::new(&[bytes as usize / 4 + 1, 1], Layout::ChannelsFirst)?;
    ensure_error!(
        Tensor::zeros(gpu, &shape, DType::F32),
        Error::TooLarge { .. }
    );
    ensure_error!(
        Plan::new(gpu, &shape, DType::F32, &Options::default()),
        Error::TooLarge { .. }
    );
    Ok(())
}
