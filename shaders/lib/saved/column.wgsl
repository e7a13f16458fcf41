// A row of the statistics that statistics.wgsl wrote, at a column.

@group(0) @binding(12) var<storage, read> saved: array<PerChannel>;

fn saved_row(column: u32, row: u32) -> PerChannel {
    return saved[column + row * geometry.all_columns];
}
