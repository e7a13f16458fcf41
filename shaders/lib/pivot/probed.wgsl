// The pivot where every position counts: the median of three medians of three, taken at places
// spread over the batch and the plane.

fn probe(first: u32, index: u32) -> PerVector {
    let address = first + geometry.probes[index / 4u][index % 4u];
    let value = sample(x_at(Place(address, 0u, 0u, 0u, false)), address);
    if VECTORS == 2u {
        return PerVector(value, sample(x_at(Place(address, 1u, 0u, 0u, false)), address));
    }
    return PerVector(value, value);
}

/// A value of each channel that is no outlier.
fn pivots_of(tile: Tile, local: u32) -> PerVector {
    let address = tile.address;
    return medians(
        medians(probe(address, 0u), probe(address, 1u), probe(address, 2u)),
        medians(probe(address, 3u), probe(address, 4u), probe(address, 5u)),
        medians(probe(address, 6u), probe(address, 7u), probe(address, 8u)),
    );
}
