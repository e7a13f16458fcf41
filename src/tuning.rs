//! How a kernel's work is divided among workgroups and invocations.
//!
//! All of it follows from the shape, the limits and the [`Tuning`], never from timing, so that a
//! result is the same, bit for bit, from run to run. `shaders/lib/tile.wgsl` is the other side.

use crate::{Error, View};

/// How the invocations that share a channel go through its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneOrder {
    /// Neighbouring invocations take neighbouring values: what GPUs coalesce.
    SideBySide,
    /// Each invocation takes a run of its own: what a CPU's caches want.
    Runs,
}

/// How work is divided. Chosen from the kind of device; any choice gives right results.
///
/// A *pack* is what one invocation loads at once: four values where the shape allows it, else one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tuning {
    /// Invocations in a workgroup, a power of two.
    pub lanes: u32,
    /// Of these, at most so many side by side across channels, where channels are neighbours in
    /// memory (inner = 1).
    pub lanes_across: u32,
    /// How invocations that share a channel go through it.
    pub order: LaneOrder,
    /// Workgroups that a reduction is split into, where it is large enough.
    pub reduction_workgroups: u32,
    /// Packs that an invocation should at least get in a reduction before it is split further.
    pub reduction_packs_min: u32,
    /// Packs that an invocation gets at most in a reduction. It bounds the rounding error of
    /// the longest chain of additions.
    pub reduction_packs_max: u32,
    /// Packs for each invocation in an element-wise kernel.
    pub map_packs: u32,
}

impl Tuning {
    /// For GPUs: wide workgroups, loads side by side, enough workgroups to fill a large device.
    pub fn gpu() -> Self {
        Self {
            lanes: 256,
            lanes_across: 32,
            order: LaneOrder::SideBySide,
            reduction_workgroups: 1024,
            reduction_packs_min: 8,
            reduction_packs_max: 1024,
            map_packs: 8,
        }
    }

    /// For software adapters, which run an invocation in a vector lane of a CPU: a workgroup as
    /// wide as the vector, long runs, few workgroups.
    pub fn cpu() -> Self {
        Self {
            lanes: 8,
            lanes_across: 8,
            order: LaneOrder::Runs,
            reduction_workgroups: 16,
            reduction_packs_min: 64,
            reduction_packs_max: 1024,
            map_packs: 128,
        }
    }

    /// The choice for a kind of device.
    pub fn for_device(device_type: wgpu::DeviceType) -> Self {
        match device_type {
            wgpu::DeviceType::Cpu => Self::cpu(),
            _ => Self::gpu(),
        }
    }

    /// Fails where a number is 0 or `lanes` is no power of two up to 1024.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let positive = [
            ("tuning.lanes_across", self.lanes_across),
            ("tuning.reduction_workgroups", self.reduction_workgroups),
            ("tuning.reduction_packs_min", self.reduction_packs_min),
            ("tuning.reduction_packs_max", self.reduction_packs_max),
            ("tuning.map_packs", self.map_packs),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(Error::InvalidParameter {
                    name,
                    expected: "at least 1",
                    value: 0.0,
                });
            }
        }
        if !self.lanes.is_power_of_two() || self.lanes > 1024 {
            return Err(Error::InvalidParameter {
                name: "tuning.lanes",
                expected: "a power of two up to 1024",
                value: f64::from(self.lanes),
            });
        }
        Ok(())
    }

    /// The same within a device's limits.
    pub(crate) fn within(mut self, limits: &wgpu::Limits) -> Self {
        let lanes = limits
            .max_compute_invocations_per_workgroup
            .min(limits.max_compute_workgroup_size_x)
            // Statistics keep a count and two vec4 of f32 for each lane.
            .min(limits.max_compute_workgroup_storage_size / 36);
        self.lanes = self.lanes.min(power_of_two_up_to(u64::from(lanes)));
        self
    }
}

/// What one invocation loads at once. Each has a file `shaders/lib/pack_*.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Packing {
    /// One value.
    Scalar,
    /// Four neighbours in one plane.
    Inner,
    /// Four neighbouring channels.
    Channels,
}

impl Packing {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 3] = [Self::Scalar, Self::Inner, Self::Channels];

    /// The widest packing that fits a view.
    pub(crate) fn of(view: View) -> Self {
        if view.inner == 1 && view.channels.is_multiple_of(4) {
            Self::Channels
        } else if view.inner.is_multiple_of(4) {
            Self::Inner
        } else {
            Self::Scalar
        }
    }
}

/// A view in packs: `(outer, columns, plane)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packed {
    outer: u64,
    columns: u64,
    plane: u64,
}

impl Packed {
    pub(crate) fn new(view: View, packing: Packing) -> Self {
        let (outer, columns, plane) = (view.outer as u64, view.channels as u64, view.inner as u64);
        match packing {
            Packing::Scalar => Self {
                outer,
                columns,
                plane,
            },
            Packing::Inner => Self {
                outer,
                columns,
                plane: plane / 4,
            },
            Packing::Channels => Self {
                outer,
                columns: columns / 4,
                plane,
            },
        }
    }

    /// Packs in a column.
    fn length(&self) -> u64 {
        self.outer * self.plane
    }
}

/// `Geometry` of `shaders/lib/tile.wgsl`, field by field.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Geometry {
    pub(crate) columns: u32,
    pub(crate) plane: u32,
    pub(crate) length: u32,
    pub(crate) splits: u32,
    pub(crate) split_length: u32,
    pub(crate) lane_step: u32,
    pub(crate) step: u32,
    pub(crate) lane_length: u32,
    pub(crate) step_in_plane: u32,
    pub(crate) step_in_tensor: u32,
    pub(crate) next_plane: u32,
    pub(crate) padding: u32,
    pub(crate) probes: [u32; 12],
}

/// The size of a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Invocations of a workgroup across columns.
    pub(crate) lanes_x: u32,
    /// Invocations of a workgroup that share a column.
    pub(crate) lanes_y: u32,
    /// Workgroups.
    pub(crate) grid: [u32; 2],
}

impl Launch {
    /// One invocation for each of `length` values.
    pub(crate) fn flat(length: u64, limits: &wgpu::Limits) -> Self {
        let lanes = Tuning::gpu().within(limits).lanes.min(64);
        Self {
            lanes_x: lanes,
            lanes_y: 1,
            grid: grid(length.div_ceil(u64::from(lanes)), limits),
        }
    }
}

/// A dispatch over a tensor: its size, and the numbers that the shader needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Division {
    pub(crate) launch: Launch,
    pub(crate) geometry: Geometry,
}

impl Division {
    /// For a reduction of each column to one partial result per split.
    ///
    /// The tensor must not be empty, and its packs must fit u32.
    pub(crate) fn reduction(packed: Packed, tuning: &Tuning, limits: &wgpu::Limits) -> Self {
        let (lanes_x, lanes_y) = lanes(packed, tuning);
        let length = packed.length();
        let tiles = packed.columns.div_ceil(u64::from(lanes_x));
        let lanes_y = u64::from(lanes_y);
        let wanted = u64::from(tuning.reduction_workgroups).div_ceil(tiles);
        let most = length.div_ceil(lanes_y * u64::from(tuning.reduction_packs_min));
        let least = length.div_ceil(lanes_y * u64::from(tuning.reduction_packs_max));
        let splits = wanted.min(most).max(least);
        Self::new(
            packed,
            lanes_x,
            length.div_ceil(splits),
            lanes_y,
            tuning,
            limits,
        )
    }

    /// For an element-wise kernel.
    pub(crate) fn map(packed: Packed, tuning: &Tuning, limits: &wgpu::Limits) -> Self {
        let (lanes_x, lanes_y) = lanes(packed, tuning);
        let lanes_y = u64::from(lanes_y);
        let split_length = packed.length().min(lanes_y * u64::from(tuning.map_packs));
        Self::new(packed, lanes_x, split_length, lanes_y, tuning, limits)
    }

    /// For the merge of a reduction's partial results, column by column.
    pub(crate) fn merge(reduction: &Self, tuning: &Tuning, limits: &wgpu::Limits) -> Self {
        let Geometry {
            columns, splits, ..
        } = reduction.geometry;
        // Enough lanes on a column that each merges few splits, the rest across columns.
        let lanes_y = match tuning.order {
            LaneOrder::SideBySide => {
                power_of_two_up_to(u64::from(splits.min(tuning.lanes).min(32)))
            }
            LaneOrder::Runs => 1,
        };
        let lanes_x = columns.min((tuning.lanes.min(64) / lanes_y).max(1));
        Self {
            launch: Launch {
                lanes_x,
                lanes_y,
                grid: grid(u64::from(columns.div_ceil(lanes_x)), limits),
            },
            geometry: reduction.geometry,
        }
    }

    fn new(
        packed: Packed,
        lanes_x: u32,
        split_length: u64,
        lanes_y: u64,
        tuning: &Tuning,
        limits: &wgpu::Limits,
    ) -> Self {
        let length = packed.length();
        let splits = length.div_ceil(split_length);
        let (lane_step, step, lane_length) = match tuning.order {
            LaneOrder::SideBySide => (1, lanes_y, split_length),
            LaneOrder::Runs => {
                let run = split_length.div_ceil(lanes_y);
                (run, 1, run)
            }
        };
        let planes_per_step = step / packed.plane;
        let step_in_plane = step % packed.plane;
        let tiles = packed.columns.div_ceil(u64::from(lanes_x));
        Self {
            launch: Launch {
                lanes_x,
                lanes_y: lanes_y as u32,
                grid: grid(tiles * splits, limits),
            },
            geometry: Geometry {
                columns: packed.columns as u32,
                plane: packed.plane as u32,
                length: length as u32,
                splits: splits as u32,
                split_length: split_length as u32,
                lane_step: lane_step as u32,
                step: step as u32,
                lane_length: lane_length as u32,
                step_in_plane: step_in_plane as u32,
                step_in_tensor: (planes_per_step * packed.columns * packed.plane + step_in_plane)
                    as u32,
                next_plane: ((packed.columns - 1) * packed.plane) as u32,
                padding: 0,
                probes: probes(packed),
            },
        }
    }
}

/// A workgroup's shape: lanes across columns, lanes that share a column.
fn lanes(packed: Packed, tuning: &Tuning) -> (u32, u32) {
    // No more lanes on a column than leave each a block of four packs.
    let shared = packed.length().div_ceil(4).next_power_of_two();
    let lanes_x = if packed.plane == 1 {
        // Neighbouring columns are neighbours in memory: lanes across them coalesce.
        packed
            .columns
            .min(u64::from(tuning.lanes_across.min(tuning.lanes)))
    } else {
        // They are not: go across only to fill a narrow workgroup.
        packed
            .columns
            .min((u64::from(tuning.lanes.min(64)) / shared).max(1))
    };
    let lanes_y = power_of_two_up_to(shared.min(u64::from(tuning.lanes) / lanes_x));
    (lanes_x as u32, lanes_y)
}

/// The largest power of two that is at most `n`, and at least 1.
fn power_of_two_up_to(n: u64) -> u32 {
    1 << n.max(1).ilog2()
}

/// A grid of at least `workgroups`, folded into two dimensions where one is too short.
fn grid(workgroups: u64, limits: &wgpu::Limits) -> [u32; 2] {
    let x = workgroups.min(u64::from(limits.max_compute_workgroups_per_dimension));
    [x as u32, workgroups.div_ceil(x) as u32]
}

/// Where a column is probed for its pivot: nine places spread over the batch and, in another
/// order, over the plane, so that a border around every image cannot catch them all.
fn probes(packed: Packed) -> [u32; 12] {
    let mut probes = [0; 12];
    for (i, probe) in probes.iter_mut().take(9).enumerate() {
        let i = i as u64;
        let outer = (2 * i + 1) * packed.outer / 18;
        let place = (2 * (5 * i % 9) + 1) * packed.plane / 18;
        *probe = (outer * packed.columns * packed.plane + place) as u32;
    }
    probes
}
