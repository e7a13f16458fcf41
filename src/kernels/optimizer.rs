//! Steps of gradient descent: `shaders/optimizer.wgsl`.

use super::{EntryPoint, Source, Variant, shader};

const SOURCE: Source = Source::Plain(shader!("optimizer"));
const BINDINGS: &[(u32, &str)] = &[
    (0, "settings"),
    (1, "gradient"),
    (2, "parameter"),
    (3, "state"),
];

fn constants(variant: &Variant) -> Vec<(&'static str, f64)> {
    vec![("LANES", f64::from(variant.lanes_x))]
}

/// Stochastic gradient descent.
pub(crate) const SGD: EntryPoint = EntryPoint {
    label: "optimizer.sgd",
    name: "sgd",
    source: SOURCE,
    bindings: BINDINGS,
    constants,
};

/// RMSProp.
pub(crate) const RMSPROP: EntryPoint = EntryPoint {
    label: "optimizer.rmsprop",
    name: "rmsprop",
    source: SOURCE,
    bindings: BINDINGS,
    constants,
};

/// Adam.
pub(crate) const ADAM: EntryPoint = EntryPoint {
    label: "optimizer.adam",
    name: "adam",
    source: SOURCE,
    bindings: BINDINGS,
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
