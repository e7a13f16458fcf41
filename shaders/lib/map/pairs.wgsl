// An element-wise kernel over pairs of neighbours in memory, whichever channels they belong to:
// for packs of half a word, which cannot be written alone.
//
// To the walk the slice is one column whose packs are words. The kernel says what belongs to a
// channel (`coefficients`), what becomes of a value (`result_at`) and where that goes (`put`).

/// Half of the pair at a place: where it lies, and its channel.
struct Half {
    at: Place,
    channel: u32,
}

fn half_at(pair: Place, second: u32) -> Half {
    let address = 2u * pair.address + second;
    // The value's index in the tensor. Past its end, in the last word, any place will do.
    let index = min(address + geometry.value_offset, geometry.values - 1u);
    let plane = index / geometry.inner;
    let outer = plane / geometry.all_columns;
    let position = outer * geometry.inner + (index - plane * geometry.inner);
    return Half(
        Place(address, position, pair.last && second == 1u),
        plane - outer * geometry.all_columns,
    );
}

fn map_tile(tile: Tile) {
    var walk = walk(tile);
    while walk.remaining > 0u {
        let pair = next(&walk);
        let first = half_at(pair, 0u);
        let second = half_at(pair, 1u);
        let result = result_at(first.at, coefficients(first.channel));
        put(pair.address, result, result_at(second.at, coefficients(second.channel)));
    }
}
