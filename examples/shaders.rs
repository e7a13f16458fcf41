//! Writes every shader of the library in the languages that drivers take.
//!
//! `cargo run --example shaders [FOLDER]` fills a folder for each language in FOLDER, or else in
//! `out/shaders`, with one file for each of [`wgpu_batchnorm::shader_texts`]. It needs no GPU.
//!
//! The translation is that of wgpu: by naga, with the options that wgpu passes to it where a device
//! has none but the common features. SPIR-V comes in each version that wgpu writes, GLSL and Metal's
//! language in an old one and in the newest.

use std::fs;
use std::path::{Path, PathBuf};

use naga::back::{glsl, hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use wgpu_batchnorm::{ShaderText, shader_texts, wgpu};

/// Any error: of a shader, of a file.
pub type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let out = std::env::args_os().nth(1);
    let out = out.map_or_else(|| PathBuf::from("out/shaders"), PathBuf::from);
    for target in TARGETS {
        let folder = out.join(target.name);
        let shaders = target.write_all(&folder, shader_texts())?;
        println!(
            "{:<13} {} shaders in {}",
            target.name,
            shaders.len(),
            folder.display()
        );
    }
    Ok(())
}

/// A version of a language.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Language and version, fit for a folder's name.
    pub name: &'static str,
    /// How the files' names end.
    pub extension: &'static str,
    language: Language,
}

/// A language, with what its writer asks for.
#[derive(Clone, Copy, Debug)]
enum Language {
    SpirV {
        version: (u8, u8),
        /// Unchecked where the driver checks the bounds of buffers itself.
        buffers: BoundsCheckPolicy,
    },
    Metal((u8, u8)),
    Hlsl(hlsl::ShaderModel),
    Glsl(glsl::Version),
    /// The text as it is, with the override constants' values in place of their declarations.
    Wgsl,
}

/// Everything that the shaders are translated to.
pub const TARGETS: [Target; 12] = [
    Target::spir_v("spirv-1.0", (1, 0), BoundsCheckPolicy::Restrict),
    Target::spir_v("spirv-1.3", (1, 3), BoundsCheckPolicy::Restrict),
    Target::spir_v("spirv-1.5", (1, 5), BoundsCheckPolicy::Unchecked),
    Target::spir_v("spirv-1.6", (1, 6), BoundsCheckPolicy::Unchecked),
    Target::metal("metal-1.2", (1, 2)),
    Target::metal("metal-4.0", (4, 0)),
    // The shader models up to 6.9 get the same text.
    Target::hlsl("hlsl-5.1", hlsl::ShaderModel::V5_1),
    Target::glsl("glsl-es-3.10", glsl::Version::new_gles(310)),
    Target::glsl("glsl-es-3.20", glsl::Version::new_gles(320)),
    Target::glsl("glsl-4.30", glsl::Version::Desktop(430)),
    Target::glsl("glsl-4.50", glsl::Version::Desktop(450)),
    Target {
        name: "wgsl",
        extension: "wgsl",
        language: Language::Wgsl,
    },
];

impl Target {
    const fn spir_v(name: &'static str, version: (u8, u8), buffers: BoundsCheckPolicy) -> Self {
        Self {
            name,
            extension: "spv",
            language: Language::SpirV { version, buffers },
        }
    }

    const fn metal(name: &'static str, version: (u8, u8)) -> Self {
        Self {
            name,
            extension: "metal",
            language: Language::Metal(version),
        }
    }

    const fn hlsl(name: &'static str, model: hlsl::ShaderModel) -> Self {
        Self {
            name,
            extension: "hlsl",
            language: Language::Hlsl(model),
        }
    }

    const fn glsl(name: &'static str, version: glsl::Version) -> Self {
        Self {
            name,
            extension: "comp",
            language: Language::Glsl(version),
        }
    }

    /// Whether a device that takes this language may be given the shader: words of 64 bits are for
    /// software adapters, that is, Vulkan's lavapipe.
    pub fn has(&self, text: &ShaderText) -> bool {
        text.features.is_empty() || matches!(self.language, Language::SpirV { .. })
    }

    /// Translates every shader that it has, and writes each to a file in the folder.
    pub fn write_all(
        &self,
        folder: &Path,
        texts: impl IntoIterator<Item = ShaderText>,
    ) -> Result<Vec<Written>, Failure> {
        fs::create_dir_all(folder)?;
        let mut shaders = Vec::new();
        for text in texts.into_iter().filter(|text| self.has(text)) {
            let translation = self.translate(&text)?;
            let path = folder.join(format!("{}.{}", text.name, self.extension));
            fs::write(&path, translation.contents)?;
            shaders.push(Written {
                path,
                entry_point: translation.entry_point,
            });
        }
        Ok(shaders)
    }

    /// The shader in this language. Fails where wgpu would fail to compile it.
    pub fn translate(&self, text: &ShaderText) -> Result<Translation, Failure> {
        let translated = Shader::new(text).and_then(|shader| match self.language {
            Language::SpirV { version, buffers } => shader.spir_v(version, buffers),
            Language::Metal(version) => shader.metal(version),
            Language::Hlsl(model) => shader.hlsl(model),
            Language::Glsl(version) => shader.glsl(version),
            Language::Wgsl => wgsl(text),
        });
        translated.map_err(|error| format!("{} to {}: {error}", text.name, self.name).into())
    }
}

/// A file that was written.
#[derive(Debug)]
pub struct Written {
    /// Where it is.
    pub path: PathBuf,
    /// The entry point's name in this language.
    pub entry_point: String,
}

/// A shader in some language.
#[derive(Debug)]
pub struct Translation {
    /// Text, or SPIR-V's words in little-endian order.
    pub contents: Vec<u8>,
    /// The entry point's name in this language.
    pub entry_point: String,
}

/// A shader as wgpu gives it to naga's writers: one entry point and no override constants.
struct Shader<'a> {
    module: naga::Module,
    info: ModuleInfo,
    entry_point: &'a str,
    /// Sorted by number, as in the layouts that wgpu derives.
    bindings: Vec<Binding>,
}

/// A buffer that the entry point uses.
struct Binding {
    place: naga::ResourceBinding,
    uniform: bool,
    writable: bool,
}

impl<'a> Shader<'a> {
    fn new(text: &'a ShaderText) -> Result<Self, Failure> {
        let module = naga::front::wgsl::parse_str(&text.source)
            .map_err(|error| error.emit_to_string(&text.source))?;
        // Shaders that read f16 by the device's own instruction need what all but old devices have.
        let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        let wide = text.features.contains(wgpu::Features::SHADER_INT64);
        capabilities.set(Capabilities::SHADER_INT64, wide);
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .map_err(|error| error.emit_to_string(&text.source))?;
        let constants = text
            .constants
            .iter()
            .map(|&(name, value)| (name.to_owned(), value))
            .collect();
        let (module, info) = naga::back::pipeline_constants::process_overrides(
            &module,
            &info,
            Some((naga::ShaderStage::Compute, text.entry_point)),
            &constants,
        )?;
        if module.entry_points.is_empty() {
            return Err(format!("no entry point {}", text.entry_point).into());
        }
        Ok(Self {
            bindings: bindings(&module),
            module: module.into_owned(),
            info: info.into_owned(),
            entry_point: text.entry_point,
        })
    }

    /// SPIR-V as for Vulkan.
    fn spir_v(
        &self,
        version: (u8, u8),
        buffers: BoundsCheckPolicy,
    ) -> Result<Translation, Failure> {
        let slots = self.bindings.iter().zip(0..);
        let binding_map = slots.map(|(binding, slot)| {
            let info = spv::BindingInfo {
                descriptor_set: binding.place.group,
                binding: slot,
                binding_array_size: None,
            };
            (binding.place, info)
        });
        let options = spv::Options {
            lang_version: version,
            flags: spv::WriterFlags::DEBUG | spv::WriterFlags::LABEL_VARYINGS,
            fake_missing_bindings: false,
            binding_map: binding_map.collect(),
            // wgpu allows a few more.
            capabilities: Some(
                [spv::Capability::Shader, spv::Capability::Int64]
                    .into_iter()
                    .collect(),
            ),
            bounds_check_policies: BoundsCheckPolicies {
                index: BoundsCheckPolicy::Restrict,
                buffer: buffers,
                image_load: BoundsCheckPolicy::Restrict,
                binding_array: BoundsCheckPolicy::Unchecked,
            },
            zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
            ..Default::default()
        };
        let pipeline_options = spv::PipelineOptions {
            shader_stage: naga::ShaderStage::Compute,
            entry_point: self.entry_point.to_owned(),
        };
        let words = spv::write_vec(&self.module, &self.info, &options, Some(&pipeline_options))?;
        Ok(Translation {
            contents: words.into_iter().flat_map(u32::to_le_bytes).collect(),
            entry_point: self.entry_point.to_owned(),
        })
    }

    /// The Metal Shading Language.
    fn metal(&self, version: (u8, u8)) -> Result<Translation, Failure> {
        let slots = self.bindings.iter().zip(0..);
        let targets = slots.map(|(binding, slot)| {
            let target = msl::BindTarget {
                buffer: Some(slot),
                mutable: binding.writable,
                ..Default::default()
            };
            (binding.place, target)
        });
        let resources = msl::EntryPointResources {
            resources: targets.collect(),
            // wgpu says there how long the buffers are.
            sizes_buffer: Some(u8::try_from(self.bindings.len())?),
            immediates_buffer: None,
        };
        let options = msl::Options {
            lang_version: version,
            per_entry_point_map: [(self.entry_point.to_owned(), resources)].into(),
            fake_missing_bindings: false,
            bounds_check_policies: BoundsCheckPolicies {
                index: BoundsCheckPolicy::Restrict,
                buffer: BoundsCheckPolicy::Restrict,
                image_load: BoundsCheckPolicy::Restrict,
                binding_array: BoundsCheckPolicy::Unchecked,
            },
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        };
        let pipeline_options = msl::PipelineOptions {
            entry_point: Some((naga::ShaderStage::Compute, self.entry_point.to_owned())),
            vertex_pulling_transform: true,
            ..Default::default()
        };
        let (text, info) =
            msl::write_string(&self.module, &self.info, &options, &pipeline_options)?;
        Ok(Translation {
            contents: text.into_bytes(),
            entry_point: only(info.entry_point_names)?,
        })
    }

    /// HLSL as for Direct3D 12.
    fn hlsl(&self, model: hlsl::ShaderModel) -> Result<Translation, Failure> {
        let mut next_uniform = hlsl::BindTarget::default();
        let mut next_read_only = hlsl::BindTarget::default();
        let mut next_writable = hlsl::BindTarget::default();
        let mut binding_map = hlsl::BindingMap::default();
        for binding in &self.bindings {
            let next = match binding {
                Binding { uniform: true, .. } => &mut next_uniform,
                Binding { writable: true, .. } => &mut next_writable,
                _ => &mut next_read_only,
            };
            binding_map.insert(binding.place, *next);
            next.register += 1;
        }
        let options = hlsl::Options {
            shader_model: model,
            binding_map,
            fake_missing_bindings: false,
            // wgpu says there how many workgroups there are.
            special_constants_binding: Some(next_uniform),
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        };
        let pipeline_options = hlsl::PipelineOptions {
            entry_point: Some((naga::ShaderStage::Compute, self.entry_point.to_owned())),
        };
        let mut text = String::new();
        let written = hlsl::Writer::new(&mut text, &options, &pipeline_options).write(
            &self.module,
            &self.info,
            None,
        )?;
        Ok(Translation {
            contents: text.into_bytes(),
            entry_point: only(written.entry_point_names)?,
        })
    }

    /// GLSL as for OpenGL.
    fn glsl(&self, version: glsl::Version) -> Result<Translation, Failure> {
        let mut binding_map = glsl::BindingMap::default();
        let mut next_uniform = 0;
        let mut next_storage = 0;
        for binding in &self.bindings {
            let next = if binding.uniform {
                &mut next_uniform
            } else {
                &mut next_storage
            };
            binding_map.insert(binding.place, *next);
            *next += 1;
        }
        let options = glsl::Options {
            version,
            writer_flags: glsl::WriterFlags::ADJUST_COORDINATE_SPACE,
            binding_map,
            zero_initialize_workgroup_memory: false,
        };
        let pipeline_options = glsl::PipelineOptions {
            shader_stage: naga::ShaderStage::Compute,
            entry_point: self.entry_point.to_owned(),
            multiview: None,
        };
        let mut text = String::new();
        glsl::Writer::new(
            &mut text,
            &self.module,
            &self.info,
            &options,
            &pipeline_options,
            // OpenGL checks bounds itself, or nobody does.
            BoundsCheckPolicies::default(),
        )?
        .write()?;
        Ok(Translation {
            contents: text.into_bytes(),
            entry_point: "main".to_owned(),
        })
    }
}

/// The buffers that a module uses.
fn bindings(module: &naga::Module) -> Vec<Binding> {
    let variables = module.global_variables.iter();
    let mut bindings: Vec<_> = variables
        .filter_map(|(_, variable)| {
            let access = match variable.space {
                naga::AddressSpace::Storage { access } => access,
                _ => naga::StorageAccess::LOAD,
            };
            Some(Binding {
                place: variable.binding?,
                uniform: variable.space == naga::AddressSpace::Uniform,
                writable: access.contains(naga::StorageAccess::STORE),
            })
        })
        .collect();
    bindings.sort_by_key(|binding| binding.place);
    bindings
}

/// The name of the one entry point that a writer wrote.
fn only<E: std::error::Error + 'static>(names: Vec<Result<String, E>>) -> Result<String, Failure> {
    let count = names.len();
    let mut names = names.into_iter();
    match (names.next(), count) {
        (Some(name), 1) => Ok(name?),
        _ => Err(format!("{count} entry points written").into()),
    }
}

/// The text, with the override constants' values in place of their declarations.
fn wgsl(text: &ShaderText) -> Result<Translation, Failure> {
    let mut contents = format!("// {}: entry point `{}`\n\n", text.name, text.entry_point);
    for line in text.source.lines() {
        contents += &constant(line, text).unwrap_or_else(|| line.to_owned());
        contents.push('\n');
    }
    let module =
        naga::front::wgsl::parse_str(&contents).map_err(|error| error.emit_to_string(&contents))?;
    if !module.overrides.is_empty() {
        return Err("an override constant is without a value".into());
    }
    Ok(Translation {
        contents: contents.into_bytes(),
        entry_point: text.entry_point.to_owned(),
    })
}

/// `const NAME: TYPE = TYPE(VALUE);` in place of `override NAME: TYPE = DEFAULT;`.
fn constant(line: &str, text: &ShaderText) -> Option<String> {
    let (declaration, _) = line.strip_prefix("override ")?.split_once('=')?;
    let (name, kind) = declaration.split_once(':')?;
    let (_, value) = text.constants.iter().find(|(given, _)| *given == name)?;
    let kind = kind.trim();
    Some(format!("const {name}: {kind} = {kind}({value});"))
}
