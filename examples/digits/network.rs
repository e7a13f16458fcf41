//! The classifier, its loss and its gradients.

use ndarray::{Array, Array1, Array2, Axis, Dimension, Ix1, Ix2, Zip};
use rand::Rng;
use rand_distr::StandardNormal;
use wgpu_batchnorm::Mode;

use super::Failure;
use super::normalization::{Device, Normalization};

/// How a network is made and trained.
pub struct Design {
    /// How many values enter each linear layer; last the number of classes.
    pub sizes: [usize; 4],
    /// With batch norm after both hidden linear layers, or without.
    pub batch_norm: bool,
    /// The initial weights' standard deviation, in units of He's `√(2/inputs)`.
    pub init_scale: f32,
    /// The learning rate of all parameters.
    pub learning_rate: f64,
}

/// Linear, batch norm, ReLU; the same again; linear.
pub struct Network {
    hidden: [Hidden; 2],
    readout: Linear,
    learning_rate: f32,
}

impl Network {
    /// A network with random weights, which are the same with batch norm as without.
    pub fn new(device: &Device, design: &Design, rng: &mut impl Rng) -> Result<Self, Failure> {
        let [inputs, first, second, classes] = design.sizes;
        Ok(Self {
            hidden: [
                Hidden::new(device, design, inputs, first, rng)?,
                Hidden::new(device, design, first, second, rng)?,
            ],
            readout: Linear::new(second, classes, true, design.init_scale, rng),
            learning_rate: design.learning_rate as f32,
        })
    }

    /// The score of each class for each image.
    pub fn forward(&mut self, pixels: &Array2<f32>, mode: Mode) -> Result<Array2<f32>, Failure> {
        let [first, second] = &mut self.hidden;
        let x = first.forward(pixels, mode)?;
        let x = second.forward(&x, mode)?;
        Ok(self.readout.forward(&x))
    }

    /// Finds all gradients, from that of the scores of the last forward pass, in training.
    pub fn backward(&mut self, dscores: &Array2<f32>) -> Result<(), Failure> {
        let [first, second] = &mut self.hidden;
        let dx = self.readout.backward(dscores);
        let dx = second.backward(&dx)?;
        first.backward(&dx)?;
        Ok(())
    }

    /// One step of gradient descent for all parameters.
    pub fn step(&mut self) -> Result<(), Failure> {
        for layer in &mut self.hidden {
            layer.step(self.learning_rate)?;
        }
        self.readout.step(self.learning_rate);
        Ok(())
    }

    /// What entered the last ReLU in the last forward pass.
    pub fn last_relu_input(&self) -> &Array2<f32> {
        &self.hidden[1].relu_input
    }
}

/// Linear, batch norm if wanted, ReLU.
struct Hidden {
    linear: Linear,
    normalization: Option<Normalization>,
    relu_input: Array2<f32>,
}

impl Hidden {
    fn new(
        device: &Device,
        design: &Design,
        inputs: usize,
        outputs: usize,
        rng: &mut impl Rng,
    ) -> Result<Self, Failure> {
        let normalization = match design.batch_norm {
            true => Some(Normalization::new(device, outputs, design.learning_rate)?),
            false => None,
        };
        // Batch norm subtracts the mean, and any bias with it; its β does the work of one.
        let bias = normalization.is_none();
        Ok(Self {
            linear: Linear::new(inputs, outputs, bias, design.init_scale, rng),
            normalization,
            relu_input: Array2::zeros((0, outputs)),
        })
    }

    fn forward(&mut self, x: &Array2<f32>, mode: Mode) -> Result<Array2<f32>, Failure> {
        let y = self.linear.forward(x);
        self.relu_input = match &mut self.normalization {
            Some(layer) => layer.forward(&y, mode)?,
            None => y,
        };
        Ok(self.relu_input.mapv(relu))
    }

    fn backward(&mut self, dy: &Array2<f32>) -> Result<Array2<f32>, Failure> {
        let mut dx = Zip::from(dy)
            .and(&self.relu_input)
            .map_collect(|&dy, &x| if x > 0.0 { dy } else { 0.0 });
        if let Some(layer) = &mut self.normalization {
            dx = layer.backward(&dx)?;
        }
        Ok(self.linear.backward(&dx))
    }

    fn step(&mut self, learning_rate: f32) -> Result<(), Failure> {
        self.linear.step(learning_rate);
        self.normalization
            .as_mut()
            .map_or(Ok(()), Normalization::step)
    }
}

/// 0 for negative values. Unlike [`f32::max`] it keeps NaN, which tells that training diverged.
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// `y = x·W + b`, one image per row.
struct Linear {
    weight: Parameter<Ix2>,
    bias: Option<Parameter<Ix1>>,
    x: Array2<f32>,
}

impl Linear {
    /// Gaussian weights, and a bias of 0 if there is one.
    fn new(inputs: usize, outputs: usize, bias: bool, init_scale: f32, rng: &mut impl Rng) -> Self {
        let deviation = init_scale * (2.0 / inputs as f32).sqrt();
        let weight = Array2::from_shape_simple_fn((inputs, outputs), || {
            deviation * rng.sample::<f32, _>(StandardNormal)
        });
        Self {
            weight: Parameter::new(weight),
            bias: bias.then(|| Parameter::new(Array1::zeros(outputs))),
            x: Array2::zeros((0, inputs)),
        }
    }

    fn forward(&mut self, x: &Array2<f32>) -> Array2<f32> {
        self.x.clone_from(x);
        let y = x.dot(&self.weight.value);
        match &self.bias {
            Some(bias) => y + &bias.value,
            None => y,
        }
    }

    /// Keeps the gradients of weight and bias, returns that of the last input.
    fn backward(&mut self, dy: &Array2<f32>) -> Array2<f32> {
        self.weight.gradient = self.x.t().dot(dy);
        if let Some(bias) = &mut self.bias {
            bias.gradient = dy.sum_axis(Axis(0));
        }
        dy.dot(&self.weight.value.t())
    }

    fn step(&mut self, learning_rate: f32) {
        self.weight.step(learning_rate);
        if let Some(bias) = &mut self.bias {
            bias.step(learning_rate);
        }
    }
}

/// What gradient descent trains.
struct Parameter<D> {
    value: Array<f32, D>,
    gradient: Array<f32, D>,
}

impl<D: Dimension> Parameter<D> {
    fn new(value: Array<f32, D>) -> Self {
        Self {
            gradient: Array::zeros(value.raw_dim()),
            value,
        }
    }

    fn step(&mut self, learning_rate: f32) {
        self.value.scaled_add(-learning_rate, &self.gradient);
    }
}

/// The mean cross-entropy of the softmax of `scores`, in nats, and its gradient.
pub fn cross_entropy(scores: &Array2<f32>, labels: &[usize]) -> (f32, Array2<f32>) {
    let mut gradient = scores.clone();
    let mut loss = 0.0;
    for (mut row, &label) in gradient.rows_mut().into_iter().zip(labels) {
        let largest = row.fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        row -= largest;
        let log_sum = row.mapv(f32::exp).sum().ln();
        loss += log_sum - row[label];
        row.mapv_inplace(|score| (score - log_sum).exp());
        row[label] -= 1.0;
    }
    let images = labels.len() as f32;
    (loss / images, gradient / images)
}
