// Storage of a pack of four in 16 bits each as one word of 64 bits: for devices that load word by
// word.

/// What lies in memory for a pack.
alias Stored = u64;

fn unpacked(stored: Stored, at: Place) -> Pack {
    return vec4<f32>(values_of(u32(stored)), values_of(u32(stored >> 32u)));
}

/// What is stored for a pack; `next` is the pack behind it, where two share a word.
fn packed(pack: Pack, next: Pack) -> Stored {
    return wide_word(halves_of(pack.xy), halves_of(pack.zw));
}
