//! Pipelines kept in a file: a second device, broken files, folders that cannot be used.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use libtest_mimic::Trial;
use wgpu_batchnorm::{BatchNorm, Error, Gpu, Layout, Options, Tensor, wgpu};

use crate::common::{Adapter, Outcome, normal};
use crate::device::adapter_of;
use crate::ensure;

pub fn trials(adapter: &Adapter) -> Vec<Trial> {
    let lacks_it = wgpu::util::pipeline_cache_key(&adapter.info).is_none();
    let with_cache = |name: &str, test: fn(&Gpu) -> Outcome| {
        adapter.trial(name, test).with_ignored_flag(lacks_it)
    };
    vec![
        adapter.trial(
            "without the feature there is no pipeline cache",
            without_the_feature,
        ),
        with_cache("a pipeline cache serves the next device", next_device),
        with_cache("a broken pipeline cache counts as missing", broken_files),
        with_cache(
            "a pipeline cache that cannot be read or written is an error",
            unusable_folders,
        ),
        with_cache(
            "pipelines go through a cache of the caller's",
            of_the_caller,
        ),
    ]
}

/// A folder of one test's own, that is gone after it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> std::io::Result<Self> {
        // The same test may run on another adapter meanwhile.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let name = format!("wgpu_batchnorm {name} {process} {number}");
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// The files in it.
    fn files(&self) -> std::io::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(&self.0)?;
        entries.map(|entry| Ok(entry?.path())).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in a temporary folder does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Another device on the adapter of `gpu`, which may have a pipeline cache.
fn open(gpu: &Gpu) -> Result<Gpu, Box<dyn std::error::Error>> {
    let features = wgpu::Features::PIPELINE_CACHE;
    Ok(Gpu::from_adapter_with_blocking(
        &adapter_of(gpu)?,
        features,
    )?)
}

#[expect(unsafe_code, reason = "loading trusts the file")]
fn load(gpu: &Gpu, folder: &Path) -> Result<bool, Error> {
    // SAFETY: the files in the folders of these tests were saved by this program, or are such that
    // wgpu itself refuses them.
    unsafe { gpu.load_pipeline_cache(folder) }
}

/// What a layer computes: y and dx, of several pipelines.
fn computed(gpu: &Gpu) -> Result<Vec<f32>, Error> {
    let mut layer = BatchNorm::new(gpu, 5, Options::default())?;
    let x = Tensor::from_array(gpu, &normal(&[4, 5, 6], 3.0, 1.0, 1), Layout::ChannelsFirst)?;
    let y = layer.forward(&x)?.to_array_blocking()?;
    let dx = layer.backward(&x)?.to_array_blocking()?;
    Ok(y.into_iter().chain(dx).collect())
}

/// Loads from a folder, computes, and saves there.
fn run(gpu: &Gpu, folder: &Folder) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
    let gpu = open(gpu)?;
    ensure!(load(&gpu, &folder.0)?, "there is no cache");
    let found = computed(&gpu)?;
    ensure!(gpu.save_pipeline_cache(&folder.0)?, "nothing was saved");
    Ok(found)
}

fn without_the_feature(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("without")?;
    let refused = |gpu: &Gpu| -> Outcome {
        ensure!(!load(gpu, &folder.0)?, "there is a cache");
        computed(gpu)?;
        ensure!(!gpu.save_pipeline_cache(&folder.0)?, "it was saved");
        ensure!(folder.files()?.is_empty(), "{:?}", folder.files());
        Ok(())
    };
    // The tests' device asked for no feature.
    refused(gpu)?;
    // Of a back end that has none, it may be asked for.
    match wgpu::util::pipeline_cache_key(gpu.info()) {
        None => refused(&open(gpu)?),
        Some(_) => Ok(()),
    }
}

fn next_device(gpu: &Gpu) -> Outcome {
    let expected = computed(gpu)?;
    // One that is not there yet.
    let outer = Folder::new("next")?;
    let folder = Folder(outer.0.join("inner"));
    for round in 0..3 {
        let found = run(gpu, &folder)?;
        ensure!(found == expected, "round {round} has other results");
        // The file, and nothing half-written.
        let files = folder.files()?;
        ensure!(files.len() == 1, "round {round}: {files:?}");
    }
    // Another folder of the same device, and one without a cache loaded.
    let (other, gpu) = (Folder::new("other")?, open(gpu)?);
    ensure!(!gpu.save_pipeline_cache(&other.0)?, "none was loaded");
    ensure!(load(&gpu, &folder.0)?, "there is no cache");
    ensure!(gpu.save_pipeline_cache(&other.0)?, "nothing was saved");
    ensure!(other.files()?.len() == 1, "{:?}", other.files());
    Ok(())
}

fn broken_files(gpu: &Gpu) -> Outcome {
    let expected = computed(gpu)?;
    let folder = Folder::new("broken")?;
    run(gpu, &folder)?;
    let [path] = &folder.files()?[..] else {
        return Err("one file was expected".into());
    };
    let whole = std::fs::read(path)?;
    // wgpu's header has 64 bytes: the adapter from 17 on, the driver from 32 on.
    let changed = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        bytes
    };
    let cut = |length: usize| whole[..length].to_vec();
    let broken = [
        ("empty", cut(0)),
        ("cut in the header", cut(40)),
        ("cut short", cut(whole.len() - 1)),
        ("too long", [&whole[..], &[0]].concat()),
        ("no cache", b"something else entirely".repeat(100)),
        ("another adapter's", changed(20)),
        ("another driver's", changed(32)),
    ];
    for (what, bytes) in broken {
        std::fs::write(path, bytes)?;
        let found = run(gpu, &folder).map_err(|error| format!("{what}: {error}"))?;
        ensure!(found == expected, "{what}: other results");
        // It was replaced by one for the same pipelines.
        let length = std::fs::read(path)?.len();
        ensure!(length == whole.len(), "{what}: {length} bytes");
    }
    Ok(())
}

fn unusable_folders(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("unusable")?;
    let other = Folder::new("usable")?;
    run(gpu, &other)?;
    let [saved] = &other.files()?[..] else {
        return Err("one file was expected".into());
    };
    // A folder in the place of the file, and a file in the place of the folder.
    let name = saved.file_name().ok_or("a file has a name")?;
    std::fs::create_dir_all(folder.0.join(name).join("full"))?;
    let file = folder.0.join("file");
    std::fs::write(&file, "")?;
    let gpu = open(gpu)?;
    for bad in [&folder.0, &file] {
        let found = load(&gpu, bad).err();
        let is_right = matches!(&found, Some(Error::PipelineCache { what: "read", .. }));
        ensure!(is_right, "{bad:?}: {found:?}");
        ensure!(!gpu.save_pipeline_cache(&other.0)?, "a cache is there");
    }
    ensure!(load(&gpu, &other.0)?, "there is no cache");
    computed(&gpu)?;
    for bad in [&folder.0, &file] {
        let found = gpu.save_pipeline_cache(bad).err();
        let is_right = matches!(
            &found,
            Some(Error::PipelineCache {
                what: "written",
                ..
            })
        );
        ensure!(is_right, "{bad:?}: {found:?}");
        // Nothing half-written is left.
        let files = folder.files()?;
        ensure!(files.len() == 2, "{files:?}");
    }
    Ok(())
}

#[expect(unsafe_code, reason = "making a cache trusts its data")]
fn of_the_caller(gpu: &Gpu) -> Outcome {
    let expected = computed(gpu)?;
    let descriptor = wgpu::PipelineCacheDescriptor {
        label: None,
        data: None,
        fallback: true,
    };
    // Two devices of one instance.
    let adapter = adapter_of(gpu)?;
    let open = || Gpu::from_adapter_with_blocking(&adapter, wgpu::Features::PIPELINE_CACHE);
    let (gpu, other) = (open()?, open()?);
    // SAFETY: there is no data to trust.
    let cache = unsafe { gpu.device().create_pipeline_cache(&descriptor) };
    // wgpu refuses one of another device, so it is this one that pipelines are compiled through.
    other.set_pipeline_cache(cache.clone());
    let found = computed(&other).err();
    ensure!(matches!(found, Some(Error::Wgpu { .. })), "{found:?}");
    gpu.set_pipeline_cache(cache);
    ensure!(computed(&gpu)? == expected, "other results");
    Ok(())
}
