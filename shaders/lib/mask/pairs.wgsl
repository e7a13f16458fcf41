// Masks written by lib/map/pairs.wgsl, whose lanes take pairs of neighbours side by side: packs are
// counted so that the two of a pair are neighbours in their lane's walk.

fn mask_number(at: Place) -> u32 {
    let value = at.address + geometry.value_offset;
    let pair = value / 2u;
    let lanes = 1u << geometry.mask_shift;
    let step = 2u * (pair >> geometry.mask_shift) + (value & 1u);
    return step * lanes + (pair & (lanes - 1u));
}

/// And all lie in one column.
fn mask_offset(at: Place) -> u32 {
    return 0u;
}
