//! The numbers by which work is divided, for each kind of device.

use crate::division::power_of_two_up_to;
use crate::{Error, NativeF16};

/// How work is divided. Chosen from the kind of device; any choice gives right results.
///
/// A *pack* is what one invocation loads at once: four values where the shape allows it, else one; eight in planes
/// of a multiple of eight, with [`Tuning::wide_words`], and of channels that lie last, if they are a multiple of
/// eight, eight for each of [`Tuning::lanes`] at least, and if no training pass may take fewer than three
/// dispatches ([`Tuning::whole_bytes`] and [`Tuning::map_partials_max`] are 0).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tuning {
    /// Invocations in a workgroup, a power of two.
    pub lanes: u32,
    /// Where channels, or packs that mix them, are neighbours in memory, lanes go side by side
    /// across so many bytes of packs of four, and as many lanes for packs of one or eight; one lane at least. Where
    /// a channel has too few values to fill a workgroup, more go across, up to 64, in any layout.
    pub bytes_across: u32,
    /// Where channels are neighbours, whether all lanes of a workgroup are spread over all channels instead, and the
    /// next workgroups take the packs between them.
    pub spread: bool,
    /// Where channels are neighbours, a workgroup of an element-wise kernel takes at most so many bytes of whole rows,
    /// and one of a reduction, which has fewer tensors, twice as many; more where these are fewer than 32 packs for
    /// each invocation, or [`Tuning::reduction_packs_min`]. Several workgroups read a line of memory, one after
    /// the other, and should find it in a cache.
    pub rows_bytes: u64,
    /// Workgroups that a reduction is split into, where it is large enough.
    pub reduction_workgroups: u32,
    /// Packs that an invocation should at least get in a reduction before it is split further.
    pub reduction_packs_min: u32,
    /// Packs that an invocation gets at most in a reduction, rounded up to a multiple of four where
    /// there is an activation. It bounds the rounding error of the longest chain of additions.
    pub reduction_packs_max: u32,
    /// Packs for each invocation in an element-wise kernel, 16 at least where they mix channels; rounded up to whole
    /// words of a mask (8 packs of four values, 32 of one, 16 pairs) where there is an activation.
    pub map_packs: u32,
    /// Where channels lie first, a workgroup of an element-wise kernel takes about so many planes of a channel at most,
    /// or rows of packs that mix channels; more where these are fewer than 32 packs for each invocation, or 16 that
    /// mix channels.
    pub map_planes_max: u32,
    /// A training pass is one dispatch where a workgroup, which then takes a channel (or some that
    /// are neighbours) whole and reads it twice, the second time from a cache, has at most so many
    /// bytes of a tensor. 0 for never.
    pub whole_bytes: u64,
    /// Packs that an invocation should at least get in a forward pass of one dispatch; a backward pass, which
    /// loads two tensors, has half as many for each of twice the lanes.
    pub whole_packs_min: u32,
    /// How many workgroups such a dispatch should have, to fill the device.
    pub whole_workgroups: u32,
    /// With fewer workgroups than that, a workgroup has at most so many bytes of a tensor, if that is less
    /// than [`Tuning::whole_bytes`].
    pub whole_bytes_of_few: u64,
    /// Where a channel has at most so many partial results for each invocation that shares it in an
    /// element-wise kernel, that kernel merges them, in each of its workgroups, and a training pass takes two
    /// dispatches and not three. 0 for never.
    pub map_partials_max: u32,
    /// Where neither a plane nor the channels can be cut into packs of one kind (7×7, or three channels that lie
    /// last), packs are four neighbours in memory, whichever channels they belong to, if that gives at least so many
    /// rows of packs with the same channels: as many as there are samples, or half or a quarter of that. Where
    /// channels lie last, of the positions, and at least twice so many, or four times in f32. Else packs are of one
    /// value; so they are in f32 where channels lie last, if a training pass may take fewer than three dispatches.
    /// `u32::MAX` for never.
    pub mixed_rows_min: u32,
    /// Which conversions of f16 to leave to the device's own instructions, if these are exact.
    pub native_f16: NativeF16,
    /// Whether to read and write memory in words of 64 bits, up to four at once, where the device was opened with
    /// `Features::SHADER_INT64` (as [`crate::Gpu::open`] opens software adapters that have it). It
    /// at least halves the number of accesses on a device that makes them one by one.
    pub wide_words: bool,
}

impl Tuning {
    /// For GPUs: wide workgroups, enough workgroups to fill a large device.
    pub fn gpu() -> Self {
        Self {
            // wgpu's default limit, and 4 to 8 subgroups to hide the latency of memory.
            lanes: 256,
            // 32 lanes with packs of 16 bytes; 8 lanes are left for the rows.
            bytes_across: 512,
            // Side by side, so that a subgroup loads whole lines.
            spread: false,
            // No line is shared.
            rows_bytes: u64::MAX,
            // Four workgroups for each of 128 multiprocessors: enough loads under way, and half the partial
            // results of eight.
            reduction_workgroups: 512,
            // Two blocks of four: with less, a lane's share of the tree costs more than its loads.
            reduction_packs_min: 8,
            // 1,024 values in a row, of which an accumulated rounding still lies within the contract.
            reduction_packs_max: 256,
            // Two times four loads under way, against the coefficients' loads before them.
            map_packs: 8,
            // In planes of a few packs, too.
            map_planes_max: u32::MAX,
            // More than a first cache holds of several workgroups, but the second one holds it for all.
            whole_bytes: 128 << 10,
            // Two blocks of four, against the tree over all lanes.
            whole_packs_min: 8,
            // One for each multiprocessor of a large device: with fewer, parts of it would idle.
            whole_workgroups: 128,
            // That takes no longer than two dispatches more.
            whole_bytes_of_few: 48 << 10,
            // Some loads before the others, against a dispatch.
            map_partials_max: 4,
            // Not measured: what software adapters had with twice the loads.
            mixed_rows_min: 8,
            // By integer arithmetic, they would take longer than memory.
            native_f16: NativeF16::Always,
            // A load is 16 bytes in any case.
            wide_words: false,
        }
    }

    /// For software adapters, which run an invocation in a vector lane of a CPU: a workgroup as
    /// wide as the vector, few of them, little arithmetic.
    pub fn cpu() -> Self {
        Self {
            // A vector of 256 bits. More than one vector per workgroup makes barriers expensive.
            lanes: 8,
            // All lanes, of packs that mix channels in planes.
            bytes_across: 128,
            // The first of some workgroups then reads memory in order.
            spread: true,
            // With two to four tensors, half of a second-level cache.
            rows_bytes: 256 << 10,
            // A few for each core, for balance.
            reduction_workgroups: 16,
            // Against what a lane costs before its first load: pivot, walk, its share of the merge.
            reduction_packs_min: 64,
            // Twice as many as for GPUs, against the pivot's loads and the merges; in packs of eight, chains are twice
            // as long again (`tests/gpu/accuracy.rs`, "long channels", of all packings).
            reduction_packs_max: 512,
            // Against the same costs, above all the coefficients' loads.
            map_packs: 256,
            // Each lies far from the next, and there are some for each tensor. From 16 to 32, `tune` shows a cliff.
            map_planes_max: 8,
            // The second reading costs as much as the first, in a cache or not.
            whole_bytes: 0,
            whole_packs_min: 8,
            whole_workgroups: 1,
            whole_bytes_of_few: 0,
            // A dispatch costs little more than the merge.
            map_partials_max: 0,
            // Ten loads for a column's channels, against a load and a store in each row. In f16 all gains; in f32
            // backward gains more than inference loses.
            mixed_rows_min: 4,
            // There is no latency to hide arithmetic behind; but the instruction for writing is slower.
            native_f16: NativeF16::Reads,
            // Every access costs the same, whatever its width.
            wide_words: true,
        }
    }

    /// The choice for a kind of device.
    pub fn for_device(device_type: wgpu::DeviceType) -> Self {
        match device_type {
            wgpu::DeviceType::Cpu => Self::cpu(),
            _ => Self::gpu(),
        }
    }

    /// Whether a training pass may take fewer than three dispatches.
    pub(crate) fn may_join(&self) -> bool {
        self.whole_bytes > 0 || self.map_partials_max > 0
    }

    /// Fails where a number is 0 or too large, or `lanes` is no power of two.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let positive = [
            ("tuning.bytes_across", self.bytes_across),
            ("tuning.reduction_workgroups", self.reduction_workgroups),
            ("tuning.reduction_packs_min", self.reduction_packs_min),
            ("tuning.reduction_packs_max", self.reduction_packs_max),
            ("tuning.map_packs", self.map_packs),
            ("tuning.map_planes_max", self.map_planes_max),
            ("tuning.whole_packs_min", self.whole_packs_min),
            ("tuning.whole_workgroups", self.whole_workgroups),
            ("tuning.mixed_rows_min", self.mixed_rows_min),
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
        // A chain of additions counts its values in f32, exactly up to 2²⁴.
        if self.reduction_packs_max > 1 << 16 {
            return Err(Error::InvalidParameter {
                name: "tuning.reduction_packs_max",
                expected: "at most 65536",
                value: f64::from(self.reduction_packs_max),
            });
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
            // Statistics keep a count and two vec4 of f32 for each lane, and a vec4 for each column; or three for each
            // lane.
            .min(limits.max_compute_workgroup_storage_size / 52);
        self.lanes = self.lanes.min(power_of_two_up_to(u64::from(lanes)));
        self
    }
}
