// In place: y is written over x.

fn x_at(address: u32) -> Pack {
    return unpacked(y[word_of(address)], address);
}
