//! A residual network of convolutions learns handwritten digits on the GPU, by burn's own learner,
//! with `FusedBatchNorm` where burn's `BatchNorm` would stand.
//!
//! `cargo run --release -p wgpu-batchnorm-burn --example digits_cnn -- [EPOCHS] [DIRECTORY]`
//!
//! It trains on 1,440 images and judges by the other 357, saves the model to the directory
//! (`out/digits_cnn`), loads it into a new one, judges that, and in the end times a training step
//! with burn's batch norm and with ours, in turns. It fails below 98 % of right answers.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::data::dataloader::DataLoaderBuilder;
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::InMemDataset;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use burn::train::metric::{AccuracyMetric, LossMetric};
use burn::train::{
    ClassificationOutput, InferenceStep, Learner, SupervisedTraining, TrainOutput, TrainStep,
};
use flate2::read::GzDecoder;
use wgpu_batchnorm_burn::{FusedBatchNorm, FusedBatchNormConfig};

type Failure = Box<dyn std::error::Error>;

const SIDE: usize = 8;
const CLASSES: usize = 10;
const TRAIN_IMAGES: usize = 1440;
const BATCH: usize = 48;
/// The learning rate to begin with; it falls to 0 by half a cosine, so that the last steps settle.
const RATE: f64 = 3e-3;
/// Right answers on the test images below which the run has failed.
const WANTED: f64 = 0.98;

/// One image with what it shows.
#[derive(Clone, Debug)]
struct Digit {
    pixels: [f32; SIDE * SIDE],
    label: i64,
}

/// The digits to learn from and those to judge by, always the same.
fn digits() -> Result<(Vec<Digit>, Vec<Digit>), Failure> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/data/digits.csv.gz"
    );
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(path)?).read_to_string(&mut text)?;
    let mut digits = Vec::new();
    for line in text.lines() {
        let (image, label) = line.rsplit_once(',').ok_or("a line without a label")?;
        let mut pixels = [0.0; SIDE * SIDE];
        for (pixel, value) in pixels.iter_mut().zip(image.split(',')) {
            *pixel = value.parse::<f32>()? / 16.0;
        }
        let label = label.parse()?;
        digits.push(Digit { pixels, label });
    }
    // A fixed shuffle: the file's writers come one after the other.
    let mut state = 1998_u32;
    for last in (1..digits.len()).rev() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        digits.swap(last, (state >> 8) as usize % (last + 1));
    }
    let test = digits.split_off(TRAIN_IMAGES);
    Ok((digits, test))
}

/// Images `[batch, 1, 8, 8]` with their labels.
#[derive(Clone, Debug)]
struct Batch {
    images: Tensor<4>,
    labels: Tensor<1, Int>,
}

#[derive(Clone)]
struct ToBatch;

impl Batcher<Digit, Batch> for ToBatch {
    fn batch(&self, digits: Vec<Digit>, device: &Device) -> Batch {
        let pixels: Vec<_> = digits.iter().flat_map(|digit| digit.pixels).collect();
        let labels: Vec<_> = digits.iter().map(|digit| digit.label).collect();
        let count = digits.len();
        Batch {
            images: Tensor::from_data(TensorData::new(pixels, [count, 1, SIDE, SIDE]), device),
            labels: Tensor::from_data(TensorData::new(labels, [count]), device),
        }
    }
}

/// The one thing that changes: which batch norm, with the ReLU that follows.
#[derive(Module, Debug)]
enum Norm {
    Fused(FusedBatchNorm),
    Burn(BatchNorm),
}

#[derive(Clone, Copy)]
enum Kind {
    Fused,
    Burn,
}

impl Norm {
    fn new(kind: Kind, channels: usize, device: &Device) -> Self {
        match kind {
            Kind::Fused => {
                let config = FusedBatchNormConfig::new(channels).with_relu(true);
                Self::Fused(config.init(device))
            }
            Kind::Burn => Self::Burn(BatchNormConfig::new(channels).init(device)),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Fused(norm) => norm.forward(x),
            Self::Burn(norm) => activation::relu(norm.forward(x)),
        }
    }

    fn forward_residual(&self, x: Tensor<4>, residual: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Fused(norm) => norm.forward_residual(x, residual),
            Self::Burn(norm) => activation::relu(norm.forward(x) + residual),
        }
    }
}

/// Convolution without a bias, which batch norm would take away again, and batch norm.
#[derive(Module, Debug)]
struct Block {
    conv: Conv2d,
    norm: Norm,
}

impl Block {
    fn new(kind: Kind, channels: [usize; 2], stride: usize, device: &Device) -> Self {
        let conv = Conv2dConfig::new(channels, [3, 3])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
            .with_bias(false)
            .init(device);
        let norm = Norm::new(kind, channels[1], device);
        Self { conv, norm }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.norm.forward(self.conv.forward(x))
    }

    fn forward_residual(&self, x: Tensor<4>, residual: Tensor<4>) -> Tensor<4> {
        self.norm.forward_residual(self.conv.forward(x), residual)
    }
}

/// Two residual blocks, the second at half the size.
#[derive(Module, Debug)]
struct Network {
    first: Block,
    inner: [Block; 2],
    half: Block,
    deep: [Block; 2],
    output: Linear,
}

impl Network {
    fn new(kind: Kind, device: &Device) -> Self {
        let block = |channels, stride| Block::new(kind, channels, stride, device);
        Self {
            first: block([1, 16], 1),
            inner: [block([16, 16], 1), block([16, 16], 1)],
            half: block([16, 32], 2),
            deep: [block([32, 32], 1), block([32, 32], 1)],
            output: LinearConfig::new(32, CLASSES).init(device),
        }
    }

    /// Scores of each class, `[batch, 10]`.
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let residual = |x: Tensor<4>, blocks: &[Block; 2]| {
            let inner = blocks[0].forward(x.clone());
            blocks[1].forward_residual(inner, x)
        };
        let x = residual(self.first.forward(images), &self.inner);
        let x = residual(self.half.forward(x), &self.deep);
        let [batch, channels, ..] = x.dims();
        let means = x.reshape([batch, channels, 16]).mean_dim(2);
        self.output.forward(means.squeeze_dim(2))
    }

    fn judged(&self, batch: Batch) -> ClassificationOutput {
        let output = self.forward(batch.images);
        let loss = CrossEntropyLossConfig::new()
            .init(&output.device())
            .forward(output.clone(), batch.labels.clone());
        ClassificationOutput::new(loss, output, batch.labels)
    }
}

impl TrainStep for Network {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> TrainOutput<ClassificationOutput> {
        let output = self.judged(batch);
        TrainOutput::new(self, output.loss.backward(), output)
    }
}

impl InferenceStep for Network {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> ClassificationOutput {
        self.judged(batch)
    }
}

/// The part of the digits that is told right.
fn accuracy(network: &Network, digits: &[Digit], device: &Device) -> f64 {
    let batch = ToBatch.batch(digits.to_vec(), device);
    let found = network.forward(batch.images).argmax(1).squeeze_dim::<1>(1);
    let right = found.equal(batch.labels).int().sum();
    right.into_scalar::<i64>() as f64 / digits.len() as f64
}

fn train(
    directory: &Path,
    epochs: usize,
    (train, test): (&[Digit], &[Digit]),
    device: &Device,
) -> Result<Network, Failure> {
    let training = DataLoaderBuilder::new(ToBatch)
        .batch_size(BATCH)
        .shuffle(1)
        .set_device(device.clone())
        .build(InMemDataset::new(train.to_vec()));
    let validation = DataLoaderBuilder::new(ToBatch)
        .batch_size(BATCH)
        .set_device(device.clone().without_autodiff())
        .build(InMemDataset::new(test.to_vec()));
    let network = Network::new(Kind::Fused, device);
    let steps = epochs * train.len().div_ceil(BATCH);
    let rate = CosineAnnealingLrSchedulerConfig::new(RATE, steps).init()?;
    let result = SupervisedTraining::new(directory, training, validation)
        .metrics((AccuracyMetric::new(), LossMetric::new()))
        .num_epochs(epochs)
        .summary()
        .launch(Learner::new(network, AdamConfig::new().init(), rate));
    match result.error {
        Some(error) => Err(error.to_string().into()),
        None => Ok(result.model),
    }
}

/// Milliseconds of a training step with each batch norm, to the end of its work on the GPU: medians
/// of steps in turns.
fn times(digits: &[Digit], steps: usize, device: &Device) -> Result<[f64; 2], Failure> {
    let batch = ToBatch.batch(digits[..BATCH].to_vec(), device);
    let mut networks = [Kind::Burn, Kind::Fused].map(|kind| {
        let optimizer = AdamConfig::new().init();
        (Some(Network::new(kind, device)), optimizer, Vec::new())
    });
    // The first steps compile kernels and choose among them.
    const WARM_UP: usize = 5;
    for step in 0..WARM_UP + steps {
        for (network, optimizer, times) in &mut networks {
            let Some(model) = network.take() else {
                continue;
            };
            device.sync()?;
            let start = Instant::now();
            let loss = model.judged(batch.clone()).loss;
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            *network = Some(optimizer.step(RATE, model, gradients));
            device.sync()?;
            if step >= WARM_UP {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    Ok(networks.map(|(_, _, mut times)| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }))
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let epochs = match arguments.next() {
        Some(epochs) => epochs.parse()?,
        None => 10,
    };
    let directory = arguments.next().unwrap_or("out/digits_cnn".to_owned());
    let directory = PathBuf::from(directory);

    let device = wgpu_batchnorm_burn::device()?.autodiff();
    let inner = device.clone().without_autodiff();
    device.seed(1);
    let (training, test) = digits()?;
    let start = Instant::now();
    let network = train(&directory, epochs, (&training, &test), &device)?;
    let took = start.elapsed().as_secs_f64();
    let trained = accuracy(&network, &test, &inner);

    let file = directory.join("network");
    network.into_record().save(&file)?;
    let again = Network::new(Kind::Fused, &inner);
    let again = again.load_record(burn::store::ModuleRecord::load(&file)?);
    let loaded = accuracy(&again, &test, &inner);

    println!("\n{epochs} epochs took {took:.1} s.");
    println!("Test accuracy: {:.2} %", 100.0 * trained);
    println!("Saved and loaded again: {:.2} %", 100.0 * loaded);
    let [burn, fused] = times(&training, 25, &device)?;
    println!(
        "A training step of {BATCH} images: {burn:.1} ms with burn's batch norm, {fused:.1} ms with ours."
    );
    if trained < WANTED || loaded != trained {
        return Err(format!("expected {WANTED} and the same from the file").into());
    }
    Ok(())
}
