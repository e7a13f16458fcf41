// Packing "channels": a pack is four neighbouring channels at one place. Needs inner == 1 and
// channels % 4 == 0.
//
// Also of packs whose four channels are gathered: lib/channels_of.

/// What one invocation computes with at once.
alias Pack = vec4<f32>;
/// Whether something holds, for each value of a pack.
alias Flags = vec4<bool>;
/// A statistic or parameter of the channel, or channels, that a pack belongs to.
alias PerChannel = vec4<f32>;
/// How many values a pack holds, and bits it takes in a mask.
const VALUES: u32 = 4u;
/// At how many places of a channel a pack's values lie.
const PLACES: u32 = 1u;
/// Whether every plane is one pack in this packing.
const ONE_PACK: bool = true;

/// The sum of a pack's values, channel by channel.
fn fold(pack: Pack) -> PerChannel {
    return pack;
}

/// How many values of each channel are flagged, where all channels have the same.
fn flagged(flags: Flags) -> f32 {
    return select(0.0, 1.0, flags.x);
}

/// One value of each channel in a pack.
fn sample(pack: Pack, address: u32) -> PerChannel {
    return pack;
}

/// The first flagged value of each channel in a pack, of which one is flagged.
fn sample_of(pack: Pack, flags: Flags) -> PerChannel {
    return pack;
}

/// A value of the first channel in a pack, where all have the same.
fn first_channel(value: PerChannel) -> f32 {
    return value.x;
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
    return vec4<bool>((bits & 1u) != 0u);
}
