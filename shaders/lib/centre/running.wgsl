// Normalization by running statistics.

@group(0) @binding(13) var<storage, read> running_mean: array<PerChannel>;
@group(0) @binding(14) var<storage, read> running_var: array<PerChannel>;

fn centre_of(column: u32) -> Centre {
    return Centre(running_mean[column], PerChannel(), running_inv_std_of(running_var[column]));
}
