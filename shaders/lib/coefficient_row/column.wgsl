// A row of what gradients.wgsl wrote, at a column.

@group(0) @binding(20) var<storage, read> coefficient_rows: array<PerChannel>;

fn row_of(column: u32, row: u32) -> PerChannel {
    return coefficient_rows[column + row * geometry.all_columns];
}
