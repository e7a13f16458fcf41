// How many values: of each channel of a pack by itself, whose values lie in several rows.

/// Numbers of values.
alias Count = vec4<f32>;

/// Whether something holds for them.
alias OfEach = vec4<bool>;

/// How many values of each channel are flagged.
fn counted(flags: Flags) -> Count {
    return select(Count(0.0), Count(1.0), flags);
}

/// Numbers of values that were kept as a vector.
fn count_of(value: PerChannel) -> Count {
    return value;
}

/// The least number of a channel.
fn least(count: Count) -> f32 {
    return min(min(count.x, count.y), min(count.z, count.w));
}

fn are_alike(a: Count, b: Count) -> bool {
    return all(a == b);
}
