// The forward pass of training in one dispatch: statistics.wgsl and normalize.wgsl together, for
// channels so small that their second reading finds them in a cache.
//
// in   x, residual  [outer, channels, inner]
//      gamma, beta  [channels]
// out  y, mask      as in normalize.wgsl
//      saved, running_mean, running_var  as in statistics.wgsl
//
// A workgroup takes whole columns. It follows statistics.wgsl and normalize.wgsl in its text.
// Twins on the CPU: src/cpu/statistics.rs, src/cpu/normalize.rs.

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let pivot = pivot_of(tile, local);
    let all = merged_lanes(moments_of(tile, pivot), local, tile.lane);

    // Share with all lanes of the column.
    if tile.lane == 0u {
        shared_mean[local] = all.mean;
        shared_m2[local] = inv_std_of(variance_of(all));
        if tile.live {
            write_statistics(tile.column, pivot, all);
        }
    }
    // In place, the second walk writes over what was probed for the pivot.
    storageBarrier();
    workgroupBarrier();
    let first = local % LANES_X;
    computed = Centre(pivot, shared_mean[first], shared_m2[first]);

    map_tile(tile);
}
