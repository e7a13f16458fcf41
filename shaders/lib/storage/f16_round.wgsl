// Writes IEEE 754 half precision, two in a word, by integer arithmetic: it takes no capability of the device,
// and rounds as it should on all.

/// Rounds to nearest even, as pack2x16float need not.
fn halves_of(values: vec2<f32>) -> u32 {
    return half_of(values.x) | (half_of(values.y) << 16u);
}

fn half_of(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let magnitude = bits & 0x7fffffffu;
    // From 2^-14 on: another bias of the exponent, and half a unit less one bit, or more if odd.
    // A carry goes into the exponent, where it belongs, up to infinity.
    let normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13u) & 1u)) >> 13u;
    // Below, a unit is 2^-24, as it is of f32 at 0.5: that sum is rounded as it should be.
    let subnormal = bitcast<u32>(bitcast<f32>(magnitude) + 0.5) - 0x3f000000u;
    var half = select(normal, subnormal, magnitude < 0x38800000u);
    // From 2^16 on: infinity, or not a number.
    half = select(half, 0x7c00u, magnitude >= 0x47800000u);
    half = select(half, 0x7e00u, magnitude > 0x7f800000u);
    return half | ((bits >> 16u) & 0x8000u);
}
