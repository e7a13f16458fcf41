// The input of a kernel that reads dy.

@group(0) @binding(4) var<storage, read> dy: array<Stored>;

fn dy_at(address: u32) -> Pack {
    return unpacked(dy[word_of(address)], address);
}
