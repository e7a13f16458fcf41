// gamma and beta of the channels of a column, each by itself.

@group(0) @binding(10) var<storage, read> gamma: array<f32>;
@group(0) @binding(11) var<storage, read> beta: array<f32>;

fn gamma_of(column: u32) -> PerChannel {
    let c = channels_of(column);
    return per_channel(column, gamma[c.x], gamma[c.y], gamma[c.z], gamma[c.w]);
}

fn beta_of(column: u32) -> PerChannel {
    let c = channels_of(column);
    return per_channel(column, beta[c.x], beta[c.y], beta[c.z], beta[c.w]);
}
