// The forward pass of training with statistics and normalization in one kernel: statistics.wgsl and
// normalize.wgsl together.
//
// in   x, residual  [outer, channels, inner]
//      gamma, beta  [channels]
//      partials     of `from_partials`, from statistics.wgsl
// out  y, mask      as in normalize.wgsl
//      saved, running_mean, running_var  as in statistics.wgsl
//
// `forward` does all of it, for channels so small that their second reading finds them in a cache: a workgroup
// takes whole columns. `from_partials` does all that comes after `partial`, for so few partial results that every
// workgroup may merge them for itself; one of them writes what comes of it. They follow statistics.wgsl and
// normalize.wgsl in their text.
// Twins on the CPU: src/cpu/statistics.rs, src/cpu/normalize.rs.

/// Normalizes by the moments of lane 0, which it writes if the tile is the column's first.
fn normalize_by(all: Moments, pivot: PerChannel, before: Running, tile: Tile, local: u32) {
    // Share with all lanes: lib/centre/computed.
    if tile.lane == 0u {
        shared_pivot[local] = pivot;
        shared_mean[local] = all.mean;
        shared_m2[local] = inv_std_of(variance_of(all));
        if tile.live && tile.split == 0u {
            write_statistics(tile.column, pivot, all, before);
        }
    }
    // In place, other lanes may write what was read for the statistics.
    storageBarrier();
    workgroupBarrier();

    map_tile(tile);
}

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let before = running_of(tile.column);
    let found = moments_of(tile, local);
    let all = merged_lanes(found.own.first, local, tile.lane, LANES_Y);
    normalize_by(all, found.pivots.first, before, tile, local);
}

@compute @workgroup_size(LANES)
fn from_partials(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let before = running_of(tile.column);
    let pivot = pivot_of_partials(tile.column);
    let all = merged_partials(tile, pivot, local);
    normalize_by(all, pivot, before, tile, local);
}
