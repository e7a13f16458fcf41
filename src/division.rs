//! How a kernel's work is divided among bindings, workgroups and invocations.
//!
//! All of it follows from the shape, the limits and the [`Tuning`], never from timing, so that a
//! result is the same, bit for bit, from run to run. `shaders/lib/tile.wgsl` is the other side.

use crate::{DType, Error, Tuning, View};

/// What one invocation computes with at once. Each has a file in `shaders/lib/pack/`.
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

    /// Values in a pack.
    fn values(self) -> u64 {
        match self {
            Self::Scalar => 1,
            Self::Inner | Self::Channels => 4,
        }
    }
}

/// How a tensor lies in packs, and these in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    pub(crate) packing: Packing,
    pub(crate) dtype: DType,
}

impl Form {
    pub(crate) const ALL: [Self; 9] = {
        let mut all = [Self {
            packing: Packing::Scalar,
            dtype: DType::F32,
        }; 9];
        let dtypes = [DType::F32, DType::F16, DType::Bf16];
        let mut index = 0;
        while index < 9 {
            all[index] = Self {
                packing: Packing::ALL[index % 3],
                dtype: dtypes[index / 3],
            };
            index += 1;
        }
        all
    };

    /// The form with the widest packs that fit a view.
    pub(crate) fn of(view: View, dtype: DType) -> Self {
        Self {
            packing: Packing::of(view),
            dtype,
        }
    }

    fn pack_bytes(self) -> u64 {
        self.packing.values() * self.dtype.size() as u64
    }

    /// Whether a pack is half a word. Element-wise kernels then go over words, that is, over pairs
    /// of neighbours in memory: a word can only be written as a whole.
    pub(crate) fn in_pairs(self) -> bool {
        self.pack_bytes() == 2
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

    /// The number of the slice's first pack in its column of the tensor.
    fn first_number(&self, tensor: Block) -> u64 {
        let outer = self.first_pack / (tensor.columns * tensor.plane);
        outer * tensor.plane + self.first_pack % tensor.plane
    }
}

/// A tensor in slices that can be bound.
#[derive(Clone, Debug)]
pub(crate) struct Slices {
    tensor: Block,
    pack_bytes: u64,
    /// min_storage_buffer_offset_alignment
    alignment: u64,
    slices: Vec<Slice>,
}

impl Slices {
    /// Cuts a tensor into as few slices as the limits allow; where that is more than one, and where
    /// only a plane is cut, into multiples of `multiple` packs.
    fn new(tensor: Block, pack_bytes: u64, multiple: u64, limits: &wgpu::Limits) -> Self {
        let alignment = u64::from(limits.min_storage_buffer_offset_alignment);
        // Addresses are u32.
        let binding = limits
            .max_storage_buffer_binding_size
            .min(u64::from(u32::MAX) - 3);
        let slices = if tensor.packs() * pack_bytes <= binding {
            Slice::cut(tensor, tensor.packs())
        } else {
            // A slice may start up to an alignment behind its binding.
            let most = (binding - alignment) / pack_bytes;
            Slice::cut(tensor, most / multiple * multiple)
        };
        Self {
            tensor,
            pack_bytes,
            alignment,
            slices,
        }
    }

    /// Where a slice lies in the tensor, in bytes, from the last place before it that can be bound
    /// on. Its end is a multiple of 4, as that of a binding must be.
    pub(crate) fn bytes(&self, index: usize) -> std::ops::Range<u64> {
        let slice = self.slices[index];
        let start = slice.first_pack * self.pack_bytes;
        let end = start + slice.block.packs() * self.pack_bytes;
        start / self.alignment * self.alignment..end.next_multiple_of(4)
    }

    /// A slice's first pack in its binding.
    fn first_in_binding(&self, slice: &Slice) -> u64 {
        slice.first_pack * self.pack_bytes % self.alignment / self.pack_bytes
    }

    /// Sets what a slice's geometry says of its place in the tensor.
    fn place(&self, slice: &Slice, geometry: &mut Geometry) {
        let first_address = self.first_in_binding(slice);
        let values_in_pack = self.pack_bytes / 2;
        geometry.first_address = first_address as u32;
        geometry.first_column = slice.first_column as u32;
        geometry.all_columns = self.tensor.columns as u32;
        geometry.first_number = slice.first_number(self.tensor) as u32;
        // Used only where a value takes two bytes and a pack is one value, or two.
        let first_value = slice.first_pack.wrapping_sub(first_address) * values_in_pack;
        geometry.value_offset = first_value as u32;
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
    pub(crate) step_in_plane: u32,
    pub(crate) step_in_tensor: u32,
    pub(crate) next_plane: u32,
    pub(crate) first_address: u32,
    pub(crate) first_column: u32,
    pub(crate) first_split: u32,
    pub(crate) all_columns: u32,
    pub(crate) first_number: u32,
    pub(crate) value_offset: u32,
    pub(crate) values: u32,
    pub(crate) inner: u32,
    pub(crate) mask_first: u32,
    pub(crate) mask_column_step: u32,
    pub(crate) mask_word_step: u32,
    pub(crate) mask_shift: u32,
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

/// Where the words of a slice's mask lie: see `shaders/lib/mask/bits.wgsl`.
#[derive(Clone, Copy, Debug, Default)]
struct MaskPlace {
    first: u64,
    column_step: u64,
    word_step: u64,
    shift: u32,
    words: u64,
}

impl MaskPlace {
    /// For packs of a slice that a division of an element-wise kernel walks over.
    fn new(map: &Division, block: Block, packs_per_word: u64) -> Self {
        let lanes = u64::from(map.launch.lanes_y);
        let words = block.length().div_ceil(packs_per_word * lanes) * lanes;
        // What lanes write side by side lies side by side.
        let (column_step, word_step) = if block.plane == 1 {
            (1, block.columns)
        } else {
            (words, 1)
        };
        Self {
            first: 0,
            column_step,
            word_step,
            shift: lanes.ilog2(),
            words: words * block.columns,
        }
    }

    fn put(&self, geometry: &mut Geometry) {
        // Columns are counted in the tensor. The shader's arithmetic wraps, as this does.
        let before = u64::from(geometry.first_column) * self.column_step;
        geometry.mask_first = self.first.wrapping_sub(before) as u32;
        geometry.mask_column_step = self.column_step as u32;
        geometry.mask_word_step = self.word_step as u32;
        geometry.mask_shift = self.shift;
    }
}

/// How an operation's work on a tensor is divided.
#[derive(Clone, Debug)]
pub(crate) struct Divisions {
    /// What reductions run over.
    pub(crate) slices: Slices,
    /// A reduction of each slice to a partial result per column and split.
    pub(crate) reductions: Vec<Division>,
    /// The merge of the partial results of all slices.
    pub(crate) merge: Division,
    /// The merge of no partial results.
    pub(crate) nothing: Division,
    /// What element-wise kernels run over.
    pub(crate) map_slices: Slices,
    /// An element-wise kernel over each slice.
    pub(crate) maps: Vec<Division>,
    /// A kernel that takes columns whole, where that is right: see [`Division::whole`].
    pub(crate) whole: Option<Division>,
    /// Words of a mask with one bit for each value.
    pub(crate) mask_words: u64,
}

impl Divisions {
    /// Divides a tensor that is not empty; `masked` if element-wise kernels may write or read a mask.
    pub(crate) fn new(
        view: View,
        form: Form,
        masked: bool,
        tuning: &Tuning,
        limits: &wgpu::Limits,
    ) -> Self {
        let tensor = Block::new(view, form.packing);
        let slices = Slices::new(tensor, form.pack_bytes(), 1, limits);
        // Every slice has partial results of its own. Those of columns that it does not cover stay
        // zero, as the buffer was made.
        let mut first_split = 0;
        let mut reductions = Vec::new();
        for slice in &slices.slices {
            let mut reduction = Division::reduction(slice.block, tuning, limits);
            slices.place(slice, &mut reduction.geometry);
            reduction.geometry.first_split = first_split;
            first_split += reduction.geometry.splits;
            reductions.push(reduction);
        }
        let merge = Division::merge(tensor.columns as u32, first_split, tuning, limits);
        let mut divisions = if form.in_pairs() {
            Self::with_pairs(view, slices, reductions, merge, tuning, limits)
        } else {
            Self::with_columns(form, masked, slices, reductions, merge, tuning, limits)
        };
        let of_reductions = divisions.reductions.iter_mut();
        let others = divisions.maps.iter_mut().chain(&mut divisions.whole);
        for division in of_reductions.chain(others) {
            division.geometry.values = (view.outer * view.channels * view.inner) as u32;
            division.geometry.inner = view.inner as u32;
        }
        divisions
    }

    /// Element-wise kernels over the slices of the reductions.
    fn with_columns(
        form: Form,
        masked: bool,
        slices: Slices,
        mut reductions: Vec<Division>,
        merge: Division,
        tuning: &Tuning,
        limits: &wgpu::Limits,
    ) -> Self {
        let packs_per_word = 32 / form.packing.values();
        let mut mask_words = 0;
        let mut maps = Vec::new();
        let mut whole = None;
        for (slice, reduction) in slices.slices.iter().zip(&mut reductions) {
            let block = slice.block;
            let multiple = if masked { packs_per_word } else { 1 };
            let lanes = |tuning: &Tuning| match masked {
                true => word_lanes(block, packs_per_word, tuning),
                false => lanes(block, tuning),
            };
            if slices.slices.len() == 1 {
                whole = Division::whole(block, slices.pack_bytes, lanes, tuning, limits);
            }
            // A mask must suit the lanes of both.
            let lanes = match &whole {
                Some(whole) if masked => (whole.launch.lanes_x.into(), whole.launch.lanes_y.into()),
                _ => lanes(tuning),
            };
            let mut map = Division::map(block, lanes, multiple, tuning, limits);
            slices.place(slice, &mut map.geometry);
            let mut mask = MaskPlace::new(&map, slice.block, packs_per_word);
            mask.first = mask_words;
            mask_words += mask.words;
            mask.put(&mut map.geometry);
            mask.put(&mut reduction.geometry);
            if let Some(whole) = &mut whole {
                slices.place(slice, &mut whole.geometry);
                mask.put(&mut whole.geometry);
            }
            maps.push(map);
        }
        Self {
            map_slices: slices.clone(),
            slices,
            reductions,
            nothing: merge.of_nothing(),
            merge,
            maps,
            whole,
            mask_words,
        }
    }

    /// Element-wise kernels over pairs of neighbours in memory.
    fn with_pairs(
        view: View,
        slices: Slices,
        mut reductions: Vec<Division>,
        merge: Division,
        tuning: &Tuning,
        limits: &wgpu::Limits,
    ) -> Self {
        let pairs = Block {
            outer: 1,
            columns: 1,
            plane: (view.outer as u64 * view.channels as u64 * view.inner as u64).div_ceil(2),
        };
        // The same lanes in all slices, and whole words of the mask in each.
        let packs_per_word = 16;
        let binding = limits.max_storage_buffer_binding_size
            - u64::from(limits.min_storage_buffer_offset_alignment);
        let narrow = Tuning {
            lanes: tuning
                .lanes
                .min(power_of_two_up_to(binding / (4 * packs_per_word))),
            ..tuning.clone()
        };
        let lanes = word_lanes(pairs, packs_per_word, &narrow);
        let map_slices = Slices::new(pairs, 4, packs_per_word * lanes.1, limits);
        let mut maps = Vec::new();
        for slice in &map_slices.slices {
            let mut map = Division::map(slice.block, lanes, packs_per_word, tuning, limits);
            map_slices.place(slice, &mut map.geometry);
            map.geometry.all_columns = view.channels as u32;
            maps.push(map);
        }
        let mut mask = MaskPlace::new(&maps[0], pairs, packs_per_word);
        mask.column_step = 0;
        let geometries = reductions.iter_mut().chain(&mut maps);
        for division in geometries {
            mask.put(&mut division.geometry);
        }
        Self {
            slices,
            reductions,
            nothing: merge.of_nothing(),
            merge,
            map_slices,
            maps,
            whole: None,
            mask_words: mask.words,
        }
    }

    /// All divisions: reductions, merge, nothing, maps, whole.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Division> {
        let Self {
            reductions,
            merge,
            nothing,
            maps,
            whole,
            ..
        } = self;
        let reductions = reductions.iter();
        reductions.chain([merge, nothing]).chain(maps).chain(whole)
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
        Self::new(block, (lanes_x, lanes_y), split_length, limits)
    }

    /// For an element-wise kernel, whose lanes take multiples of some packs.
    fn map(
        block: Block,
        lanes: (u64, u64),
        multiple: u64,
        tuning: &Tuning,
        limits: &wgpu::Limits,
    ) -> Self {
        let packs = u64::from(tuning.map_packs).next_multiple_of(multiple);
        let split_length = block.length().min(lanes.1 * packs);
        Self::new(block, lanes, split_length, limits)
    }

    /// For a kernel whose workgroups take columns whole, and walk over them twice: where all lanes
    /// together have so little to read that they find it in a cache the second time, each lane
    /// adds up no more than in a reduction, and there are workgroups enough.
    fn whole(
        block: Block,
        pack_bytes: u64,
        lanes: impl Fn(&Tuning) -> (u64, u64),
        tuning: &Tuning,
        limits: &wgpu::Limits,
    ) -> Option<Self> {
        // Few columns side by side, for many workgroups: 64 bytes of f32 are two of the pieces in
        // which GPUs read memory.
        let narrow = Tuning {
            lanes_across: tuning.lanes_across.min(4),
            ..tuning.clone()
        };
        let (lanes_x, lanes_y) = lanes(&narrow);
        // Also where that leaves a workgroup narrow.
        let lanes_x = match block.plane {
            1 => lanes_x.min(narrow.lanes_across.into()),
            _ => lanes_x,
        };
        let bytes = lanes_x * block.length() * pack_bytes;
        let packs = block.length().div_ceil(lanes_y);
        let workgroups = block.columns.div_ceil(lanes_x);
        let fits = bytes <= tuning.whole_bytes
            && packs <= u64::from(tuning.reduction_packs_max)
            && workgroups >= u64::from(tuning.whole_workgroups);
        fits.then(|| Self::new(block, (lanes_x, lanes_y), block.length(), limits))
    }

    /// For the merge of `length` partial results of each column.
    pub(crate) fn merge(columns: u32, length: u32, tuning: &Tuning, limits: &wgpu::Limits) -> Self {
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

    /// The same, of no partial results.
    fn of_nothing(mut self) -> Self {
        self.geometry.length = 0;
        self
    }

    fn new(
        block: Block,
        (lanes_x, lanes_y): (u64, u64),
        split_length: u64,
        limits: &wgpu::Limits,
    ) -> Self {
        let splits = block.length().div_ceil(split_length);
        let step_in_plane = lanes_y % block.plane;
        let step_in_tensor = lanes_y / block.plane * block.columns * block.plane + step_in_plane;
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
    shared_lanes(
        block,
        block.length().div_ceil(4).next_power_of_two(),
        tuning,
    )
}

/// The same where lanes write words of a mask: no more on a column than leave each four words, so
/// that a mask has hardly more than one bit for each value.
fn word_lanes(block: Block, packs_per_word: u64, tuning: &Tuning) -> (u64, u64) {
    let words = block.length().div_ceil(packs_per_word);
    shared_lanes(block, power_of_two_up_to(words / 4).into(), tuning)
}

/// With at most so many lanes, a power of two, on a column.
fn shared_lanes(block: Block, shared: u64, tuning: &Tuning) -> (u64, u64) {
    // Where neighbouring columns are neighbours in memory, lanes across them coalesce.
    let across = match block.plane {
        1 => tuning.lanes_across.min(tuning.lanes),
        _ => 1,
    };
    // And they go across to fill a narrow workgroup.
    let filling = u64::from(tuning.lanes.min(64)) / shared;
    let lanes_x = block.columns.min(filling.max(across.into()));
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

    /// Every view of small sizes.
    fn small_views() -> impl Iterator<Item = View> {
        SMALL.into_iter().flat_map(|outer| {
            SMALL.into_iter().flat_map(move |channels| {
                SMALL.into_iter().map(move |inner| View {
                    outer,
                    channels,
                    inner,
                })
            })
        })
    }

    /// The same as blocks of the packs that fit.
    fn small_tensors() -> impl Iterator<Item = Block> {
        small_views().map(|view| Block::new(view, Packing::of(view)))
    }

    fn tunings() -> [Tuning; 4] {
        let mut narrow = Tuning::gpu();
        narrow.lanes = 16;
        narrow.lanes_across = 4;
        narrow.reduction_packs_min = 1;
        narrow.reduction_packs_max = 3;
        narrow.map_packs = 1;
        let mut whole = Tuning::gpu();
        whole.lanes = 16;
        whole.whole_bytes = u64::MAX;
        whole.whole_workgroups = 1;
        [Tuning::gpu(), Tuning::cpu(), narrow, whole]
    }

    #[test]
    fn slices_cover_the_tensor_once_and_in_order() {
        for tensor in small_tensors() {
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
                    let outer = first_pack / tensor.plane / tensor.columns;
                    let place = first_pack % tensor.plane;
                    assert_eq!(slice.first_number(tensor), outer * tensor.plane + place);
                    next += block.packs();
                }
                assert_eq!(next, tensor.packs());
            }
        }
    }

    #[test]
    fn slices_start_and_end_where_a_binding_can() {
        let limits = wgpu::Limits {
            max_storage_buffer_binding_size: 4096,
            ..wgpu::Limits::default()
        };
        for view in small_views() {
            for dtype in [DType::F32, DType::F16] {
                let form = Form::of(view, dtype);
                let divisions = Divisions::new(view, form, true, &Tuning::gpu(), &limits);
                for slices in [&divisions.slices, &divisions.map_slices] {
                    for (index, slice) in slices.slices.iter().enumerate() {
                        let bytes = slices.bytes(index);
                        assert_eq!((bytes.start % 256, bytes.end % 4), (0, 0));
                        assert!(bytes.end - bytes.start <= 4096);
                        let first = slices.first_in_binding(slice) * slices.pack_bytes;
                        assert_eq!(bytes.start + first, slice.first_pack * slices.pack_bytes);
                    }
                }
            }
        }
    }

    /// The walk of `shaders/lib/tile.wgsl`, in arithmetic that panics where u32 overflows: the
    /// column, the address and the number in its column of each pack, and whether it is its lane's last.
    fn walk(launch: Launch, g: Geometry, mut visit: impl FnMut(u32, u32, u32, bool)) {
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
                let start = split_start + lane;
                if start >= split_end {
                    continue;
                }
                let outer = start / g.plane;
                let mut place = start - outer * g.plane;
                let first = g.first_address + column * g.plane;
                let mut address = first + outer * g.columns * g.plane + place;
                let count = (split_end - start).div_ceil(launch.lanes_y);
                for step in 0..count {
                    let number = g.first_number + start + step * launch.lanes_y;
                    visit(g.first_column + column, address, number, step + 1 == count);
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

    /// The mask's word and bit of `shaders/lib/mask/bits.wgsl`.
    fn mask_bit(g: Geometry, column: u32, number: u32, values: u32) -> (u32, u32) {
        let lanes = 1 << g.mask_shift;
        let step = number >> g.mask_shift;
        let packs_per_word = 32 / values;
        let word = (step / packs_per_word * lanes + number % lanes) * g.mask_word_step;
        let first = g.mask_first.wrapping_add(column * g.mask_column_step);
        (first.wrapping_add(word), step % packs_per_word * values)
    }

    /// The number of `shaders/lib/mask/pairs.wgsl`.
    fn number_in_pairs(g: Geometry, address: u32) -> u32 {
        let value = address.wrapping_add(g.value_offset);
        let (pair, lanes) = (value / 2, 1 << g.mask_shift);
        (2 * (pair >> g.mask_shift) + value % 2) * lanes + pair % lanes
    }

    fn limits() -> [wgpu::Limits; 2] {
        let short = wgpu::Limits {
            max_compute_workgroups_per_dimension: 7,
            ..wgpu::Limits::default()
        };
        let tiny = wgpu::Limits {
            max_storage_buffer_binding_size: 4096,
            ..wgpu::Limits::default()
        };
        [short, tiny]
    }

    /// Every view of small sizes that is not too large, with every tuning and limit.
    fn small_divisions(dtype: DType, masked: bool, mut check: impl FnMut(View, &Divisions)) {
        for view in small_views() {
            if view.outer * view.channels * view.inner > 20_000 {
                continue;
            }
            for tuning in tunings() {
                for limits in limits() {
                    let form = Form::of(view, dtype);
                    let divisions = Divisions::new(view, form, masked, &tuning, &limits);
                    check(view, &divisions);
                }
            }
        }
    }

    #[test]
    fn every_pack_is_visited_once_by_its_column() {
        for (dtype, masked) in [
            (DType::F32, false),
            (DType::F32, true),
            (DType::F16, false),
            (DType::F16, true),
        ] {
            small_divisions(dtype, masked, |view, divisions| {
                let tensor = divisions.slices.tensor;
                let slices = &divisions.slices.slices;
                let visits = |divisions: &mut dyn Iterator<Item = &Division>| {
                    let mut visits = vec![0; tensor.packs() as usize];
                    for (slice, division) in slices.iter().zip(divisions) {
                        let g = division.geometry;
                        walk(division.launch, g, |column, address, number, _| {
                            let in_slice = u64::from(address - g.first_address);
                            let pack = slice.first_pack + in_slice;
                            let column_of_pack = pack / tensor.plane % tensor.columns;
                            assert_eq!(u64::from(column), column_of_pack);
                            let outer = pack / tensor.plane / tensor.columns;
                            let expected = outer * tensor.plane + pack % tensor.plane;
                            assert_eq!(u64::from(number), expected);
                            visits[pack as usize] += 1;
                        });
                    }
                    visits
                };
                let once = |visits: Vec<i32>| visits.iter().all(|&visits| visits == 1);
                assert!(once(visits(&mut divisions.reductions.iter())), "{view:?}");
                if let Some(whole) = &divisions.whole {
                    assert_eq!(whole.geometry.splits, 1);
                    assert!(once(visits(&mut std::iter::once(whole))), "{view:?}");
                }

                let tensor = divisions.map_slices.tensor;
                let mut visits = vec![0; tensor.packs() as usize];
                let slices = divisions.map_slices.slices.iter();
                for (slice, division) in slices.zip(&divisions.maps) {
                    let g = division.geometry;
                    walk(division.launch, g, |_, address, _, _| {
                        let in_slice = u64::from(address - g.first_address);
                        visits[(slice.first_pack + in_slice) as usize] += 1;
                    });
                }
                assert!(visits.iter().all(|&visits| visits == 1), "{view:?}");
            });
        }
    }

    /// A mask has hardly more bits than values.
    #[test]
    fn a_mask_has_one_bit_for_each_value() {
        for (outer, channels, inner) in [
            (32, 64, 56 * 56),
            (32, 256, 14 * 14),
            (32, 2048, 7 * 7),
            (8, 3, 224 * 224),
            (32 * 56 * 56, 64, 1),
            (32 * 7 * 7, 2048, 1),
            (32 * 7 * 7, 3, 1),
            (256, 1000, 1),
        ] {
            let view = View {
                outer,
                channels,
                inner,
            };
            for dtype in [DType::F32, DType::F16] {
                for tuning in [Tuning::gpu(), Tuning::cpu()] {
                    let form = Form::of(view, dtype);
                    let limits = wgpu::Limits::default();
                    let divisions = Divisions::new(view, form, true, &tuning, &limits);
                    let values = (outer * channels * inner) as u64;
                    let bits = 32 * divisions.mask_words;
                    assert!(
                        bits >= values && 4 * bits <= 5 * values,
                        "{view:?} {dtype:?}: {bits} bits for {values} values"
                    );
                }
            }
        }
    }

    /// Every word of a mask is written by one lane, its bits in order, and read where they are.
    #[test]
    fn mask_bits_are_written_by_one_lane_and_found_again() {
        for dtype in [DType::F32, DType::F16] {
            small_divisions(dtype, true, |view, divisions| {
                let form = Form::of(view, dtype);
                let values = form.packing.values() as u32;
                let slices = &divisions.slices;
                let map_slices = &divisions.map_slices;
                let words = divisions.mask_words as usize;
                // By pack: where a kernel that writes the mask writes its bits.
                let write = |writers: &mut dyn Iterator<Item = &Division>| {
                    let mut written = vec![None; slices.tensor.packs() as usize];
                    let mut done = vec![false; words];
                    let mut begun = vec![false; words];
                    for (slice, map) in map_slices.slices.iter().zip(writers) {
                        let g = map.geometry;
                        let mut keep = |pack: usize, (word, bit): (u32, u32), last: bool| {
                            let open = !std::mem::replace(&mut done[word as usize], false);
                            assert!(open, "{view:?}: word {word} is written twice");
                            done[word as usize] = last || bit + values == 32;
                            let first = !std::mem::replace(&mut begun[word as usize], true);
                            assert_eq!(first, bit == 0, "{view:?}");
                            if pack < written.len() {
                                assert_eq!(written[pack].replace((word, bit)), None);
                            }
                        };
                        // What came before in the same four packs of a lane.
                        let (mut word_of_four, mut in_four) = (0, 0);
                        walk(map.launch, g, |column, address, number, last| {
                            if form.in_pairs() {
                                for half in 0..2 {
                                    let address = 2 * address + half;
                                    let number = number_in_pairs(g, address);
                                    let value = address.wrapping_add(g.value_offset) as usize;
                                    let bit = mask_bit(g, 0, number, 1);
                                    keep(value, bit, last && half == 1);
                                }
                            } else {
                                let pack = slice.first_pack + u64::from(address - g.first_address);
                                let bit = mask_bit(g, column, number - g.first_number, values);
                                keep(pack as usize, bit, last);
                                assert!(in_four == 0 || word_of_four == bit.0, "{view:?}");
                                word_of_four = bit.0;
                                in_four = if last { 0 } else { (in_four + 1) % 4 };
                            }
                        });
                    }
                    written
                };
                let written = write(&mut divisions.maps.iter());
                if let Some(whole) = &divisions.whole {
                    assert_eq!(write(&mut std::iter::once(whole)), written, "{view:?}");
                }
                for (slice, reduction) in slices.slices.iter().zip(&divisions.reductions) {
                    let g = reduction.geometry;
                    walk(reduction.launch, g, |column, address, number, _| {
                        let pack = slice.first_pack + u64::from(address - g.first_address);
                        let bit = if form.in_pairs() {
                            mask_bit(g, column, number_in_pairs(g, address), 1)
                        } else {
                            mask_bit(g, column, number - g.first_number, values)
                        };
                        assert_eq!(written[pack as usize], Some(bit), "{view:?}");
                    });
                }
            });
        }
    }

    /// Many small channels are taken whole, also where they are neighbours in memory.
    #[test]
    fn small_channels_take_one_dispatch() {
        for (outer, channels, inner) in [(32, 2048, 1), (2, 4096, 1), (32, 2048, 49)] {
            let view = View {
                outer,
                channels,
                inner,
            };
            let form = Form::of(view, DType::F32);
            let (tuning, limits) = (Tuning::gpu(), wgpu::Limits::default());
            let divisions = Divisions::new(view, form, false, &tuning, &limits);
            assert!(divisions.whole.is_some(), "{view:?}");
        }
    }

    #[test]
    fn probes_lie_in_the_first_column() {
        for tensor in small_tensors() {
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
            let form = Form::of(view, DType::F32);
            for binding in [128 << 20, (2 << 30) - 4, u64::from(u32::MAX)] {
                for tuning in [Tuning::gpu(), Tuning::cpu()] {
                    let limits = wgpu::Limits {
                        max_storage_buffer_binding_size: binding,
                        ..wgpu::Limits::default()
                    };
                    let divisions = Divisions::new(view, form, true, &tuning, &limits);
                    let slices = &divisions.slices;
                    for index in (0..slices.slices.len()).step_by(97) {
                        let slice = slices.slices[index];
                        let (reduction, map) =
                            (&divisions.reductions[index], &divisions.maps[index]);
                        let bytes = slices.bytes(index);
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
        let last_start = split_start + launch.lanes_y - 1;
        let last = split_end - 1;
        assert!(last_start < u32::MAX - launch.lanes_y);
        let outer = last / g.plane;
        let address = g.first_address
            + (g.columns - 1) * g.plane
            + outer * g.columns * g.plane
            + (last - outer * g.plane);
        let exact = u64::from(g.first_address) + block.packs() - 1;
        assert_eq!(u64::from(address), exact);
    }
}
