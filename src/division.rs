//! How a kernel's work is divided among bindings, workgroups and invocations.
//!
//! All of it follows from the shape, the limits and the [`Tuning`], never from timing, so that a
//! result is the same, bit for bit, from run to run. `shaders/lib/tile.wgsl` is the other side.

use crate::tuning::LaneOrder;
use crate::{Error, Tuning, View};

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

    /// Bytes in a pack.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Scalar => 4,
            Self::Inner | Self::Channels => 16,
        }
    }
}

/// A block of packs, `(outer, columns, plane)`, together in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) outer: u64,
    pub(crate) columns: u64,
    pub(crate) plane: u64,
}

impl Block {
    /// A view in packs.
    pub(crate) fn new(view: View, packing: Packing) -> Self {
        let (across_columns, across_plane) = match packing {
            Packing::Scalar => (1, 1),
            Packing::Inner => (1, 4),
            Packing::Channels => (4, 1),
        };
        Self {
            outer: view.outer as u64,
            columns: view.channels as u64 / across_columns,
            plane: view.inner as u64 / across_plane,
        }
    }

    /// Packs in a column.
    fn length(&self) -> u64 {
        self.outer * self.plane
    }

    /// Packs in all.
    fn packs(&self) -> u64 {
        self.length() * self.columns
    }
}

/// A part of a tensor that fits one binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) block: Block,
    /// The slice's first pack in the tensor.
    first_pack: u64,
    /// The slice's first column in the tensor.
    first_column: u64,
}

impl Slice {
    /// Cuts a tensor into slices of at most `most` packs, in the order of memory: of whole outer
    /// blocks; where one is too large, of whole columns; where one is too large, of its plane.
    pub(crate) fn cut(tensor: Block, most: u64) -> Vec<Self> {
        let Block {
            outer,
            columns,
            plane,
        } = tensor;
        let mut slices = Vec::new();
        let mut first_pack = 0;
        let mut push = |block: Block, first_column| {
            slices.push(Self {
                block,
                first_pack,
                first_column,
            });
            first_pack += block.packs();
        };
        if columns * plane <= most {
            for outer in chunks(outer, most / (columns * plane)) {
                push(Block { outer, ..tensor }, 0);
            }
        } else if plane <= most {
            for _ in 0..outer {
                let mut first_column = 0;
                for columns in chunks(columns, most / plane) {
                    let block = Block {
                        outer: 1,
                        columns,
                        plane,
                    };
                    push(block, first_column);
                    first_column += columns;
                }
            }
        } else {
            for index in 0..outer * columns {
                for plane in chunks(plane, most) {
                    let block = Block {
                        outer: 1,
                        columns: 1,
                        plane,
                    };
                    push(block, index % columns);
                }
            }
        }
        slices
    }

    /// Where the slice lies in the tensor, in bytes, from the last place before it that can be
    /// bound on.
    pub(crate) fn bytes(&self, packing: Packing, alignment: u64) -> std::ops::Range<u64> {
        let start = self.first_pack * packing.bytes();
        let end = start + self.block.packs() * packing.bytes();
        start / alignment * alignment..end
    }

    /// The slice's first pack in its binding.
    fn first_in_binding(&self, packing: Packing, alignment: u64) -> u64 {
        self.first_pack * packing.bytes() % alignment / packing.bytes()
    }
}

/// `total` in pieces of `most` and a rest.
fn chunks(total: u64, most: u64) -> impl Iterator<Item = u64> {
    (0..total.div_ceil(most)).map(move |index| most.min(total - index * most))
}

/// `Geometry` of `shaders/lib/tile.wgsl`, field by field.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
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
    pub(crate) first_address: u32,
    pub(crate) first_column: u32,
    pub(crate) first_split: u32,
    pub(crate) all_columns: u32,
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
    /// Fails if the grid is longer than the device allows, even folded.
    pub(crate) fn check(&self, limits: &wgpu::Limits) -> Result<(), Error> {
        let found = limits.max_compute_workgroups_per_dimension;
        if self.grid[1] <= found {
            return Ok(());
        }
        Err(Error::DeviceLimit {
            limit: "max_compute_workgroups_per_dimension",
            needed: self.grid[1].into(),
            found: found.into(),
        })
    }

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

/// A dispatch over a slice: its size, and the numbers that the shader needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Division {
    pub(crate) launch: Launch,
    pub(crate) geometry: Geometry,
}

/// How an operation's work on a tensor is divided.
#[derive(Clone, Debug)]
pub(crate) struct Divisions {
    pub(crate) slices: Vec<Slice>,
    /// A reduction of each slice to a partial result per column and split.
    pub(crate) reductions: Vec<Division>,
    /// The merge of the partial results of all slices.
    pub(crate) merge: Division,
    /// An element-wise kernel over each slice.
    pub(crate) maps: Vec<Division>,
}

impl Divisions {
    /// Divides a tensor that is not empty.
    pub(crate) fn new(
        tensor: Block,
        packing: Packing,
        tuning: &Tuning,
        limits: &wgpu::Limits,
    ) -> Self {
        let alignment = u64::from(limits.min_storage_buffer_offset_alignment);
        // Addresses are u32.
        let binding = limits
            .max_storage_buffer_binding_size
            .min(u64::from(u32::MAX));
        let slices = if tensor.packs() * packing.bytes() <= binding {
            Slice::cut(tensor, tensor.packs())
        } else {
            // A slice may start up to an alignment behind its binding.
            Slice::cut(tensor, (binding - alignment) / packing.bytes())
        };

        // Every slice has partial results of its own. Those of columns that it does not cover stay
        // zero, as the buffer was made.
        let mut first_split = 0;
        let in_tensor = |slice: &Slice, mut division: Division, first_split| {
            let geometry = &mut division.geometry;
            geometry.first_address = slice.first_in_binding(packing, alignment) as u32;
            geometry.first_column = slice.first_column as u32;
            geometry.all_columns = tensor.columns as u32;
            geometry.first_split = first_split;
            division
        };
        let mut reductions = Vec::new();
        let mut maps = Vec::new();
        for slice in &slices {
            let reduction = Division::reduction(slice.block, tuning, limits);
            reductions.push(in_tensor(slice, reduction, first_split));
            first_split += reduction.geometry.splits;
            maps.push(in_tensor(
                slice,
                Division::map(slice.block, tuning, limits),
                0,
            ));
        }
        Self {
            slices,
            reductions,
            merge: Division::merge(tensor.columns as u32, first_split, tuning, limits),
            maps,
        }
    }

    /// All divisions: reductions, merge, maps.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Division> {
        let Self {
            reductions,
            merge,
            maps,
            ..
        } = self;
        reductions.iter().chain([merge]).chain(maps)
    }

    /// Partial results per column.
    pub(crate) fn splits(&self) -> u64 {
        self.merge.geometry.length.into()
    }
}

impl Division {
    /// For a reduction of each column to one partial result per split.
    fn reduction(block: Block, tuning: &Tuning, limits: &wgpu::Limits) -> Self {
        let (lanes_x, lanes_y) = lanes(block, tuning);
        let tiles = block.columns.div_ceil(lanes_x);
        let wanted = u64::from(tuning.reduction_workgroups).div_ceil(tiles);
        let splits_for = |packs| block.length().div_ceil(lanes_y * u64::from(packs));
        let splits = wanted
            .min(splits_for(tuning.reduction_packs_min))
            .max(splits_for(tuning.reduction_packs_max));
        let split_length = block.length().div_ceil(splits);
        Self::new(block, lanes_x, lanes_y, split_length, tuning, limits)
    }

    /// For an element-wise kernel.
    fn map(block: Block, tuning: &Tuning, limits: &wgpu::Limits) -> Self {
        let (lanes_x, lanes_y) = lanes(block, tuning);
        let split_length = block.length().min(lanes_y * u64::from(tuning.map_packs));
        Self::new(block, lanes_x, lanes_y, split_length, tuning, limits)
    }

    /// For the merge of `length` partial results of each column.
    fn merge(columns: u32, length: u32, tuning: &Tuning, limits: &wgpu::Limits) -> Self {
        // Enough lanes on a column that each merges few results, the rest across columns.
        let lanes_y = power_of_two_up_to(length.div_ceil(4).min(tuning.lanes).min(32).into());
        let lanes_x = columns.min((tuning.lanes.min(64) / lanes_y).max(1));
        Self {
            launch: Launch {
                lanes_x,
                lanes_y,
                grid: grid(columns.div_ceil(lanes_x).into(), limits),
            },
            geometry: Geometry {
                columns,
                length,
                splits: 1,
                all_columns: columns,
                ..Geometry::default()
            },
        }
    }

    fn new(
        block: Block,
        lanes_x: u64,
        lanes_y: u64,
        split_length: u64,
        tuning: &Tuning,
        limits: &wgpu::Limits,
    ) -> Self {
        let splits = block.length().div_ceil(split_length);
        let (lane_step, step, lane_length) = match tuning.order {
            LaneOrder::SideBySide => (1, lanes_y, split_length),
            LaneOrder::Runs => {
                let run = split_length.div_ceil(lanes_y);
                (run, 1, run)
            }
        };
        let step_in_plane = step % block.plane;
        let step_in_tensor = step / block.plane * block.columns * block.plane + step_in_plane;
        let tiles = block.columns.div_ceil(lanes_x);
        Self {
            launch: Launch {
                lanes_x: lanes_x as u32,
                lanes_y: lanes_y as u32,
                grid: grid(tiles * splits, limits),
            },
            geometry: Geometry {
                columns: block.columns as u32,
                plane: block.plane as u32,
                length: block.length() as u32,
                splits: splits as u32,
                split_length: split_length as u32,
                lane_step: lane_step as u32,
                step: step as u32,
                lane_length: lane_length as u32,
                step_in_plane: step_in_plane as u32,
                step_in_tensor: step_in_tensor as u32,
                next_plane: ((block.columns - 1) * block.plane) as u32,
                probes: probes(block),
                ..Geometry::default()
            },
        }
    }
}

/// A workgroup's shape: lanes across columns, lanes that share a column.
fn lanes(block: Block, tuning: &Tuning) -> (u64, u64) {
    // No more lanes on a column than leave each a group of four packs.
    let shared = block.length().div_ceil(4).next_power_of_two();
    let lanes_x = if block.plane == 1 {
        // Neighbouring columns are neighbours in memory: lanes across them coalesce.
        tuning.lanes_across.min(tuning.lanes).into()
    } else {
        // They are not: go across only to fill a narrow workgroup.
        (u64::from(tuning.lanes.min(64)) / shared).max(1)
    };
    let lanes_x = block.columns.min(lanes_x);
    let lanes_y = power_of_two_up_to(shared.min(u64::from(tuning.lanes) / lanes_x));
    (lanes_x, lanes_y.into())
}

/// The largest power of two that is at most `n`, and at least 1.
pub(crate) fn power_of_two_up_to(n: u64) -> u32 {
    1 << n.max(1).ilog2()
}

/// A grid of at least `workgroups`, folded into two dimensions where one is too short.
fn grid(workgroups: u64, limits: &wgpu::Limits) -> [u32; 2] {
    let x = workgroups.min(u64::from(limits.max_compute_workgroups_per_dimension));
    [x as u32, workgroups.div_ceil(x) as u32]
}

/// Where a column is probed for its pivot: nine places spread over the batch and, in another
/// order, over the plane, so that a border around every image cannot catch them all.
fn probes(block: Block) -> [u32; 12] {
    let mut probes = [0; 12];
    for (i, probe) in (0..9).zip(&mut probes) {
        let outer = (2 * i + 1) * block.outer / 18;
        let place = (2 * (5 * i % 9) + 1) * block.plane / 18;
        *probe = (outer * block.columns * block.plane + place) as u32;
    }
    probes
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: [usize; 9] = [1, 2, 3, 4, 5, 7, 8, 49, 130];

    /// Every view of small sizes, with its packing.
    fn small_tensors() -> impl Iterator<Item = (Block, Packing)> {
        SMALL.into_iter().flat_map(|outer| {
            SMALL.into_iter().flat_map(move |channels| {
                SMALL.into_iter().map(move |inner| {
                    let view = View {
                        outer,
                        channels,
                        inner,
                    };
                    let packing = Packing::of(view);
                    (Block::new(view, packing), packing)
                })
            })
        })
    }

    fn tunings() -> [Tuning; 4] {
        let mut narrow = Tuning::gpu();
        narrow.lanes = 16;
        narrow.lanes_across = 4;
        narrow.reduction_packs_min = 1;
        narrow.reduction_packs_max = 3;
        narrow.map_packs = 1;
        let mut narrow_runs = narrow.clone();
        narrow_runs.order = LaneOrder::Runs;
        [Tuning::gpu(), Tuning::cpu(), narrow, narrow_runs]
    }

    #[test]
    fn slices_cover_the_tensor_once_and_in_order() {
        for (tensor, packing) in small_tensors() {
            for most in [1, 2, 3, 5, 64, 1000, u64::MAX / 2] {
                let mut next = 0;
                for slice in Slice::cut(tensor, most) {
                    let Slice {
                        block,
                        first_pack,
                        first_column,
                    } = slice;
                    assert_eq!(first_pack, next);
                    assert!(block.packs() <= most && block.packs() > 0);
                    assert_eq!(first_column, first_pack / tensor.plane % tensor.columns);
                    next += block.packs();
                    let bytes = slice.bytes(packing, 256);
                    assert_eq!(bytes.start % 256, 0);
                    let first = slice.first_in_binding(packing, 256);
                    assert_eq!(
                        bytes.start + first * packing.bytes(),
                        first_pack * packing.bytes()
                    );
                }
                assert_eq!(next, tensor.packs());
            }
        }
    }

    /// The walk of `shaders/lib/tile.wgsl`, in arithmetic that panics where u32 overflows: the
    /// column and the addresses of each live lane.
    fn walk(launch: Launch, g: Geometry, mut visit: impl FnMut(u32, u32)) {
        let tiles = g.columns.div_ceil(launch.lanes_x);
        for index in 0..launch.grid[0] * launch.grid[1] {
            for local in 0..launch.lanes_x * launch.lanes_y {
                let split = index / tiles;
                let column = (index - split * tiles) * launch.lanes_x + local % launch.lanes_x;
                let lane = local / launch.lanes_x;
                if column >= g.columns || split >= g.splits {
                    continue;
                }
                let split_start = split * g.split_length;
                let split_end = split_start + g.split_length.min(g.length - split_start);
                let start = split_start + lane * g.lane_step;
                if start >= split_end {
                    continue;
                }
                let packs = g.lane_length.min(split_end - start);
                let outer = start / g.plane;
                let mut place = start - outer * g.plane;
                let first = g.first_address + column * g.plane;
                let mut address = first + outer * g.columns * g.plane + place;
                for _ in 0..packs.div_ceil(g.step) {
                    visit(g.first_column + column, address);
                    address = address.wrapping_add(g.step_in_tensor);
                    place += g.step_in_plane;
                    if place >= g.plane {
                        place -= g.plane;
                        address = address.wrapping_add(g.next_plane);
                    }
                }
            }
        }
    }

    #[test]
    fn every_pack_is_visited_once_by_its_column() {
        let limits = wgpu::Limits {
            max_compute_workgroups_per_dimension: 7,
            ..wgpu::Limits::default()
        };
        for (tensor, packing) in small_tensors() {
            if tensor.packs() > 20_000 {
                continue;
            }
            for tuning in tunings() {
                let divisions = Divisions::new(tensor, packing, &tuning, &limits);
                for division in divisions.reductions.iter().chain(&divisions.maps) {
                    let mut visits = vec![0; tensor.packs() as usize];
                    walk(division.launch, division.geometry, |column, address| {
                        let expected = u64::from(address) / tensor.plane % tensor.columns;
                        assert_eq!(u64::from(column), expected);
                        visits[address as usize] += 1;
                    });
                    assert!(
                        visits.iter().all(|&visits| visits == 1),
                        "{tensor:?} {tuning:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn probes_lie_in_the_first_column() {
        for (tensor, _) in small_tensors() {
            for probe in probes(tensor) {
                assert!(u64::from(probe) < tensor.packs());
                assert_eq!(u64::from(probe) / tensor.plane % tensor.columns, 0);
            }
        }
    }

    /// No number of a division overflows, for tensors of up to 2⁴⁰ values in bindings of up to
    /// 4 GiB: a lane's last address is where the exact arithmetic puts it.
    #[test]
    fn more_than_two_to_the_31_values_are_addressed_right() {
        let views = [
            (1, 1, 1 << 40),
            (1 << 40, 1, 1),
            (64, 1 << 26, 256),
            (1 << 20, 64, 1 << 14),
            ((1 << 32) + 1, 3, 1),
            (3, 5, (1 << 31) + 1),
            (1 << 16, 1 << 16, 49),
        ];
        for (outer, channels, inner) in views {
            let view = View {
                outer,
                channels,
                inner,
            };
            let packing = Packing::of(view);
            let tensor = Block::new(view, packing);
            for binding in [128 << 20, (2 << 30) - 4, u64::from(u32::MAX)] {
                for tuning in [Tuning::gpu(), Tuning::cpu()] {
                    let limits = wgpu::Limits {
                        max_storage_buffer_binding_size: binding,
                        ..wgpu::Limits::default()
                    };
                    let divisions = Divisions::new(tensor, packing, &tuning, &limits);
                    let slices = divisions.slices.iter();
                    let in_slices = slices.zip(divisions.reductions.iter().zip(&divisions.maps));
                    for (slice, (reduction, map)) in in_slices.step_by(97) {
                        let bytes = slice.bytes(packing, 256);
                        assert!(bytes.end - bytes.start <= binding);
                        for division in [reduction, map] {
                            last_lane_is_in_range(slice.block, division);
                        }
                    }
                }
            }
        }
    }

    /// The last lane of the last split, in u32 that panics on overflow and in u64.
    fn last_lane_is_in_range(block: Block, division: &Division) {
        let Division { launch, geometry } = *division;
        let g = geometry;
        assert_eq!(u64::from(g.columns), block.columns);
        assert_eq!(u64::from(g.length), block.length());
        let workgroups = launch.grid[0].checked_mul(launch.grid[1]);
        let tiles = g.columns.div_ceil(launch.lanes_x);
        assert!(workgroups.is_some_and(|count| count >= tiles * g.splits));
        let split_start = (g.splits - 1) * g.split_length;
        let split_end = split_start + g.split_length.min(g.length - split_start);
        assert_eq!(split_end, g.length);
        let last_start = split_start + (launch.lanes_y - 1) * g.lane_step;
        let last = split_end - 1;
        assert!(last_start < u32::MAX - g.lane_length);
        let outer = last / g.plane;
        let address = g.first_address
            + (g.columns - 1) * g.plane
            + outer * g.columns * g.plane
            + (last - outer * g.plane);
        let exact = u64::from(g.first_address) + block.packs() - 1;
        assert_eq!(u64::from(address), exact);
    }
}
