//! Gradient of x: `shaders/input_gradient.wgsl`.

use super::{EntryPoint, over_tensors, tile_constants};

pub(crate) const MAIN: EntryPoint = EntryPoint {
    label: "input_gradient.main",
    name: "main",
    source: over_tensors!("input_gradient"),
    bindings: &[
        (0, "geometry"),
        (2, "x"),
        (3, "dy"),
        (4, "dx"),
        (5, "saved"),
        (6, "gamma"),
        (7, "partials"),
    ],
    constants: tile_constants,
};
