//! The kernels: one module per shader, under the shader's name.
//!
//! A module here names its shader's entry points and bindings. How work is divided is decided in
//! `division.rs`; what is run for an operation, and on which buffers, in `plan/`.

pub(crate) mod backward;
pub(crate) mod forward;
pub(crate) mod frozen_statistics;
pub(crate) mod gradients;
pub(crate) mod input_gradient;
pub(crate) mod library;
pub(crate) mod native_f16;
pub(crate) mod normalize;
pub(crate) mod optimizer;
pub(crate) mod statistics;

use std::collections::BTreeSet;

use crate::division::{Form, Launch, Packing};
use crate::{DType, Error, Gpu, NativeF16};
pub(crate) use library::ActivationFile;

/// One file in `shaders/`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Its path there, without the extension.
    name: &'static str,
    text: &'static str,
}

macro_rules! piece {
    ($name:literal) => {
        $crate::kernels::Piece {
            name: $name,
            text: include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/shaders/",
                $name,
                ".wgsl"
            )),
        }
    };
}
use piece;

/// Every variable that a shader binds: the same number under the same name in all of `shaders/`,
/// but for `shaders/optimizer.wgsl`.
const BINDINGS: [&str; 22] = [
    "geometry",
    "constants",
    "x",
    "y",
    "dy",
    "dx",
    "residual",
    "residual_gradient",
    "mask",
    "valid",
    "gamma",
    "beta",
    "saved",
    "running_mean",
    "running_var",
    "partials",
    "moments",
    "sums",
    "dgamma",
    "dbeta",
    "coefficient_rows",
    "agreements",
];

/// Those of `shaders/optimizer.wgsl`.
const OPTIMIZER_BINDINGS: [&str; 4] = ["settings", "gradient", "parameter", "state"];

/// The number of a binding.
fn binding_number(name: &str) -> u32 {
    let numbered = BINDINGS.iter().position(|known| *known == name);
    let numbered = numbered.or_else(|| OPTIMIZER_BINDINGS.iter().position(|known| *known == name));
    numbered.unwrap_or(BINDINGS.len()) as u32
}

/// All that a kernel's text depends on, but for its workgroup's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Choice {
    pub(crate) form: Form,
    /// Which conversions of f16 are the device's own.
    pub(crate) native_f16: NativeF16,
    /// Whether memory is read and written in words of 64 bits.
    pub(crate) wide: bool,
    pub(crate) activation: ActivationFile,
    /// Whether a residual is added before the activation.
    pub(crate) residual: bool,
    /// Whether the gradient of the residual is wanted.
    pub(crate) residual_gradient: bool,
    /// Whether only some positions count.
    pub(crate) some_valid: bool,
    /// Whether y is written over x, or dx over dy.
    pub(crate) in_place: bool,
    /// Whether to normalize by running statistics, not by saved ones.
    pub(crate) running: bool,
    /// Whether dγ or dx is wanted, and not dβ alone.
    pub(crate) products: bool,
    /// Whether the statistics depend on x.
    pub(crate) batch_statistics: bool,
    /// Whether a buffer that is read is written too, in other ranges: WebGPU then asks that the
    /// dispatch may write all that it binds of that buffer.
    pub(crate) shared: bool,
}

impl Choice {
    /// The plainest: training by the batch's statistics, nothing fused.
    pub(crate) fn plain(form: Form) -> Self {
        Self {
            form,
            native_f16: NativeF16::Never,
            wide: false,
            activation: ActivationFile::Identity,
            residual: false,
            residual_gradient: false,
            some_valid: false,
            in_place: false,
            running: false,
            products: true,
            batch_statistics: true,
            shared: false,
        }
    }

    /// For kernels over vectors, which depend on nothing.
    pub(crate) fn of_vectors() -> Self {
        Self::plain(Form {
            packing: Packing::Scalar,
            dtype: DType::F32,
        })
    }

    /// Whether what the activation cut goes from the forward to the backward pass as a mask: where
    /// there is a residual, which the backward pass does not see. Evaluation needs none.
    pub(crate) fn masked(&self) -> bool {
        self.residual && self.activation != ActivationFile::Identity && !self.running
    }

    /// Whether the backward pass computes anew what the activation cut.
    fn recomputed(&self) -> bool {
        self.activation != ActivationFile::Identity && !self.masked()
    }

    /// The same as far as it matters to a kernel that depends on `axes` alone.
    fn only(&self, axes: &[Axis]) -> Self {
        let mut only = Self::of_vectors();
        for axis in axes {
            match axis {
                Axis::Form => {
                    only.form = self.form;
                    only.native_f16 = self.native_f16;
                    only.wide = self.wide;
                }
                Axis::FourChannels => only.form.packing = self.form.packing.of_vectors(),
                Axis::Activation => only.activation = self.activation,
                Axis::Residual => only.residual = self.residual,
                Axis::ResidualGradient => only.residual_gradient = self.residual_gradient,
                Axis::Valid => only.some_valid = self.some_valid,
                Axis::InPlace => only.in_place = self.in_place,
                Axis::Running => only.running = self.running,
                Axis::Products => only.products = self.products,
                Axis::BatchStatistics => only.batch_statistics = self.batch_statistics,
                Axis::Shared => only.shared = self.shared,
            }
        }
        only
    }

    /// Every choice that an operation may make.
    fn all() -> impl Iterator<Item = Self> {
        let forms = Form::all();
        forms.flat_map(move |form| {
            ActivationFile::ALL.into_iter().flat_map(move |activation| {
                (0..1_u32 << 11).filter_map(move |flags| {
                    let flag = |bit: u32| flags >> bit & 1 == 1;
                    let native_f16 = match (flag(7), flag(10)) {
                        (false, false) => NativeF16::Never,
                        (true, false) => NativeF16::Reads,
                        (true, true) => NativeF16::Always,
                        (false, true) => return None,
                    };
                    let choice = Self {
                        form,
                        activation,
                        residual: flag(0),
                        residual_gradient: flag(1),
                        some_valid: flag(2),
                        in_place: flag(3),
                        running: flag(4),
                        products: flag(5),
                        batch_statistics: flag(6),
                        native_f16,
                        wide: flag(8),
                        shared: flag(9),
                    };
                    choice.is_legal().then_some(choice)
                })
            })
        })
    }

    fn is_legal(&self) -> bool {
        // The gradient of a residual is of one that is there, and through constants every position
        // is like another.
        (self.residual || !self.residual_gradient)
            && (self.batch_statistics || !self.some_valid)
            && (self.form.dtype == DType::F16 || self.native_f16 == NativeF16::Never)
            && (self.form.packing != Packing::Scalar || !self.wide)
            && (!self.form.packing.has_twins() || self.wide)
    }
}

/// Something that a kernel's text may depend on: a field of [`Choice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
    /// Packing and storage type.
    Form,
    /// Whether what a column has belongs to four channels.
    FourChannels,
    Activation,
    Residual,
    ResidualGradient,
    Valid,
    InPlace,
    Running,
    Products,
    BatchStatistics,
    Shared,
}

/// `Constants` of `shaders/lib/constants.wgsl`, field by field.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Constants {
    pub(crate) eps: f32,
    pub(crate) momentum_mean: f32,
    pub(crate) momentum_var: f32,
    pub(crate) degrees_lost: f32,
    pub(crate) slope: f32,
    pub(crate) least: f32,
    pub(crate) most: f32,
}

/// An entry point of a shader.
#[derive(Debug)]
pub(crate) struct EntryPoint {
    /// `shader.entry_point`, as it shows in a debugger behind `batch_norm.`.
    pub(crate) label: &'static str,
    pub(crate) name: &'static str,
    /// What it depends on.
    axes: &'static [Axis],
    /// The files that its text is made of.
    pieces: fn(&Choice) -> Vec<Piece>,
    /// The names of the variables that it binds.
    bindings: fn(&Choice) -> Vec<&'static str>,
    /// Those that the shader may write.
    writes: &'static [&'static str],
    /// The values of the override constants.
    constants: fn(&Variant) -> Vec<(&'static str, f64)>,
}

impl EntryPoint {
    /// The names of the storage buffers that a dispatch writes, and of those that it only reads.
    pub(crate) fn uses(&self, choice: &Choice) -> (Vec<&'static str>, Vec<&'static str>) {
        (self.bindings)(&choice.only(self.axes))
            .into_iter()
            .filter(|name| !["geometry", "constants", "settings"].contains(name))
            .partition(|name| self.writes.contains(name))
    }

    /// How many storage buffers a dispatch binds.
    pub(crate) fn storage_buffers(&self, choice: &Choice) -> usize {
        let (writes, reads) = self.uses(choice);
        writes.len() + reads.len()
    }

    /// Whether there is such a kernel. What mixes channels in planes goes by columns in reductions and by places
    /// in element-wise kernels, and rows of channels leave a channel several partial results for each split: so
    /// the two are not joined. Pairs of neighbours go by two whole columns, without a mask.
    fn is_legal(&self, choice: &Choice) -> bool {
        match choice.form.packing {
            Packing::Ragged => !self.is_map() && !self.is_joined(),
            Packing::Mixed => self.is_map(),
            // Only one of two vectors would be shared.
            Packing::Rows | Packing::ChannelTwins => !self.is_joined(),
            _ if choice.form.in_pairs() && self.is_joined() => {
                self.is_whole() && !choice.only(self.axes).masked()
            }
            _ => true,
        }
    }

    /// Whether it treats each value by itself.
    fn is_map(&self) -> bool {
        [&normalize::MAIN, &input_gradient::MAIN]
            .iter()
            .any(|map| map.label == self.label)
    }

    /// Whether it does all of an operation by itself.
    fn is_whole(&self) -> bool {
        [&forward::WHOLE, &backward::WHOLE]
            .iter()
            .any(|whole| whole.label == self.label)
    }

    /// Whether it reduces and treats each value too. It may then bind more buffers than every device has.
    fn is_joined(&self) -> bool {
        [
            &forward::WHOLE,
            &forward::FROM_PARTIALS,
            &backward::WHOLE,
            &backward::FROM_PARTIALS,
        ]
        .iter()
        .any(|joined| joined.label == self.label)
    }
}

/// An entry point's label, what it depends on, and the workgroup's shape.
pub(crate) type PipelineKey = (&'static str, Choice, u32, u32);

/// A kernel's entry point with everything that its pipeline depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    entry: &'static EntryPoint,
    choice: Choice,
    lanes_x: u32,
    lanes_y: u32,
}

impl Variant {
    pub(crate) fn new(entry: &'static EntryPoint, choice: &Choice, launch: Launch) -> Self {
        Self {
            entry,
            choice: choice.only(entry.axes),
            lanes_x: launch.lanes_x,
            lanes_y: launch.lanes_y,
        }
    }

    /// What tells its pipeline from others.
    pub(crate) fn key(&self) -> PipelineKey {
        (self.entry.label, self.choice, self.lanes_x, self.lanes_y)
    }

    /// The text, and the names of the files that it is made of.
    ///
    /// Here alone is a text edited: WGSL has no constant for a variable's access, and one file for
    /// each would be every file that declares an input, twice.
    fn source(&self) -> (String, Vec<&'static str>) {
        let pieces = (self.entry.pieces)(&self.choice);
        let texts: Vec<_> = pieces.iter().map(|piece| piece.text).collect();
        let names = pieces.iter().map(|piece| piece.name).collect();
        let text = texts.join("\n");
        match self.choice.shared {
            true => (text.replace(READ, READ_WRITE), names),
            false => (text, names),
        }
    }

    /// The entry point, what tells it from the plainest variant, and the workgroup.
    fn name(&self) -> String {
        let choice = &self.choice;
        let mut words = vec![self.entry.label.to_owned()];
        // A shader over vectors has no packing.
        if !self.entry.axes.is_empty() {
            words.push(format!("{:?}", choice.form.packing));
        }
        if self.entry.axes.contains(&Axis::Form) {
            words.push(format!("{:?}", choice.form.dtype));
        }
        if choice.activation != ActivationFile::Identity {
            words.push(format!("{:?}", choice.activation));
        }
        for (flag, word) in [
            (choice.native_f16 == NativeF16::Reads, "native_reads"),
            (choice.native_f16 == NativeF16::Always, "native_f16"),
            (choice.wide, "wide"),
            (choice.residual, "residual"),
            (choice.residual_gradient, "residual_gradient"),
            (choice.some_valid, "some_valid"),
            (choice.in_place, "in_place"),
            (choice.running, "running"),
            (!choice.products, "dbeta_alone"),
            (!choice.batch_statistics, "constants"),
            (choice.shared, "shared"),
        ] {
            if flag {
                words.push(word.to_owned());
            }
        }
        words.push(format!("{}x{}", self.lanes_x, self.lanes_y));
        words.join(".").to_lowercase()
    }

    /// The bindings' numbers and names.
    fn bindings(&self) -> Vec<(u32, &'static str)> {
        let names: BTreeSet<_> = (self.entry.bindings)(&self.choice)
            .into_iter()
            .map(|name| (binding_number(name), name))
            .collect();
        names.into_iter().collect()
    }

    /// Compiles the variant. Errors go to the error scopes in force.
    pub(crate) fn compile(
        &self,
        device: &wgpu::Device,
        cache: Option<&wgpu::PipelineCache>,
    ) -> wgpu::ComputePipeline {
        let label = format!("batch_norm.{}", self.entry.label);
        let (source, _) = self.source();
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(&label),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: None,
            module: &module,
            entry_point: Some(self.entry.name),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &(self.entry.constants)(self),
                // Every kernel writes its workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache,
        })
    }

    /// Every variant with workgroups of this shape.
    fn all(lanes_x: u32, lanes_y: u32) -> impl Iterator<Item = Self> {
        let launch = Launch {
            lanes_x,
            lanes_y,
            grid: [1, 1],
        };
        ENTRY_POINTS.into_iter().flat_map(move |entry| {
            let mut seen = std::collections::HashSet::new();
            Choice::all()
                .filter(|choice| entry.is_legal(choice))
                .map(move |choice| Self::new(entry, &choice, launch))
                .filter(move |variant| seen.insert(variant.choice))
        })
    }
}

/// How a shader declares an input, and what becomes of it where the input's buffer is written too.
const READ: &str = "var<storage, read>";
const READ_WRITE: &str = "var<storage, read_write>";

const ENTRY_POINTS: [&EntryPoint; 17] = [
    &forward::WHOLE,
    &forward::FROM_PARTIALS,
    &backward::WHOLE,
    &backward::FROM_PARTIALS,
    &statistics::PARTIAL,
    &statistics::COLLECT,
    &statistics::MERGE,
    &frozen_statistics::MAIN,
    &normalize::MAIN,
    &gradients::PARTIAL,
    &gradients::COLLECT,
    &gradients::MERGE,
    &input_gradient::MAIN,
    &native_f16::COMPARE,
    &optimizer::SGD,
    &optimizer::RMSPROP,
    &optimizer::ADAM,
];

/// A kernel's text, for inspection: see [`shader_texts`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShaderText {
    /// Shader, entry point, packing, storage type, what is fused to it, and workgroup, as
    /// `normalize.main.inner.f32.relu.1x256`.
    pub name: String,
    /// The WGSL text.
    pub source: String,
    /// The entry point in it.
    pub entry_point: &'static str,
    /// Values of the override constants.
    pub constants: Vec<(&'static str, f64)>,
    /// The optional features of a device that it takes.
    pub features: wgpu::Features,
}

/// Every shader that this crate may give to a driver, in one shape of the workgroup, and those that
/// compute on f32 with nothing fused in some more: for whoever wants to see what a compiler makes
/// of them.
///
/// ```
/// let names: Vec<_> = wgpu_batchnorm::shader_texts().map(|text| text.name).collect();
/// assert!(names.contains(&"normalize.main.channels.f16.relu.residual.1x256".to_owned()));
/// assert!(names.contains(&"statistics.partial.inner.f32.32x8".to_owned()));
/// ```
pub fn shader_texts() -> impl Iterator<Item = ShaderText> {
    let plain_in = |(lanes_x, lanes_y)| {
        Variant::all(lanes_x, lanes_y).filter(|variant| {
            let choice = &variant.choice;
            choice.form.dtype == DType::F32 && *choice == Choice::plain(choice.form)
        })
    };
    let more = [(32, 8), (3, 64), (1, 8), (8, 1)].into_iter();
    Variant::all(1, 256)
        .chain(more.flat_map(plain_in))
        .map(|variant| ShaderText {
            name: variant.name(),
            source: variant.source().0,
            entry_point: variant.entry.name,
            constants: (variant.entry.constants)(&variant),
            features: match variant.choice.wide {
                true => wgpu::Features::SHADER_INT64,
                false => wgpu::Features::empty(),
            },
        })
}

/// The override constants of `shaders/lib/tile.wgsl`.
fn tile_constants(variant: &Variant) -> Vec<(&'static str, f64)> {
    vec![
        ("LANES_X", f64::from(variant.lanes_x)),
        ("LANES_Y", f64::from(variant.lanes_y)),
        ("LANES", f64::from(variant.lanes_x * variant.lanes_y)),
    ]
}

/// One dispatch with its pipeline chosen and its buffers bound.
#[derive(Clone)]
pub(crate) struct Dispatch {
    label: &'static str,
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    grid: [u32; 2],
}

impl std::fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A pipeline would print all of its shader.
        write!(f, "{} {:?}", self.label, self.grid)
    }
}

impl Dispatch {
    /// A dispatch of a kernel that binds what `buffer` gives for each name.
    pub(crate) fn new<'a>(
        gpu: &Gpu,
        entry: &'static EntryPoint,
        choice: &Choice,
        launch: Launch,
        buffer: impl Fn(&'static str) -> Option<wgpu::BufferBinding<'a>>,
    ) -> Result<Self, Error> {
        let variant = Variant::new(entry, choice, launch);
        let pipeline = gpu.pipeline(variant)?;
        let bindings = variant.bindings();
        let entries: Vec<_> = bindings
            .iter()
            .filter_map(|&(binding, name)| {
                let buffer = buffer(name);
                debug_assert!(buffer.is_some(), "{} needs {name}", entry.label);
                Some(wgpu::BindGroupEntry {
                    binding,
                    resource: wgpu::BindingResource::Buffer(buffer?),
                })
            })
            .collect();
        let label = format!("batch_norm.{}", entry.label);
        let bind_group = gpu.caught(|| {
            gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(&label),
                layout: &pipeline.get_bind_group_layout(0),
                entries: &entries,
            })
        })?;
        Ok(Self {
            label: entry.label,
            pipeline,
            bind_group,
            grid: launch.grid,
        })
    }

    pub(crate) fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.grid[0], self.grid[1], 1);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::division::Geometry;

    fn parsed(variant: &Variant) -> naga::Module {
        let (source, pieces) = variant.source();
        let twice = pieces.iter().collect::<BTreeSet<_>>().len() < pieces.len();
        assert!(!twice, "{}: {pieces:?}", variant.name());
        naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|error| panic!("{}: {}", variant.name(), error.emit_to_string(&source)))
    }

    fn plain(entry: &'static EntryPoint, packing: Packing) -> Variant {
        let form = Form {
            packing,
            dtype: DType::F32,
        };
        let launch = Launch {
            lanes_x: 2,
            lanes_y: 4,
            grid: [1, 1],
        };
        Variant::new(entry, &Choice::plain(form), launch)
    }

    #[test]
    fn bindings_and_constants_are_those_that_the_shader_uses() {
        for variant in Variant::all(2, 4) {
            let module = parsed(&variant);
            let mut capabilities = naga::valid::Capabilities::empty();
            capabilities.set(
                naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32,
                variant.choice.native_f16 != NativeF16::Never
                    || variant.entry.label == native_f16::COMPARE.label,
            );
            capabilities.set(naga::valid::Capabilities::SHADER_INT64, variant.choice.wide);
            let info =
                naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
                    .validate(&module)
                    .unwrap_or_else(|error| panic!("{}: {error:?}", variant.name()));
            let index = module
                .entry_points
                .iter()
                .position(|found| found.name == variant.entry.name)
                .unwrap_or_else(|| panic!("{} has no such entry point", variant.name()));
            let used: Vec<_> = module
                .global_variables
                .iter()
                .filter(|(handle, _)| !info.get_entry_point(index)[*handle].is_empty())
                .filter_map(|(_, variable)| {
                    let binding = variable.binding.as_ref()?;
                    assert_eq!(binding.group, 0);
                    Some((binding.binding, variable.name.clone().unwrap()))
                })
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect();
            let named: Vec<_> = variant
                .bindings()
                .into_iter()
                .map(|(binding, name)| (binding, name.to_owned()))
                .collect();
            assert_eq!(used, named, "{}", variant.name());
            let writes: BTreeSet<_> = module
                .global_variables
                .iter()
                .filter(|(handle, _)| !info.get_entry_point(index)[*handle].is_empty())
                .filter(|(_, variable)| match variable.space {
                    naga::AddressSpace::Storage { access } => {
                        access.contains(naga::StorageAccess::STORE)
                    }
                    _ => false,
                })
                .filter_map(|(_, variable)| variable.name.clone())
                .collect();
            let (mut said, reads) = variant.entry.uses(&variant.choice);
            if variant.choice.shared {
                assert!(!reads.is_empty(), "{} reads nothing", variant.name());
                said.extend(reads);
            }
            let said: BTreeSet<_> = said.into_iter().map(str::to_owned).collect();
            assert_eq!(writes, said, "{}", variant.name());
            let storage = variant.entry.storage_buffers(&variant.choice);
            let most = if variant.entry.is_joined() { 11 } else { 7 };
            assert!(
                storage <= most,
                "{} binds {storage} buffers",
                variant.name()
            );

            let given: BTreeSet<_> = (variant.entry.constants)(&variant)
                .into_iter()
                .map(|(name, _)| name.to_owned())
                .collect();
            let declared: BTreeSet<_> = module
                .overrides
                .iter()
                .filter_map(|(_, constant)| constant.name.clone())
                .collect();
            assert_eq!(given, declared, "{}", variant.name());
        }
    }

    /// Every file in `shaders/` is a piece of some shader.
    #[test]
    fn no_file_is_left_over() {
        fn files(folder: &std::path::Path, found: &mut BTreeSet<String>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    files(&path, found);
                } else {
                    found.insert(path.with_extension("").to_string_lossy().into_owned());
                }
            }
        }
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/");
        let mut found = BTreeSet::new();
        files(folder.as_ref(), &mut found);
        let used: BTreeSet<_> = Variant::all(1, 1)
            .flat_map(|variant| variant.source().1)
            .map(|name| format!("{folder}{name}"))
            .collect();
        assert_eq!(found, used);
    }

    /// The offsets, sizes and names of a struct's fields as the shader lays them out.
    fn fields(module: &naga::Module, name: &str) -> (Vec<(String, u32)>, u32) {
        let (_, found) = module
            .types
            .iter()
            .find(|(_, found)| found.name.as_deref() == Some(name))
            .unwrap();
        let naga::TypeInner::Struct { members, span } = &found.inner else {
            panic!("{name} is no struct");
        };
        let fields = members
            .iter()
            .map(|member| (member.name.clone().unwrap(), member.offset))
            .collect();
        (fields, *span)
    }

    macro_rules! assert_same_struct {
        ($module:expr, $rust:ident { $($field:ident),+ $(,)? }) => {
            let (fields, span) = fields($module, stringify!($rust));
            let expected = vec![$((
                stringify!($field).to_owned(),
                std::mem::offset_of!($rust, $field) as u32,
            )),+];
            assert_eq!(fields, expected);
            assert_eq!(span as usize, size_of::<$rust>());
        };
    }

    #[test]
    fn structs_are_laid_out_alike() {
        use optimizer::Settings;

        let module = parsed(&plain(&statistics::MERGE, Packing::Channels));
        assert_same_struct!(
            &module,
            Constants {
                eps,
                momentum_mean,
                momentum_var,
                degrees_lost,
                slope,
                least,
                most,
            }
        );
        assert_same_struct!(
            &module,
            Geometry {
                columns,
                lane_step,
                tile_step,
                plane,
                length,
                splits,
                split_length,
                step_in_plane,
                step_in_tensor,
                next_plane,
                first_address,
                first_column,
                first_split,
                all_columns,
                first_number,
                value_offset,
                values,
                inner,
                partials,
                partial_step,
                partial_row_step,
                mask_first,
                mask_column_step,
                mask_word_step,
                mask_shift,
                probes,
            }
        );
        let module = parsed(&plain(&optimizer::ADAM, Packing::Scalar));
        assert_same_struct!(
            &module,
            Settings {
                length,
                learning_rate,
                weight_decay,
                eps,
                momentum,
                gradient_weight,
                decay,
                square_weight,
                bias_correction_1,
                bias_correction_2_sqrt,
                variant,
            }
        );
    }
}
