//! Faults: a lost device, no memory, someone else's errors, threads, and many plans.
//!
//! Each gives a clear error or plain success; nothing hangs, panics or spoils what is the caller's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use libtest_mimic::Trial;
use wgpu_batchnorm::verify::Checked;
use wgpu_batchnorm::{
    BatchNorm, Error, Gpu, Layout, Optimizer, Options, Plan, Sgd, Shape, State, Tensor, wgpu,
};

use crate::common::{Adapter, Outcome, normal};
use crate::device::{adapter_of, open};
use crate::ensure;

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
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
            "no memory for a tensor or a plan is an error",
            out_of_memory,
        ),
        adapter.trial(
            "a caller's own errors stay the caller's",
            errors_of_the_caller,
        ),
        adapter.trial("two threads share a device", two_threads),
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
        (
            "a new layer",
            BatchNorm::new(&gpu, 2, Options::default()).err(),
        ),
        (
            "a new plan",
            Plan::new(&gpu, x.shape(), &Options::default()).err(),
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

/// On an instance that lets nothing be made beyond a share of the memory that is already in use.
/// Only some back ends know how much memory there is; elsewhere nothing is tested.
fn out_of_memory(gpu: &Gpu) -> Outcome {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.memory_budget_thresholds.for_resource_creation = Some(0);
    let instance = wgpu::Instance::new(descriptor);
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let adapter = adapters
        .into_iter()
        .find(|adapter| adapter.get_info() == *gpu.info())
        .ok_or("the adapter is gone")?;
    let gpu = pollster::block_on(Gpu::from_adapter(&adapter))?;
    let shape = Shape::new(&[1 << 20, 4], Layout::ChannelsFirst)?;
    let tensor = Tensor::zeros(&gpu, &shape).err();
    let plan = Plan::new(&gpu, &shape, &Options::default()).err();
    println!("{tensor:?} {plan:?}");
    Ok(())
}

fn errors_of_the_caller(gpu: &Gpu) -> Outcome {
    // The loss of this device would end other tests: take one of our own.
    let adapter = adapter_of(gpu)?;
    let gpu = pollster::block_on(Gpu::from_adapter(&adapter))?;
    let other = pollster::block_on(Gpu::from_adapter(&adapter))?;
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
    let plan = Plan::new(&gpu, x.shape(), &Options::default())?;
    let foreign = other.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 8,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let y = Tensor::zeros(&gpu, x.shape())?;
    let vectors = Tensor::zeros(&gpu, &Shape::new(&[256, 2], Layout::ChannelsFirst)?)?;
    let at = |offset| vectors.buffer().slice(offset..offset + 8);
    let error = plan
        .bind_inference(&wgpu_batchnorm::InferenceBuffers {
            x: x.buffer().slice(..),
            gamma: foreign.slice(..),
            beta: at(0),
            running_mean: at(256),
            running_var: at(512),
            y: y.buffer().slice(..),
        })
        .err();
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

/// The memory of this process, in pages, where the system tells it.
fn resident_pages() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    statm.split(' ').nth(1)?.parse().ok()
}

fn thousand_plans(gpu: &Gpu) -> Outcome {
    let gpu = open(gpu, wgpu::Limits::default())?;
    let shape = Shape::new(&[64, 256, 8, 8], Layout::ChannelsFirst)?;
    let mut early = None;
    for round in 0..1000 {
        Plan::new(&gpu, &shape, &Options::default())?;
        // wgpu frees when it is polled.
        gpu.device().poll(wgpu::PollType::Poll)?;
        if round == 200 {
            early = resident_pages();
        }
    }
    if let (Some(early), Some(late)) = (early, resident_pages()) {
        // A plan's workspace alone is 16 KiB: 800 of them would be 3,200 pages.
        let grown = late.saturating_sub(early);
        ensure!(grown < 1600, "800 plans left {grown} pages");
    }
    Ok(())
}
