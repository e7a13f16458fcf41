//! Mistakes of a caller: errors with data, and nothing changed.

use libtest_mimic::Trial;
use ndarray::{Array1, ArrayD};
use wgpu_batchnorm::{
    Adam, BackwardBuffers, BatchNorm, Error, ForwardBuffers, Gpu, InferenceBuffers, Layout, Mode,
    Optimizer, Options, Plan, RmsProp, Sgd, Shape, State, Tensor, Tuning, wgpu,
};

use crate::common::{Adapter, Outcome, normal};
use crate::ensure;

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    vec![
        adapter.trial("bad input to a layer", layer),
        adapter.trial("bad numbers in options", options),
        adapter.trial("bad buffers for a plan", plan),
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
    let zeros = |dims: &[usize]| Tensor::from_array(gpu, &ArrayD::zeros(dims), first);
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
    let last = Tensor::from_array(gpu, &ArrayD::zeros(vec![4, 3, 2]), Layout::ChannelsLast)?;
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
            Plan::new(gpu, &shape, &options),
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

fn plan(gpu: &Gpu) -> Outcome {
    let shape = Shape::new(&[4, 3, 5], Layout::ChannelsFirst)?;
    let plan = Plan::new(gpu, &shape, &Options::default())?;
    let buffer_for = |usage| {
        gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4096,
            usage,
            mapped_at_creation: false,
        })
    };
    let storage = wgpu::BufferUsages::STORAGE;
    let (read, written, statistics) = (
        buffer_for(storage),
        buffer_for(storage),
        buffer_for(storage),
    );
    let no_storage = buffer_for(wgpu::BufferUsages::COPY_DST);
    let channels = 12;
    let good = ForwardBuffers {
        x: read.slice(..shape.bytes()),
        gamma: read.slice(1024..1024 + channels),
        beta: read.slice(2048..2048 + channels),
        y: written.slice(..shape.bytes()),
        running_mean: written.slice(1024..1024 + channels),
        running_var: written.slice(2048..2048 + channels),
        saved: statistics.slice(..plan.saved_bytes()),
    };
    plan.bind_forward(&good)?;

    // Wrong lengths, one tensor at a time.
    let size = |tensor: &'static str, found: u64, buffers: &ForwardBuffers<'_>| -> Outcome {
        match plan.bind_forward(buffers) {
            Err(Error::BufferSize {
                tensor: t,
                found: f,
                ..
            }) if t == tensor && f == found => Ok(()),
            other => Err(format!("{tensor}: {other:?}").into()),
        }
    };
    size(
        "x",
        236,
        &ForwardBuffers {
            x: read.slice(..236),
            ..good
        },
    )?;
    size(
        "y",
        244,
        &ForwardBuffers {
            y: written.slice(..244),
            ..good
        },
    )?;
    size(
        "gamma",
        8,
        &ForwardBuffers {
            gamma: read.slice(1024..1032),
            ..good
        },
    )?;
    size(
        "beta",
        16,
        &ForwardBuffers {
            beta: read.slice(1024..1040),
            ..good
        },
    )?;
    let short = written.slice(1024..1028);
    size(
        "running_mean",
        4,
        &ForwardBuffers {
            running_mean: short,
            ..good
        },
    )?;
    size(
        "running_var",
        4,
        &ForwardBuffers {
            running_var: short,
            ..good
        },
    )?;
    size(
        "saved",
        4,
        &ForwardBuffers {
            saved: statistics.slice(..4),
            ..good
        },
    )?;

    ensure_error!(
        plan.bind_forward(&ForwardBuffers {
            gamma: read.slice(4..16),
            ..good
        }),
        Error::Misaligned {
            tensor: "gamma",
            offset: 4,
            ..
        }
    );
    ensure_error!(
        plan.bind_forward(&ForwardBuffers {
            beta: no_storage.slice(..12),
            ..good
        }),
        Error::MissingUsage {
            tensor: "beta",
            usage: wgpu::BufferUsages::STORAGE
        }
    );
    ensure_error!(
        plan.bind_forward(&ForwardBuffers {
            y: read.slice(..240),
            ..good
        }),
        Error::SharedBuffer {
            output: "y",
            input: "x"
        }
    );
    ensure_error!(
        plan.bind_forward(&ForwardBuffers {
            running_var: good.running_mean,
            ..good
        }),
        Error::Overlap {
            output: "running_mean",
            other: "running_var"
        }
    );

    // Tensors of one operation must not overlap, also where no dispatch uses both.
    let overlap = |buffers: ForwardBuffers<'_>, expected: [&str; 2]| -> Outcome {
        match plan.bind_forward(&buffers) {
            Err(Error::Overlap { output, other }) if [output, other] == expected => Ok(()),
            other => Err(format!("{expected:?}: {other:?}").into()),
        }
    };
    let start = written.slice(..channels);
    overlap(
        ForwardBuffers {
            running_var: start,
            ..good
        },
        ["y", "running_var"],
    )?;
    overlap(
        ForwardBuffers {
            running_mean: good.gamma,
            ..good
        },
        ["running_mean", "gamma"],
    )?;
    overlap(
        ForwardBuffers {
            running_var: read.slice(..channels),
            ..good
        },
        ["running_var", "x"],
    )?;

    let backward = BackwardBuffers {
        x: good.x,
        dy: read.slice(512..512 + shape.bytes()),
        gamma: good.gamma,
        saved: good.saved,
        dx: good.y,
        dgamma: good.running_mean,
        dbeta: good.running_var,
    };
    plan.bind_backward(&backward)?;
    ensure_error!(
        plan.bind_backward(&BackwardBuffers {
            dgamma: short,
            ..backward
        }),
        Error::BufferSize {
            tensor: "dgamma",
            expected: 12,
            found: 4
        }
    );
    ensure_error!(
        plan.bind_backward(&BackwardBuffers {
            dbeta: short,
            ..backward
        }),
        Error::BufferSize {
            tensor: "dbeta",
            ..
        }
    );
    ensure_error!(
        plan.bind_backward(&BackwardBuffers {
            dx: backward.dy,
            ..backward
        }),
        Error::SharedBuffer { output: "dx", .. }
    );
    ensure_error!(
        plan.bind_backward(&BackwardBuffers {
            dbeta: backward.dgamma,
            ..backward
        }),
        Error::Overlap {
            output: "dgamma",
            other: "dbeta"
        }
    );

    for dgamma in [good.gamma, read.slice(..channels)] {
        ensure_error!(
            plan.bind_backward(&BackwardBuffers { dgamma, ..backward }),
            Error::Overlap {
                output: "dgamma",
                ..
            }
        );
    }

    let inference = InferenceBuffers {
        x: good.x,
        gamma: good.gamma,
        beta: good.beta,
        running_mean: read.slice(3072..3072 + channels),
        running_var: read.slice(3328..3328 + channels),
        y: good.y,
    };
    plan.bind_inference(&inference)?;
    ensure_error!(
        plan.bind_inference(&InferenceBuffers {
            running_mean: good.running_mean,
            ..inference
        }),
        Error::SharedBuffer {
            output: "y",
            input: "running_mean"
        }
    );

    // Training is not defined for one value per channel, evaluation is.
    let one = Shape::new(&[1, 60], Layout::ChannelsFirst)?;
    let plan = Plan::new(gpu, &one, &Options::default())?;
    ensure_error!(plan.bind_forward(&good), Error::OneValuePerChannel { .. });
    ensure_error!(
        plan.bind_backward(&backward),
        Error::OneValuePerChannel { .. }
    );
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
    let at = |offset| Tensor::from_buffer(gpu, &buffer, offset, &shape);
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
    ensure_error!(Tensor::zeros(gpu, &shape), Error::TooLarge { .. });
    ensure_error!(
        Plan::new(gpu, &shape, &Options::default()),
        Error::TooLarge { .. }
    );
    Ok(())
}
