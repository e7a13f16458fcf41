// The pivot where every position counts: the median of three medians of three, taken at places
// spread over the batch and the plane.

fn probe(first: u32, index: u32) -> PerChannel {
    let address = first + geometry.probes[index / 4u][index % 4u];
    return sample(x_at(Place(address, 0u, 0u, 0u, false)), address);
}

/// A value of the channel that is no outlier.
fn pivot_of(tile: Tile, local: u32) -> PerChannel {
    let address = tile.address;
    return median(
        median(probe(address, 0u), probe(address, 1u), probe(address, 2u)),
        median(probe(address, 3u), probe(address, 4u), probe(address, 5u)),
        median(probe(address, 6u), probe(address, 7u), probe(address, 8u)),
    );
}
