// Storage of a pack of one in 16 bits: half a word. It can be read alone, but written only together
// with its neighbour, whichever channel that belongs to: see lib/map/pairs.wgsl.

/// What lies in memory for two packs.
alias Stored = u32;

fn unpacked(stored: Stored, at: Place) -> Pack {
    let values = values_of(stored);
    return select(values.x, values.y, (at.address & 1u) == 1u);
}

/// What is stored for a pack; `next` is the pack behind it, where two share a word.
fn packed(pack: Pack, next: Pack) -> Stored {
    return halves_of(vec2<f32>(pack, next));
}
