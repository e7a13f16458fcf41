// Packing "scalar": a pack is one value. Fits every shape.

/// What one invocation computes with at once.
alias Pack = f32;
/// Whether something holds, for each value of a pack.
alias Flags = bool;
/// A statistic or parameter of the channel, or channels, that a pack belongs to.
alias PerChannel = f32;
/// How many values a pack holds, and bits it takes in a mask.
const VALUES: u32 = 1u;
/// At how many places of a channel a pack's values lie.
const PLACES: u32 = 1u;
/// Whether every plane is one pack in this packing.
const ONE_PACK: bool = false;

/// The sum of a pack's values, channel by channel.
fn fold(pack: Pack) -> PerChannel {
    return pack;
}

/// How many values of each channel are flagged.
fn flagged(flags: Flags) -> f32 {
    return select(0.0, 1.0, flags);
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
    return value;
}

/// Flags as VALUES bits, the first value's the lowest.
fn bits_of(flags: Flags) -> u32 {
    return select(0u, 1u, flags);
}

/// The flags in the lowest VALUES bits.
fn flags_of(bits: u32) -> Flags {
    return (bits & 1u) != 0u;
}

/// Flags from the lowest PLACES bits, one for each place.
fn flags_of_places(bits: u32) -> Flags {
    return (bits & 1u) != 0u;
}
