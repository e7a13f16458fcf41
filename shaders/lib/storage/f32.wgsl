// Storage of f32: as it is.

/// What lies in memory for a pack.
alias Stored = Pack;

fn unpacked(stored: Stored, at: Place) -> Pack {
    return stored;
}

/// What is stored for a pack; `next` is the pack behind it, where two share a word.
fn packed(pack: Pack, next: Pack) -> Stored {
    return pack;
}
