// Writes IEEE 754 half precision, two in a word, by the device's own instruction.

fn halves_of(values: vec2<f32>) -> u32 {
    return pack2x16float(values);
}
