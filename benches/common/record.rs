//! What a run of the benches found, as a file: one for each adapter.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use wgpu_batchnorm::{DType, Layout};

use super::Meter;

/// One operation on one shape. Times are medians.
pub struct Row {
    pub layout: Layout,
    pub dtype: DType,
    pub nchw: [usize; 4],
    pub operation: String,
    /// Whether ReLU and a residual are fused to it.
    pub fused: bool,
    pub dispatches: usize,
    /// The least that the operation must move.
    pub bytes: u64,
    /// What the copy shader moved.
    pub copied_bytes: u64,
    pub copy_seconds: f64,
    pub gpu_seconds: f64,
    pub cpu_seconds: f64,
}

/// All of a run on an adapter.
pub struct Record {
    adapter: String,
    is_software: bool,
    clock: &'static str,
    rows: Vec<Row>,
}

impl Record {
    pub fn new(meter: &Meter) -> Self {
        Self {
            adapter: meter.gpu.name(),
            is_software: meter.is_software(),
            clock: meter.clock(),
            rows: Vec::new(),
        }
    }

    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Writes the file, and tells where it is.
    pub fn write(&self, folder: &Path) -> std::io::Result<PathBuf> {
        let words = self.adapter.split(|c: char| !c.is_ascii_alphanumeric());
        let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
        let path = folder.join(words.join("-").to_lowercase() + ".csv");
        std::fs::create_dir_all(folder)?;
        std::fs::write(&path, self.text())?;
        Ok(path)
    }

    fn text(&self) -> String {
        let kind = if self.is_software {
            "software"
        } else {
            "hardware"
        };
        let threads = std::thread::available_parallelism().map_or(0, usize::from);
        let mut text = format!(
            "# adapter: {}\n# kind: {kind}\n# clock: {}\n# cpu threads: {threads}\n",
            self.adapter, self.clock
        );
        text += "layout,dtype,n,c,h,w,operation,fused,dispatches,minimal_bytes,gpu_ms,copy_gb_per_s,\
                 gpu_gb_per_s,percent_of_copy,cpu_ms,cpu_ms_per_gpu_ms\n";
        for row in &self.rows {
            let layout = match row.layout {
                Layout::ChannelsFirst => "channels-first",
                Layout::ChannelsLast => "channels-last",
            };
            let [n, c, h, w] = row.nchw;
            let copy = row.copied_bytes as f64 / row.copy_seconds;
            let gpu = row.bytes as f64 / row.gpu_seconds;
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{layout},{},{n},{c},{h},{w},{},{},{},{},{:.4},{:.2},{:.2},{:.1},{:.4},{:.2}",
                format!("{:?}", row.dtype).to_lowercase(),
                row.operation,
                if row.fused { "relu+residual" } else { "none" },
                row.dispatches,
                row.bytes,
                row.gpu_seconds * 1e3,
                copy / 1e9,
                gpu / 1e9,
                100.0 * gpu / copy,
                row.cpu_seconds * 1e3,
                row.cpu_seconds / row.gpu_seconds,
            );
        }
        text
    }
}
