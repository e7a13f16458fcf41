// An address counts values: a column's plane may begin within a pack, and end within one. The last pack of the
// last plane may lie behind the tensor, where a read gives anything: no value of it is the column's own.

/// From a pack of a plane to the next.
const PLACE_STEP: u32 = 4u;

/// From a plane to the next.
fn plane_size() -> u32 {
    return geometry.inner;
}

/// Which values of a pack belong to the column whose walk came to it.
fn own_at(at: Place) -> Flags {
    // What lies before the plane wraps around, and is beyond it too.
    let first = 4u * at.place_in_plane - (at.address & 3u);
    return (vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u)) < vec4<u32>(geometry.inner);
}
