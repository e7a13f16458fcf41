// An address counts packs.

/// From a pack of a plane to the next.
const PLACE_STEP: u32 = 1u;

/// From a plane to the next.
fn plane_size() -> u32 {
    return geometry.plane;
}

/// Which values of a pack belong to the column whose walk came to it.
fn own_at(at: Place) -> Flags {
    return Flags(true);
}
