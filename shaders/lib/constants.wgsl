// The numbers of a plan that do not depend on how its work is divided.

struct Constants {
    /// Added to a variance before its square root.
    eps: f32,
    /// Weight of the new batch in the running mean …
    momentum_mean: f32,
    /// … and in the running variance.
    momentum_var: f32,
    /// What is taken off the number of values for the variance that enters the running one: 1 or 0.
    degrees_lost: f32,
    /// What the activation multiplies by what it cuts, if it is leaky.
    slope: f32,
    /// The least and the largest output of an activation that clamps.
    least: f32,
    most: f32,
}

@group(0) @binding(1) var<uniform> constants: Constants;
