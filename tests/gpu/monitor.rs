//! Statistics for people, read while training goes on.

use libtest_mimic::Trial;
use wgpu_batchnorm::{BatchNorm, Error, Gpu, Layout, Mode, Options, State, Tensor};

use crate::common::{Adapter, Outcome, normal};
use crate::ensure;

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    vec![
        adapter.trial(
            "what is read is of the batch before the call",
            before_the_call,
        ),
        adapter.trial("dead and non-finite channels are named", dead_channels),
    ]
}

fn before_the_call(gpu: &Gpu) -> Outcome {
    let mut layer = BatchNorm::new(gpu, 5, Options::default())?;
    ensure!(
        matches!(layer.channel_statistics().err(), Some(Error::NoForward)),
        "there was no batch"
    );
    let mut seen = Vec::new();
    for step in 0..10 {
        let x = normal(&[40, 5, 9], f64::from(step), 0.1, 7);
        layer.forward(&Tensor::from_array(gpu, &x, Layout::ChannelsFirst)?)?;
        seen.push(layer.channel_statistics()?);
    }
    // All at the end, the last first, and on another thread.
    let read = std::thread::spawn(move || {
        let rest = seen.into_iter().rev();
        rest.map(pollster::block_on).collect::<Result<Vec<_>, _>>()
    });
    let read = read.join().map_err(|_| "the thread panicked")??;
    for (step, found) in read.iter().rev().enumerate() {
        for (mean, var) in found.mean.iter().zip(&found.var) {
            ensure!((mean - step as f32).abs() < 0.05, "step {step}: {mean}");
            ensure!((var - 0.01).abs() < 0.005, "step {step}: {var}");
        }
    }
    // A future that nobody awaits does no harm.
    drop(layer.channel_statistics()?);
    layer.set_mode(Mode::Eval);
    let x = normal(&[40, 5, 9], 0.0, 1.0, 7);
    layer.forward(&Tensor::from_array(gpu, &x, Layout::ChannelsFirst)?)?;
    ensure!(
        matches!(layer.channel_statistics().err(), Some(Error::NoForward)),
        "evaluation has no batch"
    );
    Ok(())
}

fn dead_channels(gpu: &Gpu) -> Outcome {
    let mut layer = BatchNorm::new(gpu, 6, Options::default())?;
    let mut state = State::new(6);
    state.gamma[3] = 0.0;
    layer.set_state(&state)?;
    let mut x = normal(&[30, 6], 1.0, 1.0, 1);
    for (index, value) in x.indexed_iter_mut() {
        match (index[0], index[1]) {
            (_, 1) => *value = 1e7,
            (3, 4) => *value = f32::NAN,
            (7, 5) => *value = f32::INFINITY,
            _ => {}
        }
    }
    layer.forward(&Tensor::from_array(gpu, &x, Layout::ChannelsFirst)?)?;
    let found = pollster::block_on(layer.channel_statistics()?)?;
    ensure!(found.dead() == [1, 3], "dead: {:?}", found.dead());
    ensure!(found.non_finite() == [4, 5], "{:?}", found.non_finite());
    ensure!(found.mean[1] == 1e7 && found.gamma[3] == 0.0, "{found:?}");
    Ok(())
}
