// In place: y is written over x.

/// What was read last.
var<private> x_stored: Stored;

/// Twins are read at once, for the first of them.
fn x_at(at: Place) -> Pack {
    if at.twin == 0u {
        x_stored = y[word_of(at.address)];
    }
    return unpacked(x_stored, at);
}
