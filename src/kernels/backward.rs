//! The backward pass of training with sums and gradient of x in one kernel: `shaders/backward.wgsl`.

use super::{Axis, Choice, EntryPoint, Piece, Variant, library, piece, tile_constants};

/// What is declared `read_write` in the shader.
const WRITES: &[&str] = &["dx", "residual_gradient", "dgamma", "dbeta", "partials"];

fn pieces(choice: &Choice) -> Vec<Piece> {
    let mut pieces = library::over_tensors(choice);
    pieces.extend([
        piece!("lib/input/x"),
        library::dy(choice),
        library::valid(choice),
        library::residual_gradient(choice),
        library::saved(choice),
        library::affine(choice),
        library::map_of_columns(choice),
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

fn bindings(choice: &Choice) -> Vec<&'static str> {
    let mut names = vec!["geometry", "x", "dx", "gamma", "saved", "dgamma", "dbeta"];
    names.extend(library::cut_bindings(choice));
    if choice.recomputed() {
        names.push("beta");
    }
    if choice.some_valid {
        names.push("valid");
    }
    names.extend(library::input_gradient_bindings(choice));
    names
}

/// All of it.
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
    bindings,
    writes: WRITES,
    constants,
};

/// All that comes after [`super::gradients::PARTIAL`].
pub(crate) const FROM_PARTIALS: EntryPoint = EntryPoint {
    label: "backward.from_partials",
    name: "from_partials",
    axes: &[
        Axis::Form,
        Axis::Activation,
        Axis::Residual,
        Axis::ResidualGradient,
        Axis::Valid,
        Axis::InPlace,
        Axis::Shared,
    ],
    pieces,
    bindings: |choice| {
        let mut names = bindings(choice);
        names.push("partials");
        names
    },
    writes: WRITES,
    constants,
};
