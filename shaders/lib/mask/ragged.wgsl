// Masks written by lib/map/columns.wgsl over packs whose values may belong to several channels: to that map
// the tensor is rows of packs, as many as words lie between a column's words.

/// Whether a lane of a reduction finds its packs, four by four, in one word and in order.
const FOUR_IN_WORD: bool = false;

fn mask_number(at: Place, words: Words) -> u32 {
    return word_of(at.address) / words.step;
}

/// The first word of the map's column, which is not that of this walk.
fn mask_offset(at: Place, words: Words) -> u32 {
    return word_of(at.address) % words.step;
}
