// A row of the statistics that statistics.wgsl wrote, at a column that has several channels.

@group(0) @binding(12) var<storage, read> saved: array<f32>;

fn saved_row(column: u32, row: u32) -> PerChannel {
    let c = channels_of(column) + row * geometry.all_columns;
    return per_channel(column, saved[c.x], saved[c.y], saved[c.z], saved[c.w]);
}
