//! How the time of an operation grows with the size of its tensors.
//!
//! `cargo bench --bench growth`. Set `WGPU_BACKEND` or `WGPU_ADAPTER_NAME` to choose an adapter.
//! It times the operations, and a copy, at sizes from 1 Ki values to 256 Mi, as far as the device
//! goes, and fits `time = fixed + bytes / bandwidth`. Bytes are those of the tensor passes that an
//! operation takes if nothing stays in a cache: 2 for inference and the copy, 3 for forward in
//! training, 5 for backward. `cargo test` runs the two smallest sizes.

mod common;
use common::{Copy, Meter};
use wgpu_batchnorm::{DType, Error, Layout, Options, Plan, Shape, wgpu};

use common::operations::{Buffers, Operation, wait};

/// Each four times as large as the one before.
const SHAPES: [[usize; 4]; 10] = [
    [1, 64, 4, 4],
    [1, 64, 8, 8],
    [4, 64, 8, 8],
    [4, 64, 16, 16],
    [16, 64, 16, 16],
    [16, 64, 32, 32],
    [64, 64, 32, 32],
    [64, 64, 64, 64],
    [256, 64, 64, 64],
    [256, 64, 128, 128],
];
const NAMES: [&str; 4] = ["copy", "inference", "forward", "backward"];
const PASSES: [u64; 4] = [2, 2, 3, 5];

/// A size, and the seconds that each of `NAMES` takes at it.
struct Row {
    shape: Shape,
    seconds: [f64; 4],
}

impl Row {
    fn bytes(&self, what: usize) -> f64 {
        (PASSES[what] * self.shape.bytes(DType::F32)) as f64
    }
}

/// `time = fixed + bytes·per_byte`, in seconds.
struct Line {
    fixed: f64,
    per_byte: f64,
}

impl Line {
    /// The line with the least squares of relative errors, so that small sizes count as large ones
    /// do. No part of it is negative.
    fn fitted(points: &[(f64, f64)]) -> Self {
        // Σ (fixed·u + per_byte·v − 1)² is least, with u = 1/time and v = bytes/time.
        let [mut uu, mut uv, mut vv, mut u, mut v] = [0.0; 5];
        for &(bytes, time) in points {
            let (a, b) = (1.0 / time, bytes / time);
            uu += a * a;
            uv += a * b;
            vv += b * b;
            u += a;
            v += b;
        }
        let determinant = uu * vv - uv * uv;
        let fixed = (u * vv - v * uv) / determinant;
        let per_byte = (v * uu - u * uv) / determinant;
        match (fixed > 0.0, per_byte > 0.0) {
            (true, true) => Self { fixed, per_byte },
            (false, _) => Self {
                fixed: 0.0,
                per_byte: v / vv,
            },
            (_, false) => Self {
                fixed: u / uu,
                per_byte: 0.0,
            },
        }
    }

    fn at(&self, bytes: f64) -> f64 {
        self.fixed + bytes * self.per_byte
    }
}

fn main() -> Result<(), Error> {
    let is_given = |name: &str| std::env::args().any(|argument| argument == name);
    if is_given("--list") {
        // Of tests: there are none.
        return Ok(());
    }
    let is_bench = is_given("--bench");
    let meter = match Meter::open() {
        Ok(meter) => meter,
        Err(error) => {
            eprintln!("nothing to measure: {error}");
            return Ok(());
        }
    };
    println!("GPU: {}, {}, medians.\n", meter.gpu.name(), meter.clock());
    let shapes = if is_bench { &SHAPES[..] } else { &SHAPES[..2] };
    let mut rows = Vec::new();
    for dims in shapes {
        let shape = Shape::new(dims, Layout::ChannelsFirst)?;
        match seconds(&meter, &shape, is_bench) {
            Ok(seconds) => rows.push(Row { shape, seconds }),
            Err(error @ (Error::TooLarge { .. } | Error::OutOfMemory { .. })) => {
                println!("No further than {} values: {error}.\n", values(&rows));
                break;
            }
            Err(error) => return Err(error),
        }
    }
    report(&rows);
    Ok(())
}

/// The largest size so far.
fn values(rows: &[Row]) -> String {
    rows.last()
        .map_or("0".to_owned(), |row| in_words(row.shape.len()))
}

fn in_words(values: usize) -> String {
    match values {
        _ if values >= 1 << 20 => format!("{} Mi", values >> 20),
        _ if values >= 1 << 10 => format!("{} Ki", values >> 10),
        _ => values.to_string(),
    }
}

/// The time of each of `NAMES` at a size.
fn seconds(meter: &Meter, shape: &Shape, is_bench: bool) -> Result<[f64; 4], Error> {
    check_memory(meter, shape)?;
    let plan = Plan::new(&meter.gpu, shape, DType::F32, &Options::default())?;
    let buffers = Buffers::new(&meter.gpu, &plan)?;
    let copy = Copy::new(meter, buffers.x().buffer(), buffers.result().buffer());
    let mut commands = Vec::new();
    for operation in Operation::ALL {
        commands.push(buffers.bind(&plan, operation)?);
    }
    let times = std::array::from_fn(|what| {
        timed(meter, is_bench, |pass| match what {
            0 => copy.record_into(pass),
            operation => commands[operation - 1].record_into(pass),
        })
    });
    // So that memory is free before the next size takes it.
    drop((plan, buffers, copy, commands));
    wait(&meter.gpu);
    Ok(times)
}

/// The median over rounds of a fortieth of a second, or of one operation that takes more than half of that.
fn timed(meter: &Meter, is_bench: bool, record: impl Fn(&mut wgpu::ComputePass<'_>)) -> f64 {
    let (iterations, rounds) = match is_bench {
        true => (meter.iterations(0.025, &record), 7),
        false => (1, 1),
    };
    let mut times: Vec<_> = (0..rounds)
        .map(|_| meter.seconds(iterations, &record))
        .collect();
    times.sort_by(f64::total_cmp);
    // A line is to be fitted to what no clock sees, too.
    times[rounds / 2].max(1e-9)
}

/// Fails where a device that shares the host's memory would take most of what is free. Linux only:
/// there, memory is given without a word and taken back by ending the process.
fn check_memory(meter: &Meter, shape: &Shape) -> Result<(), Error> {
    let said = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let free = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let limit = free.map_or(u64::MAX, |kilobytes| kilobytes * 1024 / 4 * 3);
    // x, dy and what is written.
    let bytes = 3 * shape.bytes(DType::F32);
    if !meter.is_software() || bytes <= limit {
        return Ok(());
    }
    Err(Error::TooLarge {
        what: format!("three tensors of shape {:?}", shape.dims()),
        bytes,
        limit,
    })
}

/// How far a time is from the line, in percent.
fn off(row: &Row, what: usize, line: &Line) -> f64 {
    100.0 * (row.seconds[what] / line.at(row.bytes(what)) - 1.0)
}

fn report(rows: &[Row]) {
    let lines: [Line; 4] = std::array::from_fn(|what| {
        let points = rows.iter().map(|row| (row.bytes(what), row.seconds[what]));
        Line::fitted(&points.collect::<Vec<_>>())
    });
    println!("The time of one, GB/s, and how far the time is from the line below.\n");
    println!(
        "| values | shape | {} |",
        NAMES.map(|name| format!("{name} | GB/s | off")).join(" | ")
    );
    println!("|---|---|{}", "---|---|---|".repeat(NAMES.len()));
    for row in rows {
        let cells = std::array::from_fn::<_, 4, _>(|what| {
            let seconds = row.seconds[what];
            let speed = row.bytes(what) / seconds / 1e9;
            let off = off(row, what, &lines[what]);
            format!("{:.1} µs | {speed:.2} | {off:+.0} %", seconds * 1e6)
        });
        let dims: Vec<_> = row.shape.dims().iter().map(usize::to_string).collect();
        let (values, shape) = (in_words(row.shape.len()), dims.join("×"));
        println!("| {values} | {shape} | {} |", cells.join(" | "));
    }
    println!(
        "\nThe line: time = fixed + bytes / bandwidth, by least squares of relative errors; and the size \
         that is furthest from it, of those whose bytes take longer than what is fixed.\n"
    );
    println!("| | fixed | bandwidth | furthest | at |");
    println!("|---|---|---|---|---|");
    for (what, (name, line)) in NAMES.iter().zip(&lines).enumerate() {
        let above = rows
            .iter()
            .filter(|row| row.bytes(what) * line.per_byte > line.fixed);
        let furthest = above
            .map(|row| (off(row, what, line), in_words(row.shape.len())))
            .max_by(|(one, _), (other, _)| one.abs().total_cmp(&other.abs()));
        let (percent, at) = match furthest {
            Some((percent, at)) => (format!("{percent:+.0} %"), at),
            None => ("–".to_owned(), "–".to_owned()),
        };
        println!(
            "| {name} | {:.1} µs | {:.2} GB/s | {percent} | {at} |",
            line.fixed * 1e6,
            1e-9 / line.per_byte
        );
    }
}
