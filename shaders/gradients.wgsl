// Gradients of gamma and beta, and what the gradient of x needs of them.
//
//   dbeta = Σg      dgamma = Σg * x̂      with x̂ = (x - mean) * inv_std
//
// where g is the gradient of what enters the activation: lib/cut. Sums are over all positions, but
// for those that are not valid and have g = 0.
//
// in   x, dy          [outer, channels, inner]
//      saved          [5, channels], from statistics.wgsl: lib/saved
//      gamma, beta    [channels], lib/affine
// out  dgamma, dbeta  [channels]
//      coefficient_rows  [6, channels], for input_gradient.wgsl: pivot, remainder, gamma * inv_std,
//                     dbeta / M, inv_std * dgamma / M, beta
// via  partials       [2, partials, channels]: Σg and Σg * (x - mean) of each split
//
// `partial` runs once per column and split, `merge` once per column, after all slices' `partial`.
// For a batch whose shards lie on several devices, `collect` adds up the partials of a shard to
// `sums`, [2, channels], and `merge` takes those of all shards, [shards, 2, channels].
// Twin on the CPU: src/cpu/gradients.rs.

@group(0) @binding(15) var<storage, read_write> partials: array<PerChannel>;
@group(0) @binding(17) var<storage, read_write> sums: array<PerChannel>;
@group(0) @binding(18) var<storage, read_write> dgamma: array<PerChannel>;
@group(0) @binding(19) var<storage, read_write> dbeta: array<PerChannel>;
@group(0) @binding(20) var<storage, read_write> coefficient_rows: array<PerChannel>;

/// Whether Σg * (x - mean) is wanted; Σg alone does not read x.
override PRODUCTS: bool = true;

var<workgroup> shared_gradient: array<PerChannel, LANES>;
var<workgroup> shared_product: array<PerChannel, LANES>;

struct Sums {
    /// Σg
    gradient: PerChannel,
    /// Σg * (x - mean)
    product: PerChannel,
}

/// The sums of the first lanes of a column together, of which the others have none; valid in lane 0. A fixed
/// tree.
fn summed_lanes(own: Sums, local: u32, lane: u32, lanes: u32) -> Sums {
    var all = own;
    for (var half = LANES_Y / 2u; half > 0u; half /= 2u) {
        if half >= lanes {
            continue;
        }
        shared_gradient[local] = all.gradient;
        shared_product[local] = all.product;
        workgroupBarrier();
        if lane < half {
            let other = local + half * LANES_X;
            all = Sums(all.gradient + shared_gradient[other], all.product + shared_product[other]);
        }
        workgroupBarrier();
    }
    return all;
}

/// For lib/cut.
fn scale_of(column: u32) -> PerChannel {
    return saved_row(column, 2u) * gamma_of(column);
}

/// For lib/cut.
fn shift_of(column: u32) -> PerChannel {
    return beta_of(column);
}

/// What the terms need of a channel.
struct Channel {
    pivot: PerChannel,
    remainder: PerChannel,
    cut: Cut,
}

/// A gradient, and its product with x - mean.
struct Term {
    gradient: Pack,
    product: Pack,
}

fn channel_of(vector: u32) -> Channel {
    return Channel(saved_row(vector, 0u), saved_row(vector, 1u), cut_of(vector));
}

fn term_at(at: Place, channel: Channel) -> Term {
    let off = from_mean(x_at(at), channel.pivot, channel.remainder);
    read_cut_of_one(at, channel.cut);
    // What belongs to other columns says nothing.
    let before = gradient_before(dy_at(at), off, channel.cut);
    let gradient = select(Pack(), before, own_at(at));
    if PRODUCTS {
        // Padding with a gradient of 0 says nothing, whatever x holds there.
        let counts = valid_at(at) | (gradient != Pack(0.0));
        return Term(gradient, select(Pack(0.0), gradient * off, counts));
    }
    return Term(gradient, Pack(0.0));
}

/// A term, or none.
fn counted_term(term: Term, counts: bool) -> Term {
    return Term(
        select(Pack(), term.gradient, Flags(counts)),
        select(Pack(), term.product, Flags(counts)),
    );
}

/// Sums for each vector of a column; of one vector, the first ones.
struct Own {
    first: Sums,
    second: Sums,
}

/// The sums with four terms more.
fn with_terms(own: Own, a: Term, b: Term, c: Term, d: Term) -> Own {
    if VECTORS == 2u {
        return Own(
            Sums(
                own.first.gradient + fold(a.gradient + c.gradient),
                own.first.product + fold(a.product + c.product),
            ),
            Sums(
                own.second.gradient + fold(b.gradient + d.gradient),
                own.second.product + fold(b.product + d.product),
            ),
        );
    }
    let all = Sums(
        own.first.gradient + fold((a.gradient + b.gradient) + (c.gradient + d.gradient)),
        own.first.product + fold((a.product + b.product) + (c.product + d.product)),
    );
    return Own(all, all);
}

/// The sums over what falls to one lane.
fn sums_of(tile: Tile) -> Own {
    let channel = channel_of(vector_of(tile, 0u));
    var other = channel;
    if VECTORS == 2u {
        other = channel_of(vector_of(tile, 1u));
    }

    // In blocks of four packs, of which two vectors have two each.
    var own = Own();
    var walk = walk(tile);
    while walk.remaining >= 4u {
        let at = next_two(true, &walk);
        let at_behind = next_two(true, &walk);
        read_cut_of_four(at.first, channel.cut);
        let a = term_at(at.first, channel);
        let b = term_at(at.second, other);
        let c = term_at(at_behind.first, channel);
        let d = term_at(at_behind.second, other);
        own = with_terms(own, a, b, c, d);
    }
    let rest = walk.remaining;
    if rest > 0u {
        let at = next_two(rest > 1u, &walk);
        // Of twins never, as is known when this is compiled.
        let is_third = rest > 2u && TWINS == 1u;
        let at_c = next_if(is_third, at.second, &walk);
        read_cut_of_four(at.first, channel.cut);
        let a = term_at(at.first, channel);
        let b = counted_term(term_at(at.second, other), rest > 1u);
        let c = counted_term(term_at(at_c, channel), is_third);
        own = with_terms(own, a, b, c, Term());
    }
    return own;
}

/// Writes the sums of all lanes, for a vector of their column.
fn write_partial(own: Sums, tile: Tile, vector: u32, local: u32) {
    let all = summed_lanes(own, local, tile.lane, LANES_Y);
    if tile.live && tile.lane == 0u {
        let at = partial_at(geometry.first_split + tile.split, vector_of(tile, vector));
        partials[at] = all.gradient;
        partials[at + geometry.partial_row_step] = all.product;
    }
}

@compute @workgroup_size(LANES)
fn partial(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let own = sums_of(tile);
    write_partial(own.first, tile, 0u, local);
    if VECTORS == 2u {
        write_partial(own.second, tile, 1u, local);
    }
}

/// The sums of all partials of a column; valid in lane 0.
fn summed_partials(tile: Tile, local: u32) -> Sums {
    var own = Sums();
    var split = tile.lane;
    while split < geometry.partials {
        // In groups, for short chains of additions.
        var group = Sums();
        for (var part = 0u; part < 8u && split < geometry.partials; part += 1u) {
            let at = partial_at(split, tile.column);
            group.gradient += partials[at];
            group.product += partials[at + geometry.partial_row_step];
            split += LANES_Y;
        }
        own.gradient += group.gradient;
        own.product += group.product;
    }
    return summed_lanes(own, local, tile.lane, geometry.partials);
}

@compute @workgroup_size(LANES)
fn collect(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let all = summed_partials(tile, local);

    // Write.
    if tile.live && tile.lane == 0u {
        let column = tile.column;
        sums[column] = all.gradient;
        sums[column + geometry.all_columns] = all.product;
        dgamma[column] = all.product * saved_row(column, 2u);
        dbeta[column] = all.gradient;
    }
}

@compute @workgroup_size(LANES)
fn merge(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    let all = summed_partials(tile, local);

    // Write.
    if tile.live && tile.lane == 0u {
        let column = tile.column;
        let inv_std = saved_row(column, 2u);
        let inverse_count = saved_row(column, 4u);
        let dgamma_here = all.product * inv_std;
        dgamma[column] = dgamma_here;
        dbeta[column] = all.gradient;
        coefficient_rows[column] = saved_row(column, 0u);
        coefficient_rows[column + geometry.all_columns] = saved_row(column, 1u);
        coefficient_rows[column + geometry.all_columns * 2u] = scale_of(column);
        coefficient_rows[column + geometry.all_columns * 3u] = all.gradient * inverse_count;
        coefficient_rows[column + geometry.all_columns * 4u] = dgamma_here * inverse_count * inv_std;
        coefficient_rows[column + geometry.all_columns * 5u] = shift_of(column);
    }
}
