// In place: dx is written over dy.

fn dy_at(address: u32) -> Pack {
    return unpacked(dx[word_of(address)], address);
}
