//! What one runs before trusting a driver.

use std::fmt;

use ndarray::ArrayD;

use super::{Checked, Comparison};
use crate::valid::positions;
use crate::{
    Activation, Adam, Algorithm, BatchNorm, DType, Error, Extra, Gpu, Layout, Mode, Optimizer,
    Options, RmsProp, Sgd, Shape, Tensor, Valid, Wanted,
};

/// What [`self_check`] found. Its `Display` is made to be pasted into a bug report.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The adapter, as [`Gpu::name`] gives it.
    pub adapter: String,
    /// What wgpu says of the adapter.
    pub info: wgpu::AdapterInfo,
    /// The cases, in the order in which they ran.
    pub cases: Vec<Case>,
}

/// One case of a [`Report`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Case {
    /// What was run.
    pub name: String,
    /// The largest difference of any tensor, in units of what the tolerance allows, and the
    /// tensor's name.
    pub worst: (f64, &'static str),
    /// The error, if it failed.
    pub error: Option<Error>,
}

impl Report {
    /// Whether every case passed.
    pub fn passed(&self) -> bool {
        self.cases.iter().all(|case| case.error.is_none())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wgpu::AdapterInfo {
            device_type,
            vendor,
            device,
            driver,
            ..
        } = &self.info;
        writeln!(f, "wgpu-batchnorm {} self-check", env!("CARGO_PKG_VERSION"))?;
        writeln!(f, "adapter: {}", self.adapter)?;
        writeln!(
            f,
            "{device_type:?}, vendor {vendor:#06x}, device {device:#06x}, driver {driver:?}"
        )?;
        for case in &self.cases {
            let verdict = if case.error.is_none() { "ok  " } else { "FAIL" };
            let (worst, tensor) = case.worst;
            write!(f, "{verdict} {:<76}", case.name)?;
            match &case.error {
                None => writeln!(f, " {:3.0} % of the tolerance ({tensor})", 100.0 * worst)?,
                Some(error) => writeln!(f, " {error}")?,
            }
        }
        let passed = self.cases.iter().filter(|case| case.error.is_none());
        write!(f, "{} of {} passed", passed.count(), self.cases.len())
    }
}

/// Runs a short set of cases on an adapter and compares each with the CPU path: what one runs
/// before trusting a driver.
///
/// ```
/// # use wgpu_batchnorm::{Error, Gpu, verify::self_check_blocking};
/// let gpu = Gpu::open_blocking()?;
/// let report = self_check_blocking(&gpu);
/// println!("{report}");
/// assert!(report.passed());
/// # Ok::<(), Error>(())
/// ```
pub async fn self_check(gpu: &Gpu) -> Report {
    let mut report = Report {
        adapter: gpu.name(),
        info: gpu.info().clone(),
        cases: Vec::new(),
    };
    for setting in settings() {
        let mut comparisons = Vec::new();
        let error = setting
            .run(gpu, &mut comparisons)
            .await
            .and_then(|()| comparisons.iter().try_for_each(|found| found.check(gpu)))
            .err();
        let worst = comparisons
            .iter()
            .map(|found| (found.worst, found.tensor))
            .fold((0.0, "-"), |a, b| if b.0 > a.0 { b } else { a });
        report.cases.push(Case {
            name: setting.name(),
            worst,
            error,
        });
    }
    report
}

/// What a case runs.
struct Setting {
    dims: &'static [usize],
    layout: Layout,
    /// The mean of x; its deviation is 1.
    mean: f32,
    dtype: DType,
    options: Options,
    residual: bool,
    /// Whether only some positions count.
    padded: bool,
    algorithm: Algorithm,
}

/// Every kernel, in every packing and storage type, as it comes in training.
fn settings() -> Vec<Setting> {
    use DType::{Bf16, F16, F32};
    use Layout::{ChannelsFirst, ChannelsLast};
    let plain = |dims, layout, mean| Setting {
        dims,
        layout,
        mean,
        dtype: F32,
        options: Options::default(),
        residual: false,
        padded: false,
        algorithm: Adam::default().into(),
    };
    let mut settings = vec![
        plain(&[64, 10], ChannelsFirst, 0.0),
        plain(&[33, 64], ChannelsFirst, 1e3),
        plain(&[4, 3, 50], ChannelsFirst, 0.0),
        plain(&[8, 16, 14, 14], ChannelsFirst, 0.0),
        plain(&[8, 5, 7, 7], ChannelsFirst, 1e5),
        plain(&[2, 1, 181, 183], ChannelsFirst, 1e7),
        plain(&[2, 3, 4, 6, 6], ChannelsFirst, -10.0),
        plain(&[8, 14, 14, 16], ChannelsLast, 1e4),
        plain(&[4, 9, 9, 3], ChannelsLast, 0.0),
        plain(&[2, 3, 4, 5, 6], ChannelsLast, 1e2),
    ];
    for (dtype, activation, residual, padded, frozen) in [
        (F32, Activation::Relu, false, false, false),
        (F32, Activation::Relu, true, false, false),
        (F16, Activation::Relu, true, true, false),
        (F16, Activation::Identity, false, false, false),
        (Bf16, Activation::RELU6, true, false, true),
        (
            Bf16,
            Activation::LeakyRelu { slope: 0.1 },
            false,
            true,
            false,
        ),
    ] {
        let shapes: [(&[usize], Layout); 3] = [
            (&[5, 7, 7, 7], ChannelsFirst),
            (&[5, 6, 8, 8], ChannelsFirst),
            (&[5, 7, 7, 8], ChannelsLast),
        ];
        for (dims, layout) in shapes {
            let options = Options::default()
                .activation(activation)
                .frozen_statistics(frozen);
            settings.push(Setting {
                dtype,
                options,
                residual,
                padded,
                ..plain(dims, layout, 1.0)
            });
        }
    }
    for (index, setting) in settings.iter_mut().enumerate() {
        match index % 3 {
            0 => {
                setting.algorithm = Sgd {
                    lr: 0.1,
                    momentum: 0.9,
                    ..Sgd::default()
                }
                .into();
            }
            1 => setting.algorithm = RmsProp::default().into(),
            _ => {}
        }
    }
    settings
}

impl Setting {
    fn name(&self) -> String {
        let Self {
            dims,
            layout,
            mean,
            dtype,
            options,
            ..
        } = self;
        let mut name = format!("{layout:?} {dims:?} {dtype:?}, mean {mean:e}");
        if options.activation != Activation::Identity {
            name += &format!(", {:?}", options.activation);
        }
        for (flag, word) in [
            (self.residual, ", residual"),
            (self.padded, ", padded"),
            (options.frozen_statistics, ", frozen"),
        ] {
            if flag {
                name += word;
            }
        }
        name
    }

    /// Two training steps and an evaluation.
    async fn run(&self, gpu: &Gpu, comparisons: &mut Vec<Comparison>) -> Result<(), Error> {
        let shape = Shape::new(self.dims, self.layout)?;
        let seed = self
            .dims
            .iter()
            .fold(1, |seed, &dim| seed * 31 + dim as u64);
        let mut noise = Noise(seed);
        let mut tensor = |mean: f32| {
            let values = ArrayD::from_shape_simple_fn(self.dims, || mean + noise.next());
            match self.dtype {
                DType::F32 => Tensor::from_array(gpu, &values, self.layout),
                DType::F16 => {
                    Tensor::from_array(gpu, &values.mapv(half::f16::from_f32), self.layout)
                }
                DType::Bf16 => {
                    Tensor::from_array(gpu, &values.mapv(half::bf16::from_f32), self.layout)
                }
            }
        };
        let mut position = 0;
        let mask = ArrayD::from_shape_simple_fn(positions(&shape), || {
            position += 1;
            position % 5 < 3
        });
        let valid = Valid::from_mask(gpu, &mask)?;
        let mut layer = BatchNorm::new(gpu, shape.channels(), self.options.clone())?;
        let mut optimizer = Optimizer::new(&layer, self.algorithm.clone())?;
        let mut checked = Checked::new(&mut layer);
        for step in 0..3 {
            let (x, added) = (tensor(self.mean)?, tensor(0.0)?);
            let extra = Extra {
                residual: self.residual.then_some(&added),
                valid: self.padded.then_some(&valid),
            };
            if step == 2 {
                checked.layer.set_mode(Mode::Eval);
            }
            comparisons.extend(checked.compare_forward(&x, extra).await?.1);
            if step < 2 {
                let dy = tensor(0.1)?;
                let wanted = Wanted::default();
                comparisons.extend(checked.compare_backward(&dy, &wanted).await?.1);
                comparisons.extend(checked.compare_step(&mut optimizer).await?);
            }
        }
        Ok(())
    }
}

/// Roughly normal numbers, the same on every machine.
pub(super) struct Noise(pub(super) u64);

impl Noise {
    /// The sum of twelve uniform numbers: mean 0, standard deviation 1.
    pub(super) fn next(&mut self) -> f32 {
        let sum: f64 = (0..12)
            .map(|_| {
                // Knuth's 64-bit linear congruential generator; its upper bits are the good ones.
                self.0 = self
                    .0
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (self.0 >> 32) as f64 / f64::from(u32::MAX)
            })
            .sum();
        (sum - 6.0) as f32
    }
}

/// [`self_check`], waiting.
#[cfg(not(target_arch = "wasm32"))]
pub fn self_check_blocking(gpu: &Gpu) -> Report {
    pollster::block_on(self_check(gpu))
}
