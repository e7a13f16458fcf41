// What the activation cut is kept in a mask, since the backward pass does not see the residual.

@group(0) @binding(8) var<storage, read_write> mask: array<u32>;

struct Kept {
    words: Words,
}

/// The word that this lane is at: its index, …
var<private> word_at: u32;
/// … its bits, and how many of them are there.
var<private> word: u32;
var<private> word_bits: u32;

fn kept_of(column: u32) -> Kept {
    return Kept(words_of(column));
}

/// Before a pack, and those that follow it in its lane's walk, up to `write_kept`.
fn begin_kept(at: Place, kept: Kept) {
    let place = mask_place(at, kept.words);
    word_at = place.word;
    word = select(word, 0u, place.shift == 0u);
    word_bits = place.shift;
}

/// Keeps what comes next.
fn keep(z: Pack) {
    word |= bits_of(passes(z)) << word_bits;
    word_bits += VALUES;
}

/// Writes the word if it is full, or `at` its lane's last place.
fn write_kept(at: Place) {
    if at.last || word_bits == 32u {
        mask[word_at] = word;
    }
}
