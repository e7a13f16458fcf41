// Normalize, scale and shift, in one pass over memory.
//
//   y = (x - mean) * inv_std * gamma + beta
//
// in   x            [outer, channels, inner]
//      gamma, beta  [channels]
//      saved        [4, channels], from statistics.wgsl        (entry point `batch`)
//      running_mean, running_var  [channels]                   (entry point `running`)
// out  y            [outer, channels, inner]
//
// The mean is subtracted first, never folded into the shift: that would cost the digits that x and
// the mean have in common. One workgroup takes some columns and one split of each.
// Twin on the CPU: src/cpu/normalize.rs.

@group(0) @binding(2) var<storage, read> x: array<Pack>;
@group(0) @binding(3) var<storage, read_write> y: array<Pack>;
@group(0) @binding(4) var<storage, read> gamma: array<PerChannel>;
@group(0) @binding(5) var<storage, read> beta: array<PerChannel>;
@group(0) @binding(6) var<storage, read> saved: array<PerChannel>;
@group(0) @binding(7) var<storage, read> running_mean: array<PerChannel>;
@group(0) @binding(8) var<storage, read> running_var: array<PerChannel>;

struct Coefficients {
    /// mean = pivot + remainder
    pivot: PerChannel,
    remainder: PerChannel,
    scale: PerChannel,
    shift: PerChannel,
}

fn normalized(x: Pack, c: Coefficients) -> Pack {
    return from_mean(x, c.pivot, c.remainder) * c.scale + c.shift;
}

fn normalize(tile: Tile, c: Coefficients) {
    // Four loads are under way before the first is used.
    var walk = walk(tile);
    while walk.remaining >= 4u {
        let at_0 = next(&walk);
        let at_1 = next(&walk);
        let at_2 = next(&walk);
        let at_3 = next(&walk);
        let x_0 = x[at_0];
        let x_1 = x[at_1];
        let x_2 = x[at_2];
        let x_3 = x[at_3];
        y[at_0] = normalized(x_0, c);
        y[at_1] = normalized(x_1, c);
        y[at_2] = normalized(x_2, c);
        y[at_3] = normalized(x_3, c);
    }
    while walk.remaining > 0u {
        let at = next(&walk);
        y[at] = normalized(x[at], c);
    }
}

@compute @workgroup_size(LANES)
fn batch(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let column = tile.column;
    normalize(tile, Coefficients(
        saved[column],
        saved[column + geometry.all_columns],
        saved[column + geometry.all_columns * 2u] * gamma[column],
        beta[column],
    ));
}

@compute @workgroup_size(LANES)
fn running(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let column = tile.column;
    // An infinite running variance is the caller's word, and makes y = beta.
    let variance = running_var[column];
    let inv_std = select(inv_std_of(variance), PerChannel(), variance > PerChannel(3.4e38));
    normalize(tile, Coefficients(
        running_mean[column],
        PerChannel(),
        inv_std * gamma[column],
        beta[column],
    ));
}
