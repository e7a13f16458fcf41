// What the gradient of x needs of a channel is read from the rows that gradients.wgsl wrote.

fn coefficients(column: u32) -> Coefficients {
    return Coefficients(
        row_of(column, 0u),
        row_of(column, 1u),
        scale_of(column),
        row_of(column, 3u),
        row_of(column, 4u),
        cut_of(column),
    );
}

/// For lib/cut.
fn scale_of(column: u32) -> PerChannel {
    return row_of(column, 2u);
}

/// For lib/cut.
fn shift_of(column: u32) -> PerChannel {
    return row_of(column, 5u);
}
