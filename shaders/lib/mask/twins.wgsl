// Masks written by lib/map/columns.wgsl, whose lanes take twins side by side: packs are counted so that twins
// are neighbours in their lane's walk. A word is asked for at the first of twins alone.

/// Whether a lane of a reduction finds its packs, four by four, in one word and in order.
const FOUR_IN_WORD: bool = true;

fn mask_number(at: Place, words: Words) -> u32 {
    let both = at.number / NUMBERS - words.first_number;
    let lanes = 1u << words.lanes_log2;
    let step = 2u * (both >> words.lanes_log2);
    return step * lanes + (both & (lanes - 1u));
}

/// And their columns are counted in the tensor.
fn mask_offset(at: Place, words: Words) -> u32 {
    return 0u;
}
