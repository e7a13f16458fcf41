// Normalization by statistics that statistics.wgsl wrote.

fn centre_of(column: u32) -> Centre {
    return Centre(saved_row(column, 0u), saved_row(column, 1u), saved_row(column, 2u));
}
