// Whether a device's own conversions between f16 and f32 come to what integer arithmetic comes to
// (lib/storage/f16_read, lib/storage/f16_round), bit for bit. WGSL leaves open which way they round, and
// whether what is below 2^-14 counts as 0.
//
// out  agreements  [2], counted up: the numbers of 16 bits that are read alike, and those at which and next
//                  to which all is written alike
//
// An invocation for each number of 16 bits: lib/flat.

@group(0) @binding(21) var<storage, read_write> agreements: array<atomic<u32>, 2>;

/// Infinity, as f16. What is beyond it is not a number.
const INFINITY: u32 = 0x7c00u;

fn is_read_alike(half: u32) -> bool {
    let own = bitcast<vec2<u32>>(values_of(half | (half << 16u)));
    let native = bitcast<vec2<u32>>(unpack2x16float(half | (half << 16u)));
    // By their bits: a compiler may hold that nothing differs from itself.
    let infinity = vec2<u32>(0x7f800000u);
    let magnitude = vec2<u32>(0x7fffffffu);
    let no_numbers = ((own & magnitude) > infinity) & ((native & magnitude) > infinity);
    return all((own == native) | no_numbers);
}

/// Of both signs.
fn is_written_alike(value: f32) -> bool {
    let pair = vec2<f32>(value, -value);
    return pack2x16float(pair) == halves_of(pair);
}

/// The same of the f32 with these bits, and of its neighbours.
fn are_written_alike(bits: u32) -> bool {
    return is_written_alike(bitcast<f32>(bits - 1u))
        && is_written_alike(bitcast<f32>(bits))
        && is_written_alike(bitcast<f32>(bits + 1u));
}

/// Whether what is not a number stays so. Which it becomes is left to the device.
fn stays_no_number(bits: u32) -> bool {
    return (pack2x16float(vec2<f32>(bitcast<f32>(bits))) & 0x7fffu) > INFINITY;
}

/// A number and what lies between it and the next: halfway, from where on it is rounded up, or to even.
/// From halfway to what would follow the largest number on, it is infinity.
fn is_written_alike_from(half: u32) -> bool {
    if half < INFINITY {
        let low = value_of(half);
        let high = select(value_of(half + 1u), 65536.0, half + 1u == INFINITY);
        return is_written_alike(low) && are_written_alike(bitcast<u32>(0.5 * (low + high)));
    }
    if half == INFINITY {
        return is_written_alike(1e9) && is_written_alike(value_of(half));
    }
    if half < 0x8000u {
        // Of any bits that are no number, the lowest and the highest ones too.
        return stays_no_number(0x7f800000u + half - INFINITY)
            && stays_no_number(0x7f800000u + ((half - INFINITY) << 13u));
    }
    // The other sign is tried with the first.
    return true;
}

@compute @workgroup_size(LANES)
fn compare(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let half = flat_index(workgroup, grid, local);
    if half > 0xffffu {
        return;
    }
    if is_read_alike(half) {
        atomicAdd(&agreements[0], 1u);
    }
    if is_written_alike_from(half) {
        atomicAdd(&agreements[1], 1u);
    }
}
