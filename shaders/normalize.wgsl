// Normalize, scale and shift, with what is fused to it:
//
//   y = activation((x - mean) * inv_std * gamma + beta [+ residual])
//
// in   x, residual  [outer, channels, inner]
//      gamma, beta  [channels], lib/affine
//      the statistics: lib/centre
// out  y            [outer, channels, inner]
//      mask         what the activation cut, if that is kept: lib/mask
//
// The mean is subtracted first, never folded into the shift: that would cost the digits that x and
// the mean have in common. Divided among workgroups as lib/map says.
// Twin on the CPU: src/cpu/normalize.rs.

@group(0) @binding(3) var<storage, read_write> y: array<Stored>;

/// What becomes of a pack.
alias Result = Pack;

struct Centre {
    /// mean = pivot + remainder
    pivot: PerChannel,
    remainder: PerChannel,
    inv_std: PerChannel,
}

struct Coefficients {
    centre: Centre,
    scale: PerChannel,
    shift: PerChannel,
    kept: Kept,
}

fn coefficients(column: u32) -> Coefficients {
    let centre = centre_of(column);
    return Coefficients(centre, centre.inv_std * gamma_of(column), beta_of(column), kept_of(column));
}

fn begin(at: Place, c: Coefficients) {
    begin_kept(at, c.kept);
}

fn result_at(at: Place, c: Coefficients) -> Result {
    let off = from_mean(x_at(at), c.centre.pivot, c.centre.remainder);
    let z = with_residual(normalized(off, c.scale, c.shift), at);
    keep(z);
    return activated(z);
}

fn put(index: u32, result: Result, next: Result) {
    y[index] = packed(result, next);
}

fn finish(at: Place, c: Coefficients) {
    write_kept(at);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    map_tile(tile(workgroup, grid, local));
}
