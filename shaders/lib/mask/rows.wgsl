// Masks written by lib/map/columns.wgsl over packs whose values may belong to several channels: to that map
// the tensor is rows of packs, as many as words lie between a column's words.

fn mask_number(at: Place) -> u32 {
    return word_of(at.address) / geometry.mask_word_step;
}

/// The first word of the map's column, which is not that of this walk.
fn mask_offset(at: Place) -> u32 {
    return word_of(at.address) % geometry.mask_word_step;
}
