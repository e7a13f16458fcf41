// What lies in memory is packs of four values, and an address counts the values.

/// The index of what holds the pack at an address.
fn word_of(address: u32) -> u32 {
    return address / 4u;
}
