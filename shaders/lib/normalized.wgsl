// Normalization of a pack: one text for the forward pass and for the backward pass, which computes
// anew what the activation cut and must come to the same.

/// x - mean, with the mean in two parts: x - pivot is exact where they are near, as they are.
fn from_mean(x: Pack, pivot: PerChannel, remainder: PerChannel) -> Pack {
    return (x - pivot) - remainder;
}

/// What enters the activation, but for a residual.
fn normalized(from_mean: Pack, scale: PerChannel, shift: PerChannel) -> Pack {
    return fma(from_mean, Pack(scale), Pack(shift));
}
