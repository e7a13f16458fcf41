// Where packs mix channels, to an element-wise kernel the tensor is rows of packs, and a pack's place in its
// row is its column: the same channels in all rows. Its types are those of the packing "channels", but these
// four need not be neighbours.

/// The channels of a column's values.
fn channels_of(column: u32) -> vec4<u32> {
    let value = vec4<u32>(4u * column) + vec4<u32>(0u, 1u, 2u, 3u);
    return value / geometry.inner % geometry.all_columns;
}
