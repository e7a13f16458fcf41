//! The handwritten digits.

use std::io::Read;

use flate2::read::GzDecoder;
use ndarray::{Array2, Axis};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::Failure;

/// One image per line: 64 pixels of 0 to 16, then the label.
const CSV_GZ: &[u8] = include_bytes!("../data/digits.csv.gz");

/// Pixels of each image.
pub const PIXELS: usize = 64;
/// The digits from 0 to 9.
pub const CLASSES: usize = 10;
const WHITEST: f32 = 16.0;
const TRAIN_IMAGES: usize = 1440;
const SPLIT_SEED: u64 = 1998;

/// Images with their labels.
pub struct Images {
    /// One image per row, pixels from 0 to 1.
    pub pixels: Array2<f32>,
    /// The digit that each image shows.
    pub labels: Vec<usize>,
}

/// The digits to learn from and those to test on.
pub struct Digits {
    /// 1,440 images.
    pub train: Images,
    /// The other 357.
    pub test: Images,
}

impl Digits {
    /// Unpacks the digits and splits them, always in the same way.
    pub fn load() -> Result<Self, Failure> {
        let mut text = String::new();
        GzDecoder::new(CSV_GZ).read_to_string(&mut text)?;
        let mut lines: Vec<&str> = text.lines().collect();
        lines.shuffle(&mut StdRng::seed_from_u64(SPLIT_SEED));
        let (train, test) = lines
            .split_at_checked(TRAIN_IMAGES)
            .ok_or("too few digits")?;
        Ok(Self {
            train: Images::parse(train)?,
            test: Images::parse(test)?,
        })
    }
}

impl Images {
    /// Some of the images, by their indices.
    pub fn select(&self, indices: &[usize]) -> Self {
        Self {
            pixels: self.pixels.select(Axis(0), indices),
            labels: indices.iter().map(|&index| self.labels[index]).collect(),
        }
    }

    fn parse(lines: &[&str]) -> Result<Self, Failure> {
        let mut pixels = Vec::with_capacity(PIXELS * lines.len());
        let mut labels = Vec::with_capacity(lines.len());
        for line in lines {
            let (image, label) = line.rsplit_once(',').ok_or("a line without a label")?;
            for pixel in image.split(',') {
                pixels.push(pixel.parse::<f32>()? / WHITEST);
            }
            labels.push(label.parse()?);
        }
        Ok(Self {
            pixels: Array2::from_shape_vec((lines.len(), PIXELS), pixels)?,
            labels,
        })
    }
}
