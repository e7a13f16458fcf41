// Mean and variance of each channel over a batch, and the running statistics.
//
//   mean = Σx / M      var = Σ(x - mean)² / M      inv_std = 1 / sqrt(var + eps)
//   running ← (1 - momentum) * running + momentum * batch
//
// where M counts the valid positions of a channel.
//
// in   x        [outer, channels, inner]
// out  saved    [5, channels]: pivot, remainder, inv_std, var, 1 / M, with mean = pivot + remainder
//      running_mean, running_var  [channels], updated in place
// via  partials [4, partials, channels]: count, pivot, mean - pivot and Σ(x - mean)² of each split
//               (packing "rows": of each row in it that is one of several); a count of 0 where it has
//               nothing of a channel
//
// `partial` runs once per column and split, `merge` once per column, after all slices' `partial`.
// For a batch whose shards lie on several devices, `collect` merges the partials of a shard to one,
// [4, channels], and `merge` takes those of all shards, [shards, 4, channels].
//
// Two things keep the digits at any offset of x: everything is measured from a pivot, a value of
// the channel itself (in merges, the mean of a part of it), and squares are summed over short blocks,
// from their mean or from that of what came before, then merged by Chan's formula in a fixed order.
// Twin on the CPU: src/cpu/statistics.rs.

@group(0) @binding(12) var<storage, read_write> saved: array<PerChannel>;
@group(0) @binding(13) var<storage, read_write> running_mean: array<PerChannel>;
@group(0) @binding(14) var<storage, read_write> running_var: array<PerChannel>;
@group(0) @binding(15) var<storage, read_write> partials: array<PerChannel>;
@group(0) @binding(16) var<storage, read_write> moments: array<PerChannel>;

var<workgroup> shared_count: array<Count, LANES>;
var<workgroup> shared_mean: array<PerChannel, LANES>;
var<workgroup> shared_m2: array<PerChannel, LANES>;

/// Count, mean and sum of squared deviations from the mean of some values of each channel.
struct Moments {
    count: Count,
    mean: PerChannel,
    m2: PerChannel,
}

/// The moments of two sets together (Chan, Golub & LeVeque 1983). Either may be empty.
fn merged(a: Moments, b: Moments) -> Moments {
    let count = a.count + b.count;
    // Sets are often alike, and a GPU then skips the division.
    var weight = Count(0.5);
    if !are_alike(a.count, b.count) {
        weight = b.count / max(count, Count(1.0));
    }
    let delta = b.mean - a.mean;
    return Moments(
        count,
        a.mean + delta * weight,
        a.m2 + b.m2 + delta * delta * (a.count * weight),
    );
}

/// The moments of the first lanes of a column together, of which the others have none; valid in lane 0.
/// A fixed tree.
fn merged_lanes(own: Moments, local: u32, lane: u32, lanes: u32) -> Moments {
    var moments = own;
    for (var half = LANES_Y / 2u; half > 0u; half /= 2u) {
        if half >= lanes {
            continue;
        }
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

/// A value for each vector of a column; of one vector, the first one.
struct PerVector {
    first: PerChannel,
    second: PerChannel,
}

fn medians(a: PerVector, b: PerVector, c: PerVector) -> PerVector {
    return PerVector(median(a.first, b.first, c.first), median(a.second, b.second, c.second));
}

/// A pack with what counts of it.
struct Loaded {
    pack: Pack,
    valid: Flags,
}

fn loaded(at: Place, counts: bool) -> Loaded {
    return Loaded(x_at(at), valid_at(at) & Flags(counts));
}

/// The moments of four packs, from the pivot.
fn moments_of_four(a: Loaded, b: Loaded, c: Loaded, d: Loaded, pivot: PerChannel) -> Moments {
    let a_from = select(Pack(), a.pack - pivot, a.valid);
    let b_from = select(Pack(), b.pack - pivot, b.valid);
    let c_from = select(Pack(), c.pack - pivot, c.valid);
    let d_from = select(Pack(), d.pack - pivot, d.valid);
    let count = (counted(a.valid) + counted(b.valid)) + (counted(c.valid) + counted(d.valid));
    let mean = fold((a_from + b_from) + (c_from + d_from)) / max(count, Count(1.0));
    let a_off = select(Pack(), a_from - mean, a.valid);
    let b_off = select(Pack(), b_from - mean, b.valid);
    let c_off = select(Pack(), c_from - mean, c.valid);
    let d_off = select(Pack(), d_from - mean, d.valid);
    let m2 = fold((a_off * a_off + b_off * b_off) + (c_off * c_off + d_off * d_off));
    return Moments(count, mean, m2);
}

/// Eight packs that a lane comes to one after the other.
struct Eight {
    a: Loaded,
    b: Loaded,
    c: Loaded,
    d: Loaded,
    e: Loaded,
    f: Loaded,
    g: Loaded,
    h: Loaded,
}

/// The walk's next `count` packs.
fn next_eight(walk: ptr<function, Walk>, count: u32) -> Eight {
    let ab = next_two_if(count > 0u, count > 1u, Place(), walk);
    let cd = next_two_if(count > 2u, count > 3u, ab.second, walk);
    let ef = next_two_if(count > 4u, count > 5u, ab.second, walk);
    let gh = next_two_if(count > 6u, count > 7u, ab.second, walk);
    let a = loaded(ab.first, count > 0u);
    let b = loaded(ab.second, count > 1u);
    let c = loaded(cd.first, count > 2u);
    let d = loaded(cd.second, count > 3u);
    let e = loaded(ef.first, count > 4u);
    let f = loaded(ef.second, count > 5u);
    let g = loaded(gh.first, count > 6u);
    let h = loaded(gh.second, count > 7u);
    return Eight(a, b, c, d, e, f, g, h);
}

/// Moments for each vector of a column; of one vector, the first ones.
struct Own {
    first: Moments,
    second: Moments,
}

/// The moments of eight packs, from the pivots.
fn moments_of_eight(all: Eight, pivots: PerVector) -> Own {
    if VECTORS == 2u {
        return Own(
            moments_of_four(all.a, all.c, all.e, all.g, pivots.first),
            moments_of_four(all.b, all.d, all.f, all.h, pivots.second),
        );
    }
    // In two halves: short chains of merges.
    let four = moments_of_four(all.a, all.b, all.c, all.d, pivots.first);
    let both = merged(four, moments_of_four(all.e, all.f, all.g, all.h, pivots.first));
    return Own(both, both);
}

/// Both sets of moments merged, for each vector.
fn merged_own(a: Own, b: Own) -> Own {
    let first = merged(a.first, b.first);
    if VECTORS == 2u {
        return Own(first, merged(a.second, b.second));
    }
    return Own(first, first);
}

/// Sums over a block of packs, of what its values are from the mean of what came before it.
struct Block {
    count: Count,
    sum: Pack,
    squares: Pack,
}

/// A block with four packs more. They are added by pairs: where values are alike, so are roundings, and a chain of
/// additions gathers them.
fn with_four(
    block: Block,
    a: Loaded,
    b: Loaded,
    c: Loaded,
    d: Loaded,
    pivot: PerChannel,
    mean: PerChannel,
) -> Block {
    let a_off = select(Pack(), from_mean(a.pack, pivot, mean), a.valid);
    let b_off = select(Pack(), from_mean(b.pack, pivot, mean), b.valid);
    let c_off = select(Pack(), from_mean(c.pack, pivot, mean), c.valid);
    let d_off = select(Pack(), from_mean(d.pack, pivot, mean), d.valid);
    let count = (counted(a.valid) + counted(b.valid)) + (counted(c.valid) + counted(d.valid));
    return Block(
        block.count + count,
        block.sum + ((a_off + b_off) + (c_off + d_off)),
        block.squares + ((a_off * a_off + b_off * b_off) + (c_off * c_off + d_off * d_off)),
    );
}

/// The moments of a block that was taken from that mean, from the pivot.
fn moments_of_block(block: Block, mean: PerChannel) -> Moments {
    let sum = fold(block.sum);
    let off = sum / max(block.count, Count(1.0));
    let m2 = fma(-sum, off, fold(block.squares));
    // What rounding or underflow left below 0; not a number stays.
    return Moments(block.count, mean + off, select(m2, PerChannel(0.0), m2 < PerChannel(0.0)));
}

/// A block for each vector of a column; of one vector, the first one.
struct Blocks {
    first: Block,
    second: Block,
}

fn with_eight(blocks: Blocks, all: Eight, pivots: PerVector, before: Own) -> Blocks {
    let mean = before.first.mean;
    if VECTORS == 2u {
        let other = before.second.mean;
        return Blocks(
            with_four(blocks.first, all.a, all.c, all.e, all.g, pivots.first, mean),
            with_four(blocks.second, all.b, all.d, all.f, all.h, pivots.second, other),
        );
    }
    let four = with_four(blocks.first, all.a, all.b, all.c, all.d, pivots.first, mean);
    let both = with_four(four, all.e, all.f, all.g, all.h, pivots.first, mean);
    return Blocks(both, both);
}

/// What came before, with blocks that were taken from its means.
fn with_blocks(before: Own, blocks: Blocks) -> Own {
    let first = moments_of_block(blocks.first, before.first.mean);
    if VECTORS == 2u {
        return merged_own(before, Own(first, moments_of_block(blocks.second, before.second.mean)));
    }
    return merged_own(before, Own(first, first));
}

/// Packs of each vector among eight.
const STEP: u32 = 8u / VECTORS;
/// And in a block, at most.
const BLOCK: u32 = 32u;

/// The moments of what falls to one lane, from the pivots.
struct Found {
    pivots: PerVector,
    own: Own,
}

fn moments_of(tile: Tile, local: u32) -> Found {
    // First come so many packs that whole eights are left; the pivots are looked for meanwhile.
    var walk = walk(tile);
    let head = next_eight(&walk, walk.remaining - (max(walk.remaining, 1u) - 1u) / 8u * 8u);
    let pivots = pivots_of(tile, local);
    var own = moments_of_eight(head, pivots);

    // Then eights in two passes too, until there are as many values as eight packs can have. Loops over eights are
    // tested at their end: a software adapter runs one that is tested first once for nothing.
    if walk.remaining > 0u {
        loop {
            own = merged_own(own, moments_of_eight(next_eight(&walk, 8u), pivots));
            continuing {
                break if least(own.first.count) >= f32(STEP * PLACES) || walk.remaining == 0u;
            }
        }
    }

    // Then blocks in one pass, none longer than all before it. Of a block's squares count * d² cancels, where its mean
    // lies d off; but Chan's formula adds at least half of that again.
    while walk.remaining > 0u {
        let most = min(least(own.first.count), f32(BLOCK * PLACES));
        var blocks = Blocks();
        var packs = 0u;
        loop {
            blocks = with_eight(blocks, next_eight(&walk, 8u), pivots, own);
            packs += STEP;
            continuing {
                break if f32((packs + STEP) * PLACES) > most || walk.remaining == 0u;
            }
        }
        own = with_blocks(own, blocks);
    }
    return Found(pivots, own);
}

/// Writes the moments of all lanes, for a vector of their column.
fn write_partial(own: Moments, pivot: PerChannel, tile: Tile, vector: u32, local: u32) {
    let all = merged_lanes(own, local, tile.lane, LANES_Y);
    if tile.live && tile.lane == 0u {
        let at = partial_at(geometry.first_split + tile.split, vector_of(tile, vector));
        partials[at] = PerChannel(all.count);
        partials[at + geometry.partial_row_step] = pivot;
        partials[at + geometry.partial_row_step * 2u] = all.mean;
        partials[at + geometry.partial_row_step * 3u] = all.m2;
    }
}

@compute @workgroup_size(LANES)
fn partial(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let found = moments_of(tile, local);
    write_partial(found.own.first, found.pivots.first, tile, 0u, local);
    if VECTORS == 2u {
        write_partial(found.own.second, found.pivots.second, tile, 1u, local);
    }
}

/// The pivot from which all partials of a column are measured: the mean of the first that is not empty, rounded. The
/// nearer it is to the mean of all, the less is lost in the merges and in the remainder.
fn pivot_of_partials(column: u32) -> PerChannel {
    let step = geometry.partial_row_step;
    var first = column;
    var count = partials[first];
    // Not known to be wanted yet, but its loads are under way meanwhile.
    var pivot = partials[first + step] + partials[first + step * 2u];
    for (var next = 1u; next < geometry.partials && least(count_of(count)) == 0.0; next += 1u) {
        first = partial_at(next, column);
        count = partials[first];
        pivot = partials[first + step] + partials[first + step * 2u];
    }
    return pivot;
}

/// The moments of all partials of a column, from that pivot; valid in lane 0.
fn merged_partials(tile: Tile, pivot: PerChannel, local: u32) -> Moments {
    let step = geometry.partial_row_step;
    var own = Moments();
    var split = tile.lane;
    while split < geometry.partials {
        // In groups too, for short chains of merges.
        var group = Moments();
        for (var part = 0u; part < 8u && split < geometry.partials; part += 1u) {
            let at = partial_at(split, tile.column);
            let count = count_of(partials[at]);
            let from_pivot = partials[at + step] - pivot;
            let mean = from_pivot + partials[at + step * 2u];
            let m2 = partials[at + step * 3u];
            // What is empty says nothing, whatever it holds.
            group = merged(group, Moments(
                count,
                select(PerChannel(), mean, count > Count(0.0)),
                select(PerChannel(), m2, count > Count(0.0)),
            ));
            split += LANES_Y;
        }
        own = merged(own, group);
    }
    return merged_lanes(own, local, tile.lane, geometry.partials);
}

@compute @workgroup_size(LANES)
fn collect(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let pivot = pivot_of_partials(tile.column);
    let all = merged_partials(tile, pivot, local);

    // Write.
    if tile.live && tile.lane == 0u {
        let column = tile.column;
        moments[column] = PerChannel(all.count);
        moments[column + geometry.all_columns] = select(PerChannel(), pivot, all.count > Count(0.0));
        moments[column + geometry.all_columns * 2u] = all.mean;
        moments[column + geometry.all_columns * 3u] = all.m2;
    }
}

/// 1 / count, exact where that is a binary fraction.
fn reciprocal(count: Count) -> Count {
    let guess = 1.0 / count;
    return fma(guess, fma(-count, guess, Count(1.0)), guess);
}

fn variance_of(all: Moments) -> PerChannel {
    return all.m2 * reciprocal(max(all.count, Count(1.0)));
}

/// Running statistics of a column.
struct Running {
    mean: PerChannel,
    variance: PerChannel,
}

fn running_of(column: u32) -> Running {
    return Running(running_mean[column], running_var[column]);
}

/// Writes the statistics of a column that has these moments, and moves the running ones.
fn write_statistics(column: u32, pivot: PerChannel, all: Moments, before: Running) {
    let inverse_count = reciprocal(max(all.count, Count(1.0)));
    let variance = variance_of(all);
    // Without any value, the mean counts as 0.
    saved[column] = select(PerChannel(0.0), pivot, all.count > Count(0.0));
    saved[column + geometry.all_columns] = all.mean;
    saved[column + geometry.all_columns * 2u] = inv_std_of(variance);
    saved[column + geometry.all_columns * 3u] = variance;
    saved[column + geometry.all_columns * 4u] = PerChannel(inverse_count);
    // One value has no variance to learn from, none has nothing.
    if least(all.count) >= 2.0 {
        let running_variance = all.m2 / (all.count - constants.degrees_lost);
        running_mean[column] = (1.0 - constants.momentum_mean) * before.mean
            + constants.momentum_mean * (pivot + all.mean);
        running_var[column] = (1.0 - constants.momentum_var) * before.variance
            + constants.momentum_var * running_variance;
    }
}

@compute @workgroup_size(LANES)
fn merge(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let before = running_of(tile.column);
    let pivot = pivot_of_partials(tile.column);
    let all = merged_partials(tile, pivot, local);
    if tile.live && tile.lane == 0u {
        write_statistics(tile.column, pivot, all, before);
    }
}
