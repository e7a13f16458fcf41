// A column is eight channels, in two vectors: the first of twins belongs to the first. To what is asked for
// something of a channel (`coefficients`, `gamma_of` and their like), a column is a vector.

/// Vectors of channels in a column.
const VECTORS: u32 = 2u;
