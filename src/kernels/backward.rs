//! The backward pass of training in one dispatch: `shaders/backward.wgsl`.

use super::{Axis, Choice, EntryPoint, Piece, Variant, library, piece, tile_constants};

/// What is declared `read_write` in the shader.
const WRITES: &[&str] = &["dx", "residual_gradient", "dgamma", "dbeta"];

fn pieces(choice: &Choice) -> Vec<Piece> {
    let mut pieces = library::over_tensors(choice);
    pieces.extend([
        piece!("lib/input/x"),
        library::dy(choice),
        piece!("lib/valid/all"),
        library::residual_gradient(choice),
        library::map(choice),
    ]);
    pieces.extend(library::cut(choice));
    pieces.extend([
        piece!("gradients"),
        piece!("lib/coefficients/computed"),
        piece!("input_gradient"),
        piece!("backward"),
    ]);
    pieces
}

fn constants(variant: &Variant) -> Vec<(&'static str, f64)> {
    let mut constants = tile_constants(variant);
    constants.extend([("PRODUCTS", 1.0), ("BATCH_STATISTICS", 1.0)]);
    constants
}

pub(crate) const WHOLE: EntryPoint = EntryPoint {
    label: "backward.whole",
    name: "backward",
    axes: &[
        Axis::Form,
        Axis::Activation,
        Axis::Residual,
        Axis::ResidualGradient,
        Axis::InPlace,
        Axis::Shared,
    ],
    pieces,
    bindings: |choice| {
        let mut names = vec!["geometry", "x", "dx", "gamma", "saved", "dgamma", "dbeta"];
        names.extend(library::cut_bindings(choice));
        if choice.recomputed() {
            names.push("beta");
        }
        names.extend(library::input_gradient_bindings(choice));
        names
    },
    writes: WRITES,
    constants,
};
