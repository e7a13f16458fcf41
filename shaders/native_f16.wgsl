// Whether a device's own conversions between f16 and f32 come to what integer arithmetic comes to
// (lib/storage/f16_read, lib/storage/f16_round), bit for bit. WGSL leaves open which way they round, and
// whether what is below 2^-14 counts as 0.
//
// out  differences  [2]: 0, but 1 where some number is read otherwise, and 1 where one is written otherwise
//
// An invocation for each number of 16 bits.

@group(0) @binding(21) var<storage, read_write> differences: array<atomic<u32>, 2>;

override LANES: u32 = 1u;

/// Infinity, as f16. What is beyond it is not a number.
const INFINITY: u32 = 0x7c00u;

fn is_read_otherwise(half: u32) -> bool {
    let own = values_of(half | (half << 16u));
    let native = unpack2x16float(half | (half << 16u));
    let both_no_number = (own != own) & (native != native);
    let differs = bitcast<vec2<u32>>(own) != bitcast<vec2<u32>>(native);
    return any(differs & !both_no_number);
}

fn is_written_otherwise(value: f32) -> bool {
    let pair = vec2<f32>(value, -value);
    return pack2x16float(pair) != halves_of(pair);
}

/// The same of the f32 with these bits, and of its neighbours.
fn is_written_otherwise_near(bits: u32) -> bool {
    return is_written_otherwise(bitcast<f32>(bits - 1u))
        || is_written_otherwise(bitcast<f32>(bits))
        || is_written_otherwise(bitcast<f32>(bits + 1u));
}

@compute @workgroup_size(LANES)
fn compare(@builtin(global_invocation_id) id: vec3<u32>) {
    let half = id.x;
    if half > 0xffffu {
        return;
    }
    if is_read_otherwise(half) {
        atomicStore(&differences[0], 1u);
    }
    // Of both signs at once. Up to halfway to what would follow the largest number, from where on it is
    // infinity.
    if half < INFINITY {
        let low = value_of(half);
        let high = select(value_of(half + 1u), 65536.0, half + 1u == INFINITY);
        if is_written_otherwise(low)
            || is_written_otherwise_near(bitcast<u32>(0.5 * (low + high))) {
            atomicStore(&differences[1], 1u);
        }
    }
    if half == INFINITY {
        let no_number = pack2x16float(vec2<f32>(value_of(half + 1u)));
        let is_some = any((vec2<u32>(no_number, no_number >> 16u) & vec2<u32>(0x7fffu)) <= vec2<u32>(INFINITY));
        if is_written_otherwise(1e9) || is_written_otherwise(value_of(INFINITY)) || is_some {
            atomicStore(&differences[1], 1u);
        }
    }
}
