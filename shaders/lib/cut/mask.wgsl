// What the activation cut is read from the mask that the forward pass wrote.

@group(0) @binding(8) var<storage, read> mask: array<u32>;

struct Cut {
    /// The index of the column's first word.
    column: u32,
}

fn cut_of(column: u32) -> Cut {
    return Cut(mask_column(column));
}

/// The word that was read last.
var<private> cut_word: u32;

/// Reads the word that holds the bits of a place.
fn read_cut(at: Place, cut: Cut) {
    cut_word = mask[cut.column + mask_place(at).word];
}

/// The gradient of what enters the activation, at a place whose word was read.
fn gradient_before(dy: Pack, from_mean: Pack, at: Place, cut: Cut) -> Pack {
    return gradient_of(dy, flags_of(cut_word >> mask_place(at).shift));
}
