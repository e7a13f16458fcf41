// No activation.

fn activated(z: Pack) -> Pack {
    return z;
}
