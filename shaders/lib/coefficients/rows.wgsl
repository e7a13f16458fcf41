// What the gradient of x needs of a channel is read from the rows that gradients.wgsl wrote.

@group(0) @binding(20) var<storage, read> coefficient_rows: array<PerChannel>;

fn coefficients(column: u32) -> Coefficients {
    return Coefficients(
        coefficient_rows[column],
        coefficient_rows[column + geometry.all_columns],
        scale_of(column),
        coefficient_rows[column + geometry.all_columns * 3u],
        coefficient_rows[column + geometry.all_columns * 4u],
        cut_of(column),
    );
}

/// For lib/cut.
fn scale_of(column: u32) -> PerChannel {
    return coefficient_rows[column + geometry.all_columns * 2u];
}

/// For lib/cut.
fn shift_of(column: u32) -> PerChannel {
    return coefficient_rows[column + geometry.all_columns * 5u];
}
