// Where packs mix channels, to an element-wise kernel the tensor is rows of packs, and a pack's place in its
// row is its column: the same channels in all rows. Its types are those of the packing "channels", but these
// four need not be neighbours.
//
// Of planes of one value, each of a pack's values has a channel of its own.

/// The channels of a column's values.
fn channels_of(column: u32) -> vec4<u32> {
    return (vec4<u32>(4u * column) + vec4<u32>(0u, 1u, 2u, 3u)) % geometry.all_columns;
}

/// What belongs to a column, from what belongs to its `channels_of`.
fn per_channel(column: u32, x: f32, y: f32, z: f32, w: f32) -> PerChannel {
    return PerChannel(x, y, z, w);
}
