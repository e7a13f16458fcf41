// The pivot where only some positions count: the median of three medians of three, of the first
// valid values that nine of the lanes come to.

fn found(column: u32, index: u32, first: u32) -> PerVector {
    let lane = (2u * index + 1u) * LANES_Y / 18u;
    let own = column + lane * LANES_X;
    let at = select(first, own, shared_count[own] > 0.0);
    if VECTORS == 2u {
        return PerVector(shared_mean[at], shared_m2[at]);
    }
    return PerVector(shared_mean[at], shared_mean[at]);
}

/// A valid value of each channel, of several lanes one that is no outlier; 0 if there is none in the split.
fn pivots_of(tile: Tile, local: u32) -> PerVector {
    var walk = walk(tile);
    var count = 0.0;
    var value = PerChannel(0.0);
    // Of the second of two vectors, which is valid where the first is.
    var other = PerChannel(0.0);
    while walk.remaining > 0u && count == 0.0 {
        let two = next_two(walk.remaining > 1u, &walk);
        let first = loaded(two.first, true);
        let second = loaded(two.second, true);
        let from_first = counted(first.valid) > 0.0;
        count = max(counted(first.valid), counted(second.valid));
        if count > 0.0 {
            other = sample_of(second.pack, second.valid);
            value = select(other, sample_of(first.pack, first.valid), from_first);
        }
    }
    shared_count[local] = count;
    shared_mean[local] = value;
    if VECTORS == 2u {
        shared_m2[local] = other;
    }
    workgroupBarrier();

    let column = local % LANES_X;
    var first = column;
    for (var lane = 1u; lane < LANES_Y && shared_count[first] == 0.0; lane += 1u) {
        first += LANES_X;
    }
    let pivots = medians(
        medians(found(column, 0u, first), found(column, 1u, first), found(column, 2u, first)),
        medians(found(column, 3u, first), found(column, 4u, first), found(column, 5u, first)),
        medians(found(column, 6u, first), found(column, 7u, first), found(column, 8u, first)),
    );
    workgroupBarrier();
    return pivots;
}
