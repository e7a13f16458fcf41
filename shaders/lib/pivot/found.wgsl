// The pivot where only some positions count: the median of three medians of three, of valid values
// that nine of the lanes come to first.

/// The values that a lane found.
fn found_by(local: u32) -> PerVector {
    if VECTORS == 2u {
        return PerVector(shared_mean[local], shared_m2[local]);
    }
    return PerVector(shared_mean[local], shared_mean[local]);
}

/// Of each channel the one value, or else the other.
fn either(one: PerVector, is_one: OfEach, other: PerVector) -> PerVector {
    return PerVector(
        select(other.first, one.first, is_one),
        select(other.second, one.second, is_one),
    );
}

/// What one of nine lanes found, or else the first that found anything.
fn found(column: u32, index: u32, first: PerVector) -> PerVector {
    let lane = (2u * index + 1u) * LANES_Y / 18u;
    let own = column + lane * LANES_X;
    return either(found_by(own), shared_count[own] > Count(0.0), first);
}

/// A valid value of each channel, of several lanes one that is no outlier; 0 if there is none in the split.
fn pivots_of(tile: Tile, local: u32) -> PerVector {
    var walk = walk(tile);
    var count = Count(0.0);
    // The second of two vectors is valid where the first is.
    var value = PerVector();
    while walk.remaining > 0u && least(count) == 0.0 {
        let two = next_two(walk.remaining > 1u, &walk);
        let first = loaded(two.first, true);
        let second = loaded(two.second, true);
        let here = max(counted(first.valid), counted(second.valid));
        if !are_alike(here, Count(0.0)) {
            let other = sample_of(second.pack, second.valid);
            let from_first = counted(first.valid) > Count(0.0);
            let one = select(other, sample_of(first.pack, first.valid), from_first);
            value = either(PerVector(one, other), here > Count(0.0), value);
            count = max(count, here);
        }
    }
    shared_count[local] = count;
    shared_mean[local] = value.first;
    if VECTORS == 2u {
        shared_m2[local] = value.second;
    }
    workgroupBarrier();

    let column = local % LANES_X;
    var first = found_by(column);
    var known = shared_count[column];
    for (var lane = 1u; lane < LANES_Y && least(known) == 0.0; lane += 1u) {
        let own = column + lane * LANES_X;
        let is_new = (shared_count[own] > Count(0.0)) & (known == Count(0.0));
        first = either(found_by(own), is_new, first);
        known = max(known, shared_count[own]);
    }
    let pivots = medians(
        medians(found(column, 0u, first), found(column, 1u, first), found(column, 2u, first)),
        medians(found(column, 3u, first), found(column, 4u, first), found(column, 5u, first)),
        medians(found(column, 6u, first), found(column, 7u, first), found(column, 8u, first)),
    );
    workgroupBarrier();
    return pivots;
}
