// A residual is added before the activation.

@group(0) @binding(6) var<storage, read> residual: array<Stored>;

fn with_residual(z: Pack, at: Place) -> Pack {
    return z + unpacked(residual[word_of(at.address)], at.address);
}
