// Leaky ReLU: what is not above 0 is multiplied by a slope, and so is its gradient.

fn passes(z: Pack) -> Flags {
    return !(z <= Pack(0.0));
}

fn activated(z: Pack) -> Pack {
    return select(z * constants.slope, z, passes(z));
}

/// The gradient of z where that of its output is dy.
fn gradient_of(dy: Pack, passed: Flags) -> Pack {
    return select(dy * constants.slope, dy, passed);
}
