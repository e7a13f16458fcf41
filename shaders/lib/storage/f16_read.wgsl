// Reads IEEE 754 half precision, two in a word, by integer arithmetic: it takes no capability of the
// device, and loses nothing below 2^-14.

fn values_of(word: u32) -> vec2<f32> {
    return vec2<f32>(value_of(word & 0xffffu), value_of(word >> 16u));
}

fn value_of(half: u32) -> f32 {
    let magnitude = half & 0x7fffu;
    // Another bias of the exponent, and once more for infinity and what is not a number.
    let bias = select(0x38000000u, 0x70000000u, magnitude >= 0x7c00u);
    let normal = (magnitude << 13u) + bias;
    // Below 2^-14, the unit is 2^-24.
    let subnormal = bitcast<u32>(f32(magnitude) * 5.9604644775390625e-8);
    let bits = select(normal, subnormal, magnitude < 0x400u);
    return bitcast<f32>(bits | ((half & 0x8000u) << 16u));
}
