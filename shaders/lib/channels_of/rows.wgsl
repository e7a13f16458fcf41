// Packing "rows": two or four rows of all channels are one row of whole packs, of which each is a column: its
// values belong to the same channels in all rows, but not to neighbours, and each lies in a row of its own.
// Types are those of the packing "channels"; what is loaded for a column is gathered.

/// The channels of a column's values.
fn channels_of(column: u32) -> vec4<u32> {
    return (vec4<u32>(4u * column) + vec4<u32>(0u, 1u, 2u, 3u)) % geometry.all_columns;
}

/// What belongs to a column, from what belongs to its `channels_of`.
fn per_channel(column: u32, x: f32, y: f32, z: f32, w: f32) -> PerChannel {
    return PerChannel(x, y, z, w);
}
