// Running statistics as the saved ones, for training that goes by them.
//
// in   running_mean, running_var  [channels]
// out  saved  [5, channels] as in statistics.wgsl. They do not depend on the batch, so 1 / M is 0.

@group(0) @binding(12) var<storage, read_write> saved: array<PerChannel>;
@group(0) @binding(13) var<storage, read> running_mean: array<PerChannel>;
@group(0) @binding(14) var<storage, read> running_var: array<PerChannel>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = tile(workgroup, grid, local);
    if tile.live && tile.lane == 0u {
        let column = tile.column;
        let variance = running_var[column];
        saved[column] = running_mean[column];
        saved[column + geometry.all_columns] = PerChannel();
        saved[column + geometry.all_columns * 2u] = running_inv_std_of(variance);
        saved[column + geometry.all_columns * 3u] = variance;
        saved[column + geometry.all_columns * 4u] = PerChannel();
    }
}
