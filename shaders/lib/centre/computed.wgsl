// Normalization by statistics that the workgroup itself computed.

/// Of each column of the workgroup.
var<workgroup> shared_pivot: array<PerChannel, LANES_X>;

/// The others are in `shared_mean` and, of inv_std, in `shared_m2`.
fn centre_of(column: u32) -> Centre {
    let first = (column - geometry.first_column) / geometry.lane_step % LANES_X;
    return Centre(shared_pivot[first], shared_mean[first], shared_m2[first]);
}
