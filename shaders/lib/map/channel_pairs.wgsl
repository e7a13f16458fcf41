// An element-wise kernel over all of two neighbouring channels, word by word: for packs of half a word, which
// cannot be written alone, in planes that begin or end within a word. Of every sample, the two planes together
// are whole words.
//
// The kernel says what belongs to a channel (`coefficients`), what becomes of a value (`result_at`), and where
// that goes (`put`). No mask is written or read.

/// The place of one of a word's values.
fn half_at(word: u32, half: u32) -> Place {
    return Place(2u * word + half, 0u, 0u, 0u, false);
}

/// What belongs to the second channel, if the value is one of that; else what belongs to the first.
fn of_value(value: u32, first: Coefficients, second: Coefficients) -> Coefficients {
    var c = first;
    if value >= geometry.plane {
        c = second;
    }
    return c;
}

fn map_tile(tile: Tile) {
    if !tile.live {
        return;
    }
    let column = tile.column & ~1u;
    let c = coefficients(column);
    let d = coefficients(column + 1u);
    // Words are numbered sample by sample; so many are in the two planes of one as there are values in a plane.
    let words = geometry.length;
    let sample_size = geometry.columns * geometry.plane / 2u;
    let first_word = (geometry.first_address + column * geometry.plane) / 2u;
    for (var number = tile.lane * LANES_X + (tile.column & 1u); number < words; number += 2u * LANES) {
        // Two words are under way together.
        let other = select(number, number + LANES, number + LANES < words);
        let sample_0 = number / geometry.plane;
        let sample_1 = other / geometry.plane;
        let place_0 = number - sample_0 * geometry.plane;
        let place_1 = other - sample_1 * geometry.plane;
        let word_0 = first_word + sample_0 * sample_size + place_0;
        let word_1 = first_word + sample_1 * sample_size + place_1;
        let low_0 = result_at(half_at(word_0, 0u), of_value(2u * place_0, c, d));
        let high_0 = result_at(half_at(word_0, 1u), of_value(2u * place_0 + 1u, c, d));
        let low_1 = result_at(half_at(word_1, 0u), of_value(2u * place_1, c, d));
        let high_1 = result_at(half_at(word_1, 1u), of_value(2u * place_1 + 1u, c, d));
        put(word_0, low_0, high_0);
        if number + LANES < words {
            put(word_1, low_1, high_1);
        }
    }
}
