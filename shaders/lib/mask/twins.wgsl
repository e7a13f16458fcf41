// Masks written by lib/map/columns.wgsl, whose lanes take twins side by side: packs are counted so that twins
// are neighbours in their lane's walk.

fn mask_number(at: Place) -> u32 {
    let both = at.number / NUMBERS - geometry.first_number;
    let lanes = 1u << geometry.mask_shift;
    let step = 2u * (both >> geometry.mask_shift) + at.twin;
    return step * lanes + (both & (lanes - 1u));
}

/// And their columns are counted in the tensor.
fn mask_offset(at: Place) -> u32 {
    return 0u;
}
