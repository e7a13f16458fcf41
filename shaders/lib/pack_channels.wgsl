// Packing "channels": a pack is four neighbouring channels at one place.
// Needs inner == 1 and channels % 4 == 0.

/// What one invocation loads and stores at once.
alias Pack = vec4<f32>;
/// A statistic or parameter of the channel, or channels, that a pack belongs to.
alias PerChannel = vec4<f32>;
/// How many values of one channel a pack holds.
const VALUES_PER_CHANNEL: f32 = 1.0;

/// The sum of a pack's values, channel by channel.
fn fold(pack: Pack) -> PerChannel {
    return pack;
}

/// One value of each channel in a pack.
fn sample(pack: Pack) -> PerChannel {
    return pack;
}

/// A value of the first channel in a pack, where all have the same.
fn first_channel(value: PerChannel) -> f32 {
    return value.x;
}
