// Masks written by lib/map/pairs.wgsl, whose lanes take pairs of neighbours side by side: packs are
// counted so that the two of a pair are neighbours in their lane's walk.

/// Whether a lane of a reduction finds its packs, four by four, in one word and in order.
const FOUR_IN_WORD: bool = false;

fn mask_number(at: Place, words: Words) -> u32 {
    let value = at.address + geometry.value_offset;
    let pair = value / 2u;
    let lanes = 1u << words.lanes_log2;
    let step = 2u * (pair >> words.lanes_log2) + (value & 1u);
    return step * lanes + (pair & (lanes - 1u));
}

/// And all lie in one column.
fn mask_offset(at: Place, words: Words) -> u32 {
    return 0u;
}
