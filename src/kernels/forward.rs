//! The forward pass of training in one dispatch: `shaders/forward.wgsl`.

use super::{Axis, Choice, EntryPoint, Piece, library, piece, tile_constants};

/// What is declared `read_write` in the shader.
const WRITES: &[&str] = &["y", "mask", "saved", "running_mean", "running_var"];

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
        library::map(choice),
    ]);
    pieces.extend(library::keep(choice));
    pieces.extend([piece!("normalize"), piece!("forward")]);
    pieces
}

pub(crate) const WHOLE: EntryPoint = EntryPoint {
    label: "forward.whole",
    name: "forward",
    axes: &[
        Axis::Form,
        Axis::Activation,
        Axis::Residual,
        Axis::InPlace,
        Axis::Shared,
    ],
    pieces,
    bindings: |choice| {
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
    },
    writes: WRITES,
    constants: tile_constants,
};
