// The backward pass of training in one dispatch: gradients.wgsl and input_gradient.wgsl together, for
// channels so small that their second reading finds them in a cache.
//
// in   x, dy        [outer, channels, inner]
//      saved        [5, channels], from statistics.wgsl or forward.wgsl
//      gamma, beta  [channels]
// out  dx, residual_gradient  as in input_gradient.wgsl
//      dgamma, dbeta          as in gradients.wgsl
//
// A workgroup takes whole columns. It follows gradients.wgsl and input_gradient.wgsl in its text.
// Twins on the CPU: src/cpu/gradients.rs, src/cpu/input_gradient.rs.

@compute @workgroup_size(LANES)
fn backward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let column = tile.column;
    let own = summed_lanes(sums_of(tile), local, tile.lane);

    // Share with all lanes of the column.
    let inv_std = saved[column + geometry.all_columns * 2u];
    if tile.lane == 0u {
        shared_gradient[local] = own.gradient;
        shared_product[local] = own.product;
        if tile.live {
            dgamma[column] = own.product * inv_std;
            dbeta[column] = own.gradient;
        }
    }
    workgroupBarrier();
    let first = local % LANES_X;
    let inverse_count = saved[column + geometry.all_columns * 4u];
    computed = Coefficients(
        saved[column],
        saved[column + geometry.all_columns],
        scale_of(column),
        shared_gradient[first] * inverse_count,
        shared_product[first] * inv_std * inverse_count * inv_std,
        cut_of(column),
    );

    map_tile(tile);
}
