/// 1 / sqrt(variance + eps), within about one unit in the last place.
///
/// inverseSqrt alone may be two off, which the gradient of x would feel twice: so one step of
/// Newton's method on top. Of an infinite variance it is not a number: a batch whose sums overflow
/// must not pass for a constant one.
fn inv_std_of(variance: PerChannel) -> PerChannel {
    let shifted = variance + constants.eps;
    let guess = inverseSqrt(shifted);
    return guess + 0.5 * guess * fma(-shifted * guess, guess, PerChannel(1.0));
}

/// The same of a running variance. An infinite one is the caller's word, and makes x̂ = 0.
fn running_inv_std_of(variance: PerChannel) -> PerChannel {
    return select(inv_std_of(variance), PerChannel(), variance > PerChannel(3.4e38));
}
