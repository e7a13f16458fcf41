// Gradients of gamma and beta, and what the gradient of x needs of them.
//
//   dbeta = Σdy      dgamma = Σdy * x̂      with x̂ = (x - mean) * inv_std
//
// in   x, dy          [outer, channels, inner]
//      saved          [4, channels], from statistics.wgsl
// out  dgamma, dbeta  [channels]
//      partials       [2, channels]: dbeta / M and inv_std * dgamma / M, for input_gradient.wgsl
// via  partials       behind those, [splits, 2, channels]: Σdy and Σdy * (x - mean) of each split
//
// `partial` runs once per column and split, `merge` once per column, after all slices' `partial`.
// Twin on the CPU: src/cpu/gradients.rs.

@group(0) @binding(2) var<storage, read> x: array<Pack>;
@group(0) @binding(3) var<storage, read> dy: array<Pack>;
@group(0) @binding(4) var<storage, read> saved: array<PerChannel>;
@group(0) @binding(5) var<storage, read_write> partials: array<PerChannel>;
@group(0) @binding(6) var<storage, read_write> dgamma: array<PerChannel>;
@group(0) @binding(7) var<storage, read_write> dbeta: array<PerChannel>;

var<workgroup> shared_dy: array<PerChannel, LANES>;
var<workgroup> shared_product: array<PerChannel, LANES>;

struct Sums {
    /// Σdy
    dy: PerChannel,
    /// Σdy * (x - mean)
    product: PerChannel,
}

/// The sums of all lanes of a column together, valid in lane 0. A fixed tree.
fn summed_lanes(own: Sums, local: u32, lane: u32) -> Sums {
    var sums = own;
    for (var half = LANES_Y / 2u; half > 0u; half /= 2u) {
        shared_dy[local] = sums.dy;
        shared_product[local] = sums.product;
        workgroupBarrier();
        if lane < half {
            let other = local + half * LANES_X;
            sums = Sums(sums.dy + shared_dy[other], sums.product + shared_product[other]);
        }
        workgroupBarrier();
    }
    return sums;
}

@compute @workgroup_size(LANES)
fn partial(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let pivot = saved[tile.column];
    let remainder = saved[tile.column + geometry.all_columns];

    // Load, in blocks of four packs.
    var sums = Sums();
    var walk = walk(tile);
    while walk.remaining >= 4u {
        let at_0 = next(&walk);
        let at_1 = next(&walk);
        let at_2 = next(&walk);
        let at_3 = next(&walk);
        let dy_0 = dy[at_0];
        let dy_1 = dy[at_1];
        let dy_2 = dy[at_2];
        let dy_3 = dy[at_3];
        let product_0 = dy_0 * from_mean(x[at_0], pivot, remainder);
        let product_1 = dy_1 * from_mean(x[at_1], pivot, remainder);
        let product_2 = dy_2 * from_mean(x[at_2], pivot, remainder);
        let product_3 = dy_3 * from_mean(x[at_3], pivot, remainder);
        sums.dy += fold((dy_0 + dy_1) + (dy_2 + dy_3));
        sums.product += fold((product_0 + product_1) + (product_2 + product_3));
    }
    while walk.remaining > 0u {
        let at = next(&walk);
        let dy_0 = dy[at];
        sums.dy += fold(dy_0);
        sums.product += fold(dy_0 * from_mean(x[at], pivot, remainder));
    }

    // Reduce over the lanes.
    sums = summed_lanes(sums, local, tile.lane);

    // Write.
    if tile.live && tile.lane == 0u {
        let row = 2u + 2u * (geometry.first_split + tile.split);
        let at = row * geometry.all_columns + tile.column;
        partials[at] = sums.dy;
        partials[at + geometry.all_columns] = sums.product;
    }
}

@compute @workgroup_size(LANES)
fn merge(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);

    // Load the partials, lane by lane.
    var sums = Sums();
    var split = tile.lane;
    while split < geometry.length {
        // In groups, for short chains of additions.
        var group = Sums();
        for (var part = 0u; part < 8u && split < geometry.length; part += 1u) {
            let at = (2u + 2u * split) * geometry.all_columns + tile.column;
            group.dy += partials[at];
            group.product += partials[at + geometry.all_columns];
            split += LANES_Y;
        }
        sums.dy += group.dy;
        sums.product += group.product;
    }

    // Reduce over the lanes.
    sums = summed_lanes(sums, local, tile.lane);

    // Write.
    if tile.live && tile.lane == 0u {
        let column = tile.column;
        let inv_std = saved[column + geometry.all_columns * 2u];
        let dgamma_here = sums.product * inv_std;
        dgamma[column] = dgamma_here;
        dbeta[column] = sums.dy;
        partials[column] = sums.dy * constants.inverse_count;
        partials[column + geometry.all_columns] = dgamma_here * constants.inverse_count * inv_std;
    }
}
