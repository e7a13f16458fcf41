//! Compiled pipelines that are kept in a file, from one run of a program to the next.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Error, Gpu};

impl Gpu {
    /// Lets the pipelines that are compiled from now on be taken from a file in `folder`, as far as
    /// [`Gpu::save_pipeline_cache`] left them there. Call it before the first layer or plan is made.
    ///
    /// `true` says that there is a cache from now on, though the file may be missing yet. `false`
    /// says that there can be none, and that nothing was changed: the device was opened without
    /// [`wgpu::Features::PIPELINE_CACHE`] (see [`Gpu::open_with`]), or its back end has none. Of
    /// wgpu's, only Vulkan has.
    ///
    /// A file of another adapter or driver, or one that was cut short, counts as missing. Results do
    /// not depend on any of this, and many drivers keep a cache of their own besides: measure
    /// whether it pays (`cargo bench --bench overhead`).
    ///
    /// ```
    /// use wgpu_batchnorm::{Gpu, wgpu};
    ///
    /// let gpu = Gpu::open_with_blocking(wgpu::Features::PIPELINE_CACHE)?;
    /// // A folder that only this program's user can make and write to, not, as here, one in a place
    /// // for all.
    /// let folder = std::env::temp_dir().join("a folder of this program's own");
    /// // SAFETY: what lies there was saved by the line at the end.
    /// let has_cache = unsafe { gpu.load_pipeline_cache(&folder)? };
    /// // … layers and plans are made and run …
    /// assert_eq!(gpu.save_pipeline_cache(&folder)?, has_cache);
    /// # Ok::<(), wgpu_batchnorm::Error>(())
    /// ```
    ///
    /// # Safety
    /// A file in `folder` whose name is that of this adapter's cache must have been written by
    /// [`Gpu::save_pipeline_cache`], and not been changed since. wgpu checks its length, its adapter
    /// and its driver, but the driver may take the code in it on trust. So it should be a folder that
    /// nobody else can make or write to.
    ///
    /// # Errors
    /// [`Error::PipelineCache`] if there is a file that cannot be read, [`Error::DeviceLost`],
    /// [`Error::OutOfMemory`]. The `Gpu` then works on as before.
    #[expect(
        unsafe_code,
        reason = "drivers trust the data, so wgpu asks for it, and so must we"
    )]
    pub unsafe fn load_pipeline_cache(&self, folder: impl AsRef<Path>) -> Result<bool, Error> {
        let Some(path) = self.pipeline_cache_path(folder.as_ref()) else {
            return Ok(false);
        };
        let data = match std::fs::read(&path) {
            Ok(data) => Some(data),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read", &path, &error)),
        };
        let create = |data| {
            let descriptor = wgpu::PipelineCacheDescriptor {
                label: Some("batch_norm"),
                data,
                fallback: true,
            };
            // SAFETY: the caller vouches for the data.
            self.caught(|| unsafe { self.device().create_pipeline_cache(&descriptor) })
        };
        let cache = match create(data.as_deref()) {
            // Another adapter's is refused, in spite of `fallback`.
            Err(Error::Wgpu { .. }) => create(None)?,
            created => created?,
        };
        self.set_pipeline_cache(cache);
        Ok(true)
    }

    /// Writes what [`Gpu::load_pipeline_cache`] reads, with all pipelines compiled since that call.
    ///
    /// The folder is made if it is missing. The file gets its name only when it is whole, so
    /// several processes may load and save at once; the last one's stays. `false` says that there is
    /// no cache, and that nothing was written.
    ///
    /// # Errors
    /// [`Error::PipelineCache`] if the file cannot be written.
    pub fn save_pipeline_cache(&self, folder: impl AsRef<Path>) -> Result<bool, Error> {
        let path = self.pipeline_cache_path(folder.as_ref());
        let data = self.pipeline_cache().and_then(|cache| cache.get_data());
        let (Some(path), Some(data)) = (path, data) else {
            return Ok(false);
        };
        match replace(&path, &data) {
            Ok(()) => Ok(true),
            Err(error) => Err(failed("written", &path, &error)),
        }
    }

    /// The file of this adapter; `None` if this device can have no cache.
    fn pipeline_cache_path(&self, folder: &Path) -> Option<PathBuf> {
        let features = self.device().features();
        if !features.contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let key = wgpu::util::pipeline_cache_key(self.info())?;
        Some(folder.join(format!("batch_norm_{key}")))
    }
}

/// Writes a file beside `path`, whole and to the disk, and gives it that name.
fn replace(path: &Path, data: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // Of this call alone: the standard library's hashers start from random numbers.
    let number = RandomState::new().build_hasher().finish();
    let beside = path.with_extension(format!("{number:016x}"));
    let write = || {
        let mut file = std::fs::File::create_new(&beside)?;
        file.write_all(data)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().inspect_err(|_| {
        // It may not even be there; the first error is the one to tell.
        let _ = std::fs::remove_file(&beside);
    })
}

fn failed(what: &'static str, path: &Path, error: &std::io::Error) -> Error {
    Error::PipelineCache {
        what,
        path: path.to_owned(),
        message: error.to_string(),
    }
}
