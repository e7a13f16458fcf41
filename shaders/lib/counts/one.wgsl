// How many values: as many of each channel of a pack.

/// A number of values.
alias Count = f32;

/// Whether something holds for them.
alias OfEach = bool;

/// How many values of each channel are flagged.
fn counted(flags: Flags) -> Count {
    return flagged(flags);
}

/// A number of values that was kept as a vector.
fn count_of(value: PerChannel) -> Count {
    return first_channel(value);
}

/// The least number of a channel.
fn least(count: Count) -> f32 {
    return count;
}

fn are_alike(a: Count, b: Count) -> bool {
    return a == b;
}
