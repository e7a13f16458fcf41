// No residual.

fn with_residual(z: Pack, at: Place) -> Pack {
    return z;
}
