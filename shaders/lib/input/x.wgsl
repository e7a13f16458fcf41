// The input of a kernel that reads x.

@group(0) @binding(2) var<storage, read> x: array<Stored>;

fn x_at(address: u32) -> Pack {
    return unpacked(x[word_of(address)], address);
}
