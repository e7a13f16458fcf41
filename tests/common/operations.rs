//! A plan's operations by the names of what they bind, the rules by which they take it, and memory
//! to bind.

use wgpu_batchnorm::{
    Activation, BackwardBuffers, Commands, Error, ForwardBuffers, Gpu, Options, Parameter, Plan,
    wgpu,
};

/// Everything that an operation may bind: what [`Operation::rule`] asks for comes first.
pub const NAMES: [&str; 17] = [
    "x",
    "y",
    "dy",
    "dx",
    "residual",
    "mask",
    "residual_gradient",
    "valid",
    "gamma",
    "beta",
    "saved",
    "running_mean",
    "running_var",
    "dgamma",
    "dbeta",
    "moments",
    "sums",
];

/// The operations of a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    Forward,
    Inference,
    Backward,
    Moments,
    Statistics,
    Normalize,
    Sums,
    InputGradient,
}

/// Whether an operation takes a range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    Must,
    May,
    Not,
}

/// A range by its name.
pub type Named<'a> = (&'static str, wgpu::BufferSlice<'a>);

impl Operation {
    pub const ALL: [Self; 8] = [
        Self::Forward,
        Self::Inference,
        Self::Backward,
        Self::Moments,
        Self::Statistics,
        Self::Normalize,
        Self::Sums,
        Self::InputGradient,
    ];

    /// What its signature cannot do without.
    pub fn fixed(self) -> &'static [&'static str] {
        match self {
            Self::Forward | Self::Inference | Self::Normalize => &["x", "y"],
            Self::Backward => &["x", "dy", "saved"],
            Self::Moments => &["x", "moments"],
            Self::Statistics => &["moments", "saved"],
            Self::Sums | Self::InputGradient => &["x", "dy", "saved", "sums"],
        }
    }

    /// Whether its signature can be given a range of this name.
    pub fn has_place_for(self, name: &str) -> bool {
        let more: &[&str] = match self {
            Self::Forward | Self::Inference | Self::Normalize => &[
                "gamma",
                "beta",
                "residual",
                "mask",
                "valid",
                "running_mean",
                "running_var",
                "saved",
            ],
            Self::Backward | Self::Sums | Self::InputGradient => &[
                "gamma",
                "beta",
                "mask",
                "valid",
                "dx",
                "residual_gradient",
                "dgamma",
                "dbeta",
            ],
            Self::Moments => &["valid"],
            Self::Statistics => &["running_mean", "running_var"],
        };
        self.fixed().contains(&name) || more.contains(&name)
    }

    /// Whether it takes a range, where these others are given.
    pub fn rule(self, name: &str, options: &Options, given: &dyn Fn(&str) -> bool) -> Rule {
        if self.fixed().contains(&name) {
            return Rule::Must;
        }
        if !self.has_place_for(name) {
            return Rule::Not;
        }
        let must = |holds| if holds { Rule::Must } else { Rule::Not };
        let may = |holds| if holds { Rule::May } else { Rule::Not };
        let cuts = options.activation != Activation::Identity;
        let forward = self.fixed() == ["x", "y"];
        let frozen = options.frozen_statistics;
        match name {
            "gamma" => must(options.gamma != Parameter::Absent),
            "beta" if forward || cuts => must(options.beta != Parameter::Absent),
            "beta" => may(options.beta != Parameter::Absent),
            "residual" => Rule::May,
            "mask" if forward => must(self != Self::Inference && cuts && given("residual")),
            "mask" if cuts && self != Self::Sums && given("residual_gradient") => Rule::Must,
            "mask" => may(cuts),
            "valid" => may(!frozen && ![Self::Inference, Self::Normalize].contains(&self)),
            "running_mean" | "running_var" => {
                must(self != Self::Normalize && options.running_statistics)
            }
            "saved" => must(self != Self::Inference),
            "dx" if self == Self::InputGradient => Rule::Must,
            "dx" => may(self == Self::Backward),
            "residual_gradient" => may(self != Self::Sums && given("dx")),
            "dgamma" => may(options.gamma == Parameter::Learned),
            "dbeta" => may(options.beta == Parameter::Learned),
            _ => Rule::Not,
        }
    }

    /// Binds it to these ranges. One that is fixed and missing is an error that the signature would
    /// not let happen.
    pub fn bind(self, plan: &Plan, ranges: &[Named<'_>], shards: u32) -> Result<Commands, Error> {
        let get = |name| find(ranges, name);
        let must = |tensor| get(tensor).ok_or(Error::MissingBuffer { tensor });
        match self {
            Self::Forward => plan.bind_forward(&forward(ranges)?),
            Self::Inference => plan.bind_inference(&forward(ranges)?),
            Self::Normalize => plan.bind_normalize(&forward(ranges)?),
            Self::Backward => plan.bind_backward(&backward(ranges)?),
            Self::Sums => plan.bind_sums(&backward(ranges)?, must("sums")?),
            Self::InputGradient => {
                plan.bind_input_gradient(&backward(ranges)?, must("sums")?, shards)
            }
            Self::Moments => plan.bind_moments(must("x")?, get("valid"), must("moments")?),
            Self::Statistics => {
                let running = match (get("running_mean"), get("running_var")) {
                    (Some(mean), Some(var)) => Some([mean, var]),
                    _ => None,
                };
                plan.bind_statistics(must("moments")?, shards, running, must("saved")?)
            }
        }
    }
}

fn find<'a>(ranges: &[Named<'a>], name: &str) -> Option<wgpu::BufferSlice<'a>> {
    let found = ranges.iter().find(|(found, _)| *found == name);
    found.map(|&(_, range)| range)
}

fn forward<'a>(ranges: &[Named<'a>]) -> Result<ForwardBuffers<'a>, Error> {
    let must = |tensor| find(ranges, tensor).ok_or(Error::MissingBuffer { tensor });
    let mut buffers = ForwardBuffers::new(must("x")?, must("y")?);
    for &(name, range) in ranges {
        buffers = match name {
            "gamma" => buffers.gamma(range),
            "beta" => buffers.beta(range),
            "residual" => buffers.residual(range),
            "mask" => buffers.mask(range),
            "valid" => buffers.valid(range),
            "running_mean" => buffers.running_mean(range),
            "running_var" => buffers.running_var(range),
            "saved" => buffers.saved(range),
            _ => buffers,
        };
    }
    Ok(buffers)
}

fn backward<'a>(ranges: &[Named<'a>]) -> Result<BackwardBuffers<'a>, Error> {
    let must = |tensor| find(ranges, tensor).ok_or(Error::MissingBuffer { tensor });
    let mut buffers = BackwardBuffers::new(must("x")?, must("dy")?, must("saved")?);
    for &(name, range) in ranges {
        buffers = match name {
            "gamma" => buffers.gamma(range),
            "beta" => buffers.beta(range),
            "mask" => buffers.mask(range),
            "valid" => buffers.valid(range),
            "dx" => buffers.dx(range),
            "residual_gradient" => buffers.residual_gradient(range),
            "dgamma" => buffers.dgamma(range),
            "dbeta" => buffers.dbeta(range),
            _ => buffers,
        };
    }
    Ok(buffers)
}

/// A range by the number of its buffer, its offset and its size.
pub type Place = (usize, u64, u64);

/// Where the ranges lie in their buffers: this far apart.
pub const SLOT: u64 = 1024;

/// The number of a buffer that cannot be bound.
pub const NO_STORAGE: usize = 7;

/// Where a range of so many bytes lies if all is well: in several buffers, some with much in them.
pub fn good_place(name: &str, bytes: u64) -> Place {
    let (buffer, slot) = match name {
        "x" => (0, 0),
        "dy" => (0, 1),
        "residual" => (0, 2),
        "gamma" => (0, 3),
        "beta" => (0, 4),
        "valid" => (0, 5),
        "y" => (1, 0),
        "dx" => (1, 1),
        "residual_gradient" => (1, 2),
        "dgamma" => (1, 3),
        "dbeta" => (1, 4),
        "saved" => (2, 0),
        "mask" => (3, 0),
        "moments" => (4, 0),
        "sums" => (5, 0),
        "running_mean" => (6, 0),
        _ => (6, 1),
    };
    (buffer, slot * SLOT, bytes)
}

/// How many bytes a range of this name has. That of an empty tensor is some range.
pub fn bytes_of(plan: &Plan, name: &str, shards: u32) -> u64 {
    match name {
        "saved" => plan.saved_bytes(),
        "mask" => plan.mask_bytes(),
        "valid" => plan.valid_bytes(),
        "moments" => plan.moments_bytes() * u64::from(shards),
        "sums" => plan.sums_bytes() * u64::from(shards),
        "x" | "y" | "dy" | "dx" | "residual" | "residual_gradient" => {
            plan.shape().bytes(plan.dtype()).max(4)
        }
        _ => 4 * plan.shape().channels() as u64,
    }
}

/// Buffers to bind ranges of.
pub struct Storage(Vec<wgpu::Buffer>);

impl Storage {
    pub fn new(gpu: &Gpu) -> Self {
        let buffer = |number| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 16 * SLOT,
                usage: match number {
                    NO_STORAGE => wgpu::BufferUsages::COPY_DST,
                    _ => wgpu::BufferUsages::STORAGE,
                },
                mapped_at_creation: false,
            })
        };
        Self((0..=NO_STORAGE).map(buffer).collect())
    }

    pub fn range(&self, (buffer, offset, bytes): Place) -> wgpu::BufferSlice<'_> {
        self.0[buffer].slice(offset..offset + bytes)
    }
}
