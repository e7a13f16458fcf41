// Storage of two packs of four f32 as four words of 64 bits: for devices that load word by word.

/// What lies in memory for both packs.
alias Stored = vec4<u64>;

fn unpacked(stored: Stored, at: Place) -> Pack {
    let words = select(stored.xy, stored.zw, at.twin == 1u);
    return vec4<f32>(values_of(words.x), values_of(words.y));
}

/// What is stored for a pack and the one behind it.
fn packed(pack: Pack, next: Pack) -> Stored {
    return vec4<u64>(
        word_of_values(pack.xy),
        word_of_values(pack.zw),
        word_of_values(next.xy),
        word_of_values(next.zw),
    );
}
