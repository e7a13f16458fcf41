// A word of 64 bits: for devices that store word by word.

/// The word with these halves.
///
/// The maximum is the word itself. Without it, lavapipe's compiler puts the word together, and repeats arithmetic
/// that leads to it, in the loop in which one lane after the other stores.
fn wide_word(low: u32, high: u32) -> u64 {
    let upper = u64(high);
    return max(u64(low) | (upper << 32u), upper);
}
