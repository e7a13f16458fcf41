// Mean and variance of each channel over a batch, and the running statistics.
//
//   mean = Σx / M      var = Σ(x - mean)² / M      inv_std = 1 / sqrt(var + eps)
//   running ← (1 - momentum) * running + momentum * batch
//
// in   x        [outer, channels, inner]
// out  saved    [4, channels]: pivot, remainder, inv_std, var, with mean = pivot + remainder
//      running_mean, running_var  [channels], updated in place
// via  partials [splits, 4, channels]: count, pivot, mean - pivot and Σ(x - mean)² of each split;
//               a count of 0 where a split has nothing of a channel
//
// `partial` runs once per column and split, `merge` once per column, after all slices' `partial`.
// Two things keep the digits at any offset of x: everything is measured from a pivot, a value of
// the channel itself, and sums of squares are taken about the mean of a short block, then merged
// by Chan's formula in a fixed order.
// Twin on the CPU: src/cpu/statistics.rs.

@group(0) @binding(2) var<storage, read> x: array<Pack>;
@group(0) @binding(3) var<storage, read_write> partials: array<PerChannel>;
@group(0) @binding(4) var<storage, read_write> saved: array<PerChannel>;
@group(0) @binding(5) var<storage, read_write> running_mean: array<PerChannel>;
@group(0) @binding(6) var<storage, read_write> running_var: array<PerChannel>;

var<workgroup> shared_count: array<f32, LANES>;
var<workgroup> shared_mean: array<PerChannel, LANES>;
var<workgroup> shared_m2: array<PerChannel, LANES>;

/// Count, mean and sum of squared deviations from the mean of some values of each channel.
struct Moments {
    count: f32,
    mean: PerChannel,
    m2: PerChannel,
}

/// The moments of two sets together (Chan, Golub & LeVeque 1983). Either may be empty.
fn merged(a: Moments, b: Moments) -> Moments {
    let count = a.count + b.count;
    let weight = b.count / max(count, 1.0);
    let delta = b.mean - a.mean;
    return Moments(
        count,
        a.mean + delta * weight,
        a.m2 + b.m2 + delta * delta * (a.count * weight),
    );
}

/// The moments of all lanes of a column together, valid in lane 0. A fixed tree.
fn merged_lanes(own: Moments, local: u32, lane: u32) -> Moments {
    var moments = own;
    for (var half = LANES_Y / 2u; half > 0u; half /= 2u) {
        shared_count[local] = moments.count;
        shared_mean[local] = moments.mean;
        shared_m2[local] = moments.m2;
        workgroupBarrier();
        if lane < half {
            let other = local + half * LANES_X;
            moments = merged(
                moments,
                Moments(shared_count[other], shared_mean[other], shared_m2[other]),
            );
        }
        workgroupBarrier();
    }
    return moments;
}

fn median(a: PerChannel, b: PerChannel, c: PerChannel) -> PerChannel {
    return max(min(a, b), min(max(a, b), c));
}

fn probe(address: u32, index: u32) -> PerChannel {
    return sample(x[address + geometry.probes[index / 4u][index % 4u]]);
}

/// A value of the channel that is no outlier: the median of three medians of three, taken at
/// places spread over the batch and the plane.
fn pivot_of(address: u32) -> PerChannel {
    return median(
        median(probe(address, 0u), probe(address, 1u), probe(address, 2u)),
        median(probe(address, 3u), probe(address, 4u), probe(address, 5u)),
        median(probe(address, 6u), probe(address, 7u), probe(address, 8u)),
    );
}

@compute @workgroup_size(LANES)
fn partial(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let pivot = pivot_of(tile.address);

    // Load, in blocks of four packs and groups of eight blocks: short chains of merges, so that
    // an outlier's rounding errors do not enter every merge after it.
    var moments = Moments();
    var walk = walk(tile);
    while walk.remaining >= 4u {
        var group = Moments();
        for (var block = 0u; block < 8u && walk.remaining >= 4u; block += 1u) {
            let a = x[next(&walk)] - pivot;
            let b = x[next(&walk)] - pivot;
            let c = x[next(&walk)] - pivot;
            let d = x[next(&walk)] - pivot;
            let mean = fold((a + b) + (c + d)) * (0.25 / VALUES_PER_CHANNEL);
            let a_off = a - mean;
            let b_off = b - mean;
            let c_off = c - mean;
            let d_off = d - mean;
            let m2 = fold((a_off * a_off + b_off * b_off) + (c_off * c_off + d_off * d_off));
            group = merged(group, Moments(4.0 * VALUES_PER_CHANNEL, mean, m2));
        }
        moments = merged(moments, group);
    }
    var rest = Moments();
    while walk.remaining > 0u {
        let a = x[next(&walk)] - pivot;
        let mean = fold(a) * (1.0 / VALUES_PER_CHANNEL);
        let a_off = a - mean;
        rest = merged(rest, Moments(VALUES_PER_CHANNEL, mean, fold(a_off * a_off)));
    }
    moments = merged(moments, rest);

    // Reduce over the lanes.
    moments = merged_lanes(moments, local, tile.lane);

    // Write.
    if tile.live && tile.lane == 0u {
        let row = 4u * (geometry.first_split + tile.split);
        let at = row * geometry.all_columns + tile.column;
        partials[at] = PerChannel(moments.count);
        partials[at + geometry.all_columns] = pivot;
        partials[at + geometry.all_columns * 2u] = moments.mean;
        partials[at + geometry.all_columns * 3u] = moments.m2;
    }
}

@compute @workgroup_size(LANES)
fn merge(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);

    // Load the partials, lane by lane, all measured from the pivot of the first that is not empty.
    let stride = 4u * geometry.all_columns;
    var first = tile.column;
    for (var next = 1u; next < geometry.length; next += 1u) {
        if first_channel(partials[first]) > 0.0 {
            break;
        }
        first += stride;
    }
    let pivot = partials[first + geometry.all_columns];
    var moments = Moments();
    var split = tile.lane;
    while split < geometry.length {
        // In groups too, for short chains of merges.
        var group = Moments();
        for (var part = 0u; part < 8u && split < geometry.length; part += 1u) {
            let at = split * stride + tile.column;
            let from_pivot = partials[at + geometry.all_columns] - pivot;
            group = merged(group, Moments(
                first_channel(partials[at]),
                from_pivot + partials[at + geometry.all_columns * 2u],
                partials[at + geometry.all_columns * 3u],
            ));
            split += LANES_Y;
        }
        moments = merged(moments, group);
    }

    // Reduce over the lanes.
    moments = merged_lanes(moments, local, tile.lane);

    // Write.
    if tile.live && tile.lane == 0u {
        let column = tile.column;
        let variance = moments.m2 * constants.inverse_count;
        saved[column] = pivot;
        saved[column + geometry.all_columns] = moments.mean;
        saved[column + geometry.all_columns * 2u] = inv_std_of(variance);
        saved[column + geometry.all_columns * 3u] = variance;
        running_mean[column] = (1.0 - constants.momentum_mean) * running_mean[column]
            + constants.momentum_mean * (pivot + moments.mean);
        running_var[column] = (1.0 - constants.momentum_var) * running_var[column]
            + constants.momentum_var * (variance * constants.variance_correction);
    }
}
