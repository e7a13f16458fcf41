// An address counts packs.

/// From a pack of a plane to the next.
const PLACE_STEP: u32 = 1u;

/// From a plane to the next.
fn plane_size() -> u32 {
    return geometry.plane;
}

/// The index of what holds the pack at an address.
fn word_of(address: u32) -> u32 {
    return address;
}

/// Which values of a pack belong to the column whose walk came to it.
fn own_at(at: Place) -> Flags {
    return Flags(true);
}
