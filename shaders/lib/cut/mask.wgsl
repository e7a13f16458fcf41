// What the activation cut is read from the mask that the forward pass wrote.

@group(0) @binding(8) var<storage, read> mask: array<u32>;

struct Cut {
    words: Words,
}

fn cut_of(column: u32) -> Cut {
    return Cut(words_of(column));
}

/// What is left of the word that was read last: the bits of the pack that comes next are the lowest.
var<private> cut_bits: u32;

/// Reads the word that holds the bits of a pack, and of those that follow it in its lane's walk.
fn read_cut(at: Place, cut: Cut) {
    let place = mask_place(at, cut.words);
    cut_bits = mask[place.word] >> place.shift;
}

/// The same in a reduction, for four packs from one on: where they are in one word.
fn read_cut_of_four(at: Place, cut: Cut) {
    if FOUR_IN_WORD {
        read_cut(at, cut);
    }
}

/// And for one pack, where they are not.
fn read_cut_of_one(at: Place, cut: Cut) {
    if !FOUR_IN_WORD {
        read_cut(at, cut);
    }
}

/// The gradient of what enters the activation, of the pack that comes next.
fn gradient_before(dy: Pack, from_mean: Pack, cut: Cut) -> Pack {
    let passed = flags_of(cut_bits);
    cut_bits >>= VALUES;
    return gradient_of(dy, passed);
}
