//! Every shader in every language that wgpu may hand to a driver, judged by the languages' tools.
//!
//! naga judges all shaders, but of those whose inputs are declared like outputs (which are the others
//! with a word changed) only those that the other tools judge. These judge all plain ones, which compute on f32 with nothing
//! fused, and of the others so many that any two choices of a kernel's text meet in one of them:
//! two files of `shaders/lib`, two values of override constants, or one of each. So every file comes
//! in every packing, in every storage type, and with every activation.
//!
//! No GPU is needed, but the tools are, and each test of a language has its tool in its name: naga, which is
//! built in, `spirv-val` and `glslangValidator` (in Debian: spirv-tools, glslang-tools), and `tint`
//! (of Dawn). Where a tool is not on the PATH, its tests show as ignored.
//!
//! Two languages are judged less than by a driver. For Metal's there is naga alone: only Apple has
//! a compiler. For HLSL, glslang stands in for Microsoft's compilers.

#[path = "../examples/shaders.rs"]
#[allow(dead_code, reason = "the tests do not call main")]
mod shaders;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Failed, Trial};
use shaders::{Failure, TARGETS, Target, Written};
use wgpu_batchnorm::{ShaderText, shader_texts};

/// A test's result: any error fails it.
type Outcome = Result<(), Failure>;

fn main() {
    let arguments = libtest_mimic::Arguments::from_args();
    let mut trials = vec![trial("[naga] refuses wrong shaders", naga_refuses)];
    trials.push(trial(
        "[naga] defines each function once",
        naga_defines_once,
    ));
    trials.push(trial("mutants break text that is there", mutants_are_there));
    for target in TARGETS {
        let name = format!("[naga] {}", target.name);
        trials.push(trial(name, move || naga_accepts(&target)));
    }
    // The slowest first.
    for tool in [Tool::Glslang, Tool::SpirvVal, Tool::Tint] {
        for target in TARGETS.into_iter().filter(|&target| tool.judges(target)) {
            let accepts = format!("accepts {}", target.name);
            trials.push(tool.trial(&accepts, move || tool_accepts(tool, target)));
            let refuses = format!("refuses wrong {}", target.name);
            trials.push(tool.trial(&refuses, move || tool_refuses(tool, target)));
        }
    }
    trials.push(Tool::Tint.trial("refuses a barrier that some miss", tint_refuses_barrier));
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(name: impl Into<String>, test: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
    Trial::test(name, || {
        test().map_err(|error| Failed::from(error.to_string()))
    })
}

/// Every shader is valid with no more features than it says, and can be written in the language.
fn naga_accepts(target: &Target) -> Outcome {
    for text in for_naga()?.filter(|text| target.has(text)) {
        target.translate(&text)?;
    }
    Ok(())
}

/// The shaders that naga judges.
fn for_naga() -> Result<impl Iterator<Item = ShaderText>, Failure> {
    let judged: HashSet<_> = judged()?.into_iter().map(|text| text.name).collect();
    Ok(shader_texts().filter(move |text| !is_shared(text) || judged.contains(&text.name)))
}

/// Whether inputs are declared like outputs, for a buffer that is read and written.
fn is_shared(text: &ShaderText) -> bool {
    text.name.split('.').any(|word| word == "shared")
}

/// Every line of `tests/mutants.txt` finds what it replaces.
fn mutants_are_there() -> Outcome {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mutants = fs::read_to_string(root.join("tests/mutants.txt"))?;
    for line in mutants.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let [file, from, _] = line.splitn(3, '|').collect::<Vec<_>>()[..] else {
            return Err(format!("not file | text | replacement: {line}").into());
        };
        // Without the space on either side, as the script takes them.
        let from = from
            .strip_prefix(' ')
            .and_then(|from| from.strip_suffix(' '));
        let from = from.ok_or_else(|| format!("no spaces around the text: {line}"))?;
        let shader = fs::read_to_string(root.join(format!("shaders/{}.wgsl", file.trim())))?;
        if !shader.contains(&from.replace("\\n", "\n")) {
            return Err(format!("the text is not there: {line}").into());
        }
    }
    Ok(())
}

/// naga writes a function that helps two others twice, in some cases, which no compiler takes.
fn naga_defines_once() -> Outcome {
    let hlsl = TARGETS
        .into_iter()
        .find(|target| target.extension == "hlsl");
    let hlsl = hlsl.ok_or("there is no HLSL")?;
    for text in for_naga()?.filter(|text| hlsl.has(text)) {
        let shader = String::from_utf8(hlsl.translate(&text)?.contents)?;
        let mut met = HashSet::new();
        let is_start = |line: &&str| line.ends_with(") {") && !line.starts_with(' ');
        let twice = shader
            .lines()
            .filter(is_start)
            .find(|line| !met.insert(*line));
        if let Some(line) = twice {
            return Err(format!("{} defines {line} twice", text.name).into());
        }
    }
    Ok(())
}

fn naga_refuses() -> Outcome {
    let text = shader_texts().next().ok_or("there is no shader")?;
    let mut broken = text.clone();
    broken.source = "fn partial(".to_owned();
    let mut nameless = text.clone();
    nameless.entry_point = "none";
    let mut undeclared = text.clone();
    undeclared.constants.push(("NONE", 1.0));
    let mut empty = text;
    for (_, value) in &mut empty.constants {
        *value = 0.0;
    }
    for wrong in [broken, nameless, undeclared, empty] {
        for target in TARGETS {
            if target.translate(&wrong).is_ok() {
                return Err(format!("{} from {wrong:?}", target.name).into());
            }
        }
    }
    Ok(())
}

/// A program that checks shaders.
#[derive(Clone, Copy, Debug)]
enum Tool {
    SpirvVal,
    Glslang,
    Tint,
}

impl Tool {
    fn program(self) -> &'static str {
        match self {
            Self::SpirvVal => "spirv-val",
            Self::Glslang => "glslangValidator",
            Self::Tint => "tint",
        }
    }

    fn judges(self, target: Target) -> bool {
        match self {
            Self::SpirvVal => target.extension == "spv",
            Self::Glslang => ["comp", "hlsl"].contains(&target.extension),
            Self::Tint => target.extension == "wgsl",
        }
    }

    /// A test with this tool, ignored where the tool is not installed.
    fn trial(self, name: &str, test: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
        let program = self.program();
        let missing = Command::new(program).arg("--help").output().is_err();
        let note = if missing { " not found" } else { "" };
        trial(format!("[{program}{note}] {name}"), test).with_ignored_flag(missing)
    }

    /// Fails with what the tool says if it refuses a shader.
    fn check(self, target: Target, shaders: &[Written]) -> Outcome {
        // glslang takes many files of GLSL at once, but would link those of HLSL into one.
        let at_once = if target.extension == "comp" {
            shaders.len()
        } else {
            1
        };
        for shaders in shaders.chunks(at_once) {
            let output = self.command(target, shaders).output()?;
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            // glslang only warns if there is no such entry point.
            if !output.status.success() || said.contains("WARNING") {
                return Err(format!("{} on {shaders:?}:\n{said}", self.program()).into());
            }
        }
        Ok(())
    }

    fn command(self, target: Target, shaders: &[Written]) -> Command {
        let mut command = Command::new(self.program());
        match self {
            Self::SpirvVal => command.args(["--target-env", environment(target)]),
            Self::Glslang if target.extension == "hlsl" => {
                // It checks HLSL only on the way to SPIR-V for Vulkan.
                command.args(["-D", "-V", "-S", "comp", "-e", &shaders[0].entry_point]);
                command.arg("-o").arg(shaders[0].path.with_extension("spv"))
            }
            Self::Glslang => &mut command,
            Self::Tint => command.args(["--format", "wgsl"]),
        };
        command.args(shaders.iter().map(|shader| &shader.path));
        command
    }
}

/// The version of Vulkan for which wgpu writes this version of SPIR-V.
fn environment(target: Target) -> &'static str {
    match target.name {
        "spirv-1.0" => "vulkan1.0",
        "spirv-1.3" => "vulkan1.1",
        "spirv-1.5" => "vulkan1.2",
        "spirv-1.6" => "vulkan1.3",
        other => panic!("{other} is not for Vulkan"),
    }
}

/// The shaders that all tools judge.
fn judged() -> Result<Vec<ShaderText>, Failure> {
    let mut files = Vec::new();
    read_all(
        concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/lib").as_ref(),
        &mut files,
    )?;
    let mut met = HashSet::new();
    let is_judged = |text: &ShaderText| {
        let choices = choices(text, &files);
        let (shader, entry_point) = (text.name.split('.').next(), text.entry_point);
        let mut news = false;
        for (index, one) in choices.iter().enumerate() {
            for other in &choices[index..] {
                let meeting = (
                    shader.map(str::to_owned),
                    entry_point,
                    one.clone(),
                    other.clone(),
                );
                news |= met.insert(meeting);
            }
        }
        news || is_plain(text)
    };
    Ok(shader_texts().filter(is_judged).collect())
}

/// Whether a shader computes on f32, with nothing fused.
fn is_plain(text: &ShaderText) -> bool {
    let words: Vec<_> = text.name.split('.').collect();
    let plain = ["scalar", "inner", "channels", "f32"];
    words[2..words.len() - 1]
        .iter()
        .all(|word| plain.contains(word))
}

/// What a text was made of: files by their number, override constants by their value.
fn choices(text: &ShaderText, files: &[String]) -> Vec<String> {
    let shared = is_shared(text);
    let files = files.iter().enumerate();
    let files = files.filter(|(_, file)| match shared {
        true => text
            .source
            .contains(&file.replace("<storage, read>", "<storage, read_write>")),
        false => text.source.contains(*file),
    });
    let constants = text.constants.iter();
    // The workgroup's shape is no choice of the text's.
    let constants = constants.filter(|(name, _)| !name.starts_with("LANES"));
    files
        .map(|(number, _)| number.to_string())
        .chain(constants.map(|(name, value)| format!("{name} = {value}")))
        .chain([format!("shared = {shared}")])
        .collect()
}

/// The texts of all files in a folder and those in it.
fn read_all(folder: &Path, files: &mut Vec<String>) -> Outcome {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_all(&path, files)?;
        } else {
            files.push(fs::read_to_string(path)?);
        }
    }
    Ok(())
}

fn tool_accepts(tool: Tool, target: Target) -> Outcome {
    let folder = folder("accepted", target);
    // Nothing of another run may be left.
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    tool.check(target, &target.write_all(&folder, judged()?)?)
}

/// A mistake made in a good shader is found.
fn tool_refuses(tool: Tool, target: Target) -> Outcome {
    let text = shader_texts().next().ok_or("there is no shader")?;
    let mut translation = target.translate(&text)?;
    let complaint = if target.extension == "spv" {
        // The last word is the whole OpFunctionEnd of the last function.
        let length = translation.contents.len();
        translation.contents.truncate(length - 4);
        "OpFunctionEnd"
    } else {
        let mut shader = String::from_utf8(translation.contents)?;
        let end = shader.rfind('}').ok_or("the shader has no end")?;
        shader.insert_str(end, "undeclared_name = 1u;\n");
        translation.contents = shader.into_bytes();
        "undeclared_name"
    };
    refused(
        tool,
        target,
        &translation.contents,
        &translation.entry_point,
        complaint,
    )
}

/// What naga does not look for: a barrier that only some of a workgroup's invocations come to.
fn tint_refuses_barrier() -> Outcome {
    let shader = "
        @compute @workgroup_size(64)
        fn main(@builtin(local_invocation_index) local: u32) {
            if local < 32u { workgroupBarrier(); }
        }
    ";
    let target = TARGETS
        .into_iter()
        .find(|&target| Tool::Tint.judges(target));
    let target = target.ok_or("tint has nothing to judge")?;
    refused(
        Tool::Tint,
        target,
        shader.as_bytes(),
        "main",
        "uniform control flow",
    )
}

/// Fails unless the tool refuses the shader with this complaint.
fn refused(
    tool: Tool,
    target: Target,
    contents: &[u8],
    entry_point: &str,
    complaint: &str,
) -> Outcome {
    let folder = folder("refused", target);
    fs::create_dir_all(&folder)?;
    let shader = Written {
        path: folder.join(format!("{complaint}.{}", target.extension)),
        entry_point: entry_point.to_owned(),
    };
    fs::write(&shader.path, contents)?;
    match tool.check(target, &[shader]) {
        Ok(()) => Err(format!("{} accepts it", tool.program()).into()),
        Err(error) if error.to_string().contains(complaint) => Ok(()),
        Err(error) => Err(format!("refused, but not for {complaint}: {error}").into()),
    }
}

fn folder(kind: &str, target: Target) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shaders");
    root.join(kind).join(target.name)
}
