// Clamp: what is not between two ends is cut to the nearer one, and its gradient to 0. Not a number
// passes.

fn passes(z: Pack) -> Flags {
    return !(z <= Pack(constants.least)) & !(z >= Pack(constants.most));
}

fn activated(z: Pack) -> Pack {
    let raised = select(z, Pack(constants.least), z <= Pack(constants.least));
    return select(raised, Pack(constants.most), z >= Pack(constants.most));
}

/// The gradient of z where that of its output is dy.
fn gradient_of(dy: Pack, passed: Flags) -> Pack {
    return select(Pack(0.0), dy, passed);
}
