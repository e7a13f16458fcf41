// An element-wise kernel over pairs of neighbours in memory, whichever channels they belong to:
// for packs of half a word, which cannot be written alone.
//
// To the walk the slice is one column whose packs are words. The kernel says what belongs to a
// channel (`coefficients`), what becomes of a value (`result_at`), where that goes (`put`), and what is to
// be done before and after a pair (`begin`, `finish`), whose bits in a mask lie in one word.
// Coefficients are loaded where the channel changes. That of a pair's first value is found by division.

/// Half of a pair: where it lies, and its channel.
struct Half {
    at: Place,
    channel: u32,
}

/// A value's index in the tensor. Past its end, in the last word, any place will do.
fn index_of(address: u32) -> u32 {
    return min(address + geometry.value_offset, geometry.values - 1u);
}

fn located(address: u32) -> Half {
    let index = index_of(address);
    let plane = index / geometry.inner;
    let outer = plane / geometry.all_columns;
    let place = index - plane * geometry.inner;
    let position = outer * geometry.inner + place;
    let channel = plane - outer * geometry.all_columns;
    return Half(Place(address, 0u, place, position, false), channel);
}

/// The half behind one.
fn after(half: Half) -> Half {
    let address = half.at.address + 1u;
    if index_of(address) == index_of(half.at.address) {
        return Half(Place(address, 0u, half.at.place_in_plane, half.at.number, false), half.channel);
    }
    if half.at.place_in_plane + 1u < geometry.inner {
        let place = Place(address, 0u, half.at.place_in_plane + 1u, half.at.number + 1u, false);
        return Half(place, half.channel);
    }
    // The same positions again, in the next channel, or the next positions in the first.
    if half.channel + 1u < geometry.all_columns {
        let place = Place(address, 0u, 0u, half.at.number + 1u - geometry.inner, false);
        return Half(place, half.channel + 1u);
    }
    return Half(Place(address, 0u, 0u, half.at.number + 1u, false), 0u);
}

fn map_tile(tile: Tile) {
    var walk = walk(tile);
    if walk.remaining == 0u {
        return;
    }
    var channel = located(2u * walk.address).channel;
    var c = coefficients(channel);
    while walk.remaining > 0u {
        let pair = next(&walk);
        var half = located(2u * pair.address);
        if half.channel != channel {
            channel = half.channel;
            c = coefficients(channel);
        }
        begin(half.at, c);
        let first = result_at(half.at, c);
        half = after(half);
        if half.channel != channel {
            channel = half.channel;
            c = coefficients(channel);
        }
        half.at.last = pair.last;
        put(pair.address, first, result_at(half.at, c));
        finish(half.at, c);
    }
}
