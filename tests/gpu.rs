//! Every operation on every adapter of this machine, against the CPU path and PyTorch.
//!
//! Each test has its adapter in its name. Where there is no adapter, one test shows as ignored.

mod common;

#[path = "gpu/accuracy.rs"]
mod accuracy;
#[path = "gpu/bad_input.rs"]
mod bad_input;
#[path = "gpu/device.rs"]
mod device;
#[path = "gpu/exact.rs"]
mod exact;
#[path = "gpu/faults.rs"]
mod faults;
#[path = "gpu/large.rs"]
mod large;
#[path = "gpu/modes.rs"]
mod modes;
#[path = "gpu/monitor.rs"]
mod monitor;
#[path = "gpu/operations.rs"]
mod operations;
#[path = "gpu/pipeline_cache.rs"]
mod pipeline_cache;
#[path = "gpu/plan.rs"]
mod plan;
#[path = "gpu/properties.rs"]
mod properties;
#[path = "gpu/reference.rs"]
mod reference;
#[path = "gpu/storage.rs"]
mod storage;
#[path = "gpu/synchronized.rs"]
mod synchronized;

use common::Adapter;

fn main() {
    if let Some(outcome) = faults::run_out_of_memory_if_asked() {
        if let Err(error) = outcome {
            eprintln!("{error}");
            std::process::exit(1);
        }
        return;
    }
    let arguments = libtest_mimic::Arguments::from_args();
    let adapters = Adapter::all();
    // By turns: tests of one adapter wait for one another, those of another adapter need not.
    let by_adapter = adapters.iter().map(trials);
    let mut turns: Vec<_> = by_adapter
        .flat_map(|trials| trials.into_iter().enumerate())
        .collect();
    turns.sort_by_key(|(turn, _)| *turn);
    let mut trials: Vec<_> = turns.into_iter().map(|(_, trial)| trial).collect();
    if adapters.is_empty() {
        trials.push(common::needs_an_adapter("all GPU tests"));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// All tests on an adapter.
fn trials(adapter: &Adapter) -> Vec<libtest_mimic::Trial> {
    [
        operations::trials,
        modes::trials,
        storage::trials,
        synchronized::trials,
        monitor::trials,
        reference::trials,
        accuracy::trials,
        plan::trials,
        bad_input::trials,
        exact::trials,
        faults::trials,
        large::trials,
        properties::trials,
        device::trials,
        pipeline_cache::trials,
    ]
    .into_iter()
    .flat_map(|trials| trials(adapter))
    .collect()
}
