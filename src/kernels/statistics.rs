//! Per-channel statistics: `shaders/statistics.wgsl`.

use super::{EntryPoint, Source, over_tensors, tile_constants};

const SOURCE: Source = over_tensors!("statistics");

/// Moments of each column and split.
pub(crate) const PARTIAL: EntryPoint = EntryPoint {
    label: "statistics.partial",
    name: "partial",
    source: SOURCE,
    bindings: &[(0, "geometry"), (2, "x"), (3, "partials")],
    constants: tile_constants,
};

/// Statistics of each column, and the step of the running ones.
pub(crate) const MERGE: EntryPoint = EntryPoint {
    label: "statistics.merge",
    name: "merge",
    source: SOURCE,
    bindings: &[
        (0, "geometry"),
        (1, "constants"),
        (3, "partials"),
        (4, "saved"),
        (5, "running_mean"),
        (6, "running_var"),
    ],
    constants: tile_constants,
};

/// Values per channel in `saved`: pivot, remainder, inv_std, var.
pub(crate) const SAVED_ROWS: u64 = 4;

/// Values per channel in `partials`.
pub(crate) fn partial_rows(splits: u64) -> u64 {
    4 * splits
}
