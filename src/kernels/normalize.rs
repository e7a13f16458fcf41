//! Normalize, scale and shift, with what is fused to it: `shaders/normalize.wgsl`.

use super::{Axis, Choice, EntryPoint, Piece, library, piece, tile_constants};

/// What is declared `read_write` in the shader.
const WRITES: &[&str] = &["y", "mask"];

fn pieces(choice: &Choice) -> Vec<Piece> {
    let mut pieces = library::over_tensors(choice);
    pieces.extend([
        library::x(choice),
        library::affine(choice),
        library::residual(choice),
        library::activation(choice),
        library::map(choice),
    ]);
    pieces.extend(library::centre(choice));
    pieces.extend(library::keep(choice));
    pieces.push(piece!("normalize"));
    pieces
}

pub(crate) const MAIN: EntryPoint = EntryPoint {
    label: "normalize.main",
    name: "main",
    axes: &[
        Axis::Form,
        Axis::Activation,
        Axis::Residual,
        Axis::InPlace,
        Axis::Running,
        Axis::Shared,
    ],
    pieces,
    bindings: |choice| {
        let mut names = vec!["geometry", "y", "gamma", "beta"];
        if choice.running {
            names.extend(["constants", "running_mean", "running_var"]);
        } else {
            names.push("saved");
            names.extend(library::activation_bindings(choice));
        }
        names.extend(library::normalized_bindings(choice));
        names
    },
    writes: WRITES,
    constants: tile_constants,
};
