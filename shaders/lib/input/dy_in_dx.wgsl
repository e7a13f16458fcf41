// In place: dx is written over dy.

/// What was read last.
var<private> dy_stored: Stored;

/// Twins are read at once, for the first of them.
fn dy_at(at: Place) -> Pack {
    if at.twin == 0u {
        dy_stored = dx[word_of(at.address)];
    }
    return unpacked(dy_stored, at);
}
