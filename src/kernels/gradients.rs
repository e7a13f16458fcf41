//! Gradients of γ and β: `shaders/gradients.wgsl`.

use super::{EntryPoint, Source, over_tensors, tile_constants};

const SOURCE: Source = over_tensors!("gradients");

/// Sums over each column and split.
pub(crate) const PARTIAL: EntryPoint = EntryPoint {
    label: "gradients.partial",
    name: "partial",
    source: SOURCE,
    bindings: &[
        (0, "geometry"),
        (2, "x"),
        (3, "dy"),
        (4, "saved"),
        (5, "partials"),
    ],
    constants: tile_constants,
};

/// Gradients of each column.
pub(crate) const MERGE: EntryPoint = EntryPoint {
    label: "gradients.merge",
    name: "merge",
    source: SOURCE,
    bindings: &[
        (0, "geometry"),
        (1, "constants"),
        (4, "saved"),
        (5, "partials"),
        (6, "dgamma"),
        (7, "dbeta"),
    ],
    constants: tile_constants,
};

/// Values per channel in `partials`.
pub(crate) fn partial_rows(splits: u64) -> u64 {
    2 + 2 * splits
}
