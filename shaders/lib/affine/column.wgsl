// gamma and beta of the channel, or channels, of a column.

@group(0) @binding(10) var<storage, read> gamma: array<PerChannel>;
@group(0) @binding(11) var<storage, read> beta: array<PerChannel>;

fn gamma_of(column: u32) -> PerChannel {
    return gamma[column];
}

fn beta_of(column: u32) -> PerChannel {
    return beta[column];
}
