//! What the benches share: a clock, buffers, and the copy that everything is measured against.

#![allow(dead_code, reason = "every bench uses a part of this")]

pub mod operations;
pub mod record;

use std::time::{Duration, Instant};

use wgpu::util::DeviceExt;
use wgpu_batchnorm::{Error, Gpu, Tuning, wgpu};

/// Operations in one submission at most: some systems kill one that takes seconds.
const SUBMITTED_AT_ONCE: u64 = 64;

/// A device, and how long what it runs takes.
pub struct Meter {
    pub gpu: Gpu,
    /// Two timestamps, and where they are resolved to and read; none without timestamp queries.
    stamps: Option<(wgpu::QuerySet, wgpu::Buffer, wgpu::Buffer)>,
}

impl Meter {
    /// Opens the adapter that the environment chooses, with timestamp queries if it has them.
    pub fn open() -> Result<Self, Error> {
        let gpu = pollster::block_on(Gpu::open_with(wgpu::Features::TIMESTAMP_QUERY))?;
        let device = gpu.device();
        let has = device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        let stamps = has.then(|| {
            let queries = device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("bench.stamps"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            });
            let buffer = |usage| {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("bench.stamps"),
                    size: 16,
                    usage,
                    mapped_at_creation: false,
                })
            };
            let resolved = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
            let read = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            (queries, buffer(resolved), buffer(read))
        });
        Ok(Self { gpu, stamps })
    }

    /// How time is told: by the device itself, or by the host from submission to completion.
    pub fn clock(&self) -> &'static str {
        match self.stamps {
            Some(_) => "GPU timestamps",
            None => "wall time",
        }
    }

    /// Whether the device is a CPU that plays a GPU.
    pub fn is_software(&self) -> bool {
        self.gpu.info().device_type == wgpu::DeviceType::Cpu
    }

    /// The time that the device takes for what `record` records, for each of `0..iterations`.
    pub fn time(
        &self,
        iterations: u64,
        mut record: impl FnMut(&mut wgpu::ComputePass<'_>, u64),
    ) -> Duration {
        let mut total = Duration::ZERO;
        let mut first = 0;
        while first < iterations {
            let end = iterations.min(first + SUBMITTED_AT_ONCE);
            total += self.time_once(|pass| (first..end).for_each(|index| record(pass, index)));
            first = end;
        }
        total
    }

    /// The seconds that the device takes for what `record` records: the mean of `iterations`.
    pub fn seconds(&self, iterations: u64, record: impl Fn(&mut wgpu::ComputePass<'_>)) -> f64 {
        let total = self.time(iterations, |pass, _| record(pass));
        total.as_secs_f64() / iterations as f64
    }

    /// How many times what `record` records fits into so many seconds: at least once, and 1,024 times at most.
    pub fn iterations(&self, seconds: f64, record: impl Fn(&mut wgpu::ComputePass<'_>)) -> u64 {
        // The first one compiles, and touches memory.
        let [_, once] = [(); 2].map(|()| self.seconds(1, &record));
        (seconds / once).clamp(1.0, 1024.0) as u64
    }

    /// The time that the device takes for what is recorded into one pass.
    fn time_once(&self, record: impl FnOnce(&mut wgpu::ComputePass<'_>)) -> Duration {
        let mut encoder = self
            .gpu
            .device()
            .create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("bench"),
            timestamp_writes: self.stamps.as_ref().map(|(query_set, ..)| {
                wgpu::ComputePassTimestampWrites {
                    query_set,
                    beginning_of_pass_write_index: Some(0),
                    end_of_pass_write_index: Some(1),
                }
            }),
        });
        record(&mut pass);
        drop(pass);
        if let Some((queries, resolved, read)) = &self.stamps {
            encoder.resolve_query_set(queries, 0..2, resolved, 0);
            encoder.copy_buffer_to_buffer(resolved, 0, read, 0, 16);
        }
        let commands = encoder.finish();
        let start = Instant::now();
        self.gpu.queue().submit([commands]);
        if let Some((_, _, read)) = &self.stamps {
            read.map_async(wgpu::MapMode::Read, .., |result| {
                result.expect("the stamps can be read");
            });
        }
        self.gpu
            .device()
            .poll(wgpu::PollType::wait_indefinitely())
            .expect("the device is there");
        let Some((_, _, read)) = &self.stamps else {
            return start.elapsed();
        };
        let [begin, end] = {
            let bytes = read.get_mapped_range(..).expect("the stamps are mapped");
            [0, 8].map(|at| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[at + byte])))
        };
        read.unmap();
        let period = f64::from(self.gpu.queue().get_timestamp_period());
        Duration::from_nanos((end.wrapping_sub(begin) as f64 * period) as u64)
    }

    /// A buffer of so many bytes.
    pub fn buffer(&self, bytes: u64) -> wgpu::Buffer {
        self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("bench"),
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// A buffer with these values.
    pub fn buffer_of(&self, contents: &[u8]) -> wgpu::Buffer {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        self.gpu
            .device()
            .create_buffer_init(&wgpu::util::BufferInitDescriptor {
                label: Some("bench"),
                contents,
                usage,
            })
    }
}

/// The copy shader, bound to two buffers.
pub struct Copy {
    pipeline: wgpu::ComputePipeline,
    /// One for each part that fits a binding.
    parts: Vec<(wgpu::BindGroup, [u32; 2])>,
}

impl Copy {
    /// From one buffer to another of the same size, a multiple of 16. As many lanes and packs as the device's tuning has.
    pub fn new(meter: &Meter, from: &wgpu::Buffer, to: &wgpu::Buffer) -> Self {
        let device = meter.gpu.device();
        let tuning = Tuning::for_device(meter.gpu.info().device_type);
        let (lanes, packs) = (u64::from(tuning.lanes), u64::from(tuning.map_packs));
        let module = device.create_shader_module(wgpu::include_wgsl!("copy.wgsl"));
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("bench.copy"),
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[("LANES", lanes as f64), ("PACKS", packs as f64)],
                ..Default::default()
            },
            cache: None,
        });
        let limits = meter.gpu.limits();
        let longest = u64::from(limits.max_compute_workgroups_per_dimension);
        let most = limits.max_storage_buffer_binding_size / 256 * 256;
        let parts = (0..from.size().div_ceil(most))
            .map(|part| {
                let start = part * most;
                let bytes = most.min(from.size() - start);
                let workgroups = bytes.div_ceil(16 * lanes * packs);
                let x = workgroups.min(longest);
                let entries = [(0, from), (1, to)].map(|(binding, buffer)| wgpu::BindGroupEntry {
                    binding,
                    resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer,
                        offset: start,
                        size: wgpu::BufferSize::new(bytes),
                    }),
                });
                let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some("bench.copy"),
                    layout: &pipeline.get_bind_group_layout(0),
                    entries: &entries,
                });
                (bind_group, [x as u32, workgroups.div_ceil(x) as u32])
            })
            .collect();
        Self { pipeline, parts }
    }

    pub fn record_into(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        for (bind_group, [x, y]) in &self.parts {
            pass.set_bind_group(0, bind_group, &[]);
            pass.dispatch_workgroups(*x, *y, 1);
        }
    }
}
