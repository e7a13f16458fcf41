//! Times every choice of how work is divided, for one shape: to tune for a device.
//!
//! `cargo run --release --example tune -- 32x256x14x14 [channels-last] [f16]`. `WGPU_BACKEND` or
//! `WGPU_ADAPTER_NAME` chooses an adapter. From what is chosen by itself, it changes one number of
//! [`Tuning`] at a time, and prints medians in milliseconds; the copy shader stands on top. What is
//! clearly faster than the first line is worth a report, with the adapter's name. All choices run on
//! the same tensors: give a shape that caches do not hold.

#[path = "../benches/common/mod.rs"]
mod common;

use std::error::Error;

use common::{Copy, Meter};
use wgpu_batchnorm::{
    BackwardBuffers, Commands, DType, ForwardBuffers, LaneOrder, Layout, Options, Plan, Shape,
    Tuning, wgpu,
};

/// Every choice is timed so often, in turn with the others.
const ROUNDS: usize = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    let dims = arguments.first().map_or("32x256x14x14", String::as_str);
    let dims: Result<Vec<usize>, _> = dims.split('x').map(str::parse).collect();
    let layout = match has("channels-last") {
        true => Layout::ChannelsLast,
        false => Layout::ChannelsFirst,
    };
    let dtype = match (has("f16"), has("bf16")) {
        (true, _) => DType::F16,
        (_, true) => DType::Bf16,
        _ => DType::F32,
    };
    let shape = Shape::new(&dims?, layout)?;
    let meter = Meter::open()?;
    println!("{}; {}", meter.gpu.name(), meter.clock());
    println!("{:?} {layout:?} {dtype:?}\n", shape.dims());

    // Any bits that are numbers in every type: evenly spread in 1 … 2.
    let bytes = shape.bytes(dtype).next_multiple_of(16);
    let words: Vec<u32> = (0..(bytes / 4) as u32)
        .map(|index| 0x3f80_3f80 | index.wrapping_mul(0x9e37_79b9) >> 9)
        .collect();
    let filled = || meter.buffer_of(bytemuck::cast_slice(&words));
    let (x, dy, y) = (filled(), filled(), meter.buffer(bytes));
    let copy = Copy::new(&meter, &x, &y);
    let mut choices = Vec::new();
    for (name, tuning) in tunings(Tuning::for_device(meter.gpu.info().device_type)) {
        let plan = Plan::new(
            &meter.gpu,
            &shape,
            dtype,
            &Options::default().tuning(tuning),
        )?;
        choices.push((name, bound(&meter, &plan, [&x, &dy, &y])?));
    }
    let mut copies = Vec::new();
    let mut times = vec![[const { Vec::new() }; 3]; choices.len()];
    for _ in 0..ROUNDS {
        copies.push(meter.time(1, |pass, _| copy.record_into(pass)));
        for ((_, commands), times) in choices.iter().zip(&mut times) {
            for (commands, times) in commands.iter().zip(times) {
                times.push(meter.time(1, |pass, _| commands.record_into(pass)));
            }
        }
    }
    let milliseconds = |times: &mut Vec<std::time::Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e3
    };
    println!("| choice | inference | forward | backward | dispatches |");
    println!("|---|---|---|---|---|");
    let copied = milliseconds(&mut copies);
    println!("| copy shader | {copied:.3} | | | 1 |");
    for ((name, commands), times) in choices.iter().zip(&mut times) {
        let [inference, forward, backward] = times.each_mut().map(milliseconds);
        let dispatches = commands.each_ref().map(|one| one.dispatches().to_string());
        let dispatches = dispatches.join(", ");
        println!("| {name} | {inference:.3} | {forward:.3} | {backward:.3} | {dispatches} |");
    }
    Ok(())
}

/// What is chosen by itself, and everything that differs from it in one number.
fn tunings(chosen: Tuning) -> Vec<(String, Tuning)> {
    let mut tunings = vec![("as chosen".to_owned(), chosen.clone())];
    let mut push = |name: String, change: &dyn Fn(&mut Tuning)| {
        let mut tuning = chosen.clone();
        change(&mut tuning);
        if tuning != chosen {
            tunings.push((name, tuning));
        }
    };
    for lanes in [8, 16, 32, 64, 128, 256, 512, 1024] {
        push(format!("lanes {lanes}"), &|tuning| tuning.lanes = lanes);
    }
    for across in [1, 4, 8, 16, 32, 64] {
        push(format!("lanes_across {across}"), &|tuning| {
            tuning.lanes_across = across
        });
    }
    for order in [LaneOrder::SideBySide, LaneOrder::Runs] {
        push(format!("order {order:?}"), &|tuning| tuning.order = order);
    }
    for workgroups in [16, 64, 256, 1024, 4096] {
        push(format!("reduction_workgroups {workgroups}"), &|tuning| {
            tuning.reduction_workgroups = workgroups;
        });
    }
    for packs in [1, 8, 64] {
        push(format!("reduction_packs_min {packs}"), &|tuning| {
            tuning.reduction_packs_min = packs
        });
    }
    for packs in [64, 256, 1024] {
        push(format!("reduction_packs_max {packs}"), &|tuning| {
            tuning.reduction_packs_max = packs
        });
    }
    for packs in [4, 8, 16, 32, 128, 512, 2048] {
        push(format!("map_packs {packs}"), &|tuning| {
            tuning.map_packs = packs
        });
    }
    push("three dispatches".to_owned(), &|tuning| {
        tuning.whole_bytes = 0
    });
    push("one dispatch".to_owned(), &|tuning| {
        tuning.whole_bytes = u64::MAX;
        tuning.whole_workgroups = 1;
    });
    for native in [false, true] {
        push(format!("native_f16 {native}"), &|tuning| {
            tuning.native_f16 = native
        });
    }
    for wide in [false, true] {
        push(format!("wide_words {wide}"), &|tuning| {
            tuning.wide_words = wide
        });
    }
    tunings
}

/// Inference, forward and backward from x and dy to y.
fn bound(
    meter: &Meter,
    plan: &Plan,
    [x, dy, y]: [&wgpu::Buffer; 3],
) -> Result<[Commands; 3], Box<dyn Error>> {
    let bytes = plan.shape().bytes(plan.dtype());
    let [x, dy, y] = [x, dy, y].map(|buffer| buffer.slice(..bytes));
    let vector = || meter.buffer(4 * plan.shape().channels() as u64);
    let [gamma, beta, mean, var, dgamma, dbeta] = [(); 6].map(|()| vector());
    let saved = meter.buffer(plan.saved_bytes());
    let forward = ForwardBuffers::new(x, y)
        .gamma(gamma.slice(..))
        .beta(beta.slice(..))
        .running_mean(mean.slice(..))
        .running_var(var.slice(..));
    let backward = BackwardBuffers::new(x, dy, saved.slice(..))
        .gamma(gamma.slice(..))
        .dx(y)
        .dgamma(dgamma.slice(..))
        .dbeta(dbeta.slice(..));
    Ok([
        plan.bind_inference(&forward)?,
        plan.bind_forward(&forward.saved(saved.slice(..)))?,
        plan.bind_backward(&backward)?,
    ])
}
