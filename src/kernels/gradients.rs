//! Gradients of γ and β: `shaders/gradients.wgsl`.

use super::{Axis, Choice, EntryPoint, Piece, Variant, library, piece, tile_constants};

/// What is declared `read_write` in the shader.
const WRITES: &[&str] = &["partials", "sums", "dgamma", "dbeta", "coefficient_rows"];

fn pieces(choice: &Choice) -> Vec<Piece> {
    let mut pieces = library::over_tensors(choice);
    pieces.extend([
        piece!("lib/input/x"),
        piece!("lib/input/dy"),
        library::valid(choice),
        library::saved(choice),
        library::affine(choice),
    ]);
    pieces.extend(library::cut(choice));
    pieces.push(piece!("gradients"));
    pieces
}

fn constants(variant: &Variant) -> Vec<(&'static str, f64)> {
    let mut constants = tile_constants(variant);
    constants.push(("PRODUCTS", f64::from(u8::from(variant.choice.products))));
    constants
}

/// Sums over each column and split.
pub(crate) const PARTIAL: EntryPoint = EntryPoint {
    label: "gradients.partial",
    name: "partial",
    axes: &[
        Axis::Form,
        Axis::Activation,
        Axis::Residual,
        Axis::Valid,
        Axis::Products,
    ],
    pieces,
    bindings: |choice| {
        let mut names = vec!["geometry", "x", "dy", "saved", "partials"];
        names.extend(library::cut_bindings(choice));
        if choice.recomputed() {
            names.extend(["gamma", "beta"]);
        }
        if choice.some_valid {
            names.push("valid");
        }
        names
    },
    writes: WRITES,
    constants,
};

/// Sums over each column, of this shard of a batch.
pub(crate) const COLLECT: EntryPoint = EntryPoint {
    label: "gradients.collect",
    name: "collect",
    axes: &[Axis::FourChannels, Axis::Shared],
    pieces,
    bindings: |_| vec!["geometry", "saved", "partials", "sums", "dgamma", "dbeta"],
    writes: WRITES,
    constants,
};

/// Gradients of each column.
pub(crate) const MERGE: EntryPoint = EntryPoint {
    label: "gradients.merge",
    name: "merge",
    axes: &[Axis::FourChannels, Axis::Shared],
    pieces,
    bindings: |_| {
        vec![
            "geometry",
            "gamma",
            "beta",
            "saved",
            "partials",
            "dgamma",
            "dbeta",
            "coefficient_rows",
        ]
    },
    writes: WRITES,
    constants,
};

/// Values per channel in a partial result: Σg, Σg·(x − mean).
pub(crate) const SUMS_ROWS: u64 = 2;

/// Values per channel in what the gradient of x needs.
pub(crate) const COEFFICIENT_ROWS: u64 = 6;
