//! However the CPU path divides its work, it computes what plain loops in f64 compute, and the same
//! bits on any number of threads. No GPU needed.

mod common;

use common::{Outcome, largest, normal, normal_vector};
use ndarray::{Array1, ArrayD};
use wgpu_batchnorm::cpu::{self, Affine, Element, ParameterGradients, Statistics};
use wgpu_batchnorm::{Activation, Layout, Shape, Wanted, half};

/// A pass forward and backward.
struct Case<T> {
    layout: Layout,
    x: ArrayD<T>,
    dy: ArrayD<T>,
    residual: Option<ArrayD<T>>,
    valid: Option<ArrayD<bool>>,
    affine: Affine,
}

/// All that comes of it.
#[derive(Debug, PartialEq)]
struct Found<T> {
    mean: Array1<f64>,
    var: Array1<f64>,
    gamma: Array1<f64>,
    beta: Array1<f64>,
    y: ArrayD<T>,
    g: ArrayD<T>,
    dx: ArrayD<T>,
}

const LEAKY: Activation = Activation::LeakyRelu { slope: 0.3 };

impl<T: Element> Case<T> {
    fn new(dims: &[usize], layout: Layout, offset: f64) -> Result<Self, wgpu_batchnorm::Error> {
        let shape = Shape::new(dims, layout)?;
        let channels = shape.channels();
        let stored = |value: f32| T::from_f64(f64::from(value) + offset);
        let mut x = normal(dims, 0.5, 2.0, 1).mapv(stored);
        // An outlier, where there are others beside it.
        if let (true, Some(first)) = (shape.values_per_channel() > 8, x.iter_mut().next()) {
            *first = T::from_f64(offset + 2e4);
        }
        Ok(Self {
            layout,
            x,
            dy: normal(dims, 0.3, 1.0, 2).mapv(|value| T::from_f64(value.into())),
            residual: None,
            valid: None,
            affine: Affine {
                gamma: normal_vector(channels, 1.0, 0.5, 3).mapv(f64::from),
                beta: normal_vector(channels, 0.0, 1.0, 4).mapv(f64::from),
                eps: 1e-3,
                activation: Activation::Identity,
            },
        })
    }

    /// With all that there may be: some positions that count, neighbours and single ones, a residual
    /// and an activation.
    fn with_all(mut self) -> Self {
        let mut dims = self.x.shape().to_vec();
        self.residual = Some(normal(&dims, 0.2, 1.0, 7).mapv(|value| T::from_f64(value.into())));
        dims.remove(match self.layout {
            Layout::ChannelsFirst => 1,
            Layout::ChannelsLast => dims.len() - 1,
        });
        let mut positions = 0..;
        self.valid = Some(ArrayD::from_shape_simple_fn(dims, || {
            positions
                .next()
                .is_none_or(|position: usize| position % 13 < 9 && position % 5 != 3)
        }));
        self.affine.activation = LEAKY;
        self
    }

    fn found(&self) -> Result<Found<T>, wgpu_batchnorm::Error> {
        let Self { layout, affine, .. } = self;
        let (layout, valid, residual) = (*layout, self.valid.as_ref(), self.residual.as_ref());
        let statistics = &cpu::moments(&self.x, layout, valid)?.statistics();
        let y = cpu::normalize(&self.x, layout, statistics, affine, residual)?;
        let g = cpu::activation_gradient(&self.x, &self.dy, layout, statistics, affine, residual)?;
        let wanted = Wanted::default();
        let (found, sums) = cpu::backward(
            &self.x, &self.dy, layout, statistics, affine, residual, valid, &wanted,
        )?;
        // In place, and for a residual, it is the same.
        let mut over_x = self.x.clone();
        cpu::normalize_in_place(&mut over_x, layout, statistics, affine, residual)?;
        let bits = |array: &ArrayD<T>| array.mapv(|value| value.to_f64().to_bits());
        assert_eq!(bits(&over_x), bits(&y));
        if let Some(of_residual) = &found.residual {
            assert_eq!(bits(of_residual), bits(&g));
        }
        Ok(Found {
            mean: statistics.mean.clone(),
            var: statistics.var.clone(),
            gamma: sums.gamma,
            beta: sums.beta,
            y,
            g,
            dx: found.dx.expect("it was wanted"),
        })
    }

    /// The same in plain loops over values, in f64, off a number near the mean for the digits.
    fn plain(&self, pivot: f64) -> Result<Found<f64>, wgpu_batchnorm::Error> {
        let shape = Shape::new(self.x.shape(), self.layout)?;
        let view = shape.view();
        let f64s = |array: &ArrayD<T>| array.mapv(T::to_f64).into_iter().collect::<Vec<_>>();
        let (x, dy) = (f64s(&self.x), f64s(&self.dy));
        let residual = self.residual.as_ref().map(f64s);
        let flags: Option<Vec<bool>> = self.valid.as_ref().map(|v| v.iter().copied().collect());
        let channel = |index: usize| index / view.inner % view.channels;
        let counts = |index: usize| match &flags {
            Some(flags) => {
                flags[index / (view.inner * view.channels) * view.inner + index % view.inner]
            }
            None => true,
        };
        let zeros = || Array1::<f64>::zeros(view.channels);
        let (mut count, mut mean, mut var) = (0.0, zeros(), zeros());
        for index in 0..x.len() {
            if counts(index) {
                mean[channel(index)] += x[index] - pivot;
                count += 1.0 / view.channels as f64;
            }
        }
        let count: f64 = f64::round(count);
        mean.mapv_inplace(|sum| if count > 0.0 { sum / count } else { 0.0 });
        for index in 0..x.len() {
            if counts(index) {
                let apart = x[index] - pivot - mean[channel(index)];
                var[channel(index)] += apart * apart / count;
            }
        }
        let x_hat = |index: usize| {
            let channel = channel(index);
            (x[index] - pivot - mean[channel]) / (var[channel] + self.affine.eps).sqrt()
        };
        let mut found = Found {
            gamma: zeros(),
            beta: zeros(),
            y: ArrayD::zeros(shape.dims()),
            g: ArrayD::zeros(shape.dims()),
            dx: ArrayD::zeros(shape.dims()),
            mean: &mean + pivot,
            var: var.clone(),
        };
        for (index, (y, g)) in found.y.iter_mut().zip(&mut found.g).enumerate() {
            let (gamma, beta) = (&self.affine.gamma, &self.affine.beta);
            let z = x_hat(index) * gamma[channel(index)] + beta[channel(index)];
            let z = z + residual.as_ref().map_or(0.0, |residual| residual[index]);
            *y = self.affine.activation.apply(z);
            *g = self.affine.activation.gradient(dy[index], z);
            found.beta[channel(index)] += *g;
            found.gamma[channel(index)] += *g * x_hat(index);
        }
        for (index, (dx, g)) in found.dx.iter_mut().zip(&found.g).enumerate() {
            let channel = channel(index);
            let scale = self.affine.gamma[channel] / (var[channel] + self.affine.eps).sqrt();
            let through = match counts(index) {
                true => (found.beta[channel] + x_hat(index) * found.gamma[channel]) / count,
                false => 0.0,
            };
            *dx = scale * (g - through);
        }
        Ok(found)
    }
}

fn close<'a>(
    what: &str,
    found: impl IntoIterator<Item = &'a f64>,
    expected: impl IntoIterator<Item = &'a f64> + Clone,
    allowed: f64,
) -> Outcome {
    let allowed = allowed * largest(expected.clone()).max(1.0);
    let mut found = found.into_iter();
    for (index, expected) in expected.into_iter().enumerate() {
        let found = found.next().ok_or("it is too short")?;
        ensure!(
            (found - expected).abs() <= allowed,
            "{what}[{index}] is {found:e}, expected {expected:e}"
        );
    }
    ensure!(found.next().is_none(), "{what} is too long");
    Ok(())
}

/// Fails unless both ways agree to what f64 holds of `offset`.
fn agree(case: &Case<f64>, offset: f64) -> Outcome {
    let (found, expected) = (case.found()?, case.plain(offset)?);
    // One unit in the last place of the offset, in units of the deviation, which is about 1 but for
    // `eps`; and the roundings of the sums.
    let allowed = 1e-11 + 4.0 * f64::EPSILON * offset;
    close("mean", &found.mean, &expected.mean, 1e-13)?;
    close("var", &found.var, &expected.var, 1e-11)?;
    close("y", &found.y, &expected.y, 10.0 * allowed)?;
    let near_an_edge = case.affine.activation != Activation::Identity;
    ensure!(!near_an_edge || found.g == expected.g, "g");
    // A mean that is off by a unit is so in every term.
    let count = case.x.len() as f64 / found.gamma.len() as f64;
    let terms = 1e-11 + 4.0 * f64::EPSILON * offset * count;
    close("dgamma", &found.gamma, &expected.gamma, 10.0 * terms)?;
    close("dbeta", &found.beta, &expected.beta, 1e-12)?;
    close("dx", &found.dx, &expected.dx, 10.0 * allowed)
}

/// Around the sizes of vectors, groups, batches, rows and blocks, with and without all that there may
/// be.
#[test]
fn every_tail_is_computed() -> Outcome {
    let mut shapes = Vec::new();
    for inner in [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 49, 511, 513] {
        for (outer, channels) in [(1, 1), (3, 2), (5, 3), (2, 5), (40, 1)] {
            shapes.push((vec![outer, channels, inner], Layout::ChannelsFirst));
            shapes.push((vec![outer, inner, channels], Layout::ChannelsLast));
        }
    }
    // Rows that are joined or not, and parts of rows.
    for channels in [85, 86, 128, 129, 255, 256, 257, 1023, 1025, 2100] {
        shapes.push((vec![7, channels], Layout::ChannelsFirst));
        shapes.push((vec![3, channels, 2], Layout::ChannelsFirst));
    }
    // Several blocks, in each dimension.
    shapes.push((vec![1, 2, 70_001], Layout::ChannelsFirst));
    shapes.push((vec![90, 1, 1_001], Layout::ChannelsFirst));
    shapes.push((vec![2, 90, 501], Layout::ChannelsFirst));
    shapes.push((vec![30_001, 3], Layout::ChannelsLast));
    shapes.push((vec![80, 1_100], Layout::ChannelsLast));
    for (dims, layout) in shapes {
        for offset in [0.0, 1e6] {
            let case = || Case::<f64>::new(&dims, layout, offset);
            for (all, case) in [(false, case()?), (true, case()?.with_all())] {
                agree(&case, offset)
                    .map_err(|error| format!("{dims:?} {layout:?} {offset:e} {all}: {error}"))?;
            }
        }
    }
    Ok(())
}

/// Where there is nothing, there is nothing to compute.
#[test]
fn empty_tensors_are_computed() -> Outcome {
    for dims in [[0, 3, 4], [2, 3, 0]] {
        let found = Case::<f64>::new(&dims, Layout::ChannelsFirst, 0.0)?.found()?;
        assert_eq!(found.y.shape(), dims);
        assert_eq!(found.dx.shape(), dims);
        assert_eq!(found.mean, Array1::<f64>::zeros(3));
    }
    Ok(())
}

/// What is stored in fewer bits is what f64 gives, rounded once, by the conversion that
/// `src/cpu/element.rs` tests.
#[test]
fn every_type_is_rounded_once() -> Outcome {
    fn rounded<T: Element + std::fmt::Debug + PartialEq>() -> Outcome {
        for (dims, layout) in [
            (vec![3, 5, 49], Layout::ChannelsFirst),
            (vec![11, 37], Layout::ChannelsLast),
        ] {
            let case = Case::<T>::new(&dims, layout, 0.0)?.with_all();
            let wide = |array: &ArrayD<T>| array.mapv(T::to_f64);
            let exact = Case::<f64> {
                layout,
                x: wide(&case.x),
                dy: wide(&case.dy),
                residual: case.residual.as_ref().map(wide),
                valid: case.valid.clone(),
                affine: case.affine.clone(),
            };
            let (found, exact) = (case.found()?, exact.found()?);
            let narrow = |array: &ArrayD<f64>| array.mapv(T::from_f64);
            assert_eq!(found.y, narrow(&exact.y));
            assert_eq!(found.g, narrow(&exact.g));
            assert_eq!(found.dx, narrow(&exact.dx));
            assert_eq!(
                (found.mean, found.var, found.gamma, found.beta),
                (exact.mean, exact.var, exact.gamma, exact.beta)
            );
        }
        Ok(())
    }
    rounded::<f32>()?;
    rounded::<half::f16>()?;
    rounded::<half::bf16>()
}

/// Large enough for several threads, and for blocks that are merged.
#[test]
fn results_have_the_same_bits_on_any_number_of_threads() -> Outcome {
    for (dims, layout) in [
        (vec![6, 5, 2_503], Layout::ChannelsFirst),
        (vec![9, 200, 49], Layout::ChannelsFirst),
        // One thread, or two, go by groups of channels; three find too few of them.
        (vec![5, 528, 64], Layout::ChannelsFirst),
        (vec![1, 2, 70_001], Layout::ChannelsFirst),
        (vec![9_001, 7], Layout::ChannelsLast),
        (vec![90, 1_030], Layout::ChannelsLast),
    ] {
        for all in [false, true] {
            let case = Case::<f32>::new(&dims, layout, 100.0)?;
            let case = if all { case.with_all() } else { case };
            let on = |threads| -> Result<_, Box<dyn std::error::Error>> {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()?;
                Ok(pool.install(|| case.found())?)
            };
            let one = on(1)?;
            for threads in [2, 3] {
                ensure!(on(threads)? == one, "{dims:?}, {threads} threads");
            }
        }
    }
    Ok(())
}

/// The whole pass is its steps.
#[test]
fn the_whole_backward_pass_is_its_steps() -> Outcome {
    for (dims, layout) in [
        (vec![3, 5, 49], Layout::ChannelsFirst),
        (vec![40, 7], Layout::ChannelsLast),
    ] {
        let case = Case::<f64>::new(&dims, layout, 0.0)?.with_all();
        let (x, valid, affine) = (&case.x, case.valid.as_ref(), &case.affine);
        let residual = case.residual.as_ref();
        let batch = cpu::moments(x, layout, valid)?.statistics();
        let constant = Statistics::constant(batch.mean.clone(), batch.var.clone());
        for statistics in [&batch, &constant] {
            let g = cpu::activation_gradient(x, &case.dy, layout, statistics, affine, residual)?;
            let sums = cpu::gradients(x, &g, layout, statistics, affine.eps, valid)?;
            let (eps, gamma) = (affine.eps, &affine.gamma);
            let dx = cpu::input_gradient(x, &g, layout, statistics, eps, gamma, &sums, valid)?;
            for bits in 0..16 {
                let [of_x, of_residual, of_gamma, of_beta] = [1, 2, 4, 8].map(|bit| bits & bit > 0);
                let wanted = Wanted {
                    x: of_x,
                    residual: of_residual,
                    gamma: of_gamma,
                    beta: of_beta,
                };
                let (found, parameters) = cpu::backward(
                    x, &case.dy, layout, statistics, affine, residual, valid, &wanted,
                )?;
                let zeros = || Array1::zeros(gamma.len());
                let or = |is, sums: &Array1<f64>| if is { sums.clone() } else { zeros() };
                assert_eq!(
                    parameters,
                    ParameterGradients {
                        gamma: or(of_gamma, &sums.gamma),
                        beta: or(of_beta, &sums.beta),
                    }
                );
                assert_eq!(found.dx, of_x.then(|| dx.clone()));
                assert_eq!(found.residual, of_residual.then(|| g.clone()));
            }
        }
    }
    Ok(())
}
