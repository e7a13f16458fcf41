// The mask of an activation behind a residual: one bit per value, set where the value passed.
//
// A word holds the bits of 32 / VALUES packs, all written by one lane of the map that writes it:
// those that follow one another in its walk, 2^mask_shift packs apart. The host says how far
// apart the words of a column lie, and the columns.

const PACKS_PER_WORD: u32 = 32u / VALUES;

/// The words of a column. Loaded once: see `Steps` in lib/tile.
struct Words {
    /// The index of the first.
    first: u32,
    /// From one to the next.
    step: u32,
    /// 2^lanes_log2 lanes wrote them.
    lanes_log2: u32,
    /// The number of the slice's first pack in its column.
    first_number: u32,
}

/// The words of a vector's column.
fn words_of(vector: u32) -> Words {
    return Words(
        geometry.mask_first + vector / VECTORS * geometry.mask_column_step,
        geometry.mask_word_step,
        geometry.mask_shift,
        geometry.first_number,
    );
}

struct MaskPlace {
    /// The index of the word.
    word: u32,
    /// Where in the word the pack's bits start.
    shift: u32,
}

fn mask_place(at: Place, words: Words) -> MaskPlace {
    let number = mask_number(at, words);
    let lanes = 1u << words.lanes_log2;
    let step = number >> words.lanes_log2;
    let word = step / PACKS_PER_WORD * lanes + (number & (lanes - 1u));
    let index = words.first + word * words.step + mask_offset(at, words);
    // The maximum is the index itself: see lib/wide_word.
    return MaskPlace(max(index, words.first), step % PACKS_PER_WORD * VALUES);
}
