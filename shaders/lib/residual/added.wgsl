// A residual is added before the activation.

@group(0) @binding(6) var<storage, read> residual: array<Stored>;

/// What was read last.
var<private> residual_stored: Stored;

/// Twins are read at once, for the first of them.
fn with_residual(z: Pack, at: Place) -> Pack {
    if at.twin == 0u {
        residual_stored = residual[word_of(at.address)];
    }
    return z + unpacked(residual_stored, at);
}
