// An element-wise kernel over columns: a workgroup takes some columns and one split of each.
//
// The kernel says what belongs to a channel (`coefficients`), what becomes of a pack (`result_at`),
// where that goes (`put`), and what is to be done before and after a pack, or four (`begin`, `finish`).

fn map_tile(tile: Tile) {
    let c = coefficients(tile.column);
    // The loads of four packs are under way before the first is used.
    var walk = walk(tile);
    while walk.remaining >= 4u {
        let at_0 = next(&walk);
        let at_1 = next(&walk);
        let at_2 = next(&walk);
        let at_3 = next(&walk);
        // A word of a mask has the bits of all four.
        begin(at_0, c);
        let result_0 = result_at(at_0, c);
        let result_1 = result_at(at_1, c);
        let result_2 = result_at(at_2, c);
        let result_3 = result_at(at_3, c);
        put(at_0.address, result_0, result_0);
        put(at_1.address, result_1, result_1);
        put(at_2.address, result_2, result_2);
        put(at_3.address, result_3, result_3);
        finish(at_3, c);
    }
    // As many as are left, in flight together too.
    let rest = walk.remaining;
    if rest > 0u {
        let at_0 = next(&walk);
        let at_1 = next_if(rest > 1u, at_0, &walk);
        let at_2 = next_if(rest > 2u, at_1, &walk);
        begin(at_0, c);
        let result_0 = result_at(at_0, c);
        let result_1 = result_at(at_1, c);
        let result_2 = result_at(at_2, c);
        put(at_0.address, result_0, result_0);
        if rest > 1u {
            put(at_1.address, result_1, result_1);
        }
        if rest > 2u {
            put(at_2.address, result_2, result_2);
        }
        finish(at_2, c);
    }
}
