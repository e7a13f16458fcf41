//! The forward pass of training with statistics and normalization in one kernel: `shaders/forward.wgsl`.

use super::{Axis, Choice, EntryPoint, Piece, library, piece, tile_constants};

/// What is declared `read_write` in the shader.
const WRITES: &[&str] = &[
    "y",
    "mask",
    "saved",
    "running_mean",
    "running_var",
    "partials",
];

fn pieces(choice: &Choice) -> Vec<Piece> {
    let mut pieces = library::over_tensors(choice);
    pieces.extend([
        library::x(choice),
        piece!("lib/valid/all"),
        piece!("lib/pivot/probed"),
        piece!("statistics"),
        piece!("lib/centre/computed"),
        library::affine(choice),
        library::residual(choice),
        library::activation(choice),
        library::map_of_columns(choice),
    ]);
    pieces.extend(library::keep(choice));
    pieces.extend([piece!("normalize"), piece!("forward")]);
    pieces
}

const AXES: &[Axis] = &[
    Axis::Form,
    Axis::Activation,
    Axis::Residual,
    Axis::InPlace,
    Axis::Shared,
];

fn bindings(choice: &Choice) -> Vec<&'static str> {
    let mut names = vec![
        "geometry",
        "constants",
        "y",
        "gamma",
        "beta",
        "saved",
        "running_mean",
        "running_var",
    ];
    names.extend(library::normalized_bindings(choice));
    names
}

/// All of it.
pub(crate) const WHOLE: EntryPoint = EntryPoint {
    label: "forward.whole",
    name: "forward",
    axes: AXES,
    pieces,
    bindings,
    writes: WRITES,
    constants: tile_constants,
};

/// All that comes after [`super::statistics::PARTIAL`].
pub(crate) const FROM_PARTIALS: EntryPoint = EntryPoint {
    label: "forward.from_partials",
    name: "from_partials",
    axes: AXES,
    pieces,
    bindings: |choice| {
        let mut names = bindings(choice);
        names.push("partials");
        names
    },
    writes: WRITES,
    constants: tile_constants,
};
