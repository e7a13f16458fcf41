// ReLU: what is not above 0 is cut to 0, and so is its gradient. Not a number passes.

fn passes(z: Pack) -> Flags {
    return !(z <= Pack(0.0));
}

fn activated(z: Pack) -> Pack {
    return select(Pack(0.0), z, passes(z));
}

/// The gradient of z where that of its output is dy.
fn gradient_of(dy: Pack, passed: Flags) -> Pack {
    return select(Pack(0.0), dy, passed);
}
