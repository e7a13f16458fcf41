// Storage of two packs of four in 16 bits each as two words of 64 bits: for devices that load word by
// word.

/// What lies in memory for both packs.
alias Stored = vec2<u64>;

fn unpacked(stored: Stored, at: Place) -> Pack {
    let word = select(stored.x, stored.y, at.twin == 1u);
    return vec4<f32>(values_of(u32(word)), values_of(u32(word >> 32u)));
}

/// What is stored for a pack and the one behind it.
fn packed(pack: Pack, next: Pack) -> Stored {
    return vec2<u64>(
        wide_word(halves_of(pack.xy), halves_of(pack.zw)),
        wide_word(halves_of(next.xy), halves_of(next.zw)),
    );
}
