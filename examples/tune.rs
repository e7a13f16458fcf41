//! Times every choice of how work is divided, for one shape: to tune for a device.
//!
//! `cargo run --release --example tune -- 32x256x56x56 [channels-last] [f16]`. `WGPU_BACKEND` or
//! `WGPU_ADAPTER_NAME` chooses an adapter. From what is chosen by itself, it changes one number of
//! [`Tuning`] at a time (for the number of dispatches, two), and prints medians in milliseconds; the
//! copy shader stands on top. What is clearly faster than the first line is worth a report, with the
//! adapter's name. A number may do more than its name says: on software adapters, those that allow one
//! or two dispatches keep channels that lie last from being taken eight at a time. All choices run on the same
//! tensors: give a shape that caches do not hold.

#[path = "../benches/common/mod.rs"]
mod common;

use std::error::Error;

use common::operations::{Buffers, Operation};
use common::{Copy, Meter};
use wgpu_batchnorm::{DType, Layout, NativeF16, Options, Plan, Shape, Tuning};

/// Every choice is timed so often, in turn with the others.
const ROUNDS: usize = 9;

/// Each time for about so many seconds or more: without timestamps, what is timed is a submission.
const SAMPLE: f64 = 2e-3;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    let dims = arguments.first().map_or("32x256x56x56", String::as_str);
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

    let plan = |tuning| {
        let options = Options::default().tuning(tuning);
        Plan::new(&meter.gpu, &shape, dtype, &options)
    };
    let chosen = Tuning::for_device(meter.gpu.info().device_type);
    let buffers = Buffers::new(&meter.gpu, &plan(chosen.clone())?)?;
    let copy = Copy::new(&meter, buffers.x().buffer(), buffers.result().buffer());
    let mut choices = Vec::new();
    for (name, tuning) in tunings(chosen) {
        let plan = plan(tuning)?;
        let mut commands = Vec::new();
        for operation in Operation::ALL {
            commands.push(buffers.bind(&plan, operation)?);
        }
        choices.push((name, commands));
    }
    let iterations = Operation::ALL.map(|operation| {
        let commands = &choices[0].1[operation as usize];
        meter.iterations(SAMPLE, |pass| commands.record_into(pass))
    });
    let mut copies = Vec::new();
    let mut times = vec![[const { Vec::new() }; 3]; choices.len()];
    for _ in 0..ROUNDS {
        copies.push(meter.seconds(iterations[0], |pass| copy.record_into(pass)));
        for ((_, commands), times) in choices.iter().zip(&mut times) {
            for ((commands, times), iterations) in commands.iter().zip(times).zip(iterations) {
                times.push(meter.seconds(iterations, |pass| commands.record_into(pass)));
            }
        }
    }
    let milliseconds = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2] * 1e3
    };
    println!("| choice | inference | forward | backward | dispatches |");
    println!("|---|---|---|---|---|");
    let copied = milliseconds(&mut copies);
    println!("| copy shader | {copied:.3} | | | 1 |");
    for ((name, commands), times) in choices.iter().zip(&mut times) {
        let [inference, forward, backward] = times.each_mut().map(milliseconds);
        let dispatches = commands.iter().map(|one| one.dispatches().to_string());
        let dispatches: Vec<_> = dispatches.collect();
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
    for bytes in [1, 16, 32, 64, 128, 256, 512, 1024] {
        push(format!("bytes_across {bytes}"), &|tuning| {
            tuning.bytes_across = bytes
        });
    }
    for spread in [false, true] {
        push(format!("spread {spread}"), &|tuning| tuning.spread = spread);
    }
    for bytes in [64 << 10, 128 << 10, 256 << 10, 512 << 10, u64::MAX] {
        push(format!("rows_bytes {bytes}"), &|tuning| {
            tuning.rows_bytes = bytes
        });
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
    for planes in [1, 4, 8, 16, 32, u32::MAX] {
        push(format!("map_planes_max {planes}"), &|tuning| {
            tuning.map_planes_max = planes;
        });
    }
    for packs in [4, 8, 16, 32, 128, 256, 512, 2048] {
        push(format!("map_packs {packs}"), &|tuning| {
            tuning.map_packs = packs
        });
    }
    push("three dispatches".to_owned(), &|tuning| {
        tuning.whole_bytes = 0;
        tuning.map_partials_max = 0;
    });
    for bytes in [0, 32 << 10, 512 << 10] {
        push(format!("whole_bytes {bytes}"), &|tuning| {
            tuning.whole_bytes = bytes
        });
    }
    push("whole_bytes_of_few as whole_bytes".to_owned(), &|tuning| {
        tuning.whole_bytes_of_few = tuning.whole_bytes
    });
    for packs in [4, 8, 16, 32] {
        push(format!("whole_packs_min {packs}"), &|tuning| {
            tuning.whole_packs_min = packs
        });
    }
    push("one dispatch".to_owned(), &|tuning| {
        tuning.whole_bytes = u64::MAX;
        tuning.whole_workgroups = 1;
    });
    for partials in [0, 1, 4] {
        push(format!("map_partials_max {partials}"), &|tuning| {
            tuning.map_partials_max = partials
        });
    }
    push("packs mix channels".to_owned(), &|tuning| {
        tuning.mixed_rows_min = 1
    });
    push("packs of one channel".to_owned(), &|tuning| {
        tuning.mixed_rows_min = u32::MAX
    });
    for native in [NativeF16::Never, NativeF16::Reads, NativeF16::Always] {
        push(format!("native_f16 {native:?}"), &|tuning| {
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
