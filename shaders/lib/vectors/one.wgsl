// What belongs to a column is of one channel, or of the channels of one vector.

/// Vectors of channels in a column.
const VECTORS: u32 = 1u;
