//! How a kernel's work is divided among bindings, workgroups and invocations.
//!
//! All of it follows from the shape, the limits and the [`Tuning`], never from timing, so that a
//! result is the same, bit for bit, from run to run. `shaders/lib/tile.wgsl` is the other side.

use crate::{DType, Error, Tuning, View};

/// What one invocation computes with at once. Their types are in `shaders/lib/pack/`, how a kernel comes by
/// them in `shaders/lib/address/` and `shaders/lib/map/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Packing {
    /// One value.
    Scalar,
    /// Four neighbours in one plane.
    Inner,
    /// Eight neighbours in one plane: two packs that lie at one address, and count as one here.
    InnerTwins,
    /// Four neighbouring channels.
    Channels,
    /// Eight neighbouring channels, at one address too.
    ChannelTwins,
    /// Four neighbours in memory where channels lie last: of rows of all channels, two or four together are whole
    /// packs, whose values belong to the same channels each time.
    Rows,
    /// Four neighbours in memory, of which those that belong to one channel count: for reductions.
    Ragged,
    /// Four neighbours in memory, whichever planes they lie in: for element-wise kernels, where
    /// reductions have `Ragged`.
    Mixed,
}

impl Packing {
    pub(crate) const ALL: [Self; 8] = [
        Self::Scalar,
        Self::Inner,
        Self::InnerTwins,
        Self::Channels,
        Self::ChannelTwins,
        Self::Rows,
        Self::Ragged,
        Self::Mixed,
    ];

    /// The widest packing that fits a view, of those whose packs do not mix channels.
    fn of_channels(view: View, tuning: &Tuning) -> Self {
        if view.inner == 1 && view.channels.is_multiple_of(4) {
            // Kernels that are joined have one vector in a column. And all lanes should find room side by side.
            let are_twins = tuning.wide_words
                && !tuning.may_join()
                && view.channels.is_multiple_of(8)
                && view.channels >= 8 * tuning.lanes as usize;
            match are_twins {
                true => Self::ChannelTwins,
                false => Self::Channels,
            }
        } else if view.inner.is_multiple_of(8) && tuning.wide_words {
            Self::InnerTwins
        } else if view.inner.is_multiple_of(4) {
            Self::Inner
        } else {
            Self::Scalar
        }
    }

    /// Whether values of a pack may belong to several channels that are not neighbours.
    pub(crate) fn mixes(self) -> bool {
        self.gathers() || self == Self::Ragged
    }

    /// Whether what belongs to a column is gathered for several channels that are not neighbours.
    pub(crate) fn gathers(self) -> bool {
        matches!(self, Self::Rows | Self::Mixed)
    }

    /// Whether two packs lie at one address.
    pub(crate) fn has_twins(self) -> bool {
        matches!(self, Self::InnerTwins | Self::ChannelTwins)
    }

    /// The packing of vectors of channels.
    pub(crate) fn of_vectors(self) -> Self {
        match self {
            Self::Channels | Self::ChannelTwins => Self::Channels,
            _ => Self::Scalar,
        }
    }

    /// Values in a pack.
    fn values(self) -> u64 {
        match self {
            Self::Scalar => 1,
            Self::InnerTwins | Self::ChannelTwins => 8,
            _ => 4,
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
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let dtypes = [DType::F32, DType::F16, DType::Bf16];
        dtypes
            .into_iter()
            .flat_map(|dtype| Packing::ALL.map(|packing| Self { packing, dtype }))
    }

    /// The form with the widest packs that fit a view; `masked` as for [`Divisions::new`].
    pub(crate) fn of(
        view: View,
        dtype: DType,
        masked: bool,
        tuning: &Tuning,
        limits: &wgpu::Limits,
    ) -> Self {
        let packing = Packing::of_channels(view, tuning);
        let form = Self { packing, dtype };
        let packing = match form.gains_by_mixing(view, masked, tuning, limits) {
            true if view.inner == 1 => Packing::Rows,
            true => Packing::Mixed,
            false => packing,
        };
        Self { packing, dtype }
    }

    /// Whether packs should mix channels where else they would be of one value.
    fn gains_by_mixing(
        self,
        view: View,
        masked: bool,
        tuning: &Tuning,
        limits: &wgpu::Limits,
    ) -> bool {
        let values = Block::new(view, Packing::Scalar);
        // What belongs to a column's channels takes ten loads, which rows share. Rows of channels share twenty, and
        // what a reduction leaves of four channels for each value of a pack; single values share nothing of that.
        let rows_min = u64::from(tuning.mixed_rows_min)
            * match (view.inner, self.in_pairs()) {
                (1, true) => 2,
                (1, false) => 4,
                _ => 1,
            };
        let may = self.packing == Packing::Scalar
            && values.packs().is_multiple_of(4)
            // Slices would have to begin with a row.
            && values.packs() * self.dtype.size() as u64 <= binding(limits)
            && Block::new(view, Packing::Mixed).outer >= rows_min;
        // Pairs are that much slower.
        may && (self.in_pairs()
            || match view.inner {
                // Kernels that are joined go by columns.
                1 => !tuning.may_join(),
                // At least half of what a reduction loads should be its own, and one dispatch is better yet.
                _ => {
                    Block::new(view, Packing::Ragged).plane * 4 <= values.plane * 2
                        && Division::whole(values, self, masked, tuning, limits).is_none()
                }
            })
    }

    /// The form of the reductions of an operation whose element-wise kernels have this one.
    pub(crate) fn of_reductions(self) -> Self {
        let packing = match self.packing {
            Packing::Mixed => Packing::Ragged,
            other => other,
        };
        Self { packing, ..self }
    }

    /// Packs whose bits fill a word of a mask.
    fn packs_per_word(self) -> u64 {
        32 / self.packing.values()
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
        let values = Self {
            outer: view.outer as u64,
            columns: view.channels as u64,
            plane: view.inner as u64,
        };
        match packing {
            Packing::Scalar => values,
            Packing::Inner | Packing::InnerTwins => Self {
                plane: values.plane / packing.values(),
                ..values
            },
            Packing::Channels | Packing::ChannelTwins => Self {
                columns: values.columns / packing.values(),
                ..values
            },
            // As many as a plane may touch, wherever it begins.
            Packing::Ragged => Self {
                plane: (values.plane + 3).div_ceil(4),
                ..values
            },
            // In a row of whole packs, each is a column.
            Packing::Rows | Packing::Mixed => {
                let sample = values.columns * values.plane;
                let samples = match sample % 4 {
                    0 => 1,
                    2 => 2,
                    _ => 4,
                };
                Self {
                    outer: values.outer / samples,
                    columns: samples * sample / 4,
                    plane: 1,
                }
            }
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

/// A workgroup's lanes.
#[derive(Clone, Copy, Debug)]
struct Lanes {
    /// Lanes across columns.
    across: u64,
    /// Whether these are spread over all columns, where the next workgroups take what lies between them.
    spread: bool,
    /// Lanes that share a column.
    shared: u64,
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
        let binding = binding(limits);
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
        geometry.first_number = slice.first_number(self.tensor) as u32;
        // Used only where a value takes two bytes and a pack is one value, or two.
        let first_value = slice.first_pack.wrapping_sub(first_address) * values_in_pack;
        geometry.value_offset = first_value as u32;
    }
}

/// The bytes of a slice at most: addresses are u32.
fn binding(limits: &wgpu::Limits) -> u64 {
    let most = u64::from(u32::MAX) - 3;
    limits.max_storage_buffer_binding_size.min(most)
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
    pub(crate) lane_step: u32,
    pub(crate) tile_step: u32,
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
    pub(crate) partials: u32,
    pub(crate) partial_step: u32,
    pub(crate) partial_row_step: u32,
    pub(crate) mask_first: u32,
    pub(crate) mask_column_step: u32,
    pub(crate) mask_word_step: u32,
    pub(crate) mask_shift: u32,
    /// WGSL aligns what follows.
    pub(crate) padding: [u32; 3],
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

    /// One invocation for each of `length` values: see `shaders/lib/flat.wgsl`.
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
    /// What reductions run over; where packs mix channels, as element-wise kernels see it.
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
    /// Kernels that take columns whole, where that is right.
    pub(crate) whole: Option<Whole>,
    /// Whether a column has so few partial results that every workgroup of its element-wise kernel may merge
    /// them.
    pub(crate) few_partials: bool,
    /// Words of a mask with one bit for each value.
    pub(crate) mask_words: u64,
}

/// Kernels that take columns whole: see [`Division::whole`].
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    pub(crate) form: Form,
    /// Forward and backward.
    pub(crate) passes: [Division; 2],
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
        let whole = match slices.slices.len() {
            1 => Whole::new(view, form, masked, tuning, limits),
            _ => None,
        };
        // Every slice has partial results of its own. Those of columns that it does not cover stay
        // zero, as the buffer was made.
        let mut first_split = 0;
        let mut reductions = Vec::new();
        for slice in &slices.slices {
            // What mixes channels is one slice.
            let mut reduction = match form.packing {
                Packing::Mixed => {
                    Division::ragged_reduction(view, form.of_reductions(), tuning, limits)
                }
                // Four packs of a lane are then in one word of the mask, as `shaders/gradients.wgsl` reads it.
                _ if masked && !form.in_pairs() => {
                    let lanes = word_lanes(slice.block, form, whole.as_ref(), tuning);
                    let multiple = 4 * lanes.shared;
                    Division::reduction(slice.block, form, lanes, multiple, tuning, limits)
                }
                _ => {
                    let lanes = lanes(slice.block, form, tuning);
                    Division::reduction(slice.block, form, lanes, 1, tuning, limits)
                }
            };
            slices.place(slice, &mut reduction.geometry);
            reduction.geometry.first_split = first_split;
            first_split += reduction.geometry.splits;
            reductions.push(reduction);
        }
        let all_columns = match form.packing.of_vectors() {
            Packing::Channels => view.channels / 4,
            _ => view.channels,
        };
        // A split of rows that are two or four gives each channel as many partial results: those of two or four
        // splits, as they lie in memory.
        let (vectors, rows) = match form.packing {
            Packing::Rows => (tensor.columns, 4 * tensor.columns / view.channels as u64),
            _ => (all_columns as u64, 1),
        };
        let partials = (u64::from(first_split) * rows) as u32;
        let merge = Division::merge(all_columns as u32, partials, tuning, limits);
        let mut divisions = Self {
            map_slices: slices.clone(),
            slices,
            reductions,
            nothing: merge.of_nothing(),
            merge,
            maps: Vec::new(),
            whole,
            few_partials: false,
            mask_words: 0,
        };
        if form.in_pairs() {
            divisions.add_maps_of_pairs(view, form, tuning, limits);
        } else {
            divisions.add_maps(form, masked, tuning, limits);
        }
        let of_reductions = divisions.reductions.iter_mut();
        let wholes = divisions.whole.iter_mut();
        let wholes = wholes.flat_map(|whole| &mut whole.passes);
        let others = divisions.maps.iter_mut().chain(wholes);
        for division in of_reductions.chain(others) {
            division.geometry.all_columns = all_columns as u32;
            division.geometry.values = (view.outer * view.channels * view.inner) as u32;
            division.geometry.inner = view.inner as u32;
            division.geometry.partials = partials;
            division.geometry.partial_step = vectors as u32;
            division.geometry.partial_row_step = (u64::from(first_split) * vectors) as u32;
        }
        divisions
    }

    /// Element-wise kernels over the slices of the reductions.
    fn add_maps(&mut self, form: Form, masked: bool, tuning: &Tuning, limits: &wgpu::Limits) {
        let packs_per_word = form.packs_per_word();
        for (slice, reduction) in self.slices.slices.iter().zip(&mut self.reductions) {
            let block = slice.block;
            let (lanes, multiple) = match masked {
                true => (
                    word_lanes(block, form, self.whole.as_ref(), tuning),
                    packs_per_word,
                ),
                false => (lanes(block, form, tuning), 1),
            };
            let mut map = Division::map(block, form, lanes, multiple, tuning, limits);
            self.slices.place(slice, &mut map.geometry);
            let mut mask = MaskPlace::new(&map, slice.block, packs_per_word);
            mask.first = self.mask_words;
            self.mask_words += mask.words;
            mask.put(&mut map.geometry);
            mask.put(&mut reduction.geometry);
            if form.packing == Packing::Mixed {
                // Its columns are not those of the mask.
                reduction.geometry.mask_column_step = 0;
            }
            for division in self.whole.iter_mut().flat_map(|whole| &mut whole.passes) {
                self.slices.place(slice, &mut division.geometry);
                mask.put(&mut division.geometry);
            }
            self.maps.push(map);
        }
        // Only one workgroup of a column writes what comes of the merge, and reductions must go by the same
        // columns, with one partial result of each for a split.
        let lanes = u64::from(self.maps[0].launch.lanes_y);
        self.few_partials = self.slices.slices.len() == 1
            && !form.packing.mixes()
            && self.partials() <= u64::from(tuning.map_partials_max) * lanes;
    }

    /// Element-wise kernels over pairs of neighbours in memory.
    fn add_maps_of_pairs(
        &mut self,
        view: View,
        form: Form,
        tuning: &Tuning,
        limits: &wgpu::Limits,
    ) {
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
        let lanes = word_lanes(pairs, form, None, &narrow);
        self.map_slices = Slices::new(pairs, 4, packs_per_word * lanes.shared, limits);
        for slice in &self.map_slices.slices {
            let mut map = Division::map(slice.block, form, lanes, packs_per_word, tuning, limits);
            self.map_slices.place(slice, &mut map.geometry);
            self.maps.push(map);
        }
        let mut mask = MaskPlace::new(&self.maps[0], pairs, packs_per_word);
        mask.column_step = 0;
        for division in self.reductions.iter_mut().chain(&mut self.maps) {
            mask.put(&mut division.geometry);
        }
        self.mask_words = mask.words;
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
        let wholes = whole.iter().flat_map(|whole| &whole.passes);
        reductions.chain([merge, nothing]).chain(maps).chain(wholes)
    }

    /// Partial results per channel.
    pub(crate) fn partials(&self) -> u64 {
        self.merge.geometry.partials.into()
    }
}

impl Whole {
    /// Where that is right; `form` is that of the tensor's element-wise kernels.
    fn new(
        view: View,
        form: Form,
        masked: bool,
        tuning: &Tuning,
        limits: &wgpu::Limits,
    ) -> Option<Self> {
        // Columns have no part in one another.
        let form = match form.packing.gathers() {
            true => Form {
                packing: Packing::Scalar,
                ..form
            },
            false => form,
        };
        // Pairs of neighbours are those of two channels.
        let in_pairs = form.in_pairs();
        if in_pairs && (view.channels % 2 == 1 || view.inner == 1 || tuning.lanes == 1) {
            return None;
        }
        let block = Block::new(view, form.packing);
        let passes = Division::whole(block, form, masked && !in_pairs, tuning, limits)?;
        Some(Self { form, passes })
    }
}

impl Division {
    /// For a reduction of each column to one partial result per split, each of a multiple of so many packs.
    fn reduction(
        block: Block,
        form: Form,
        lanes: Lanes,
        multiple: u64,
        tuning: &Tuning,
        limits: &wgpu::Limits,
    ) -> Self {
        let tiles = block.columns.div_ceil(lanes.across);
        let wanted = u64::from(tuning.reduction_workgroups).div_ceil(tiles);
        let splits_for = |packs: u64| block.length().div_ceil(lanes.shared * packs);
        let least = u64::from(tuning.reduction_packs_min);
        // It has one or two tensors to read, where an element-wise kernel has two to four.
        let most = packs_in_rows(block, form, lanes, tuning.rows_bytes.saturating_mul(2))
            .max(least)
            .min(tuning.reduction_packs_max.into());
        let splits = wanted.min(splits_for(least)).max(splits_for(most));
        let split_length = block.length().div_ceil(splits).next_multiple_of(multiple);
        Self::new(block, lanes, split_length.min(block.length()), limits)
    }

    /// The same in packs of which a column's plane has a part of the first and of the last.
    fn ragged_reduction(view: View, form: Form, tuning: &Tuning, limits: &wgpu::Limits) -> Self {
        let block = Block::new(view, Packing::Ragged);
        let lanes = lanes(block, form, tuning);
        let mut reduction = Self::reduction(block, form, lanes, 1, tuning, limits);
        // Addresses count values.
        let values = Block::new(view, Packing::Scalar);
        let outer_step = values.columns * values.plane;
        let lanes = u64::from(reduction.launch.lanes_y);
        let (planes, packs) = (lanes / block.plane, lanes % block.plane);
        let geometry = &mut reduction.geometry;
        geometry.step_in_tensor = (planes * outer_step + packs * 4) as u32;
        geometry.next_plane = outer_step.wrapping_sub(4 * block.plane) as u32;
        geometry.probes = probes(values);
        reduction
    }

    /// For an element-wise kernel, whose lanes take multiples of some packs.
    fn map(
        block: Block,
        form: Form,
        lanes: Lanes,
        multiple: u64,
        tuning: &Tuning,
        limits: &wgpu::Limits,
    ) -> Self {
        let most = match has_rows(block, form) {
            true => packs_in_rows(block, form, lanes, tuning.rows_bytes),
            false => u64::from(tuning.map_planes_max) * block.plane / lanes.shared,
        };
        let wanted = u64::from(tuning.map_packs);
        let most = match form.packing {
            Packing::Mixed => most,
            _ => most.max(MAP_PACKS_MIN),
        };
        let least = match form.packing.gathers() {
            true => least_packs(form),
            false => 1,
        };
        let packs = most.min(wanted).max(least).next_multiple_of(multiple);
        // As many splits as that takes, all alike: some adapters give each thread the same number of workgroups.
        let splits = block.length().div_ceil(lanes.shared * packs);
        let packs = block
            .length()
            .div_ceil(splits * lanes.shared)
            .next_multiple_of(multiple);
        let split_length = block.length().min(lanes.shared * packs);
        Self::new(block, lanes, split_length, limits)
    }

    /// For kernels whose workgroups take columns whole, and walk over them twice, forward and backward: where
    /// all lanes together have so little to read that they find it in a cache the second time, each lane
    /// adds up no more than in a reduction, and there are workgroups enough.
    fn whole(
        block: Block,
        form: Form,
        masked: bool,
        tuning: &Tuning,
        limits: &wgpu::Limits,
    ) -> Option<[Self; 2]> {
        // Few columns side by side, for many workgroups: 64 bytes are two of the pieces in which GPUs
        // read memory.
        let narrow = Tuning {
            bytes_across: tuning.bytes_across.min(64),
            spread: false,
            ..tuning.clone()
        };
        let forward = Self::whole_in(block, form, &narrow, limits)?;
        // The lanes that write a mask read it.
        if masked {
            return Some([forward, forward]);
        }
        // There are two tensors to load: half the packs for each of twice the lanes.
        let wide = Tuning {
            lanes: narrow.lanes * 2,
            whole_packs_min: narrow.whole_packs_min.div_ceil(2),
            ..narrow
        };
        let backward = Self::whole_in(block, form, &wide.within(limits), limits)?;
        Some([forward, backward])
    }

    fn whole_in(block: Block, form: Form, tuning: &Tuning, limits: &wgpu::Limits) -> Option<Self> {
        let most = block.length() / u64::from(tuning.whole_packs_min);
        let mut lanes = match form.in_pairs() {
            true => Lanes {
                across: 2,
                spread: false,
                shared: power_of_two_up_to(most.min(u64::from(tuning.lanes / 2))).into(),
            },
            false => shared_lanes(block, form, power_of_two_up_to(most).into(), tuning),
        };
        // Also where that leaves a workgroup narrow.
        if block.plane == 1 {
            lanes.across = lanes.across.min(lanes_across(form, tuning));
        }
        let bytes = lanes.across * block.length() * form.pack_bytes();
        let packs = block.length().div_ceil(lanes.shared);
        let workgroups = block.columns.div_ceil(lanes.across);
        let most_bytes = match workgroups >= u64::from(tuning.whole_workgroups) {
            true => tuning.whole_bytes,
            false => tuning.whole_bytes.min(tuning.whole_bytes_of_few),
        };
        let fits = bytes <= most_bytes && packs <= u64::from(tuning.reduction_packs_max);
        fits.then(|| Self::new(block, lanes, block.length(), limits))
    }

    /// For the merge of `length` partial results of each column.
    pub(crate) fn merge(columns: u32, length: u32, tuning: &Tuning, limits: &wgpu::Limits) -> Self {
        // A lane for each result, as far as there are so many, and some columns side by side for few results:
        // a lane waits for each of its results, one after the other.
        let lanes_y = length.min(tuning.lanes).next_power_of_two();
        let lanes_x = columns.min((tuning.lanes.min(64) / lanes_y).max(1));
        Self {
            launch: Launch {
                lanes_x,
                lanes_y,
                grid: grid(columns.div_ceil(lanes_x).into(), limits),
            },
            geometry: Geometry {
                columns,
                lane_step: 1,
                tile_step: lanes_x,
                partials: length,
                partial_step: columns,
                partial_row_step: (u64::from(length) * u64::from(columns)) as u32,
                splits: 1,
                all_columns: columns,
                ..Geometry::default()
            },
        }
    }

    /// The same, of no partial results.
    fn of_nothing(mut self) -> Self {
        self.geometry.partials = 0;
        self
    }

    fn new(block: Block, lanes: Lanes, split_length: u64, limits: &wgpu::Limits) -> Self {
        let splits = block.length().div_ceil(split_length);
        let (planes, step_in_plane) = (lanes.shared / block.plane, lanes.shared % block.plane);
        let step_in_tensor = planes * block.columns * block.plane + step_in_plane;
        let tiles = block.columns.div_ceil(lanes.across);
        let (lane_step, tile_step) = match lanes.spread {
            true => (tiles, 1),
            false => (1, lanes.across),
        };
        Self {
            launch: Launch {
                lanes_x: lanes.across as u32,
                lanes_y: lanes.shared as u32,
                grid: grid(tiles * splits, limits),
            },
            geometry: Geometry {
                columns: block.columns as u32,
                lane_step: lane_step as u32,
                tile_step: tile_step as u32,
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

/// Packs that a lane of an element-wise kernel has, if it should have so many, however wide rows or small planes are:
/// against the loads of what belongs to its channel.
const MAP_PACKS_MIN: u64 = 32;

/// Packs of a column that a lane should have at least.
fn least_packs(form: Form) -> u64 {
    match form.packing {
        // Against ten loads or twenty for what belongs to its channels.
        packing if packing.gathers() => 16,
        // The loads of four are under way at once.
        _ => 4,
    }
}

/// A workgroup's lanes.
fn lanes(block: Block, form: Form, tuning: &Tuning) -> Lanes {
    let shared = block.length().div_ceil(least_packs(form));
    shared_lanes(block, form, shared.next_power_of_two(), tuning)
}

/// The same where lanes write words of a mask: no more on a column than leave each four packs and eight values,
/// so that a mask has at most four bits for each value, if channels have eight, and hardly more than one where lanes
/// have many. Those of kernels that take columns whole, if there are any: the mask suits both, but where packs mix
/// channels only one has a part in it.
fn word_lanes(block: Block, form: Form, whole: Option<&Whole>, tuning: &Tuning) -> Lanes {
    if let Some(whole) = whole
        && !form.packing.mixes()
    {
        let launch = whole.passes[0].launch;
        return Lanes {
            across: launch.lanes_x.into(),
            spread: false,
            shared: launch.lanes_y.into(),
        };
    }
    let packs = least_packs(form).max(8 / form.packing.values());
    let shared = power_of_two_up_to(block.length() / packs);
    shared_lanes(block, form, shared.into(), tuning)
}

/// With at most so many lanes, a power of two, on a column.
fn shared_lanes(block: Block, form: Form, shared: u64, tuning: &Tuning) -> Lanes {
    // Where neighbouring columns are neighbours in memory, lanes across them coalesce, or are spread over all.
    let spread = tuning.spread && has_rows(block, form);
    let across = match block.plane {
        1 if spread => tuning.lanes.into(),
        1 => lanes_across(form, tuning).min(tuning.lanes.into()),
        _ => 1,
    };
    // And they go across to fill a narrow workgroup.
    let filling = u64::from(tuning.lanes.min(64)) / shared;
    let across = block.columns.min(filling.max(across));
    let shared = power_of_two_up_to(shared.min(u64::from(tuning.lanes) / across)).into();
    Lanes {
        across,
        spread,
        shared,
    }
}

/// Lanes side by side on columns that are neighbours in memory: as many for packs of one value as for packs of
/// four.
fn lanes_across(form: Form, tuning: &Tuning) -> u64 {
    (u64::from(tuning.bytes_across) / (4 * form.dtype.size() as u64)).max(1)
}

/// Whether a column has a pack in each row of memory, as all others have.
fn has_rows(block: Block, form: Form) -> bool {
    block.plane == 1 && form.packing != Packing::Mixed
}

/// Packs for each lane, so that a workgroup has to do with rows of at most so many bytes; any number where there are
/// none.
fn packs_in_rows(block: Block, form: Form, lanes: Lanes, most_bytes: u64) -> u64 {
    match has_rows(block, form) {
        true => most_bytes / (block.columns * form.pack_bytes() * lanes.shared),
        false => u64::MAX,
    }
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

/// Where a column is probed for its pivot: nine places spread over the batch and, otherwise, over the plane. Each is an
/// irrational part of its own, of a prime's square root or cube root: equal steps, of whatever length, may suit the
/// rows of an image, so that all lie in one column, which may be padding.
fn probes(block: Block) -> [u32; 12] {
    let part = |root: f64, length: u64| (root.fract() * length as f64) as u64;
    let mut probes = [0; 12];
    let primes = [2.0_f64, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0, 23.0];
    for (prime, probe) in primes.into_iter().zip(&mut probes) {
        let outer = part(prime.sqrt(), block.outer);
        let place = part(prime.cbrt(), block.plane);
        *probe = (outer * block.columns * block.plane + place) as u32;
    }
    probes
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: [usize; 10] = [1, 2, 3, 4, 5, 7, 8, 24, 49, 130];

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
        small_views().map(|view| Block::new(view, Packing::of_channels(view, &Tuning::cpu())))
    }

    fn tunings() -> [Tuning; 5] {
        let mut narrow = Tuning::gpu();
        narrow.lanes = 16;
        narrow.bytes_across = 64;
        narrow.spread = true;
        narrow.rows_bytes = 100;
        narrow.mixed_rows_min = 1;
        narrow.reduction_packs_min = 1;
        narrow.reduction_packs_max = 3;
        narrow.map_packs = 1;
        let mut whole = Tuning::gpu();
        whole.lanes = 16;
        whole.whole_bytes = u64::MAX;
        whole.whole_workgroups = 1;
        // Channels at one address, of few.
        let mut few = Tuning::cpu();
        few.lanes = 2;
        few.reduction_packs_max = 3;
        [Tuning::gpu(), Tuning::cpu(), narrow, whole, few]
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
                let tuning = Tuning::gpu();
                let form = Form::of(view, dtype, true, &tuning, &limits);
                let divisions = Divisions::new(view, form, true, &tuning, &limits);
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

    /// That of `shaders/lib/tile.wgsl`.
    #[derive(Clone, Copy)]
    struct Place {
        address: u32,
        place: u32,
        number: u32,
        last: bool,
    }

    /// From a plane to the next and from a pack to the next in `shaders/lib/address/`.
    fn steps(form: Form, g: Geometry) -> (u32, u32) {
        match form.packing {
            Packing::Ragged => (g.inner, 4),
            _ => (g.plane, 1),
        }
    }

    /// The walk of `shaders/lib/tile.wgsl` and `shaders/lib/address/`, in arithmetic that panics where u32
    /// overflows: the column and the place of each pack.
    fn walk(form: Form, launch: Launch, g: Geometry, mut visit: impl FnMut(u32, Place)) {
        let (plane_size, place_step) = steps(form, g);
        let tiles = g.columns.div_ceil(launch.lanes_x);
        for index in 0..launch.grid[0] * launch.grid[1] {
            for local in 0..launch.lanes_x * launch.lanes_y {
                let split = index / tiles;
                let tile = index - split * tiles;
                let column = tile * g.tile_step + local % launch.lanes_x * g.lane_step;
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
                let first = g.first_address + column * plane_size;
                let mut address = first + outer * g.columns * plane_size + place * place_step;
                let count = (split_end - start).div_ceil(launch.lanes_y);
                for step in 0..count {
                    let number = g.first_number + start + step * launch.lanes_y;
                    let at = Place {
                        address,
                        place,
                        number,
                        last: step + 1 == count,
                    };
                    visit(g.first_column + column, at);
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

    /// Four packs that a lane comes to: how many came, and the word and bit of the first.
    #[derive(Default)]
    struct Four {
        came: u32,
        first: (u32, u32),
    }

    impl Four {
        /// The next pack's bits are in the word of the first, and next to those of the one before.
        fn check(&mut self, bit: (u32, u32), values: u32, last: bool, view: View) {
            if self.came == 0 {
                self.first = bit;
            }
            let (word, first) = self.first;
            assert_eq!(bit, (word, first + self.came * values), "{view:?}");
            self.came = if last { 0 } else { (self.came + 1) % 4 };
        }
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
    fn small_divisions(dtype: DType, masked: bool, mut check: impl FnMut(View, Form, &Divisions)) {
        for view in small_views() {
            if view.outer * view.channels * view.inner > 20_000 {
                continue;
            }
            for tuning in tunings() {
                for limits in limits() {
                    let form = Form::of(view, dtype, masked, &tuning, &limits);
                    let divisions = Divisions::new(view, form, masked, &tuning, &limits);
                    check(view, form, &divisions);
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
            small_divisions(dtype, masked, |view, form, divisions| {
                let tensor = divisions.slices.tensor;
                let slices = &divisions.slices.slices;
                let visits = |divisions: &mut dyn Iterator<Item = &Division>| {
                    let mut visits = vec![0; tensor.packs() as usize];
                    for (slice, division) in slices.iter().zip(divisions) {
                        let g = division.geometry;
                        walk(form, division.launch, g, |column, at| {
                            let in_slice = u64::from(at.address - g.first_address);
                            let pack = slice.first_pack + in_slice;
                            let column_of_pack = pack / tensor.plane % tensor.columns;
                            assert_eq!(u64::from(column), column_of_pack);
                            let outer = pack / tensor.plane / tensor.columns;
                            let expected = outer * tensor.plane + pack % tensor.plane;
                            assert_eq!(u64::from(at.number), expected);
                            visits[pack as usize] += 1;
                        });
                    }
                    visits
                };
                let once = |visits: Vec<i32>| visits.iter().all(|&visits| visits == 1);
                let reductions = match form.packing {
                    Packing::Mixed => values_visited(view, form, &divisions.reductions[0]),
                    _ => visits(&mut divisions.reductions.iter()),
                };
                assert!(once(reductions), "{view:?}");
                if let Some(whole) = &divisions.whole {
                    for pass in &whole.passes {
                        assert_eq!(pass.geometry.splits, 1);
                        let visits = match whole.form == form {
                            true => visits(&mut std::iter::once(pass)),
                            false => values_visited(view, whole.form, pass),
                        };
                        assert!(once(visits), "{view:?}");
                    }
                }

                let tensor = divisions.map_slices.tensor;
                let mut visits = vec![0; tensor.packs() as usize];
                let slices = divisions.map_slices.slices.iter();
                for (slice, division) in slices.zip(&divisions.maps) {
                    let g = division.geometry;
                    walk(form, division.launch, g, |_, at| {
                        let in_slice = u64::from(at.address - g.first_address);
                        visits[(slice.first_pack + in_slice) as usize] += 1;
                    });
                }
                assert!(visits.iter().all(|&visits| visits == 1), "{view:?}");
            });
        }
    }

    /// How often a reduction over packs of which a part belongs to a column counts each value, for the
    /// value's own column: `own_at` of `shaders/lib/address/values.wgsl`.
    fn values_visited(view: View, form: Form, reduction: &Division) -> Vec<i32> {
        let mut visits = vec![0; view.outer * view.channels * view.inner];
        let g = reduction.geometry;
        walk(form.of_reductions(), reduction.launch, g, |column, at| {
            let values = form.of_reductions().packing.values() as u32;
            let first = (values * at.place).wrapping_sub(at.address % values);
            for value in (0..values).filter(|value| first.wrapping_add(*value) < g.inner) {
                let index = (at.address / values * values + value) as usize;
                assert_eq!(view.channel_of(index), column as usize, "{view:?}");
                visits[index] += 1;
            }
        });
        visits
    }

    /// Where a reduction takes several rows of channels for one, its partial results lie where a merge by channels
    /// looks for as many times the splits.
    #[test]
    fn partial_results_of_rows_are_those_of_channels() {
        small_divisions(DType::F16, false, |view, form, divisions| {
            if form.packing != Packing::Rows {
                return;
            }
            let channels = view.channels as u32;
            let (reduction, merge) = (divisions.reductions[0].geometry, divisions.merge.geometry);
            let rows = 4 * reduction.columns / channels;
            assert_eq!(merge.partials, reduction.splits * rows);
            assert_eq!(merge.partial_row_step, 4 * reduction.partial_row_step);
            for value in 0..4 * reduction.columns {
                for split in 0..reduction.splits {
                    let written = 4 * (split * reduction.partial_step) + value;
                    let (row, channel) = (value / channels, value % channels);
                    let read = (split * rows + row) * merge.partial_step + channel;
                    assert_eq!(written, read, "{view:?}");
                }
            }
        });
    }

    /// A mask has hardly more bits than values, but in small channels.
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
            (9, 2048, 49),
        ] {
            let view = View {
                outer,
                channels,
                inner,
            };
            for dtype in [DType::F32, DType::F16] {
                for tuning in [Tuning::gpu(), Tuning::cpu()] {
                    let limits = wgpu::Limits::default();
                    let form = Form::of(view, dtype, true, &tuning, &limits);
                    let divisions = Divisions::new(view, form, true, &tuning, &limits);
                    let values = (outer * channels * inner) as u64;
                    let bits = 32 * divisions.mask_words;
                    // A quarter more where lanes have many values, up to four times where they have few.
                    let many = outer * inner >= 56 * 56 * 8;
                    let most = if many { 5 * values } else { 16 * values };
                    assert!(
                        bits >= values && 4 * bits <= most,
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
            small_divisions(dtype, true, |view, form, divisions| {
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
                        let mut four = Four::default();
                        walk(form, map.launch, g, |column, at| {
                            let Place {
                                address,
                                number,
                                last,
                                ..
                            } = at;
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
                                four.check(bit, values, last, view);
                            }
                        });
                    }
                    written
                };
                let written = write(&mut divisions.maps.iter());
                // What goes by pairs of channels writes none.
                let writes = |whole: &&Whole| !whole.form.in_pairs();
                let wholes = divisions.whole.iter().filter(writes);
                for whole in wholes.flat_map(|whole| &whole.passes) {
                    assert_eq!(write(&mut std::iter::once(whole)), written, "{view:?}");
                }
                for (slice, reduction) in slices.slices.iter().zip(&divisions.reductions) {
                    let g = reduction.geometry;
                    let mut four = Four::default();
                    walk(form.of_reductions(), reduction.launch, g, |column, at| {
                        let mut pack = slice.first_pack + u64::from(at.address - g.first_address);
                        let bit = if form.packing == Packing::Mixed {
                            // As `shaders/lib/mask/ragged.wgsl` finds it.
                            pack /= 4;
                            let (row, offset) = (
                                pack as u32 / g.mask_word_step,
                                pack as u32 % g.mask_word_step,
                            );
                            let (word, bit) = mask_bit(g, column, row, values);
                            (word + offset, bit)
                        } else if form.in_pairs() {
                            mask_bit(g, column, number_in_pairs(g, at.address), 1)
                        } else {
                            let bit = mask_bit(g, column, at.number - g.first_number, values);
                            four.check(bit, values, at.last, view);
                            bit
                        };
                        // The last pack of a plane that mixes channels may be none of the tensor's.
                        if pack < slices.tensor.packs() {
                            assert_eq!(written[pack as usize], Some(bit), "{view:?}");
                        }
                    });
                }
            });
        }
    }

    /// Small channels are taken whole, also where they are neighbours in memory, and by pairs where their planes
    /// end within words; not where one is too large, or all are together for so few.
    #[test]
    fn small_channels_take_one_dispatch() {
        let (tuning, limits) = (Tuning::gpu(), wgpu::Limits::default());
        for ((outer, channels, inner), dtype, expected) in [
            ((32, 2048, 1), DType::F32, true),
            ((2, 4096, 1), DType::F32, true),
            ((32, 2048, 49), DType::F32, true),
            ((32, 2048, 49), DType::F16, true),
            ((32, 2047, 49), DType::F16, false),
            ((1, 1, 3), DType::F32, true),
            ((32, 64, 14 * 14), DType::F32, true),
            ((32, 256, 28 * 28), DType::F32, true),
            ((32, 64, 28 * 28), DType::F32, false),
            ((32, 2048, 56 * 56), DType::F32, false),
        ] {
            let view = View {
                outer,
                channels,
                inner,
            };
            for masked in [false, true] {
                let form = Form::of(view, dtype, masked, &tuning, &limits);
                let divisions = Divisions::new(view, form, masked, &tuning, &limits);
                assert_eq!(divisions.whole.is_some(), expected, "{view:?} {dtype:?}");
            }
        }
    }

    /// On software adapters, where channels lie last, a workgroup's lanes are spread over all of them; where these are
    /// fewer than lanes, there is one for each.
    #[test]
    fn lanes_are_spread_over_rows() {
        let limits = wgpu::Limits::default();
        for (channels, dtype, expected) in [
            (64, DType::F16, (8, 1)),
            (256, DType::F16, (8, 4)),
            (512, DType::F16, (8, 8)),
            (128, DType::F32, (8, 2)),
            (96, DType::F32, (8, 2)),
            (100, DType::F32, (8, 4)),
            (32, DType::F32, (8, 1)),
            (28, DType::F32, (7, 1)),
            (520, DType::F16, (8, 9)),
            (264, DType::F32, (8, 5)),
            // Rows of packs that mix channels: 123 and 3 packs of four rows.
            (123, DType::F16, (8, 16)),
            (3, DType::F32, (3, 1)),
        ] {
            let view = View {
                outer: 4096,
                channels,
                inner: 1,
            };
            for masked in [false, true] {
                let found = |tuning: &Tuning| {
                    let form = Form::of(view, dtype, masked, tuning, &limits);
                    let divisions = Divisions::new(view, form, masked, tuning, &limits);
                    [divisions.reductions[0], divisions.maps[0]]
                        .map(|division| (division.launch.lanes_x, division.geometry.lane_step))
                };
                assert_eq!(found(&Tuning::cpu()), [expected; 2], "{channels} {dtype:?}");
                assert!(found(&Tuning::gpu()).iter().all(|&(_, step)| step == 1));
            }
        }
    }

    /// The splits of an element-wise kernel are as long as one another, as far as lanes have whole packs.
    #[test]
    fn splits_of_maps_are_alike() {
        let limits = wgpu::Limits::default();
        for (length, expected) in [(256 * 8, 1), (257 * 8, 2), (392 * 8, 2), (1000 * 8, 4)] {
            let view = View {
                outer: 1,
                channels: 512,
                inner: 8 * length,
            };
            let tuning = Tuning::cpu();
            let form = Form::of(view, DType::F16, false, &tuning, &limits);
            let map = Divisions::new(view, form, false, &tuning, &limits).maps[0];
            let g = map.geometry;
            assert_eq!((g.length as usize, g.splits), (length, expected));
            let last = g.length - (g.splits - 1) * g.split_length;
            let spare = g.split_length - last;
            assert!(spare < g.splits * map.launch.lanes_y, "{length}: {spare}");
        }
    }

    /// On software adapters, where channels lie last, workgroups take the fewer rows the wider these are, if lanes
    /// then have packs enough; element-wise kernels half as many as reductions.
    #[test]
    fn workgroups_take_few_wide_rows() {
        let limits = wgpu::Limits::default();
        let tuning = Tuning::cpu();
        for (channels, expected) in [
            (64, (512, 256)),
            (256, (512, 256)),
            (512, (256, 128)),
            (1024, (128, 64)),
            (2048, (64, 32)),
            (32_768, (64, 32)),
        ] {
            let view = View {
                outer: 1 << 16,
                channels,
                inner: 1,
            };
            for masked in [false, true] {
                let form = Form::of(view, DType::F32, masked, &tuning, &limits);
                let divisions = Divisions::new(view, form, masked, &tuning, &limits);
                let (reduction, map) = (divisions.reductions[0], divisions.maps[0]);
                let found = (reduction.geometry.split_length, map.geometry.split_length);
                assert_eq!(found, expected, "{channels} {masked}");
            }
        }
    }

    /// On software adapters, where channels lie first, a workgroup of an element-wise kernel takes few planes, if
    /// lanes then have packs enough.
    #[test]
    fn maps_take_few_planes() {
        let limits = wgpu::Limits::default();
        let tuning = Tuning::cpu();
        // Packs in a plane, and planes that a workgroup has; with a mask as without.
        for (plane, expected) in [
            (4, [64, 64]),
            (8, [32, 32]),
            (24, [10, 10]),
            (56, [8, 8]),
            (112, [8, 8]),
        ] {
            let view = View {
                outer: 256,
                channels: 64,
                inner: 8 * plane,
            };
            let found = [false, true].map(|masked| {
                let form = Form::of(view, DType::F32, masked, &tuning, &limits);
                let map = Divisions::new(view, form, masked, &tuning, &limits).maps[0];
                map.geometry.split_length as usize / plane
            });
            assert_eq!(found, expected, "{plane}");
        }
    }

    /// A lane has as many packs as the tuning says, but for packs that mix channels, which have more.
    #[test]
    fn lanes_of_maps_have_the_packs_of_the_tuning() {
        let limits = wgpu::Limits::default();
        for packs in [1, 3, 20] {
            let mut tuning = Tuning::gpu();
            tuning.map_packs = packs;
            for (inner, expected) in [(64, packs), (49, packs.max(16))] {
                let view = View {
                    outer: 4096,
                    channels: 8,
                    inner,
                };
                let form = Form::of(view, DType::F16, false, &tuning, &limits);
                let map = Divisions::new(view, form, false, &tuning, &limits).maps[0];
                let lanes = map.launch.lanes_y;
                assert_eq!(map.geometry.split_length, lanes * expected, "{form:?}");
            }
        }
    }

    /// Eight channels that lie last are taken at once in wide words, if there are lanes' worth of them, but not by
    /// kernels that are joined.
    #[test]
    fn channels_at_one_address_fill_the_lanes() {
        let packing = |channels, tuning: &Tuning| {
            let view = View {
                outer: 5,
                channels,
                inner: 1,
            };
            Packing::of_channels(view, tuning)
        };
        let cpu = Tuning::cpu();
        for (channels, expected) in [
            (56, Packing::Channels),
            (64, Packing::ChannelTwins),
            (68, Packing::Channels),
            (72, Packing::ChannelTwins),
            (66, Packing::Scalar),
        ] {
            assert_eq!(packing(channels, &cpu), expected, "{channels}");
        }
        let changes: [fn(&mut Tuning); 3] = [
            |tuning| tuning.wide_words = false,
            |tuning| tuning.whole_bytes = 1,
            |tuning| tuning.map_partials_max = 1,
        ];
        for change in changes {
            let mut tuning = cpu.clone();
            change(&mut tuning);
            assert_eq!(packing(64, &tuning), Packing::Channels, "{tuning:?}");
        }
    }

    /// Packs mix channels where else they would be of one value, if there are rows enough, whole packs, and
    /// no better way.
    #[test]
    fn packs_mix_channels_where_that_gains() {
        let (never, limits) = (u32::MAX, wgpu::Limits::default());
        let packing = |(outer, channels, inner), dtype, masked, tuning: &Tuning| {
            let view = View {
                outer,
                channels,
                inner,
            };
            Form::of(view, dtype, masked, tuning, &limits).packing
        };
        let (small, large) = ((32, 2048, 49), (64, 96, 55 * 55));
        let cpu = Tuning::cpu();
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            for masked in [false, true] {
                let is_mixed =
                    |dims, tuning: &Tuning| packing(dims, dtype, masked, tuning) == Packing::Mixed;
                assert!(is_mixed(small, &cpu) && is_mixed(large, &cpu));
                assert!(is_mixed((4, 2048, 49), &cpu));
                assert!(is_mixed(large, &Tuning::gpu()));
                // Too few rows, an odd number of values, more than a binding, packs of one channel.
                for dims in [(3, 2048, 49), (33, 3, 49), (512, 2048, 147), (32, 64, 48)] {
                    assert!(!is_mixed(dims, &cpu), "{dims:?}");
                }
                let mut tuning = Tuning::cpu();
                tuning.mixed_rows_min = never;
                assert!(!is_mixed(small, &tuning));
                // Channels that lie last, in four rows that are three packs, or two; not too few of these, and whole.
                let are_rows = |dims| packing(dims, dtype, masked, &cpu) == Packing::Rows;
                // On GPUs, f32 may take fewer dispatches.
                let gpu = packing((512, 3, 1), dtype, masked, &Tuning::gpu());
                assert_eq!(gpu == Packing::Rows, dtype != DType::F32);
                let rows = if dtype == DType::F32 { 16 } else { 8 };
                assert!(are_rows((4 * rows, 3, 1)) && are_rows((4 * rows, 123, 1)));
                assert!(are_rows((2 * rows, 6, 1)));
                assert!(
                    ![
                        (4 * rows - 4, 3, 1),
                        (4 * rows + 1, 3, 1),
                        (2 * rows - 2, 6, 1),
                        (64, 4, 1)
                    ]
                    .map(are_rows)
                    .contains(&true)
                );
            }
        }
        // Small channels in f32 take one dispatch instead, where that can be.
        let gpu = Tuning::gpu();
        assert_eq!(packing(small, DType::F32, false, &gpu), Packing::Scalar);
        assert_eq!(packing(small, DType::F32, true, &gpu), Packing::Scalar);
        assert_eq!(packing(small, DType::F16, false, &gpu), Packing::Mixed);
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
            (1 << 39, 2, 1),
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
            for binding in [128 << 20, (2 << 30) - 4, u64::from(u32::MAX)] {
                for tuning in [Tuning::gpu(), Tuning::cpu()] {
                    let limits = wgpu::Limits {
                        max_storage_buffer_binding_size: binding,
                        ..wgpu::Limits::default()
                    };
                    let form = Form::of(view, DType::F32, true, &tuning, &limits);
                    let divisions = Divisions::new(view, form, true, &tuning, &limits);
                    let slices = &divisions.slices;
                    for index in (0..slices.slices.len()).step_by(97) {
                        let slice = slices.slices[index];
                        let (reduction, map) =
                            (&divisions.reductions[index], &divisions.maps[index]);
                        let bytes = slices.bytes(index);
                        assert!(bytes.end - bytes.start <= binding);
                        for division in [reduction, map] {
                            last_lane_is_in_range(slice.block, form, division);
                        }
                    }
                }
            }
        }
    }

    /// The same of packs that mix channels, which lie in one binding: up to 2³¹ values.
    #[test]
    fn a_binding_of_packs_that_mix_channels_is_addressed_right() {
        for (outer, channels, inner) in [(1 << 21, 3, 341), (1 << 28, 7, 1), (1 << 9, 1 << 16, 63)]
        {
            let view = View {
                outer,
                channels,
                inner,
            };
            let limits = wgpu::Limits {
                max_storage_buffer_binding_size: u64::from(u32::MAX),
                ..wgpu::Limits::default()
            };
            for tuning in [Tuning::gpu(), Tuning::cpu()] {
                let form = Form::of(view, DType::F16, true, &tuning, &limits);
                assert!(form.packing.gathers());
                let divisions = Divisions::new(view, form, true, &tuning, &limits);
                let of_reductions = form.of_reductions();
                let reduced = Block::new(view, of_reductions.packing);
                last_lane_is_in_range(reduced, of_reductions, &divisions.reductions[0]);
                let rows = Block::new(view, form.packing);
                last_lane_is_in_range(rows, form, &divisions.maps[0]);
            }
        }
    }

    /// The last lane of the last split, in u32 that panics on overflow and in u64.
    fn last_lane_is_in_range(block: Block, form: Form, division: &Division) {
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
        let (plane_size, place_step) = steps(form, g);
        let address = g.first_address
            + (g.columns - 1) * plane_size
            + outer * g.columns * plane_size
            + (last - outer * g.plane) * place_step;
        let planes = block.outer * block.columns;
        let last_plane = (planes - 1) * u64::from(plane_size);
        let exact =
            u64::from(g.first_address) + last_plane + (block.plane - 1) * u64::from(place_step);
        assert_eq!(u64::from(address), exact);
    }
}
