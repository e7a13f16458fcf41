// What lies in memory is packs, and an address counts them.

/// The index of what holds the pack at an address.
fn word_of(address: u32) -> u32 {
    return address;
}
