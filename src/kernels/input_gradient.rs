//! Gradients of x and of the residual: `shaders/input_gradient.wgsl`.

use super::{Axis, Choice, EntryPoint, Piece, Variant, library, piece, tile_constants};

/// What is declared `read_write` in the shader.
const WRITES: &[&str] = &["dx", "residual_gradient"];

fn pieces(choice: &Choice) -> Vec<Piece> {
    let mut pieces = library::over_tensors(choice);
    pieces.extend([
        piece!("lib/input/x"),
        library::dy(choice),
        library::valid(choice),
        library::residual_gradient(choice),
        library::map(choice),
    ]);
    pieces.extend(library::cut(choice));
    pieces.extend(library::coefficients(choice));
    pieces.push(piece!("input_gradient"));
    pieces
}

fn constants(variant: &Variant) -> Vec<(&'static str, f64)> {
    let mut constants = tile_constants(variant);
    let batch_statistics = u8::from(variant.choice.batch_statistics);
    constants.push(("BATCH_STATISTICS", f64::from(batch_statistics)));
    constants
}

pub(crate) const MAIN: EntryPoint = EntryPoint {
    label: "input_gradient.main",
    name: "main",
    axes: &[
        Axis::Form,
        Axis::Activation,
        Axis::Residual,
        Axis::ResidualGradient,
        Axis::Valid,
        Axis::InPlace,
        Axis::BatchStatistics,
        Axis::Shared,
    ],
    pieces,
    bindings: |choice| {
        let mut names = vec!["geometry", "x", "dx", "coefficient_rows"];
        names.extend(library::cut_bindings(choice));
        names.extend(library::input_gradient_bindings(choice));
        if choice.some_valid {
            names.push("valid");
        }
        names
    },
    writes: WRITES,
    constants,
};
