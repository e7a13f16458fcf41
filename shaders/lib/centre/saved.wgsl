// Normalization by statistics that statistics.wgsl wrote.

@group(0) @binding(12) var<storage, read> saved: array<PerChannel>;

fn centre_of(column: u32) -> Centre {
    return Centre(
        saved[column],
        saved[column + geometry.all_columns],
        saved[column + geometry.all_columns * 2u],
    );
}
