// Normalization by running statistics, where a column has several channels.

@group(0) @binding(13) var<storage, read> running_mean: array<f32>;
@group(0) @binding(14) var<storage, read> running_var: array<f32>;

fn centre_of(column: u32) -> Centre {
    let c = channels_of(column);
    let mean = per_channel(
        column,
        running_mean[c.x],
        running_mean[c.y],
        running_mean[c.z],
        running_mean[c.w],
    );
    let variance = per_channel(
        column,
        running_var[c.x],
        running_var[c.y],
        running_var[c.z],
        running_var[c.w],
    );
    return Centre(mean, PerChannel(), running_inv_std_of(variance));
}
