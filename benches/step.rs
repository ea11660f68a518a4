//! Whole training steps with Adam, all of them on the same batch, and inference of many samples.

mod common;

use std::cell::OnceCell;

use common::passes::{Adam, BiasRelu, Mask, pass};
use common::peers::Peer;
use common::{Bench, By, Expected, RowMajor, Scalar, Work};
use dualprop::network::{Init, Method, Network, Schedule, Settings, Targets, Trainer};
use dualprop::{Activation, Par, Runtime};
use dualprop_reference as reference;
use dualprop_reference::bound::Bounded;
use reference::network::Gradients;
use reference::product::Matrix;

const BATCH: usize = 50;
const CLASSES: usize = 10;
const SAMPLES: usize = 10_000;

/// So small that the network stays what it is however often criterion calls.
const RATE: f64 = 1e-6;

fn main() {
    let mut bench = Bench::new();
    for widths in [[64, 128, 128, CLASSES], [784, 128, 128, CLASSES], [784, 512, 512, CLASSES]] {
        let problem = Problem::new(&widths);
        problem.rows(&mut bench, "back-propagation", Method::Backprop, Schedule::Rounds(0));
        // With a small β it has the gradient of back-propagation, up to a few units near their kinks.
        let method = Method::DpTranspose { alpha: 0.5, beta: 1e-3 };
        problem.rows(&mut bench, "DPt one up, one down", method, Schedule::Rounds(0));
        problem.rows(&mut bench, "DPt 5 rounds", method, Schedule::Rounds(5));
        problem.inference(&mut bench);
    }
    bench.finish();
}

/// A network and a batch.
struct Problem {
    network: Network<f32>,
    x: RowMajor<f32>,
    labels: Vec<u32>,
    /// Of back-propagation, by the reference.
    expected: OnceCell<(Bounded, Gradients)>,
}

impl Problem {
    fn new(widths: &[usize]) -> Self {
        let mut network = Network::new(widths, Activation::Relu, true).expect("sound widths");
        network.initialize(Init::LecunNormal, 1);
        let labels = (0..BATCH).map(|i| (i % CLASSES) as u32).collect();
        Self { network, x: RowMajor::uniform(BATCH, widths[0], 1.0, 2), labels, expected: OnceCell::new() }
    }

    fn rows(&self, bench: &mut Bench, name: &str, method: Method, schedule: Schedule) {
        let widths = self.network.widths();
        let net: Vec<String> = widths.iter().map(usize::to_string).collect();
        let runtime = Runtime::new(bench.isa, Par::Seq);
        let mut group = bench.group(&format!("step/{name} {} B={BATCH}", net.join("-")), work(widths, schedule));

        let settings = Settings { schedule, ..Settings::new(method) };
        let make = || (Trainer::new(self.network.clone(), &settings, BATCH, &runtime).expect("sound settings"), 0.0);
        let run = |(trainer, loss): &mut (Trainer<f32>, f64)| {
            *loss = trainer.step(self.x.view(), Targets::Classes(&self.labels), RATE).expect("a sound batch").loss;
        };
        let check = |(trainer, loss): &mut (Trainer<f32>, f64)| {
            let gradients = (0..self.network.layers()).map(|k| {
                let mut gradient = RowMajor::zeros(widths[k + 1], widths[k]);
                trainer.gradient(k, gradient.view_mut(), &mut vec![0.0; widths[k + 1]]).expect("a layer of weights");
                gradient
            });
            self.check(method, *loss, &gradients.collect::<Vec<_>>());
        };
        group.row(By::Dualprop, "", make, run, check);
        if method == Method::Backprop {
            for peer in Peer::ALL {
                let run = |naive: &mut Naive| naive.step(&self.x, &self.labels);
                let check = |naive: &mut Naive| self.check(method, naive.loss, &naive.gradients);
                group.row(By::Peer(peer), "and passes", || Naive::new(peer, &self.network), run, check);
            }
        }
    }

    /// Compares loss and gradients with those of the reference.
    fn check(&self, method: Method, loss: f64, gradients: &[RowMajor<f32>]) {
        let (expected_loss, expected) = self.expected.get_or_init(|| self.reference());
        assert!((loss - expected_loss.value).abs() <= 1e-5, "the loss is {loss:e}, expected {:e}", expected_loss.value);
        for (got, expected) in gradients.iter().zip(&expected.weights) {
            if method == Method::Backprop {
                Expected::new(got.rows(), got.cols(), |i, j| expected[(i, j)]).check(got, 0.0);
            }
            let cosine = cosine(&got.values(), &expected.values());
            assert!(cosine > 0.9999, "the cosine to back-propagation is {cosine}");
        }
    }

    /// Outputs for many samples.
    fn inference(&self, bench: &mut Bench) {
        let widths = self.network.widths();
        let net: Vec<String> = widths.iter().map(usize::to_string).collect();
        let runtime = Runtime::new(bench.isa, Par::Seq);
        let products: usize = widths.windows(2).map(|pair| pair[0] * pair[1]).sum();
        let work = Work { flops: 2 * SAMPLES * products, bytes: 4 * (products + SAMPLES * (widths[0] + CLASSES)) };
        let mut group = bench.group(&format!("inference/{} samples {}", SAMPLES, net.join("-")), work);

        let x = RowMajor::<f32>::uniform(SAMPLES, widths[0], 1.0, 3);
        let expected = OnceCell::new();
        let reference = || {
            let places = [0, SAMPLES / 2, SAMPLES - 1];
            let few = Matrix::from_fn(places.len(), widths[0], |i, j| x.exact(places[i], j));
            let nothing = Matrix::from_fn(places.len(), CLASSES, |_, _| f32::PRECISION.exact(0.0));
            let outputs = self.slow().infer(&RECIPE, &few, &nothing, None).prediction;
            Expected::new(SAMPLES, CLASSES, |i, j| outputs[(places.iter().position(|&at| at == i).expect("a place"), j)])
        };
        let check = |out: &RowMajor<f32>| expected.get_or_init(reference).check(out, 0.0);
        let settings = Settings::new(Method::Backprop);
        let make = || {
            let trainer = Trainer::new(self.network.clone(), &settings, BATCH, &runtime).expect("sound settings");
            (trainer, RowMajor::zeros(SAMPLES, CLASSES))
        };
        let run = |(trainer, out): &mut (Trainer<f32>, RowMajor<f32>)| {
            trainer.predict(x.view(), out.view_mut()).expect("shapes that fit");
        };
        group.row(By::Dualprop, "", make, run, |(_, out)| check(out));
        for peer in Peer::ALL {
            let units = || widths[1..].iter().map(|&n| RowMajor::zeros(SAMPLES, n)).collect::<Vec<_>>();
            let run = |(drives, means): &mut (Vec<RowMajor<f32>>, Vec<RowMajor<f32>>)| {
                for k in 0..drives.len() {
                    let below = if k == 0 { &x } else { &means[k - 1] };
                    peer.product(drives[k].view_mut(), 0.0, 1.0, below.view(), self.network.weights(k).transpose());
                    let bias = self.network.bias(k).expect("a network with biases");
                    pass(BiasRelu { drive: &mut drives[k], mean: &mut means[k], bias });
                }
            };
            let check = |(drives, _): &mut (Vec<RowMajor<f32>>, _)| check(drives.last().expect("a layer"));
            group.row(By::Peer(peer), "and passes", || (units(), units()), run, check);
        }
    }

    fn reference(&self) -> (Bounded, Gradients) {
        let network = self.slow();
        let x = Matrix::from_fn(BATCH, self.x.cols(), |i, j| self.x.exact(i, j));
        let hot = |i: usize, j: usize| f32::PRECISION.exact(f64::from(u8::from(self.labels[i] as usize == j)));
        let y = Matrix::from_fn(BATCH, CLASSES, hot);
        let states = network.infer(&RECIPE, &x, &y, None);
        (RECIPE.loss.mean(&states.prediction, &y), network.gradients(&RECIPE, &states))
    }

    /// The network of the reference.
    fn slow(&self) -> reference::network::Network {
        let layers = 0..self.network.layers();
        let values = |k| {
            let weights = self.network.weights(k);
            (0..weights.nrows()).flat_map(|i| (0..weights.ncols()).map(move |j| f64::from(weights[(i, j)]))).collect()
        };
        let weights: Vec<Vec<f64>> = layers.clone().map(values).collect();
        let bias = |k| self.network.bias(k).expect("a network with biases").iter().map(|&b| f64::from(b)).collect();
        let biases: Vec<Vec<f64>> = layers.map(bias).collect();
        let relu = reference::activation::Activation::Relu;
        reference::network::Network::new(f32::PRECISION, relu, self.network.widths(), &weights, Some(&biases))
    }
}

const RECIPE: reference::network::Recipe = reference::network::Recipe {
    method: reference::network::Method::Backprop,
    loss: reference::output::Loss::Squared,
    output: reference::network::Output::LinearisedCurrent,
    schedule: reference::schedule::Schedule::Rounds(0),
};

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The products of a step: all weights forward and in the gradient; all but the first back; and in a round all but the first back and forward.
fn work(widths: &[usize], schedule: Schedule) -> Work {
    let sizes: Vec<usize> = widths.windows(2).map(|pair| pair[0] * pair[1]).collect();
    let from = |k: usize| sizes[k..].iter().sum::<usize>();
    let rounds = if let Schedule::Rounds(rounds) = schedule { rounds } else { 0 };
    let products = 2 * from(0) + from(1) + 2 * rounds * from(1);
    // Adam reads and writes weights and two moments; before that the weights were read up and down.
    Work { flops: 2 * BATCH * products, bytes: 4 * (7 * from(0) + from(1)) }
}

/// A back-propagation step as one writes it around a matrix product.
struct Naive {
    peer: Peer,
    weights: Vec<RowMajor<f32>>,
    biases: Vec<RowMajor<f32>>,
    moments: Vec<Vec<RowMajor<f32>>>,
    bias_moments: Vec<Vec<RowMajor<f32>>>,
    gradients: Vec<RowMajor<f32>>,
    bias_gradients: Vec<RowMajor<f32>>,
    drives: Vec<RowMajor<f32>>,
    means: Vec<RowMajor<f32>>,
    diffs: Vec<RowMajor<f32>>,
    loss: f64,
    steps: i32,
}

impl Naive {
    fn new(peer: Peer, network: &Network<f32>) -> Self {
        let widths = network.widths();
        let layers = 0..network.layers();
        let weights = |k: usize| RowMajor::copied(network.weights(k));
        let zeros = |k: usize| RowMajor::zeros(widths[k + 1], widths[k]);
        let row = |k: usize| RowMajor::zeros(1, widths[k + 1]);
        let units = || layers.clone().map(|k| RowMajor::zeros(BATCH, widths[k + 1])).collect();
        Self {
            peer,
            weights: layers.clone().map(weights).collect(),
            biases: layers.clone().map(row).collect(),
            moments: layers.clone().map(|k| vec![zeros(k); 2]).collect(),
            bias_moments: layers.clone().map(|k| vec![row(k); 2]).collect(),
            gradients: layers.clone().map(zeros).collect(),
            bias_gradients: layers.clone().map(row).collect(),
            drives: units(),
            means: units(),
            diffs: units(),
            loss: 0.0,
            steps: 0,
        }
    }

    fn step(&mut self, x: &RowMajor<f32>, labels: &[u32]) {
        self.steps += 1;
        let last = self.weights.len() - 1;
        for k in 0..=last {
            let below = if k == 0 { x } else { &self.means[k - 1] };
            self.peer.product(self.drives[k].view_mut(), 0.0, 1.0, below.view(), self.weights[k].view().transpose());
            pass(BiasRelu { drive: &mut self.drives[k], mean: &mut self.means[k], bias: self.biases[k].row(0) });
        }
        self.loss = 0.0;
        for row in 0..BATCH {
            for (j, (diff, &a)) in self.diffs[last].row_mut(row).iter_mut().zip(self.drives[last].row(row)).enumerate() {
                *diff = if labels[row] as usize == j { 1.0 - a } else { -a };
                self.loss += f64::from(*diff * *diff) / (2 * BATCH) as f64;
            }
        }
        for k in (0..last).rev() {
            let [here, above] = self.diffs.get_disjoint_mut([k, k + 1]).expect("two layers");
            self.peer.product(here.view_mut(), 0.0, 1.0, above.view(), self.weights[k + 1].view());
            pass(Mask { diff: here, drive: &self.drives[k] });
        }
        for k in 0..=last {
            let below = if k == 0 { x } else { &self.means[k - 1] };
            let scale = -1.0 / BATCH as f32;
            self.peer.product(self.gradients[k].view_mut(), 0.0, scale, self.diffs[k].view().transpose(), below.view());
            let sums = self.bias_gradients[k].row_mut(0);
            sums.fill(0.0);
            for row in 0..BATCH {
                sums.iter_mut().zip(self.diffs[k].row(row)).for_each(|(sum, diff)| *sum += scale * diff);
            }
            adam(&mut self.weights[k], &mut self.moments[k], &self.gradients[k], self.steps);
            adam(&mut self.biases[k], &mut self.bias_moments[k], &self.bias_gradients[k], self.steps);
        }
    }
}

fn adam(weights: &mut RowMajor<f32>, moments: &mut [RowMajor<f32>], gradient: &RowMajor<f32>, step: i32) {
    pass(Adam { weights, moments, gradient, keep: 1.0, rate: RATE as f32, step });
}
