// What the activation cut is read from the mask that the forward pass wrote.

@group(0) @binding(8) var<storage, read> mask: array<u32>;

struct Cut {
    /// The index of the column's first word.
    column: u32,
}

fn cut_of(column: u32) -> Cut {
    return Cut(mask_column(column));
}

/// The gradient of what enters the activation.
fn gradient_before(dy: Pack, from_mean: Pack, at: Place, cut: Cut) -> Pack {
    let place = mask_place(at);
    return gradient_of(dy, flags_of(mask[cut.column + place.word] >> place.shift));
}
