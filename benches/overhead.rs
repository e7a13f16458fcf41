//! What the host pays: for recording, for binding, and from opening a device to the first result.
//!
//! `cargo bench --bench overhead`. Set `WGPU_BACKEND` or `WGPU_ADAPTER_NAME` to choose an adapter.
//! Each operation stands beside bare wgpu: hand-made pipelines of as many dispatches, which bind as
//! many buffers in the same way and compute next to nothing. It fails if recording or submitting
//! takes a heap allocation more than that, or if anything is allocated on the device once a plan is
//! there. `cargo test` runs it with few repetitions.

mod common;

use std::alloc::System;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use wgpu_batchnorm::{Commands, DType, Gpu, Layout, Options, Plan, Shape, wgpu};

use common::operations::{Buffers, Operation, wait};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// So small that the device is done at once.
const SMALL: [usize; 4] = [2, 64, 4, 4];
/// Of the first use.
const USED: [usize; 4] = [8, 64, 28, 28];
/// Operations recorded into one pass.
const RECORDED: usize = 100;
/// The argument of the process that measures a first use; a folder may follow.
const FIRST_USE: &str = "--first-use";

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let arguments: Vec<_> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == FIRST_USE) {
        return first_use(arguments.get(at + 1).map(Path::new));
    }
    let is_given = |name: &str| arguments.iter().any(|argument| argument == name);
    if is_given("--list") {
        // Of tests: there are none.
        return Ok(());
    }
    let is_bench = is_given("--bench");
    let gpu = match Gpu::open_blocking() {
        Ok(gpu) => gpu,
        Err(error) => {
            eprintln!("nothing to measure: {error}");
            return Ok(());
        }
    };
    println!("GPU: {}. Medians.\n", gpu.name());
    let rounds = if is_bench { 301 } else { 5 };
    let shape = Shape::new(&SMALL, Layout::ChannelsFirst)?;
    let plan = Plan::new(&gpu, &shape, DType::F32, &Options::default())?;
    let buffers = Buffers::new(&gpu, &plan)?;
    recording(&gpu, &plan, &buffers, rounds)?;
    binding(&gpu, &plan, &buffers, rounds)?;
    on_the_device(&gpu, &plan, &buffers, rounds)?;
    first_uses(if is_bench { 11 } else { 1 })
}

/// What some work costs the host.
#[derive(Clone, Copy)]
struct Cost {
    time: Duration,
    allocations: usize,
}

impl Cost {
    fn of<T>(work: impl FnOnce() -> T) -> (Self, T) {
        let region = Region::new(ALLOCATOR);
        let start = Instant::now();
        let result = work();
        let time = start.elapsed();
        let change = region.change();
        let allocations = change.allocations + change.reallocations;
        (Self { time, allocations }, result)
    }

    /// The medians.
    fn median(costs: &[Self]) -> Self {
        Self {
            time: median(costs.iter().map(|cost| cost.time)),
            allocations: median(costs.iter().map(|cost| cost.allocations)),
        }
    }

    fn microseconds(&self) -> f64 {
        self.time.as_secs_f64() * 1e6
    }
}

fn median<T: Ord>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<_> = values.collect();
    values.sort();
    let middle = values.len() / 2;
    values.swap_remove(middle)
}

/// The costs of two things, by turns.
fn compared<const N: usize>(
    rounds: usize,
    mut ours: impl FnMut() -> [Cost; N],
    mut bare: impl FnMut() -> [Cost; N],
) -> [[Cost; 2]; N] {
    let costs: Vec<_> = (0..rounds).map(|_| [ours(), bare()]).collect();
    std::array::from_fn(|what| {
        [0, 1].map(|whose| {
            let costs: Vec<_> = costs.iter().map(|pair| pair[whose][what]).collect();
            Cost::median(&costs)
        })
    })
}

/// Bare wgpu: a sequence of dispatches.
struct Bare<'a> {
    gpu: &'a Gpu,
    dispatches: Vec<(wgpu::ComputePipeline, Vec<wgpu::Buffer>, wgpu::BindGroup)>,
}

/// The buffers of a kernel's dispatch, without an activation: `=` before a uniform, `>` before one
/// that is written.
fn buffers_of(kernel: &str, operation: Operation) -> &'static str {
    match (kernel, operation) {
        ("statistics.partial", _) => "=geometry x >partials",
        ("statistics.merge", _) => {
            "=geometry =constants >partials >saved >running_mean >running_var"
        }
        ("normalize.main", Operation::Inference) => {
            "=geometry =constants x >y gamma beta running_mean running_var"
        }
        ("normalize.main", _) => "=geometry x >y gamma beta saved",
        ("gradients.partial", _) => "=geometry x dy saved >partials",
        ("gradients.merge", _) => {
            "=geometry gamma beta saved >partials >dgamma >dbeta >coefficient_rows"
        }
        ("input_gradient.main", _) => "=geometry x dy >dx coefficient_rows",
        ("forward.whole", _) => {
            "=geometry =constants x >y gamma beta >saved >running_mean >running_var"
        }
        ("backward.whole", _) => "=geometry x dy >dx gamma saved >dgamma >dbeta",
        (other, _) => panic!("the bench does not know the kernel {other}"),
    }
}

impl<'a> Bare<'a> {
    /// As many dispatches as the operation has.
    fn like(gpu: &'a Gpu, operation: Operation, commands: &Commands) -> Self {
        let said = format!("{commands:?}");
        let kernels = said.split(|at: char| !(at.is_ascii_lowercase() || "._".contains(at)));
        let kernels = kernels.filter(|word| word.contains('.'));
        let mut made = std::collections::HashMap::new();
        let device = gpu.device();
        let mut buffer = |name: &'static str| {
            // All uniforms lie in one buffer.
            let name = if name.starts_with('=') { "=" } else { name };
            let storage = wgpu::BufferUsages::STORAGE;
            made.entry(name.trim_start_matches('>'))
                .or_insert_with(|| {
                    device.create_buffer(&wgpu::BufferDescriptor {
                        label: Some("bench.bare"),
                        size: 1024,
                        usage: match name {
                            "=" => wgpu::BufferUsages::UNIFORM,
                            _ => storage,
                        },
                        mapped_at_creation: false,
                    })
                })
                .clone()
        };
        let dispatches: Vec<_> = kernels
            .map(|kernel| {
                let names: Vec<_> = buffers_of(kernel, operation).split(' ').collect();
                let buffers: Vec<_> = names.iter().map(|name| buffer(name)).collect();
                let pipeline = bare_pipeline(gpu, &names);
                let bind_group = bare_bind_group(gpu, &pipeline, &buffers);
                (pipeline, buffers, bind_group)
            })
            .collect();
        assert_eq!(dispatches.len(), commands.dispatches(), "{said}");
        Self { gpu, dispatches }
    }

    fn record_into(&self, pass: &mut wgpu::ComputePass<'_>) {
        for (pipeline, _, bind_group) in &self.dispatches {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, bind_group, &[]);
            pass.dispatch_workgroups(1, 1, 1);
        }
    }

    fn bind(&self) -> Vec<wgpu::BindGroup> {
        let dispatches = self.dispatches.iter();
        dispatches
            .map(|(pipeline, buffers, _)| bare_bind_group(self.gpu, pipeline, buffers))
            .collect()
    }
}

/// A pipeline that writes the sum of what it may read.
fn bare_pipeline(gpu: &Gpu, names: &[&str]) -> wgpu::ComputePipeline {
    let mut variables = String::new();
    let (mut sum, mut writes) = ("0".to_owned(), String::new());
    for (binding, name) in names.iter().enumerate() {
        let (kind, what) = match name.as_bytes()[0] {
            b'=' => ("uniform", "vec4<u32>"),
            b'>' => ("storage, read_write", "array<u32>"),
            _ => ("storage, read", "array<u32>"),
        };
        variables += &format!("@group(0) @binding({binding}) var<{kind}> v{binding}: {what};\n");
        match name.as_bytes()[0] {
            b'>' => writes += &format!("v{binding}[0] = sum;\n"),
            b'=' => sum += &format!(" + v{binding}.x"),
            _ => sum += &format!(" + v{binding}[0]"),
        }
    }
    let text = format!(
        "{variables}@compute @workgroup_size(1) fn main() {{ let sum = {sum};\n{writes} }}"
    );
    let device = gpu.device();
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some("bench.bare"),
        source: wgpu::ShaderSource::Wgsl(text.into()),
    });
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("bench.bare"),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: Default::default(),
        cache: None,
    })
}

fn bare_bind_group(
    gpu: &Gpu,
    pipeline: &wgpu::ComputePipeline,
    buffers: &[wgpu::Buffer],
) -> wgpu::BindGroup {
    let entries: Vec<_> = (0..)
        .zip(buffers)
        .map(|(binding, buffer)| wgpu::BindGroupEntry {
            binding,
            resource: buffer.as_entire_binding(),
        })
        .collect();
    gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("bench.bare"),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    })
}

/// The costs of recording many operations into one pass; of recording and finishing a single one;
/// and of that with its submission.
fn recorded(gpu: &Gpu, record: impl Fn(&mut wgpu::ComputePass<'_>)) -> [Cost; 3] {
    let encoder = || gpu.device().create_command_encoder(&Default::default());
    let mut many = encoder();
    let mut pass = many.begin_compute_pass(&Default::default());
    let (of_many, ()) = Cost::of(|| (0..RECORDED).for_each(|_| record(&mut pass)));
    drop(pass);
    drop(many);
    let (finished, commands) = Cost::of(|| {
        let mut one = encoder();
        record(&mut one.begin_compute_pass(&Default::default()));
        one.finish()
    });
    let (submission, _) = Cost::of(|| gpu.queue().submit([commands]));
    wait(gpu);
    let submitted = Cost {
        time: finished.time + submission.time,
        allocations: finished.allocations + submission.allocations,
    };
    [of_many, finished, submitted]
}

fn recording(gpu: &Gpu, plan: &Plan, buffers: &Buffers, rounds: usize) -> Outcome {
    println!(
        "Recording an operation with `record_into`; recording one and finishing its encoder; and \
         submitting it too: beside bare wgpu, which runs next to nothing. (Where the device is a CPU, \
         or the back end OpenGL, submission may contain the work.)\n"
    );
    let mut allocations = Vec::new();
    println!("| operation | dispatches | record | bare | finish | bare | submit | bare |");
    println!("|---|---|---|---|---|---|---|---|");
    for operation in Operation::ALL {
        let commands = buffers.bind(plan, operation)?;
        let bare = Bare::like(gpu, operation, &commands);
        let ours = || recorded(gpu, |pass| commands.record_into(pass));
        let others = || recorded(gpu, |pass| bare.record_into(pass));
        // The first ones make what wgpu keeps.
        compared(2, ours, others);
        let costs = compared(rounds, ours, others);
        let [[many, bare_many], finished, submitted] =
            costs.map(|pair| pair.map(|cost| cost.microseconds()));
        println!(
            "| {} | {} | {:.2} µs | {:.2} µs | {:.1} µs | {:.1} µs | {:.1} µs | {:.1} µs |",
            operation.name(),
            commands.dispatches(),
            many / RECORDED as f64,
            bare_many / RECORDED as f64,
            finished[0],
            finished[1],
            submitted[0],
            submitted[1],
        );
        allocations.push((
            operation,
            costs.map(|pair| pair.map(|cost| cost.allocations)),
        ));
    }
    println!("\nHeap allocations of the same, which must be those of bare wgpu.\n");
    println!("| operation | {RECORDED} recorded | bare | 1 finished | bare | 1 submitted | bare |");
    println!("|---|---|---|---|---|---|---|");
    for (operation, [[a, b], [c, d], [e, f]]) in &allocations {
        let name = operation.name();
        println!("| {name} | {a} | {b} | {c} | {d} | {e} | {f} |");
    }
    println!();
    for (operation, counts) in allocations {
        assert!(
            counts.iter().all(|[ours, bare]| ours == bare),
            "{}: allocations of our own, or `buffers_of` is out of date",
            operation.name()
        );
    }
    Ok(())
}

fn binding(gpu: &Gpu, plan: &Plan, buffers: &Buffers, rounds: usize) -> Outcome {
    println!("Binding an operation's buffers once its pipelines are compiled, beside bare wgpu.\n");
    println!("| operation | bind | bare | allocations | bare |");
    println!("|---|---|---|---|---|");
    for operation in Operation::ALL {
        let commands = buffers.bind(plan, operation)?;
        let bare = Bare::like(gpu, operation, &commands);
        let ours = || {
            let (cost, bound) = Cost::of(|| buffers.bind(plan, operation));
            bound.expect("it was bound before");
            [cost]
        };
        let [cost] = compared(rounds, ours, || [Cost::of(|| bare.bind()).0]);
        println!(
            "| {} | {:.1} µs | {:.1} µs | {} | {} |",
            operation.name(),
            cost[0].microseconds(),
            cost[1].microseconds(),
            cost[0].allocations,
            cost[1].allocations,
        );
    }
    println!();
    Ok(())
}

/// Binds and runs everything again, and compares what lies on the device, as wgpu counts it.
fn on_the_device(gpu: &Gpu, plan: &Plan, buffers: &Buffers, rounds: usize) -> Outcome {
    let counted = || {
        let counts = gpu.device().get_internal_counters().hal;
        let blocks = gpu.device().generate_allocator_report();
        (
            counts.buffers.read(),
            blocks.map(|report| (report.total_allocated_bytes, report.total_reserved_bytes)),
        )
    };
    let before = counted();
    for _ in 0..rounds {
        for operation in Operation::ALL {
            let commands = buffers.bind(plan, operation)?;
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            commands.record(&mut encoder);
            gpu.queue().submit([encoder.finish()]);
        }
    }
    // Before wgpu can give anything back.
    let after = counted();
    wait(gpu);
    println!(
        "On the device, once a plan and its buffers are there, and after {} operations were bound and \
         run:\n",
        rounds * Operation::ALL.len()
    );
    println!("| | buffers | bytes allocated | bytes reserved |");
    println!("|---|---|---|---|");
    for (when, (buffers, bytes)) in [("before", before), ("after", after)] {
        let (allocated, reserved) = match bytes {
            Some((allocated, reserved)) => (allocated.to_string(), reserved.to_string()),
            None => ("not counted".to_owned(), "not counted".to_owned()),
        };
        println!("| {when} | {buffers} | {allocated} | {reserved} |");
    }
    println!();
    assert_eq!(before, after, "something was allocated on the device");
    Ok(())
}

/// The parts of a first use, and the time that each took.
const PHASES: [&str; 6] = ["open", "plan", "buffers", "bind", "run", "read back"];

/// Opens a device and trains one step, in a process that did nothing before; prints the times.
#[expect(unsafe_code, reason = "loading trusts the file")]
fn first_use(folder: Option<&Path>) -> Outcome {
    let mut times = Vec::new();
    let mut start = Instant::now();
    let mut ended = || {
        times.push(start.elapsed().as_micros().to_string());
        start = Instant::now();
    };
    let gpu = Gpu::open_with_blocking(wgpu::Features::PIPELINE_CACHE)?;
    let has_cache = match folder {
        // SAFETY: the folder is of this bench alone.
        Some(folder) => unsafe { gpu.load_pipeline_cache(folder)? },
        None => false,
    };
    ended();
    let shape = Shape::new(&USED, Layout::ChannelsFirst)?;
    let plan = Plan::new(&gpu, &shape, DType::F32, &Options::default())?;
    ended();
    let buffers = Buffers::new(&gpu, &plan)?;
    wait(&gpu);
    ended();
    let commands = buffers.bind(&plan, Operation::Forward)?;
    ended();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    commands.record(&mut encoder);
    gpu.queue().submit([encoder.finish()]);
    wait(&gpu);
    ended();
    buffers.result().to_array_blocking()?;
    ended();
    if let Some(folder) = folder {
        gpu.save_pipeline_cache(folder)?;
    }
    println!("\nfirst use {has_cache} {}", times.join(" "));
    Ok(())
}

/// First uses in processes of their own, without and with a pipeline cache, by turns.
fn first_uses(rounds: usize) -> Outcome {
    let folder = format!("wgpu_batchnorm overhead {}", std::process::id());
    let folder = std::env::temp_dir().join(folder);
    let used = |cached: bool| -> Result<(bool, Vec<u64>), Box<dyn std::error::Error>> {
        let mut process = Command::new(std::env::current_exe()?);
        process.arg(FIRST_USE);
        if cached {
            process.arg(&folder);
        }
        let output = process.output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix("first use "));
        let mut words = line.ok_or_else(|| format!("{output:?}"))?.split(' ');
        let has_cache = words.next() == Some("true");
        let times = words.map(str::parse).collect::<Result<_, _>>()?;
        Ok((has_cache, times))
    };
    // The first one warms the machine up and leaves the file.
    let (has_cache, _) = used(true)?;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (cached, times) in times.iter_mut().enumerate() {
            times.push(used(cached == 1)?.1);
        }
    }
    if has_cache {
        std::fs::remove_dir_all(&folder)?;
    }
    println!(
        "From opening a device to the first result, forward in training on {USED:?}, in a process that \
         did nothing before. Pipelines are compiled in bind, and by some drivers when they first run; \
         a driver may keep a cache of its own.\n"
    );
    println!("| | {} | all |", PHASES.join(" | "));
    println!("|---|{}---|", "---|".repeat(PHASES.len()));
    let rows = [
        "no pipeline cache",
        match has_cache {
            true => "pipeline cache",
            false => "pipeline cache (there is none on this back end)",
        },
    ];
    for (row, times) in rows.iter().zip(&times) {
        let phase = |phase: usize| median(times.iter().map(|times| times[phase])) as f64 / 1e3;
        let all = median(times.iter().map(|times| times.iter().sum::<u64>())) as f64 / 1e3;
        let cells: Vec<_> = (0..PHASES.len())
            .map(|index| format!("{:.1} ms", phase(index)))
            .collect();
        println!("| {row} | {} | {all:.1} ms |", cells.join(" | "));
    }
    Ok(())
}
