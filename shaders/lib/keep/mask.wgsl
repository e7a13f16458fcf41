// What the activation cut is kept in a mask, since the backward pass does not see the residual.

@group(0) @binding(8) var<storage, read_write> mask: array<u32>;

struct Kept {
    /// The index of the column's first word.
    column: u32,
}

/// The bits of the word that this lane is at.
var<private> word: u32;

fn kept_of(column: u32) -> Kept {
    return Kept(mask_column(column));
}

fn keep(z: Pack, at: Place) {
    let place = mask_place(at);
    let bits = bits_of(passes(z)) << place.shift;
    word = select(word, 0u, place.shift == 0u) | bits;
}

/// Writes the word if `at` is the last place whose bits it holds.
fn write_kept(at: Place, kept: Kept) {
    let place = mask_place(at);
    if at.last || place.shift + VALUES == 32u {
        mask[kept.column + place.word] = word;
    }
}
