//! Running statistics as the saved ones: `shaders/frozen_statistics.wgsl`.

use super::{Axis, EntryPoint, library, piece, tile_constants};

pub(crate) const MAIN: EntryPoint = EntryPoint {
    label: "frozen_statistics.main",
    name: "main",
    axes: &[Axis::FourChannels, Axis::Shared],
    pieces: |choice| {
        let mut pieces = library::over_tensors(choice);
        pieces.push(piece!("frozen_statistics"));
        pieces
    },
    bindings: |_| {
        vec![
            "geometry",
            "constants",
            "saved",
            "running_mean",
            "running_var",
        ]
    },
    writes: &["saved"],
    constants: tile_constants,
};
