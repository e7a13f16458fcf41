// What the activation cut is computed anew from x.

struct Cut {
    scale: PerChannel,
    shift: PerChannel,
}

fn cut_of(column: u32) -> Cut {
    return Cut(scale_of(column), shift_of(column));
}

fn read_cut(at: Place, cut: Cut) {
}

fn read_cut_of_four(at: Place, cut: Cut) {
}

fn read_cut_of_one(at: Place, cut: Cut) {
}

/// The gradient of what enters the activation.
fn gradient_before(dy: Pack, from_mean: Pack, cut: Cut) -> Pack {
    return gradient_of(dy, passes(normalized(from_mean, cut.scale, cut.shift)));
}
