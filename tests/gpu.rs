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
    let mut trials = Vec::new();
    for adapter in &adapters {
        trials.extend(operations::trials(adapter));
        trials.extend(modes::trials(adapter));
        trials.extend(storage::trials(adapter));
        trials.extend(synchronized::trials(adapter));
        trials.extend(monitor::trials(adapter));
        trials.extend(reference::trials(adapter));
        trials.extend(accuracy::trials(adapter));
        trials.extend(plan::trials(adapter));
        trials.extend(bad_input::trials(adapter));
        trials.extend(exact::trials(adapter));
        trials.extend(faults::trials(adapter));
        trials.extend(large::trials(adapter));
        trials.extend(properties::trials(adapter));
        trials.extend(device::trials(adapter));
        trials.extend(pipeline_cache::trials(adapter));
    }
    if adapters.is_empty() {
        trials.push(common::needs_an_adapter("all GPU tests"));
    }
    libtest_mimic::run(&arguments, trials).exit();
}
