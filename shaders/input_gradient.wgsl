// Gradient of x through batch normalization, and of the residual.
//
//   dx = gamma * inv_std * (g - valid * (dbeta / M + x̂ * dgamma / M))
//
// with x̂ = (x - mean) * inv_std, and g, which is also the gradient of the residual, that of what
// enters the activation: lib/cut. Through statistics that are constants, dx = gamma * inv_std * g.
//
// in   x, dy         [outer, channels, inner]
//      what it needs of a channel: lib/coefficients
// out  dx            [outer, channels, inner]
//      residual_gradient, if there is one: lib/residual_gradient
//
// Divided among workgroups as lib/map says.
// Twin on the CPU: src/cpu/input_gradient.rs.

@group(0) @binding(5) var<storage, read_write> dx: array<Stored>;

/// Whether the statistics depend on x. If not, x may not have to be read.
override BATCH_STATISTICS: bool = true;

struct Coefficients {
    /// mean = pivot + remainder
    pivot: PerChannel,
    remainder: PerChannel,
    /// gamma * inv_std
    scale: PerChannel,
    /// dbeta / M
    mean: PerChannel,
    /// inv_std * dgamma / M
    slope: PerChannel,
    cut: Cut,
}

/// What becomes of a pack.
struct Result {
    x: Pack,
    residual: Pack,
}

fn begin(at: Place, c: Coefficients) {
    read_cut(at, c.cut);
}

fn result_at(at: Place, c: Coefficients) -> Result {
    let off = from_mean(x_at(at), c.pivot, c.remainder);
    let gradient = gradient_before(dy_at(at), off, c.cut);
    var of_x = gradient;
    if BATCH_STATISTICS {
        of_x = select(gradient, (gradient - c.mean) - off * c.slope, valid_at(at));
    }
    return Result(of_x * c.scale, gradient);
}

fn put(index: u32, result: Result, next: Result) {
    put_residual_gradient(index, result.residual, next.residual);
    dx[index] = packed(result.x, next.x);
}

fn finish(at: Place, c: Coefficients) {
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    map_tile(tile(workgroup, grid, local));
}
