// An element-wise kernel over columns: a workgroup takes some columns and one split of each.
//
// The kernel says what belongs to a channel (`coefficients`), what becomes of a pack (`result_at`),
// where that goes (`put`), and what is to be done before and after a pack, or four (`begin`, `finish`), whose
// results are asked for in the walk's order.

/// The results at two places, if there is another; else at the first.
fn put_two(another: bool, at: Two, first: Result, second: Result) {
    put(at.first.address, first, second);
    // Twins went together.
    if another && TWINS == 1u {
        put(at.second.address, second, second);
    }
}

fn map_tile(tile: Tile) {
    // Of both vectors, if there are two.
    let c = coefficients(vector_of(tile, 0u));
    var d = c;
    if VECTORS == 2u {
        d = coefficients(vector_of(tile, 1u));
    }
    // The loads of four packs are under way before the first is used.
    var walk = walk(tile);
    while walk.remaining >= 4u {
        let at = next_two(true, &walk);
        let at_behind = next_two(true, &walk);
        // A word of a mask has the bits of all four.
        begin(at.first, c);
        let result_0 = result_at(at.first, c);
        let result_1 = result_at(at.second, d);
        let result_2 = result_at(at_behind.first, c);
        let result_3 = result_at(at_behind.second, d);
        put_two(true, at, result_0, result_1);
        put_two(true, at_behind, result_2, result_3);
        finish(at_behind.second, c);
    }
    // As many as are left, in flight together too.
    let rest = walk.remaining;
    if rest > 0u {
        let at = next_two(rest > 1u, &walk);
        // Of twins never, as is known when this is compiled.
        let is_third = rest > 2u && TWINS == 1u;
        let at_2 = next_if(is_third, at.second, &walk);
        begin(at.first, c);
        let result_0 = result_at(at.first, c);
        let result_1 = result_at(at.second, d);
        // Of twins the second again. Bits in a mask then lie behind the last, where none are read.
        let result_2 = result_at(at_2, d);
        put_two(rest > 1u, at, result_0, result_1);
        if is_third {
            put(at_2.address, result_2, result_2);
        }
        finish(at_2, c);
    }
}
