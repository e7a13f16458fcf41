//! Per-channel statistics: `shaders/statistics.wgsl`.

use super::{Axis, Choice, EntryPoint, Piece, library, piece, tile_constants};

/// What is declared `read_write` in the shader.
const WRITES: &[&str] = &[
    "partials",
    "moments",
    "saved",
    "running_mean",
    "running_var",
];

fn pieces(choice: &Choice) -> Vec<Piece> {
    let mut pieces = library::over_tensors(choice);
    pieces.extend([
        piece!("lib/input/x"),
        library::valid(choice),
        library::pivot(choice),
        piece!("statistics"),
    ]);
    pieces
}

/// Moments of each column and split.
pub(crate) const PARTIAL: EntryPoint = EntryPoint {
    label: "statistics.partial",
    name: "partial",
    axes: &[Axis::Form, Axis::Valid],
    pieces,
    bindings: |choice| {
        let mut names = vec!["geometry", "x", "partials"];
        if choice.some_valid {
            names.push("valid");
        }
        names
    },
    writes: WRITES,
    constants: tile_constants,
};

/// Moments of each column, of this shard of a batch.
pub(crate) const COLLECT: EntryPoint = EntryPoint {
    label: "statistics.collect",
    name: "collect",
    axes: &[Axis::FourChannels],
    pieces,
    bindings: |_| vec!["geometry", "partials", "moments"],
    writes: WRITES,
    constants: tile_constants,
};

/// Statistics of each column, and the step of the running ones.
pub(crate) const MERGE: EntryPoint = EntryPoint {
    label: "statistics.merge",
    name: "merge",
    axes: &[Axis::FourChannels],
    pieces,
    bindings: |_| {
        vec![
            "geometry",
            "constants",
            "partials",
            "saved",
            "running_mean",
            "running_var",
        ]
    },
    writes: WRITES,
    constants: tile_constants,
};

/// Values per channel in `saved`: pivot, remainder, inv_std, var, 1 / M.
pub(crate) const SAVED_ROWS: u64 = 5;

/// Values per channel in a partial result: count, pivot, mean − pivot, Σ(x − mean)².
pub(crate) const MOMENTS_ROWS: u64 = 4;
