//! The update and the product of one sample: the weights of the promise, which are mostly those of a product of depth 1, and the sums of the
//! promised lanes, to the bit.

mod common;

use common::*;
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::isa::Isa;
use dualprop_kernels::online::{self, online};
use dualprop_kernels::optimizer::{Decay, Descent, Optimizer, Update};
use dualprop_kernels::threads::SEQUENTIAL;
use dualprop_reference::bound::{Bounded, dot};
use dualprop_reference::generate::{Family, generate};
use faer::Par;

tests_of_both_types!(
    every_tail_and_layout,
    rows_that_look_alike_go_abreast,
    large_weights_are_shared_out,
    weights_from_memory,
    a_rate_that_does_not_fit_is_not_folded,
    nan_stays_in_its_row,
    misuse_panics
);

/// The last one makes 0/0 of what is not there.
const OPTIMIZERS: [Optimizer; 4] =
    [Optimizer::Sgd, Optimizer::MOMENTUM, Optimizer::ADAM, Optimizer::Adam { beta1: 0.9, beta2: 0.999, epsilon: 0.0 }];
const DECAYS: [Decay; 3] = [Decay::None, Decay::Coupled(5e-4), Decay::Decoupled(1e-2)];

fn vector<T: Scalar>(family: Family, len: usize, seed: u64) -> Vec<T> {
    generate(family, len, seed, T::PRECISION).into_iter().map(T::from_f64).collect()
}

/// Operands of one call.
struct Step<T> {
    /// Weights and as many moments as there may be.
    parameters: Vec<Grid<T>>,
    diff: Vec<T>,
    mean: Vec<T>,
    next: Vec<T>,
}

impl<T: Scalar> Step<T> {
    fn new(m: usize, n: usize, family: Family, seed: u64) -> Self {
        let parameter = |k: u64| Grid::random(m, n, family, seed + k).map(|x: T| if k == 2 { x.abs() } else { x });
        let vector = |len: usize, k: u64| vector(family, len, seed + k);
        Self { parameters: (0..3).map(parameter).collect(), diff: vector(m, 3), mean: vector(n, 4), next: vector(n, 5) }
    }

    /// Parameters and image after the step.
    fn run(&self, isa: Isa, par: Par, layout: Layout, update: Update) -> (Vec<Grid<T>>, Vec<T>) {
        let mut new = self.laid(layout, update);
        let mut image = vec![T::CANARY; self.diff.len()];
        let (weights, moments) = new.split_first_mut().expect("weights");
        let descent = Descent::new(weights.view_mut(), moments.iter_mut().map(Grid::view_mut), update);
        online(isa, par, descent, &self.diff, &self.mean, &self.next, &mut image);
        (new, image)
    }

    /// The parameters that the optimizer has.
    fn laid(&self, layout: Layout, update: Update) -> Vec<Grid<T>> {
        self.parameters[..=update.optimizer.moments()].iter().map(|grid| grid.relaid(layout)).collect()
    }

    /// `η·scale·δ`, if it comes before the product with `s̄`.
    fn folded(&self, update: Update) -> Option<Vec<T>> {
        let is_plain = update.optimizer == Optimizer::Sgd && !matches!(update.decay, Decay::Coupled(_));
        let rate = T::from_f64(update.learning_rate * update.scale);
        let is_kept = |d: T| {
            let factor = (rate * d).to_f64().abs();
            d == T::ZERO || factor >= T::NORMAL && factor.is_finite()
        };
        (is_plain && self.diff.iter().all(|&d| is_kept(d))).then(|| self.diff.iter().map(|&d| rate * d).collect())
    }

    /// Parameters by the formula if the rate is folded into `δ`, else after a product of depth 1.
    fn updated(&self, update: Update) -> Vec<Grid<T>> {
        let (m, n) = (self.diff.len(), self.mean.len());
        let mut new = self.laid(Layout::default(), update);
        if let Some(diff) = self.folded(update) {
            let keep =
                T::from_f64(if let Decay::Decoupled(lambda) = update.decay { 1.0 - update.learning_rate * lambda } else { 1.0 });
            let (old, diff) = (&self.parameters[0], &diff);
            let weight = |i: usize, j: usize| (-diff[i]).mul_add(self.mean[j], keep * old.get(i, j));
            return vec![Grid::from_fn(m, n, Layout::default(), weight)];
        }
        let (weights, moments) = new.split_first_mut().expect("weights");
        let descent = Descent::new(weights.view_mut(), moments.iter_mut().map(Grid::view_mut), update);
        let diff = Grid::from_fn(m, 1, Layout::default(), |i, _| self.diff[i]);
        let mean = Grid::from_fn(1, n, Layout::default(), |_, j| self.mean[j]);
        Call::plain().product(Isa::best(), &diff, &mean, Epilogue::Update(descent));
        new
    }

    /// The products of the weights with `next`, in the order of the promise.
    fn image(&self, weights: &Grid<T>) -> Vec<T> {
        let lanes = 64 / size_of::<T>();
        let of_row = |i: usize| {
            let mut sums = vec![T::ZERO; lanes];
            for (j, &x) in self.next.iter().enumerate() {
                sums[j % lanes] = weights.get(i, j).mul_add(x, sums[j % lanes]);
            }
            // Lanes behind the last column take part in its line.
            let rest = self.next.len().next_multiple_of(lanes) - self.next.len();
            sums[lanes - rest..].iter_mut().for_each(|sum| *sum = T::ZERO.mul_add(T::ZERO, *sum));
            let mut half = lanes / 2;
            while half > 0 {
                (0..half).for_each(|l| sums[l] = sums[l] + sums[l + half]);
                half /= 2;
            }
            sums[0]
        };
        (0..self.diff.len()).map(of_row).collect()
    }

    /// Fails unless a call has the bits of the promise.
    fn check(&self, isa: Isa, par: Par, layout: Layout, update: Update) {
        let what = format!("{isa} {layout:?} {update:?}");
        let wanted = self.updated(update);
        let (new, image) = self.run(isa, par, layout, update);
        let mut alone = self.laid(layout, update);
        let (weights, moments) = alone.split_first_mut().expect("weights");
        let descent = Descent::new(weights.view_mut(), moments.iter_mut().map(Grid::view_mut), update);
        online::update(isa, par, descent, &self.diff, &self.mean);
        let mut transposed = self.laid(layout, update);
        let (weights, moments) = transposed.split_first_mut().expect("weights");
        let descent = Descent::new(weights.view_mut(), moments.iter_mut().map(Grid::view_mut), update);
        let Epilogue::Update(descent) = Epilogue::Update(descent).transposed() else { unreachable!("transposed") };
        online::update(isa, par, descent, &self.mean, &self.diff);
        for got in [new, alone, transposed] {
            for (got, wanted) in got.iter().zip(&wanted) {
                got.check_bits(wanted, &what).unwrap();
            }
        }
        for (i, (&got, wanted)) in image.iter().zip(self.image(&wanted[0])).enumerate() {
            assert!(same(got, wanted), "product {i} is {got:e}, not {wanted:e}: {what}");
        }
    }
}

fn every_tail_and_layout<T: Scalar>() {
    let tally = Tally::default();
    let mut updates = OPTIMIZERS
        .into_iter()
        .flat_map(|optimizer| DECAYS.map(|decay| Update { optimizer, decay, learning_rate: 0.1, step: 2, scale: -0.5 }))
        .cycle();
    let mut layouts = Layout::all().collect::<Vec<_>>().into_iter().cycle();
    for m in 0..=9 {
        for n in (0..=70).chain([127, 128, 129, 256, 261]) {
            let step = Step::<T>::new(m, n, Family::ALL[(m + n) % 6], (100 * m + n) as u64);
            for isa in Isa::available() {
                for layout in [Layout::default(), layouts.next().expect("a cycle")] {
                    step.check(isa, Par::Seq, layout, updates.next().expect("a cycle"));
                }
            }
            let update = updates.next().expect("a cycle");
            let (new, image) = step.run(Isa::best(), Par::Seq, Layout::default(), update);
            for (i, got) in image.iter().enumerate() {
                let pairs = (0..n).map(|j| [new[0].get(i, j), step.next[j]].map(|x| T::PRECISION.exact(x.to_f64())));
                // The bound is for any order.
                let bound: Bounded = dot(T::PRECISION, pairs.map(|[w, x]| (w, x)));
                tally.check_one(bound, got.to_f64(), &(m, n, update)).unwrap();
            }
        }
    }
    tally.conclude::<T>("image");
}

/// Rows of a group are whole pages apart: some rows and columns are left over or not, one group or many.
fn rows_that_look_alike_go_abreast<T: Scalar>() {
    for (m, n) in [(4099, 35), (4096, 19), (9, 512), (4, 1024), (18, 1024)] {
        assert!((m / 4 * n * size_of::<T>()).is_multiple_of(4096), "whole pages apart");
        let step = Step::<T>::new(m, n, Family::Uniform, 1);
        for (isa, optimizer) in Isa::available().flat_map(|isa| OPTIMIZERS.map(|rule| (isa, rule))) {
            let update = Update { optimizer, decay: Decay::Decoupled(1e-2), learning_rate: 0.1, step: 2, scale: -0.5 };
            step.check(isa, Par::Seq, Layout::default(), update);
        }
    }
}

fn large_weights_are_shared_out<T: Scalar>() {
    for (m, n) in [(517, 1025), (517, 1024)] {
        assert!(4 * m * n >= SEQUENTIAL, "shared out");
        let step = Step::<T>::new(m, n, Family::Uniform, 1);
        for (isa, optimizer) in Isa::available().flat_map(|isa| [Optimizer::Sgd, Optimizer::ADAM].map(|rule| (isa, rule))) {
            for threads in [2, 3, 7] {
                let update = Update { optimizer, decay: Decay::None, learning_rate: 0.1, step: 2, scale: -0.5 };
                step.check(isa, Par::rayon(threads), Layout::default(), update);
            }
        }
    }
}

/// More weights than caches hold; rows and columns left over.
fn weights_from_memory<T: Scalar>() {
    let (m, n) = (1029, (17 << 20) / 1029 / size_of::<T>() + 5);
    let step = Step::<T>::new(m, n, Family::Uniform, 1);
    for (isa, optimizer) in Isa::available().flat_map(|isa| [Optimizer::Sgd, Optimizer::MOMENTUM].map(|rule| (isa, rule))) {
        let update = Update { optimizer, decay: Decay::Decoupled(1e-2), learning_rate: 0.1, step: 2, scale: -0.5 };
        step.check(isa, Par::Seq, Layout::default(), update);
    }
}

/// A rate is not folded into `δ` where its product with it loses digits or is infinite, though `s̄` brings both back; zeros lose nothing.
fn a_rate_that_does_not_fit_is_not_folded<T: Scalar>() {
    let update = |rate: f64| Update { optimizer: Optimizer::Sgd, decay: Decay::None, learning_rate: rate, step: 1, scale: 1.0 };
    let tiny = T::NORMAL;
    let huge = 0.25 / tiny;
    for (rate, diff, mean, is_folded) in [
        // Half of it has a digit less.
        (0.5, 1.1 * tiny, huge, false),
        (0.5, 2.2 * tiny, huge, true),
        (0.5, 0.0, huge, true),
        (0.5, -0.0, huge, true),
        (1e6, huge, tiny, false),
        (1.0, huge, tiny, true),
        (0.5, f64::NAN, 1.0, false),
        (0.5, f64::INFINITY, 1.0, false),
    ] {
        let mut step = Step::<T>::new(9, 40, Family::Uniform, 1);
        step.diff[5] = T::from_f64(diff);
        step.mean.fill(T::from_f64(mean));
        assert_eq!(step.folded(update(rate)).is_some(), is_folded, "{rate:e} · {diff:e}");
        for isa in Isa::available() {
            step.check(isa, Par::Seq, Layout::default(), update(rate));
        }
    }
}

/// NaN in one weight is in that weight and in the product of its row.
fn nan_stays_in_its_row<T: Scalar>() {
    let update = Update { optimizer: Optimizer::Sgd, decay: Decay::None, learning_rate: 0.1, step: 1, scale: -0.5 };
    for isa in Isa::available() {
        for (row, col) in [(0, 0), (4, 16), (6, 34)] {
            let mut step = Step::<T>::new(7, 35, Family::Uniform, 1);
            step.parameters[0].set(row, col, T::from_f64(f64::NAN));
            let (new, image) = step.run(isa, Par::Seq, Layout::default(), update);
            for i in 0..7 {
                assert_eq!(image[i].to_f64().is_nan(), i == row, "product {i} on {isa}");
                for j in 0..35 {
                    assert_eq!(new[0].get(i, j).to_f64().is_nan(), (i, j) == (row, col), "weight ({i}, {j}) on {isa}");
                }
            }
        }
    }
}

fn misuse_panics<T: Scalar>() {
    let update = Update { optimizer: Optimizer::MOMENTUM, decay: Decay::None, learning_rate: 0.1, step: 1, scale: 1.0 };
    let step = |m, n| Step::<T>::new(m, n, Family::Uniform, 1);
    let run = |step: &Step<T>| step.run(Isa::best(), Par::Seq, Layout::default(), update);
    let (short, long) = (step(4, 8), step(5, 9));
    for (part, wrong) in [
        ("each row", Step { diff: short.diff, ..step(5, 9) }),
        ("each column", Step { mean: short.mean, ..step(5, 9) }),
        ("each column", Step { next: short.next, ..step(5, 9) }),
        (
            "shape of the weights",
            Step { parameters: vec![long.parameters[0].clone(), short.parameters[1].clone()], ..step(5, 9) },
        ),
    ] {
        assert_panics(part, || {
            run(&wrong);
        });
    }
}
