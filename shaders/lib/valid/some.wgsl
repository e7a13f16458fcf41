// Only the positions whose bit is set count.

/// One bit per position, in the order of a channel's values.
@group(0) @binding(9) var<storage, read> valid: array<u32>;

fn valid_at(at: Place) -> Flags {
    let position = at.number * PLACES;
    return flags_of_places(valid[position / 32u] >> (position % 32u));
}
