// What the gradient of x needs of a channel is computed by the workgroup itself.

fn coefficients(column: u32) -> Coefficients {
    let first = (column - geometry.first_column) / geometry.lane_step % LANES_X;
    let inv_std = saved_row(column, 2u);
    let inverse_count = saved_row(column, 4u);
    return Coefficients(
        saved_row(column, 0u),
        saved_row(column, 1u),
        scale_of(column),
        shared_gradient[first] * inverse_count,
        shared_product[first] * inv_std * inverse_count * inv_std,
        cut_of(column),
    );
}
