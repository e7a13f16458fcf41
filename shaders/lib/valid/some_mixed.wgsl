// Only the positions whose bit is set count, where a pack's values may belong to several channels.

/// One bit per position, in the order of a channel's values.
@group(0) @binding(9) var<storage, read> valid: array<u32>;

fn valid_at(at: Place) -> Flags {
    let value = vec4<u32>(4u * word_of(at.address)) + vec4<u32>(0u, 1u, 2u, 3u);
    let plane = value / geometry.inner;
    let outer = plane / geometry.all_columns;
    let position = outer * geometry.inner + (value - plane * geometry.inner);
    let word = position / 32u;
    let words = vec4<u32>(valid[word.x], valid[word.y], valid[word.z], valid[word.w]);
    let is_valid = ((words >> (position % 32u)) & vec4<u32>(1u)) != vec4<u32>();
    return is_valid & own_at(at);
}
