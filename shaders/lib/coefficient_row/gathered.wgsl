// A row of what gradients.wgsl wrote, at a column that has several channels.

@group(0) @binding(20) var<storage, read> coefficient_rows: array<f32>;

fn row_of(column: u32, row: u32) -> PerChannel {
    let c = channels_of(column) + row * geometry.all_columns;
    return per_channel(
        column,
        coefficient_rows[c.x],
        coefficient_rows[c.y],
        coefficient_rows[c.z],
        coefficient_rows[c.w],
    );
}
