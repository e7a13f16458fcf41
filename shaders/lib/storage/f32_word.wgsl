// Two f32 in a word of 64 bits.

fn values_of(word: u64) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(u32(word)), bitcast<f32>(u32(word >> 32u)));
}

fn word_of_values(values: vec2<f32>) -> u64 {
    return wide_word(bitcast<u32>(values.x), bitcast<u32>(values.y));
}
