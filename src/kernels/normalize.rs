//! Normalize, scale and shift: `shaders/normalize.wgsl`.

use super::{EntryPoint, Source, over_tensors, tile_constants};

const SOURCE: Source = over_tensors!("normalize");

/// With the statistics of the batch.
pub(crate) const BATCH: EntryPoint = EntryPoint {
    label: "normalize.batch",
    name: "batch",
    source: SOURCE,
    bindings: &[
        (0, "geometry"),
        (2, "x"),
        (3, "y"),
        (4, "gamma"),
        (5, "beta"),
        (6, "saved"),
    ],
    constants: tile_constants,
};

/// With running statistics.
pub(crate) const RUNNING: EntryPoint = EntryPoint {
    label: "normalize.running",
    name: "running",
    source: SOURCE,
    bindings: &[
        (0, "geometry"),
        (1, "constants"),
        (2, "x"),
        (3, "y"),
        (4, "gamma"),
        (5, "beta"),
        (7, "running_mean"),
        (8, "running_var"),
    ],
    constants: tile_constants,
};
