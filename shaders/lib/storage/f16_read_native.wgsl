// Reads IEEE 754 half precision, two in a word, by the device's own instruction.

fn values_of(word: u32) -> vec2<f32> {
    return unpack2x16float(word);
}
