// The mask of an activation behind a residual: one bit per value, set where the value passed.
//
// A word holds the bits of 32 / VALUES packs, all written by one lane of the map that writes it:
// those that follow one another in its walk, 2^mask_shift packs apart. The host says how far
// apart the words of a column lie, and the columns.

const PACKS_PER_WORD: u32 = 32u / VALUES;

struct MaskPlace {
    /// The index of the word, from that of the column's first on.
    word: u32,
    /// Where in the word the pack's bits start.
    shift: u32,
}

fn mask_place(at: Place) -> MaskPlace {
    let number = mask_number(at);
    let lanes = 1u << geometry.mask_shift;
    let step = number >> geometry.mask_shift;
    let word = step / PACKS_PER_WORD * lanes + (number & (lanes - 1u));
    let index = word * geometry.mask_word_step + mask_offset(at);
    return MaskPlace(index, step % PACKS_PER_WORD * VALUES);
}

/// The index of the first word of a vector's column.
fn mask_column(vector: u32) -> u32 {
    return geometry.mask_first + vector / VECTORS * geometry.mask_column_step;
}
