// A word of 64 bits: for devices that store word by word.

/// The word with these halves.
///
/// The maximum is the word itself. lavapipe's compiler takes what is only put together of other words apart
/// again where one lane after the other stores it, with all of the arithmetic; through a maximum it does
/// not see.
fn wide_word(low: u32, high: u32) -> u64 {
    let upper = u64(high);
    return max(u64(low) | (upper << 32u), upper);
}
