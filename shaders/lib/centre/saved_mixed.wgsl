// Normalization by statistics that statistics.wgsl wrote, where a column has several channels.

@group(0) @binding(12) var<storage, read> saved: array<f32>;

fn saved_row(first: vec4<u32>, row: u32) -> PerChannel {
    let c = first + row * geometry.all_columns;
    return PerChannel(saved[c.x], saved[c.y], saved[c.z], saved[c.w]);
}

fn centre_of(column: u32) -> Centre {
    let c = channels_of(column);
    return Centre(saved_row(c, 0u), saved_row(c, 1u), saved_row(c, 2u));
}
