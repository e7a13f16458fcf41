//! What a device's own conversions of f16 come to: `shaders/native_f16.wgsl`.

use super::{EntryPoint, piece};

pub(crate) const COMPARE: EntryPoint = EntryPoint {
    label: "native_f16.compare",
    name: "compare",
    axes: &[],
    pieces: |_| {
        vec![
            piece!("lib/storage/f16_read"),
            piece!("lib/storage/f16_round"),
            piece!("lib/flat"),
            piece!("native_f16"),
        ]
    },
    bindings: |_| vec!["agreements"],
    writes: &["agreements"],
    constants: |variant| vec![("LANES", f64::from(variant.lanes_x))],
};

/// The numbers that it goes through, and counts.
pub(crate) const NUMBERS: u32 = 1 << 16;
