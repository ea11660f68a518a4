//! Products at the limits of what is exact and of what is a number: integers whose sums just fit the significand, on any number of
//! threads; and infinities and NaN at every place of every operand that an epilogue reads.
//!
//! Smaller integers over all tails are in `product.rs` and, with every epilogue, in `guard.rs`, which also proves that what is
//! overwritten is not read.

mod common;

use common::{Call, Cut, Form, Grid, Layout, Scalar, tests_of_both_types};
use dualprop_kernels::activation::Activation;
use dualprop_kernels::epilogue::{Epilogue, Nudge};
use dualprop_kernels::isa::Isa;
use dualprop_kernels::optimizer::{Decay, Descent, Optimizer, Update};
use dualprop_kernels::product::Blocking;
use dualprop_kernels::threads::SEQUENTIAL;
use dualprop_reference::generate::{Family, SplitMix64};
use faer::Par;
use rayon::ThreadPoolBuilder;

tests_of_both_types!(large_integers_are_exact, exceptional_operands);

/// Integers as large as sums of `depth` products below 2²⁴ (2⁵³) allow, for small products and shared ones.
fn large_integers_are_exact<T: Scalar>() {
    let pools = [1, 2, 3, 4, 7, 8, 16].map(|threads| ThreadPoolBuilder::new().num_threads(threads).build().expect("threads"));
    let limit = 1.0 / T::UNIT_ROUNDOFF;
    for (seed, [m, n, depth]) in [[17, 97, 3], [5, 33, 64], [9, 50, 1], [129, 131, 127], [19, 337, 331]].into_iter().enumerate() {
        let largest = (limit / depth as f64).sqrt() as u64;
        let mut random = SplitMix64::new(seed as u64);
        let mut matrix = |rows, cols| {
            Grid::from_fn(rows, cols, Layout::default(), |_, _| {
                // Half of them at the limit.
                let size = if random.bits() & 1 == 0 { largest } else { random.below(largest + 1) };
                T::from_f64(if random.bits() & 1 == 0 { size as f64 } else { -(size as f64) })
            })
        };
        let (rows, lanes) = (matrix(m, depth), matrix(depth, n));
        let integer = |x: T| x.to_f64() as i64;
        let sum = |i, j| (0..depth).map(|p| integer(rows.get(i, p)) * integer(lanes.get(p, j))).sum::<i64>();
        let wanted = Grid::from_fn(m, n, Layout::default(), |i, j| T::from_f64(sum(i, j) as f64));
        let exact = |i, j| integer(wanted.get(i, j)) == sum(i, j);
        assert!((0..m).all(|i| (0..n).all(|j| exact(i, j))), "the sums themselves are numbers of the type");
        let is_shared = m * n * depth >= SEQUENTIAL;
        let cuts = [Cut::StreamingPanels, Cut::StreamingRows, Cut::Given(Blocking { mc: 7, kc: 13, nc: 2, group: 2 })];
        for isa in Isa::available() {
            for pool in pools.iter().take(if is_shared { pools.len() } else { 1 }) {
                for (number, cut) in cuts.into_iter().enumerate() {
                    let packed = Form { packed: number == 1, layout: Layout::default() };
                    let par = Par::rayon(pool.current_num_threads());
                    let call = Call { cut, par, rows: packed, lanes: packed, ..Call::plain() };
                    let mut out = Grid::blank(m, n, Layout::default());
                    pool.install(|| call.product(isa, &rows, &lanes, Epilogue::Store { out: out.output(), scale: T::ONE }));
                    out.check_bits(&wanted, &(isa.name(), call)).expect("exact sums");
                }
            }
        }
    }
}

/// An epilogue that reads operands besides the sum.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Accumulate,
    Drive,
    Forward,
    Dyad,
    DampedDyad,
    KeptDyad,
    DyadFromBelow,
    Derivative,
    Update(Optimizer, Decay),
}

impl Kind {
    fn all() -> Vec<Kind> {
        let mut all = vec![Kind::Accumulate, Kind::Drive, Kind::Forward, Kind::Dyad, Kind::DampedDyad];
        all.extend([Kind::KeptDyad, Kind::DyadFromBelow, Kind::Derivative]);
        for optimizer in [Optimizer::Sgd, Optimizer::MOMENTUM, Optimizer::ADAM] {
            all.extend([Decay::None, Decay::Coupled(0.01), Decay::Decoupled(0.01)].map(|decay| Kind::Update(optimizer, decay)));
        }
        all
    }

    /// For each operand whether it is read.
    fn reads(self) -> Vec<bool> {
        match self {
            Kind::Accumulate => vec![true],
            Kind::Drive => vec![false, true],
            Kind::Forward => vec![false, true, false],
            Kind::Dyad => vec![true, false, false],
            Kind::DampedDyad => vec![true; 3],
            Kind::KeptDyad => vec![true, false, false, false],
            Kind::DyadFromBelow => vec![false, true, true, false, false],
            Kind::Derivative => vec![true, false],
            Kind::Update(optimizer, _) => vec![true; 1 + optimizer.moments()],
        }
    }

    fn epilogue<T: Scalar>(self, operands: &mut [Grid<T>], activation: Activation) -> Epilogue<'_, T> {
        let c = T::from_f64;
        let nudge = Nudge { up: c(0.25), down: c(-0.75), gain: T::ONE, alpha: c(0.25) };
        match (self, operands) {
            (Kind::Accumulate, [out]) => Epilogue::Accumulate { out: out.output(), scale: c(-0.5) },
            (Kind::Drive, [drive, bias]) => Epilogue::Drive { drive: drive.output(), bias: bias.input() },
            (Kind::Forward, [drive, bias, mean]) => {
                Epilogue::Forward { drive: drive.output(), bias: bias.input(), mean: mean.output(), activation }
            }
            (Kind::Dyad | Kind::DampedDyad, [drive, mean, diff]) => {
                let damping = matches!(self, Kind::DampedDyad).then_some(0.5);
                let (drive, mean, diff) = (drive.input(), mean.output(), diff.output());
                Epilogue::Dyad { drive, feedback: None, mean, diff, nudge, damping, activation }
            }
            (Kind::KeptDyad, [drive, feedback, mean, diff]) => {
                let (drive, feedback, mean, diff) = (drive.input(), Some(feedback.output()), mean.output(), diff.output());
                Epilogue::Dyad { drive, feedback, mean, diff, nudge, damping: None, activation }
            }
            (Kind::DyadFromBelow, [drive, bias, feedback, mean, diff]) => {
                let (drive, bias, feedback) = (drive.output(), bias.input(), feedback.input());
                let (mean, diff) = (mean.output(), diff.output());
                Epilogue::DyadFromBelow { drive, bias, feedback, mean, diff, nudge, damping: None, activation }
            }
            (Kind::Derivative, [drive, diff]) => Epilogue::Derivative { drive: drive.input(), diff: diff.output(), activation },
            (Kind::Update(optimizer, decay), [weights, moments @ ..]) => {
                let update = Update { optimizer, decay, learning_rate: 0.1, step: 2, scale: 0.5 };
                Epilogue::Update(Descent::new(weights.view_mut(), moments.iter_mut().map(Grid::view_mut), update))
            }
            _ => unreachable!("as many operands as `reads` says"),
        }
    }
}

/// A NaN or infinity in one element of one operand changes that element of the outputs and no other: there it gives what it gives in a
/// product of one element (so that place, tail and neighbours do not matter), and a NaN is NaN in every output that depends on it.
fn exceptional_operands<T: Scalar>() {
    let (m, n, depth) = (3, 37, 2);
    let random = |rows, cols, seed| Grid::<T>::random(rows, cols, Family::Uniform, seed);
    let (rows, lanes) = (random(m, depth, 1), random(depth, n, 2));
    for kind in Kind::all() {
        let reads = kind.reads();
        let activations =
            if matches!(kind, Kind::Accumulate | Kind::Drive | Kind::Update(..)) { 1 } else { Activation::ALL.len() };
        for &activation in &Activation::ALL[..activations] {
            let old: Vec<Grid<T>> = reads
                .iter()
                .zip(3..)
                .map(|(&reads, seed)| if reads { random(m, n, seed).map(T::abs) } else { Grid::blank(m, n, Layout::default()) })
                .collect();
            for isa in Isa::available() {
                let run = |rows: &Grid<T>, lanes: &Grid<T>, old: &[Grid<T>]| {
                    let mut new = old.to_vec();
                    Call::plain().product(isa, rows, lanes, kind.epilogue(&mut new, activation));
                    new
                };
                let clean = run(&rows, &lanes, &old);
                for poisoned in (0..old.len()).filter(|&operand| reads[operand]) {
                    for poison in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(T::from_f64) {
                        for at in 0..m * n {
                            let (row, col) = (at / n, at % n);
                            let mut old = old.clone();
                            old[poisoned].set(row, col, poison);
                            let new = run(&rows, &lanes, &old);
                            let one = |grid: &Grid<T>, i, j| Grid::from_fn(1, 1, Layout::default(), |_, _| grid.get(i, j));
                            let alone = run(
                                &Grid::from_fn(1, depth, Layout::default(), |_, p| rows.get(row, p)),
                                &Grid::from_fn(depth, 1, Layout::default(), |p, _| lanes.get(p, col)),
                                &old.iter().map(|grid| one(grid, row, col)).collect::<Vec<_>>(),
                            );
                            for (operand, ((got, clean), alone)) in new.iter().zip(&clean).zip(&alone).enumerate() {
                                let what = (isa.name(), kind, activation, poisoned, poison, operand);
                                let mut wanted = clean.clone();
                                wanted.set(row, col, alone.get(0, 0));
                                got.check_bits(&wanted, &what).expect("one element changes");
                                let depends = operand == poisoned
                                    || match kind {
                                        Kind::Update(..) => operand == 0,
                                        Kind::DampedDyad => operand > 0,
                                        Kind::KeptDyad => operand > 1,
                                        Kind::DyadFromBelow => operand > 2 || (operand, poisoned) == (0, 1),
                                        _ => !reads[operand],
                                    };
                                if poison.to_f64().is_nan() && depends {
                                    assert!(got.get(row, col).to_f64().is_nan(), "the NaN is lost: {what:?}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
