// Masks written by lib/map/columns.wgsl: packs are counted in their column of the slice.

fn mask_number(at: Place) -> u32 {
    return at.number - geometry.first_number;
}

/// And their columns are counted in the tensor.
fn mask_offset(at: Place) -> u32 {
    return 0u;
}
