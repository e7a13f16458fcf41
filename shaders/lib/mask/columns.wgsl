// Masks written by lib/map/columns.wgsl: packs are counted in their column of the slice.

/// Whether a lane of a reduction finds its packs, four by four, in one word and in order.
const FOUR_IN_WORD: bool = true;

fn mask_number(at: Place, words: Words) -> u32 {
    return at.number - words.first_number;
}

/// And their columns are counted in the tensor.
fn mask_offset(at: Place, words: Words) -> u32 {
    return 0u;
}
