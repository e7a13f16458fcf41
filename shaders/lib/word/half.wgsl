// A pack is half a word, and an address counts these.

/// The index of what holds the pack at an address.
fn word_of(address: u32) -> u32 {
    return address / 2u;
}
