// The backward pass of training with sums and gradient of x in one kernel: gradients.wgsl and
// input_gradient.wgsl together.
//
// in   x, dy        [outer, channels, inner]
//      saved        [5, channels], from statistics.wgsl or forward.wgsl
//      gamma, beta  [channels]
//      partials     of `from_partials`, from gradients.wgsl
// out  dx, residual_gradient  as in input_gradient.wgsl
//      dgamma, dbeta          as in gradients.wgsl
//
// `backward` does all of it, for channels so small that their second reading finds them in a cache: a
// workgroup takes whole columns. `from_partials` does all that comes after `partial`, for so few partial results that
// every workgroup may merge them for itself; one of them writes what comes of it. They follow gradients.wgsl
// and input_gradient.wgsl in their text.
// Twins on the CPU: src/cpu/gradients.rs, src/cpu/input_gradient.rs.

/// The gradient of x by the sums of lane 0, which it writes if the tile is the column's first.
fn input_gradient_by(own: Sums, tile: Tile, local: u32) {
    // Share with all lanes: lib/coefficients/computed.
    if tile.lane == 0u {
        shared_gradient[local] = own.gradient;
        shared_product[local] = own.product;
        if tile.live && tile.split == 0u {
            let column = tile.column;
            dgamma[column] = own.product * saved_row(column, 2u);
            dbeta[column] = own.gradient;
        }
    }
    // In place, other lanes may write what was read for the sums.
    storageBarrier();
    workgroupBarrier();

    map_tile(tile);
}

@compute @workgroup_size(LANES)
fn backward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let own = summed_lanes(sums_of(tile).first, local, tile.lane, LANES_Y);
    input_gradient_by(own, tile, local);
}

@compute @workgroup_size(LANES)
fn from_partials(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    input_gradient_by(summed_partials(tile, local), tile, local);
}
