// bfloat16, the upper half of an f32, two in a word.

fn values_of(word: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

/// Rounds to nearest even; the upper half counts.
fn rounded(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    // A carry goes into the exponent, where it belongs, up to infinity.
    let up = bits + 0x7fffu + ((bits >> 16u) & 1u);
    return select(up, 0x7fc00000u, (bits & 0x7fffffffu) > 0x7f800000u);
}

fn halves_of(values: vec2<f32>) -> u32 {
    return (rounded(values.x) >> 16u) | (rounded(values.y) & 0xffff0000u);
}
