// The numbers of a plan that do not depend on how its work is divided.

struct Constants {
    /// Added to a variance before its square root.
    eps: f32,
    /// 1 / M, with M = outer * inner, the values of a channel.
    inverse_count: f32,
    /// What turns the population variance into the one that enters the running statistics:
    /// M / (M - 1), or 1.
    variance_correction: f32,
    /// Weight of the new batch in the running mean …
    momentum_mean: f32,
    /// … and in the running variance.
    momentum_var: f32,
}

@group(0) @binding(1) var<uniform> constants: Constants;

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
