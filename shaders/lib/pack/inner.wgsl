// Packing "inner": a pack is four neighbours in one plane, so all of one channel: inner % 4 == 0. And
// packing "ragged": those of its values are that belong to the column, own_at in lib/address.

/// What one invocation computes with at once.
alias Pack = vec4<f32>;
/// Whether something holds, for each value of a pack.
alias Flags = vec4<bool>;
/// A statistic or parameter of the channel, or channels, that a pack belongs to.
alias PerChannel = f32;
/// How many values a pack holds, and bits it takes in a mask.
const VALUES: u32 = 4u;
/// At how many places of a channel a pack's values lie.
const PLACES: u32 = 4u;
/// Whether every plane is one pack in this packing.
const ONE_PACK: bool = false;

/// The sum of a pack's values, channel by channel.
fn fold(pack: Pack) -> PerChannel {
    return (pack.x + pack.y) + (pack.z + pack.w);
}

/// How many values of each channel are flagged.
fn flagged(flags: Flags) -> f32 {
    return fold(select(Pack(0.0), Pack(1.0), flags));
}

/// One value of each channel in a pack: that at the address, if this counts values; else any will do.
fn sample(pack: Pack, address: u32) -> PerChannel {
    return pack[address & 3u];
}

/// The first flagged value of each channel in a pack, of which one is flagged.
fn sample_of(pack: Pack, flags: Flags) -> PerChannel {
    return select(select(select(pack.w, pack.z, flags.z), pack.y, flags.y), pack.x, flags.x);
}

/// A value of the first channel in a pack, where all have the same.
fn first_channel(value: PerChannel) -> f32 {
    return value;
}

/// Flags as VALUES bits, the first value's the lowest.
fn bits_of(flags: Flags) -> u32 {
    let bits = vec4<u32>(flags) * vec4<u32>(1u, 2u, 4u, 8u);
    return (bits.x | bits.y) | (bits.z | bits.w);
}

/// The flags in the lowest VALUES bits.
fn flags_of(bits: u32) -> Flags {
    return (vec4<u32>(bits) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>();
}

/// Flags from the lowest PLACES bits, one for each place.
fn flags_of_places(bits: u32) -> Flags {
    return flags_of(bits);
}
