// Storage of a pack of four in 16 bits each: two words.

/// What lies in memory for a pack.
alias Stored = vec2<u32>;

fn unpacked(stored: Stored, at: Place) -> Pack {
    return vec4<f32>(values_of(stored.x), values_of(stored.y));
}

/// What is stored for a pack; `next` is the pack behind it, where two share a word.
fn packed(pack: Pack, next: Pack) -> Stored {
    return vec2<u32>(halves_of(pack.xy), halves_of(pack.zw));
}
