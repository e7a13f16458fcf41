// bfloat16, the upper half of an f32, two in a word.

fn values_of(word: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

/// Rounds to nearest even.
fn half_of(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    // A carry goes into the exponent, where it belongs, up to infinity.
    let rounded = (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
    return select(rounded, 0x7fc0u, (bits & 0x7fffffffu) > 0x7f800000u);
}
