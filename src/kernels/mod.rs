//! The kernels: one module per shader, under the shader's name.
//!
//! A module here names its shader's entry points and bindings. How work is divided is decided in
//! `division.rs`; what is run for an operation, and on which buffers, in `plan.rs`.

pub(crate) mod gradients;
pub(crate) mod input_gradient;
pub(crate) mod normalize;
pub(crate) mod optimizer;
pub(crate) mod statistics;

use crate::division::{Launch, Packing};
use crate::{Error, Gpu};

/// A shader's text.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// Over tensors: once for each packing, in the order of [`Packing`].
    Packed([&'static str; 3]),
    /// Over vectors, whatever the packing.
    Plain(&'static str),
}

/// The text of a shader over tensors: packing, tile, constants and the kernel itself.
macro_rules! over_tensors {
    ($kernel:literal) => {
        $crate::kernels::Source::Packed([
            $crate::kernels::over_tensors!("pack_scalar", $kernel),
            $crate::kernels::over_tensors!("pack_inner", $kernel),
            $crate::kernels::over_tensors!("pack_channels", $kernel),
        ])
    };
    ($packing:literal, $kernel:literal) => {
        concat!(
            $crate::kernels::shader!("lib/", $packing),
            $crate::kernels::shader!("lib/tile"),
            $crate::kernels::shader!("lib/constants"),
            $crate::kernels::shader!($kernel),
        )
    };
}
use over_tensors;

/// The text of one file in `shaders/`.
macro_rules! shader {
    ($($name:literal),+) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/shaders/",
            $($name,)+
            ".wgsl"
        ))
    };
}
use shader;

/// `Constants` of `shaders/lib/constants.wgsl`, field by field.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Constants {
    pub(crate) eps: f32,
    pub(crate) inverse_count: f32,
    pub(crate) variance_correction: f32,
    pub(crate) momentum_mean: f32,
    pub(crate) momentum_var: f32,
}

/// An entry point of a shader, with the names of the bindings it uses.
#[derive(Debug)]
pub(crate) struct EntryPoint {
    /// `shader.entry_point`, as it shows in a debugger behind `batch_norm.`.
    pub(crate) label: &'static str,
    pub(crate) name: &'static str,
    source: Source,
    /// Binding numbers and the names of the variables in the shader.
    pub(crate) bindings: &'static [(u32, &'static str)],
    /// The values of the override constants.
    constants: fn(&Variant) -> Vec<(&'static str, f64)>,
}

/// An entry point's label, the packing and the workgroup's shape.
pub(crate) type PipelineKey = (&'static str, Packing, u32, u32);

/// A kernel's entry point with everything that its pipeline depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    entry: &'static EntryPoint,
    packing: Packing,
    lanes_x: u32,
    lanes_y: u32,
}

impl Variant {
    /// What tells its pipeline from others.
    pub(crate) fn key(&self) -> PipelineKey {
        (self.entry.label, self.packing, self.lanes_x, self.lanes_y)
    }

    fn source(&self) -> &'static str {
        match self.entry.source {
            Source::Packed(texts) => texts[self.packing as usize],
            Source::Plain(text) => text,
        }
    }

    /// Compiles the variant. Errors go to the error scopes in force.
    pub(crate) fn compile(&self, device: &wgpu::Device) -> wgpu::ComputePipeline {
        let label = format!("batch_norm.{}", self.entry.label);
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(&label),
            source: wgpu::ShaderSource::Wgsl(self.source().into()),
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
            cache: None,
        })
    }
}

const ENTRY_POINTS: [&EntryPoint; 10] = [
    &statistics::PARTIAL,
    &statistics::MERGE,
    &normalize::BATCH,
    &normalize::RUNNING,
    &gradients::PARTIAL,
    &gradients::MERGE,
    &input_gradient::MAIN,
    &optimizer::SGD,
    &optimizer::RMSPROP,
    &optimizer::ADAM,
];

/// A kernel's text, for inspection: see [`shader_texts`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShaderText {
    /// Shader, entry point, packing and workgroup, as `statistics.partial.inner.1x256`.
    pub name: String,
    /// The WGSL text.
    pub source: &'static str,
    /// The entry point in it.
    pub entry_point: &'static str,
    /// Values of the override constants.
    pub constants: Vec<(&'static str, f64)>,
}

/// Every shader that this crate may give to a driver, in each packing and for some shapes of the
/// workgroup: for whoever wants to see what a compiler makes of them.
///
/// ```
/// let names: Vec<_> = wgpu_batchnorm::shader_texts().map(|text| text.name).collect();
/// assert!(names.contains(&"normalize.batch.channels.32x8".to_owned()));
/// ```
pub fn shader_texts() -> impl Iterator<Item = ShaderText> {
    let workgroups = [(1, 256), (32, 8), (3, 64), (1, 8), (8, 1)];
    ENTRY_POINTS.into_iter().flat_map(move |entry| {
        // A shader over vectors has no packing, and no lanes that share a column.
        let over_tensors = matches!(entry.source, Source::Packed(_));
        let packings = Packing::ALL
            .into_iter()
            .take(if over_tensors { 3 } else { 1 });
        packings.flat_map(move |packing| {
            let workgroups = workgroups
                .into_iter()
                .filter(move |&(_, lanes_y)| over_tensors || lanes_y == 1);
            workgroups.map(move |(lanes_x, lanes_y)| {
                let variant = Variant {
                    entry,
                    packing,
                    lanes_x,
                    lanes_y,
                };
                let packing = format!("{packing:?}").to_lowercase();
                ShaderText {
                    name: format!("{}.{packing}.{lanes_x}x{lanes_y}", entry.label),
                    source: variant.source(),
                    entry_point: entry.name,
                    constants: (entry.constants)(&variant),
                }
            })
        })
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
    /// Binds `buffers`, by name one for each of the entry point's bindings and in their order.
    pub(crate) fn new(
        gpu: &Gpu,
        entry: &'static EntryPoint,
        packing: Packing,
        launch: Launch,
        buffers: &[(&'static str, wgpu::BufferBinding<'_>)],
    ) -> Result<Self, Error> {
        debug_assert!(
            entry
                .bindings
                .iter()
                .map(|(_, name)| name)
                .eq(buffers.iter().map(|(name, _)| name)),
            "the bindings of {}",
            entry.label
        );
        let pipeline = gpu.pipeline(Variant {
            entry,
            packing,
            lanes_x: launch.lanes_x,
            lanes_y: launch.lanes_y,
        })?;
        let entries: Vec<_> = entry
            .bindings
            .iter()
            .zip(buffers)
            .map(|(&(binding, _), (_, buffer))| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(buffer.clone()),
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

    fn parsed(entry: &'static EntryPoint, packing: Packing) -> naga::Module {
        let variant = Variant {
            entry,
            packing,
            lanes_x: 2,
            lanes_y: 4,
        };
        let source = variant.source();
        naga::front::wgsl::parse_str(source)
            .unwrap_or_else(|error| panic!("{}", error.emit_to_string(source)))
    }

    #[test]
    fn bindings_are_those_that_the_shader_uses() {
        for entry in ENTRY_POINTS {
            for packing in Packing::ALL {
                let module = parsed(entry, packing);
                let info = naga::valid::Validator::new(
                    naga::valid::ValidationFlags::all(),
                    naga::valid::Capabilities::empty(),
                )
                .validate(&module)
                .unwrap();
                let index = module
                    .entry_points
                    .iter()
                    .position(|found| found.name == entry.name)
                    .unwrap_or_else(|| panic!("{} has no such entry point", entry.label));
                let used: Vec<_> = module
                    .global_variables
                    .iter()
                    .filter(|(handle, _)| !info.get_entry_point(index)[*handle].is_empty())
                    .filter_map(|(_, variable)| {
                        let binding = variable.binding.as_ref()?;
                        assert_eq!(binding.group, 0);
                        Some((binding.binding, variable.name.clone().unwrap()))
                    })
                    .collect();
                let named: Vec<_> = entry
                    .bindings
                    .iter()
                    .map(|&(binding, name)| (binding, name.to_owned()))
                    .collect();
                assert_eq!(used, named, "{} {packing:?}", entry.label);
            }
        }
    }

    #[test]
    fn override_constants_are_those_of_the_shader() {
        for entry in ENTRY_POINTS {
            let variant = Variant {
                entry,
                packing: Packing::Scalar,
                lanes_x: 2,
                lanes_y: 4,
            };
            let given: BTreeSet<_> = (entry.constants)(&variant)
                .into_iter()
                .map(|(name, _)| name.to_owned())
                .collect();
            let module = parsed(entry, Packing::Scalar);
            let declared: BTreeSet<_> = module
                .overrides
                .iter()
                .filter_map(|(_, constant)| constant.name.clone())
                .collect();
            assert_eq!(given, declared, "{}", entry.label);
        }
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

        let module = parsed(&statistics::MERGE, Packing::Channels);
        assert_same_struct!(
            &module,
            Constants {
                eps,
                inverse_count,
                variance_correction,
                momentum_mean,
                momentum_var,
            }
        );
        assert_same_struct!(
            &module,
            Geometry {
                columns,
                plane,
                length,
                splits,
                split_length,
                lane_step,
                step,
                lane_length,
                step_in_plane,
                step_in_tensor,
                next_plane,
                first_address,
                first_column,
                first_split,
                all_columns,
                padding,
                probes,
            }
        );
        let module = parsed(&optimizer::ADAM, Packing::Scalar);
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
