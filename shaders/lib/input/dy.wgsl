// The input of a kernel that reads dy.

@group(0) @binding(4) var<storage, read> dy: array<Stored>;

/// What was read last.
var<private> dy_stored: Stored;

/// Twins are read at once, for the first of them.
fn dy_at(at: Place) -> Pack {
    if at.twin == 0u {
        dy_stored = dy[word_of(at.address)];
    }
    return unpacked(dy_stored, at);
}
