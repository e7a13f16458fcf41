// Packing "mixed": to an element-wise kernel the tensor is rows of packs, each of one, two or four samples, and a
// pack's place in its row is its column: the same channels in all rows. Types are those of the packing "channels";
// what is loaded for a column is gathered.
//
// Of planes of two values, a pack is two planes; of longer ones it has a part of one, and of the next if any.
// `per_channel` does not use what is loaded for the two values between, and a compiler leaves that out.

/// The channel of the plane in which a column begins, twice, and that of the next plane, twice.
fn channels_of(column: u32) -> vec4<u32> {
    let first = 4u * column / geometry.inner % geometry.all_columns;
    let next = first + 1u;
    let wrapped = select(next, 0u, next == geometry.all_columns);
    return vec4<u32>(first, first, wrapped, wrapped);
}

/// What belongs to a column, from what belongs to its `channels_of`.
fn per_channel(column: u32, x: f32, y: f32, z: f32, w: f32) -> PerChannel {
    let of_first = geometry.inner - 4u * column % geometry.inner;
    let is_of_next = vec4<u32>(0u, 1u, 2u, 3u) >= vec4<u32>(of_first);
    return select(PerChannel(x), PerChannel(w), is_of_next);
}
