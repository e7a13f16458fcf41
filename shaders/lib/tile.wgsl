// How a tensor is divided among workgroups and invocations; shared by all kernels over tensors.
//
// The tensor is (outer, columns, plane) packs, row-major: a column is a channel, or what belongs to
// four of them where a pack does, or to eight where twins do (lib/vectors); a plane is the run of packs
// that lie together in memory. A tensor too large for one binding is cut into slices that are such
// blocks themselves; a dispatch works on one slice.
// The `length = outer * plane` packs of a column are numbered 0, 1, … in memory order and cut into
// `splits` ranges of `split_length`. A workgroup takes LANES_X columns and one split of each;
// LANES_Y invocations share a column's split, side by side: each takes every LANES_Y-th pack.
// Twins (lib/two) count as one pack in all of this, and as two in a walk.
//
// A merge has no tensor, but `partials` partial results of each column.

/// Invocations of a workgroup across columns.
override LANES_X: u32 = 1u;
/// Invocations of a workgroup that share a column.
override LANES_Y: u32 = 1u;
/// LANES_X * LANES_Y.
override LANES: u32 = 1u;

/// Packs at an address that have numbers of their own in a column: twins of one channel.
const NUMBERS: u32 = TWINS / VECTORS;

struct Geometry {
    /// Columns of the slice.
    columns: u32,
    /// From the column of a lane to that of the next lane across …
    lane_step: u32,
    /// … and from a workgroup's first column to the next one's.
    tile_step: u32,
    /// Packs in a plane.
    plane: u32,
    /// Packs in a column.
    length: u32,
    splits: u32,
    /// Packs of a column in each split but the last, which may be shorter.
    split_length: u32,
    /// What LANES_Y packs add to the place in the plane, `LANES_Y % plane` …
    step_in_plane: u32,
    /// … and to the address, within a plane or from one to the same place in another.
    step_in_tensor: u32,
    /// From the end of a column's plane to the start of its next, modulo 2^32.
    next_plane: u32,
    /// The address of the slice's first pack in the binding.
    first_address: u32,
    /// The slice's first column in the tensor, and its first split among those of all slices.
    first_column: u32,
    first_split: u32,
    /// How long a vector of channels is, in elements of what a column has; in channels, where these are gathered.
    all_columns: u32,
    /// The number of the slice's first pack in its column.
    first_number: u32,
    /// From the address of a value, where a pack is one, to its index in the tensor …
    value_offset: u32,
    /// … which has so many values, and so many neighbours in a channel. All modulo 2^32.
    values: u32,
    inner: u32,
    /// Partial results of each channel, of all slices …
    partials: u32,
    /// … and from one to the next, and from a row of all to the next, in elements of what a column has.
    partial_step: u32,
    partial_row_step: u32,
    /// Where the mask of an activation lies: see lib/mask/bits.wgsl.
    mask_first: u32,
    mask_column_step: u32,
    mask_word_step: u32,
    mask_shift: u32,
    /// Nine packs spread over a column: their addresses from the column's first pack on.
    probes: array<vec4<u32>, 3>,
}

@group(0) @binding(0) var<uniform> geometry: Geometry;

/// The part of the tensor that falls to one invocation.
struct Tile {
    /// The column, in the tensor.
    column: u32,
    /// The address of the column's first pack in the slice.
    address: u32,
    /// The split, in the slice.
    split: u32,
    /// 0 … LANES_Y - 1
    lane: u32,
    /// False past the last column or split.
    live: bool,
}

fn tile(workgroup: vec3<u32>, grid: vec3<u32>, local: u32) -> Tile {
    let tiles = (geometry.columns + LANES_X - 1u) / LANES_X;
    let index = workgroup.y * grid.x + workgroup.x;
    let split = index / tiles;
    let tile = index - split * tiles;
    let unbounded = tile * geometry.tile_step + local % LANES_X * geometry.lane_step;
    let column = min(unbounded, geometry.columns - 1u);
    return Tile(
        geometry.first_column + column,
        geometry.first_address + column * plane_size(),
        split,
        local / LANES_X,
        unbounded < geometry.columns && split < geometry.splits,
    );
}

/// Where the first row of a partial result lies.
fn partial_at(partial: u32, vector: u32) -> u32 {
    return partial * geometry.partial_step + vector;
}

/// The index of a vector in the tensor, of those in a tile's column.
fn vector_of(tile: Tile, index: u32) -> u32 {
    return VECTORS * tile.column + index;
}

/// Where a pack lies.
struct Place {
    /// In the binding: see lib/address.
    address: u32,
    /// Which of the packs at that address: see lib/two. What a tensor has at the second of twins can be asked for only
    /// after the first, with no other place between: lib/input.
    twin: u32,
    /// Its number in its plane.
    place_in_plane: u32,
    /// Its number in its column of the tensor.
    number: u32,
    /// Whether it is the lane's last.
    last: bool,
}

/// Where two packs lie that a lane comes to one after the other: see lib/two.
struct Two {
    first: Place,
    second: Place,
}

/// What leads from a pack to the next: as in `Geometry`.
struct Steps {
    plane: u32,
    in_plane: u32,
    in_tensor: u32,
    next_plane: u32,
}

/// A walk over the packs of one lane.
struct Walk {
    address: u32,
    place_in_plane: u32,
    /// The next pack's number; of twins in one channel, the first's.
    number: u32,
    /// Packs, of which twins are two.
    remaining: u32,
    /// Loaded once: a software adapter loads what is uniform lane by lane, each time.
    steps: Steps,
}

fn walk(tile: Tile) -> Walk {
    let steps = Steps(
        geometry.plane,
        geometry.step_in_plane,
        geometry.step_in_tensor,
        geometry.next_plane,
    );
    let nowhere = Walk(0u, 0u, 0u, 0u, steps);
    if !tile.live {
        return nowhere;
    }
    let split_start = tile.split * geometry.split_length;
    let split_end = split_start + min(geometry.split_length, geometry.length - split_start);
    let start = split_start + tile.lane;
    if start >= split_end {
        return nowhere;
    }
    let outer = start / geometry.plane;
    let place = start - outer * geometry.plane;
    let address = tile.address + outer * geometry.columns * plane_size() + place * PLACE_STEP;
    return Walk(
        address,
        place,
        NUMBERS * (geometry.first_number + start),
        TWINS * ((split_end - start + LANES_Y - 1u) / LANES_Y),
        steps,
    );
}

/// The place of the walk's current pack; moves the walk on to the next.
fn next(walk: ptr<function, Walk>) -> Place {
    let now = *walk;
    let place = Place(
        now.address,
        0u,
        now.place_in_plane,
        now.number,
        now.remaining == TWINS,
    );
    let next_address = now.address + now.steps.in_tensor;
    let next_place = now.place_in_plane + now.steps.in_plane;
    // In planes of one pack never, as is known when this is compiled.
    let is_past = !ONE_PACK && next_place >= now.steps.plane;
    *walk = Walk(
        next_address + select(0u, now.steps.next_plane, is_past),
        next_place - select(0u, now.steps.plane, is_past),
        now.number + NUMBERS * LANES_Y,
        now.remaining - TWINS,
        now.steps,
    );
    return place;
}

/// The same, if that is wanted; else another place again.
fn next_if(wanted: bool, other: Place, walk: ptr<function, Walk>) -> Place {
    if !wanted {
        return other;
    }
    return next(walk);
}

/// The same of two.
fn next_two_if(
    wanted: bool,
    another: bool,
    other: Place,
    walk: ptr<function, Walk>,
) -> Two {
    if !wanted {
        return Two(other, other);
    }
    return next_two(another, walk);
}
