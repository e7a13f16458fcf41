// Storage of a pack of four f32 as two words of 64 bits: for devices that load word by word.

/// What lies in memory for a pack.
alias Stored = vec2<u64>;

fn unpacked(stored: Stored, at: Place) -> Pack {
    return vec4<f32>(values_of(stored.x), values_of(stored.y));
}

/// What is stored for a pack; `next` is the pack behind it, where two share a word.
fn packed(pack: Pack, next: Pack) -> Stored {
    return vec2<u64>(word_of_values(pack.xy), word_of_values(pack.zw));
}
