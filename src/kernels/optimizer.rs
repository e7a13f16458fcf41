//! Steps of gradient descent: `shaders/optimizer.wgsl`.

use super::{Choice, EntryPoint, Piece, Variant, piece};

/// What is declared `read_write` in the shader.
const WRITES: &[&str] = &["parameter", "state"];

fn pieces(_: &Choice) -> Vec<Piece> {
    vec![piece!("lib/flat"), piece!("optimizer")]
}

fn bindings(_: &Choice) -> Vec<&'static str> {
    vec!["settings", "gradient", "parameter", "state"]
}

fn constants(variant: &Variant) -> Vec<(&'static str, f64)> {
    vec![("LANES", f64::from(variant.lanes_x))]
}

/// Stochastic gradient descent.
pub(crate) const SGD: EntryPoint = EntryPoint {
    label: "optimizer.sgd",
    name: "sgd",
    axes: &[],
    pieces,
    bindings,
    writes: WRITES,
    constants,
};

/// RMSProp.
pub(crate) const RMSPROP: EntryPoint = EntryPoint {
    label: "optimizer.rmsprop",
    name: "rmsprop",
    axes: &[],
    pieces,
    bindings,
    writes: WRITES,
    constants,
};

/// Adam.
pub(crate) const ADAM: EntryPoint = EntryPoint {
    label: "optimizer.adam",
    name: "adam",
    axes: &[],
    pieces,
    bindings,
    writes: WRITES,
    constants,
};

/// `Settings` of the shader, field by field.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Settings {
    pub(crate) length: u32,
    pub(crate) learning_rate: f32,
    pub(crate) weight_decay: f32,
    pub(crate) eps: f32,
    pub(crate) momentum: f32,
    pub(crate) gradient_weight: f32,
    pub(crate) decay: f32,
    pub(crate) square_weight: f32,
    pub(crate) bias_correction_1: f32,
    pub(crate) bias_correction_2_sqrt: f32,
    pub(crate) variant: u32,
}
