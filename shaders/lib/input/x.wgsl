// The input of a kernel that reads x.

@group(0) @binding(2) var<storage, read> x: array<Stored>;

/// What was read last.
var<private> x_stored: Stored;

/// Twins are read at once, for the first of them.
fn x_at(at: Place) -> Pack {
    if at.twin == 0u {
        x_stored = x[word_of(at.address)];
    }
    return unpacked(x_stored, at);
}
