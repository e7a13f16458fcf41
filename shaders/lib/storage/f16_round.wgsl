// Writes IEEE 754 half precision, two in a word, by integer arithmetic: it takes no capability of the device,
// and rounds as it should on all.

/// Rounds to nearest even, as pack2x16float need not.
fn halves_of(values: vec2<f32>) -> u32 {
    let bits = bitcast<vec2<u32>>(values);
    let magnitudes = bits & vec2<u32>(0x7fffffffu);
    let halves = half_of(magnitudes.x) | (half_of(magnitudes.y) << 16u);
    return halves | ((bits.x >> 16u) & 0x8000u) | (bits.y & 0x80000000u);
}

/// Of a value that is not negative, from its bits.
fn half_of(magnitude: u32) -> u32 {
    // From 2^-14 on: another bias of the exponent, and half a unit less one bit, or more if odd.
    // A carry goes into the exponent, where it belongs. Below, it is less than what follows.
    let odd = (magnitude >> 13u) & 1u;
    let normal = bitcast<i32>(magnitude + odd - 0x37fff001u) >> 13u;
    // Up to there: a unit is 2^-24, as it is of f32 at 0.5, so that sum is rounded as it should be.
    let small = bitcast<f32>(min(magnitude, 0x38800000u));
    let subnormal = bitcast<i32>(small + 0.5) - 0x3f000000;
    // From 2^16 on: infinity, or not a number.
    let number = u32(min(max(normal, subnormal), 0x7c00));
    return select(number, 0x7e00u, magnitude > 0x7f800000u);
}
