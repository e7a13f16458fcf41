//! The shader library, `shaders/lib/`: one folder for each choice, one file for each alternative,
//! all of which define the same names.

use super::{Choice, Piece, piece};
use crate::division::Packing;
use crate::{Activation, DType, NativeF16};

/// Which activation's file is taken; its numbers are in `Constants`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum ActivationFile {
    #[default]
    Identity,
    Relu,
    LeakyRelu,
    Clamp,
}

impl ActivationFile {
    pub(crate) const ALL: [Self; 4] = [Self::Identity, Self::Relu, Self::LeakyRelu, Self::Clamp];

    fn uses_constants(self) -> bool {
        matches!(self, Self::LeakyRelu | Self::Clamp)
    }
}

impl From<Activation> for ActivationFile {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Identity => Self::Identity,
            Activation::Relu => Self::Relu,
            Activation::LeakyRelu { .. } => Self::LeakyRelu,
            Activation::Clamp { .. } => Self::Clamp,
        }
    }
}

/// What all kernels over tensors begin with.
pub(super) fn over_tensors(choice: &Choice) -> Vec<Piece> {
    let mut pieces = match choice.form.packing {
        Packing::Scalar => vec![piece!("lib/pack/scalar")],
        Packing::Inner | Packing::InnerTwins | Packing::Ragged => vec![piece!("lib/pack/inner")],
        Packing::Channels | Packing::ChannelTwins => vec![piece!("lib/pack/channels")],
        Packing::Rows => vec![piece!("lib/pack/channels"), piece!("lib/channels_of/rows")],
        Packing::Mixed => vec![
            piece!("lib/pack/channels"),
            piece!("lib/channels_of/planes"),
        ],
    };
    pieces.extend(match choice.form.packing {
        Packing::Ragged => [piece!("lib/address/values"), piece!("lib/word/value")],
        _ if choice.form.in_pairs() => [piece!("lib/address/packs"), piece!("lib/word/half")],
        _ => [piece!("lib/address/packs"), piece!("lib/word/pack")],
    });
    pieces.extend(storage(choice));
    pieces.extend([
        match choice.form.packing.has_twins() {
            true => piece!("lib/two/together"),
            false => piece!("lib/two/apart"),
        },
        match choice.form.packing {
            Packing::ChannelTwins => piece!("lib/vectors/two"),
            _ => piece!("lib/vectors/one"),
        },
        match choice.form.packing {
            Packing::Rows => piece!("lib/counts/each"),
            _ => piece!("lib/counts/one"),
        },
        piece!("lib/tile"),
        piece!("lib/constants"),
        piece!("lib/inv_std"),
        piece!("lib/normalized"),
    ]);
    pieces
}

fn storage(choice: &Choice) -> Vec<Piece> {
    let mut pieces = match choice.form.dtype {
        DType::F32 if choice.wide => {
            let packs = match choice.form.packing.has_twins() {
                true => piece!("lib/storage/f32_twins"),
                false => piece!("lib/storage/f32_wide"),
            };
            return vec![
                piece!("lib/wide_word"),
                piece!("lib/storage/f32_word"),
                packs,
            ];
        }
        DType::F32 => return vec![piece!("lib/storage/f32")],
        DType::F16 => vec![
            match choice.native_f16 {
                NativeF16::Never => piece!("lib/storage/f16_read"),
                _ => piece!("lib/storage/f16_read_native"),
            },
            match choice.native_f16 {
                NativeF16::Always => piece!("lib/storage/f16_round_native"),
                _ => piece!("lib/storage/f16_round"),
            },
        ],
        DType::Bf16 => vec![piece!("lib/storage/bf16")],
    };
    pieces.extend(match choice.form.packing {
        Packing::Scalar => vec![piece!("lib/storage/half")],
        packing if packing.has_twins() => {
            vec![piece!("lib/wide_word"), piece!("lib/storage/halves_twins")]
        }
        _ if choice.wide => vec![piece!("lib/wide_word"), piece!("lib/storage/halves_wide")],
        _ => vec![piece!("lib/storage/halves")],
    });
    pieces
}

/// Element-wise kernels.
pub(super) fn map(choice: &Choice) -> Piece {
    match choice.form.in_pairs() {
        true => piece!("lib/map/pairs"),
        false => piece!("lib/map/columns"),
    }
}

/// The same of kernels that know a workgroup's columns already.
pub(super) fn map_of_columns(choice: &Choice) -> Piece {
    match choice.form.in_pairs() {
        true => piece!("lib/map/channel_pairs"),
        false => piece!("lib/map/columns"),
    }
}

pub(super) fn activation(choice: &Choice) -> Piece {
    match choice.activation {
        ActivationFile::Identity => piece!("lib/activation/identity"),
        ActivationFile::Relu => piece!("lib/activation/relu"),
        ActivationFile::LeakyRelu => piece!("lib/activation/leaky_relu"),
        ActivationFile::Clamp => piece!("lib/activation/clamp"),
    }
}

/// The bindings that [`activation`] uses.
pub(super) fn activation_bindings(choice: &Choice) -> &'static [&'static str] {
    if choice.activation.uses_constants() {
        &["constants"]
    } else {
        &[]
    }
}

fn mask(choice: &Choice) -> [Piece; 2] {
    let numbers = match choice.form.packing {
        Packing::Ragged => piece!("lib/mask/ragged"),
        packing if packing.has_twins() => piece!("lib/mask/twins"),
        _ if choice.form.in_pairs() => piece!("lib/mask/pairs"),
        _ => piece!("lib/mask/columns"),
    };
    [piece!("lib/mask/bits"), numbers]
}

/// Whether the forward pass keeps what it cut.
pub(super) fn keep(choice: &Choice) -> Vec<Piece> {
    if !choice.masked() {
        return vec![piece!("lib/keep/nothing")];
    }
    [piece!("lib/keep/mask")]
        .into_iter()
        .chain(mask(choice))
        .collect()
}

/// The bindings that [`x`], [`residual`] and [`keep`] use.
pub(super) fn normalized_bindings(choice: &Choice) -> Vec<&'static str> {
    let uses = [
        ("x", !choice.in_place),
        ("residual", choice.residual),
        ("mask", choice.masked()),
    ];
    used(&uses)
}

/// The bindings that [`dy`] and [`residual_gradient`] use.
pub(super) fn input_gradient_bindings(choice: &Choice) -> Vec<&'static str> {
    let uses = [
        ("dy", !choice.in_place),
        ("residual_gradient", choice.residual_gradient),
    ];
    used(&uses)
}

fn used(uses: &[(&'static str, bool)]) -> Vec<&'static str> {
    let used = uses.iter().filter(|(_, used)| *used);
    used.map(|(name, _)| *name).collect()
}

/// How the backward pass knows what was cut.
pub(super) fn cut(choice: &Choice) -> Vec<Piece> {
    if choice.activation == ActivationFile::Identity {
        vec![piece!("lib/cut/nothing")]
    } else if choice.masked() {
        [piece!("lib/cut/mask"), activation(choice)]
            .into_iter()
            .chain(mask(choice))
            .collect()
    } else {
        vec![piece!("lib/cut/recomputed"), activation(choice)]
    }
}

/// The bindings that [`cut`] uses, but for those by which a kernel computes scale and shift.
pub(super) fn cut_bindings(choice: &Choice) -> Vec<&'static str> {
    let mut names = Vec::new();
    if choice.masked() {
        names.push("mask");
    }
    if choice.activation != ActivationFile::Identity {
        names.extend(activation_gradient_bindings(choice));
    }
    names
}

/// The slope of a leaky activation enters its gradient; the ends of a clamp only what it passes.
fn activation_gradient_bindings(choice: &Choice) -> &'static [&'static str] {
    match choice.activation {
        ActivationFile::LeakyRelu => &["constants"],
        ActivationFile::Clamp if !choice.masked() => &["constants"],
        _ => &[],
    }
}

pub(super) fn residual(choice: &Choice) -> Piece {
    match choice.residual {
        true => piece!("lib/residual/added"),
        false => piece!("lib/residual/none"),
    }
}

pub(super) fn residual_gradient(choice: &Choice) -> Piece {
    match choice.residual_gradient {
        true => piece!("lib/residual_gradient/written"),
        false => piece!("lib/residual_gradient/none"),
    }
}

pub(super) fn valid(choice: &Choice) -> Piece {
    match choice.some_valid {
        true if choice.form.packing.mixes() => piece!("lib/valid/some_mixed"),
        true => piece!("lib/valid/some"),
        false => piece!("lib/valid/all"),
    }
}

pub(super) fn pivot(choice: &Choice) -> Piece {
    match choice.some_valid {
        true => piece!("lib/pivot/found"),
        false => piece!("lib/pivot/probed"),
    }
}

/// The statistics by which a kernel normalizes.
pub(super) fn centre(choice: &Choice) -> Vec<Piece> {
    match (choice.running, choice.form.packing.gathers()) {
        (true, true) => vec![piece!("lib/centre/running_gathered")],
        (true, false) => vec![piece!("lib/centre/running")],
        (false, _) => vec![saved(choice), piece!("lib/centre/saved")],
    }
}

/// The statistics of the batch, as the forward pass left them.
pub(super) fn saved(choice: &Choice) -> Piece {
    match choice.form.packing.gathers() {
        true => piece!("lib/saved/gathered"),
        false => piece!("lib/saved/column"),
    }
}

/// γ and β.
pub(super) fn affine(choice: &Choice) -> Piece {
    match choice.form.packing.gathers() {
        true => piece!("lib/affine/gathered"),
        false => piece!("lib/affine/column"),
    }
}

/// What the gradient of x needs of a channel, as the reduction left it.
pub(super) fn coefficients(choice: &Choice) -> [Piece; 2] {
    let row = match choice.form.packing.gathers() {
        true => piece!("lib/coefficient_row/gathered"),
        false => piece!("lib/coefficient_row/column"),
    };
    [row, piece!("lib/coefficients/rows")]
}

pub(super) fn x(choice: &Choice) -> Piece {
    match choice.in_place {
        true => piece!("lib/input/x_in_y"),
        false => piece!("lib/input/x"),
    }
}

pub(super) fn dy(choice: &Choice) -> Piece {
    match choice.in_place {
        true => piece!("lib/input/dy_in_dx"),
        false => piece!("lib/input/dy"),
    }
}
