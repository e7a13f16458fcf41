// Gradient of x through batch normalization in training.
//
//   dx = gamma * inv_std * (dy - dbeta / M - x̂ * dgamma / M)      with x̂ = (x - mean) * inv_std
//
// in   x, dy     [outer, channels, inner]
//      saved     [4, channels], from statistics.wgsl
//      gamma     [channels]
//      partials  [2, channels]: dbeta / M and inv_std * dgamma / M, from gradients.wgsl
// out  dx        [outer, channels, inner]
//
// One workgroup takes some columns and one split of each.
// Twin on the CPU: src/cpu/input_gradient.rs.

@group(0) @binding(2) var<storage, read> x: array<Pack>;
@group(0) @binding(3) var<storage, read> dy: array<Pack>;
@group(0) @binding(4) var<storage, read_write> dx: array<Pack>;
@group(0) @binding(5) var<storage, read> saved: array<PerChannel>;
@group(0) @binding(6) var<storage, read> gamma: array<PerChannel>;
@group(0) @binding(7) var<storage, read> partials: array<PerChannel>;

struct Coefficients {
    /// mean = pivot + remainder
    pivot: PerChannel,
    remainder: PerChannel,
    /// gamma * inv_std
    scale: PerChannel,
    /// dbeta / M
    dy_mean: PerChannel,
    /// inv_std * dgamma / M
    slope: PerChannel,
}

fn input_gradient(x: Pack, dy: Pack, c: Coefficients) -> Pack {
    return ((dy - c.dy_mean) - from_mean(x, c.pivot, c.remainder) * c.slope) * c.scale;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let column = tile.column;
    let c = Coefficients(
        saved[column],
        saved[column + geometry.all_columns],
        saved[column + geometry.all_columns * 2u] * gamma[column],
        partials[column],
        partials[column + geometry.all_columns],
    );
    // Eight loads are under way before the first is used.
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
        let dy_0 = dy[at_0];
        let dy_1 = dy[at_1];
        let dy_2 = dy[at_2];
        let dy_3 = dy[at_3];
        dx[at_0] = input_gradient(x_0, dy_0, c);
        dx[at_1] = input_gradient(x_1, dy_1, c);
        dx[at_2] = input_gradient(x_2, dy_2, c);
        dx[at_3] = input_gradient(x_3, dy_3, c);
    }
    while walk.remaining > 0u {
        let at = next(&walk);
        dx[at] = input_gradient(x[at], dy[at], c);
    }
}
