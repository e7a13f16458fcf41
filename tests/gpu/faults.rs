//! Faults: a lost device, no memory, someone else's errors, threads, and many plans.
//!
//! Each gives a clear error or plain success; nothing hangs, panics or spoils what is the caller's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use libtest_mimic::Trial;
use wgpu_batchnorm::verify::Checked;
use wgpu_batchnorm::{
    BatchNorm, DType, Error, ForwardBuffers, Gpu, Layout, Optimizer, Options, Plan, Sgd, Shape,
    State, Tensor, cpu, wgpu,
};

use crate::common::{Adapter, Outcome, normal};
use crate::device::{adapter_of, open};
use crate::ensure;

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    let mut trials = always(adapter);
    #[cfg(unix)]
    if says_when_memory_is_out(adapter) {
        trials.push(adapter.trial(
            "no memory for a tensor or a plan is an error",
            out_of_memory,
        ));
    }
    trials
}

fn always(adapter: &Adapter) -> Vec<Trial> {
    vec![
        adapter.trial(
            "a device destroyed between calls is an error",
            lost_between_calls,
        ),
        adapter.trial(
            "a device destroyed while it works is an error",
            lost_at_work,
        ),
        adapter.trial(
            "a caller's own errors stay the caller's",
            errors_of_the_caller,
        ),
        adapter.trial("two threads share a device", two_threads),
        adapter.trial(
            "a plan may go while its work is in flight",
            dropped_in_flight,
        ),
        adapter.trial("a thousand plans leave nothing behind", thousand_plans),
    ]
}

fn batch(gpu: &Gpu) -> Result<Tensor, Error> {
    Tensor::from_array(gpu, &normal(&[4, 2], 0.0, 1.0, 1), Layout::ChannelsFirst)
}

fn lost_between_calls(gpu: &Gpu) -> Outcome {
    let gpu = open(gpu, wgpu::Limits::default())?;
    let x = batch(&gpu)?;
    let mut layer = BatchNorm::new(&gpu, 2, Options::default())?;
    let mut optimizer = Optimizer::new(&layer, Sgd::default())?;
    layer.forward(&x)?;
    layer.backward(&x)?;
    gpu.device().destroy();

    let mut errors = vec![
        ("to_array", x.to_array_blocking().err()),
        ("state", layer.state_blocking().err()),
        ("gradients", layer.gradients_blocking().err()),
        ("forward", layer.forward(&x).err()),
        ("backward", layer.backward(&x).err()),
        ("set_state", layer.set_state(&State::new(2)).err()),
        ("step", optimizer.step(&mut layer).err()),
        ("a new tensor", batch(&gpu).err()),
        ("zeros", Tensor::zeros(&gpu, x.shape(), DType::F32).err()),
        ("an optimizer", Optimizer::new(&layer, Sgd::default()).err()),
        (
            "a new layer",
            BatchNorm::new(&gpu, 2, Options::default()).err(),
        ),
        (
            "a new plan",
            Plan::new(&gpu, x.shape(), DType::F32, &Options::default()).err(),
        ),
    ];
    errors.retain(|(_, error)| *error != Some(Error::DeviceLost));
    ensure!(
        errors.is_empty(),
        "not told that the device is lost: {errors:?}"
    );
    let report = wgpu_batchnorm::self_check_blocking(&gpu);
    ensure!(!report.passed(), "a lost device passed its self-check");
    Ok(())
}

fn lost_at_work(gpu: &Gpu) -> Outcome {
    let gpu = open(gpu, wgpu::Limits::default())?;
    let x = normal(&[64, 64, 64], 0.0, 1.0, 1);
    let x = Tensor::from_array(&gpu, &x, Layout::ChannelsFirst)?;
    let mut layer = BatchNorm::new(&gpu, 64, Options::default())?;
    let y = layer.forward(&x)?;
    gpu.device().destroy();
    let error = y.to_array_blocking().err();
    ensure!(error == Some(Error::DeviceLost), "{error:?}");

    // Destroyed by another thread while this one works: every call ends, well or with that error.
    let gpu = open(&gpu, wgpu::Limits::default())?;
    let x = Tensor::from_array(
        &gpu,
        &normal(&[64, 64, 64], 0.0, 1.0, 1),
        Layout::ChannelsFirst,
    )?;
    let mut layer = BatchNorm::new(&gpu, 64, Options::default())?;
    let device = gpu.device().clone();
    let destroyer = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        device.destroy();
    });
    let error = loop {
        if let Err(error) = layer.forward(&x).and_then(|y| y.to_array_blocking()) {
            break error;
        }
    };
    destroyer.join().map_err(|_| "the other thread panicked")?;
    ensure!(error == Error::DeviceLost, "{error:?}");
    Ok(())
}

#[cfg(unix)]
fn says_when_memory_is_out(adapter: &Adapter) -> bool {
    let wgpu::AdapterInfo {
        backend,
        device_type,
        ..
    } = adapter.info;
    backend != wgpu::Backend::Gl && device_type == wgpu::DeviceType::Cpu
}

/// Names the adapter for the child process that runs out of memory.
const OUT_OF_MEMORY: &str = "WGPU_BATCHNORM_TEST_OUT_OF_MEMORY";

/// Runs out of memory in a process of its own, which may take 4 GB. That limits a software adapter,
/// whose memory is the process's, not another; and OpenGL does not say when memory is out.
#[cfg(unix)]
fn out_of_memory(gpu: &Gpu) -> Outcome {
    let child = std::process::Command::new("sh")
        .args(["-c", "ulimit -v 4000000 && exec \"$0\""])
        .arg(std::env::current_exe()?)
        .env(OUT_OF_MEMORY, gpu.name())
        .output()?;
    let said = String::from_utf8_lossy(&child.stderr);
    ensure!(child.status.success(), "{}: {said}", child.status);
    Ok(())
}

/// The child process of the test above, if this is it.
pub fn run_out_of_memory_if_asked() -> Option<Outcome> {
    let name = std::env::var(OUT_OF_MEMORY).ok()?;
    let adapters = Gpu::adapters_blocking();
    let mut opened = adapters
        .iter()
        .filter_map(|adapter| Gpu::from_adapter_blocking(adapter).ok());
    Some(match opened.find(|gpu| gpu.name() == name) {
        Some(gpu) => run_out_of_memory(&gpu),
        None => Err(format!("{name} is gone").into()),
    })
}

fn run_out_of_memory(gpu: &Gpu) -> Outcome {
    let mebibyte = Shape::new(&[1 << 14, 16], Layout::ChannelsFirst)?;
    let mut kept = Vec::new();
    // Large tensors until none fits, then smaller ones: at last a plan does not fit either.
    for mebibytes in [128, 16, 1] {
        let shape = Shape::new(&[mebibytes << 14, 16], Layout::ChannelsFirst)?;
        loop {
            match Tensor::zeros(gpu, &shape, DType::F32) {
                Ok(tensor) => kept.push(tensor),
                Err(Error::OutOfMemory { .. }) => break,
                Err(other) => return Err(format!("a tensor: {other:?}").into()),
            }
            ensure!(kept.len() < 10_000, "memory does not end");
        }
    }
    // A plan with a workspace of many MiB.
    let shape = Shape::new(&[2, 1 << 20], Layout::ChannelsFirst)?;
    let plan = Plan::new(gpu, &shape, DType::F32, &Options::default());
    ensure!(
        matches!(plan, Err(Error::OutOfMemory { .. })),
        "a plan: {plan:?}"
    );
    let upload = Tensor::from_array(
        gpu,
        &ndarray::Array2::<f32>::zeros((1 << 20, 4)),
        Layout::ChannelsFirst,
    );
    ensure!(
        matches!(upload, Err(Error::OutOfMemory { .. })),
        "an upload: {upload:?}"
    );

    // With memory again, all is well.
    kept.clear();
    gpu.queue().submit([]);
    gpu.device().poll(wgpu::PollType::wait_indefinitely())?;
    let x = Tensor::zeros(gpu, &mebibyte, DType::F32)?;
    BatchNorm::new(gpu, 16, Options::default())?
        .forward(&x)?
        .to_array_blocking()?;
    Ok(())
}

fn errors_of_the_caller(gpu: &Gpu) -> Outcome {
    // The loss of this device would end other tests: take one of our own.
    let adapter = adapter_of(gpu)?;
    let gpu = Gpu::from_adapter_blocking(&adapter)?;
    let other = Gpu::from_adapter_blocking(&adapter)?;
    let reported = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&reported);
    let handler = move |_: wgpu::Error| {
        count.fetch_add(1, Ordering::Relaxed);
    };
    gpu.device().on_uncaptured_error(Arc::new(handler));

    // A mistake of the caller's goes to the caller's handler, and our work goes on.
    let invalid = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::STORAGE;
    let mistake = || {
        gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4,
            usage: invalid,
            mapped_at_creation: false,
        })
    };
    let x = batch(&gpu)?;
    let mut layer = BatchNorm::new(&gpu, 2, Options::default())?;
    mistake();
    Checked::new(&mut layer).forward_blocking(&x)?;
    mistake();
    Checked::new(&mut layer).backward_blocking(&x)?;
    let found = reported.load(Ordering::Relaxed);
    ensure!(found == 2, "{found} errors reached the handler");

    // An error scope of the caller's around our calls holds none of our errors.
    let scope = gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
    let plan = Plan::new(&gpu, x.shape(), DType::F32, &Options::default())?;
    let foreign = other.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 8,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let y = Tensor::zeros(&gpu, x.shape(), DType::F32)?;
    let rows = Shape::new(&[256, 2], Layout::ChannelsFirst)?;
    let vectors = Tensor::zeros(&gpu, &rows, DType::F32)?;
    let at = |offset| vectors.buffer().slice(offset..offset + 8);
    let buffers = ForwardBuffers::new(x.buffer().slice(..), y.buffer().slice(..))
        .gamma(foreign.slice(..))
        .beta(at(0))
        .running_mean(at(256))
        .running_var(at(512));
    let error = plan.bind_inference(&buffers).err();
    ensure!(matches!(error, Some(Error::Wgpu { .. })), "{error:?}");
    let seen = pollster::block_on(scope.pop());
    ensure!(seen.is_none(), "the caller's scope saw {seen:?}");
    ensure!(
        reported.load(Ordering::Relaxed) == 2,
        "our error reached the caller's handler"
    );
    Ok(())
}

fn two_threads(gpu: &Gpu) -> Outcome {
    let gpu = open(gpu, wgpu::Limits::default())?;
    let work = |seed: u64| {
        let gpu = gpu.clone();
        std::thread::spawn(move || {
            for step in 0..20 {
                let dims = [8, 3 + seed as usize, 5, 5];
                let x = normal(&dims, seed as f64, 1.0, 100 * seed + step);
                let x = Tensor::from_array(&gpu, &x, Layout::ChannelsFirst)?;
                let mut layer = BatchNorm::new(&gpu, dims[1], Options::default())?;
                let mut checked = Checked::new(&mut layer);
                checked.forward_blocking(&x)?;
                checked.backward_blocking(&x)?;
            }
            Ok::<(), Error>(())
        })
    };
    for thread in [work(0), work(1)] {
        thread.join().map_err(|_| "a thread panicked")??;
    }
    Ok(())
}

fn dropped_in_flight(gpu: &Gpu) -> Outcome {
    let gpu = open(gpu, wgpu::Limits::default())?;
    let x = normal(&[64, 64, 32, 32], 0.0, 1.0, 1);
    let x_tensor = Tensor::from_array(&gpu, &x, Layout::ChannelsFirst)?;
    // The layer, its plan and its buffers are gone before the GPU is done.
    let y = BatchNorm::new(&gpu, 64, Options::default())?.forward(&x_tensor)?;
    drop(x_tensor);
    let y = y.to_array_blocking()?;
    let expected =
        cpu::BatchNorm::new(64, Options::default())?.forward(&x, Layout::ChannelsFirst)?;
    let apart = (&y - &expected).fold(0.0_f32, |worst, value| worst.max(value.abs()));
    ensure!(apart < 1e-5, "{apart:e}");
    Ok(())
}

/// The memory of this process, in pages, where the system tells it.
fn resident_pages() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    statm.split(' ').nth(1)?.parse().ok()
}

fn thousand_plans(gpu: &Gpu) -> Outcome {
    let gpu = open(gpu, wgpu::Limits::default())?;
    let dims = [4, 4096, 2, 2];
    let x = Tensor::from_array(&gpu, &normal(&dims, 0.0, 1.0, 1), Layout::ChannelsFirst)?;
    let mut early = None;
    for round in 0..1000 {
        // A new layer makes a new plan, whose workspace the forward pass fills.
        BatchNorm::new(&gpu, dims[1], Options::default())?.forward(&x)?;
        // wgpu frees when it is polled.
        gpu.device().poll(wgpu::PollType::wait_indefinitely())?;
        if round == 200 {
            early = resident_pages();
        }
    }
    if let (Some(early), Some(late)) = (early, resident_pages()) {
        // The workspaces of 800 plans, 4 rows of 4096 f32 and more, would be 12,800 pages.
        let grown = late.saturating_sub(early);
        ensure!(grown < 3000, "800 plans left {grown} pages");
    }
    Ok(())
}
