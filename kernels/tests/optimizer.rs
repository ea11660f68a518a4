//! Weight updates against the optimizers in f64 with their bounds.

mod common;

use common::*;
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::isa::Isa;
use dualprop_kernels::optimizer::{Decay, Descent, Optimizer, Update};
use dualprop_kernels::product::Blocking;
use dualprop_reference::bound::scaled_dot;
use dualprop_reference::generate::Family;
use dualprop_reference::optimizer::{self as reference, Slots};
use dualprop_reference::product::Matrix;
use faer::Par;
use proptest::sample::select;

tests_of_both_types!(
    random_updates,
    every_operand_layout,
    beside_the_next_band,
    rate_times_scale_out_of_range,
    integers_are_exact,
    nan_stays_in_its_weight,
    weights_without_coupled_decay_are_not_in_the_gradient,
    misuse_panics
);

const OPTIMIZERS: [Optimizer; 3] = [Optimizer::Sgd, Optimizer::MOMENTUM, Optimizer::ADAM];
const DECAYS: [Decay; 3] = [Decay::None, Decay::Coupled(5e-4), Decay::Decoupled(1e-2)];
const STEPS: [u64; 3] = [1, 2, 1000];

/// Every optimizer with every decay at every step.
fn updates(learning_rate: f64, scale: f64) -> impl Iterator<Item = Update> {
    OPTIMIZERS.into_iter().flat_map(move |optimizer| {
        DECAYS.into_iter().flat_map(move |decay| STEPS.map(move |step| Update { optimizer, decay, learning_rate, step, scale }))
    })
}

/// Weights and as many moments as the optimizer keeps.
type Parameters<T> = Vec<Grid<T>>;

/// Parameters from the numbers of `problem`: zero moments before the first step, second moments never negative.
fn parameters<T: Scalar>(problem: &Problem, family: Family, update: &Update) -> Parameters<T> {
    let moment = |number: u64| {
        let moment = problem.operand::<T>(family, number).map(|x| if number == 2 { x.abs() } else { x });
        if update.step == 1 { moment.map(|_| T::ZERO) } else { moment }
    };
    let moments = (1..=update.optimizer.moments() as u64).map(moment);
    [problem.operand(Family::Uniform, 0)].into_iter().chain(moments).collect()
}

/// The parameters after the update.
fn updated<T: Scalar>(call: &Call, isa: Isa, [rows, lanes]: [&Grid<T>; 2], old: &Parameters<T>, update: Update) -> Parameters<T> {
    let mut new: Parameters<T> = old.iter().zip(call.operands).map(|(grid, layout)| grid.relaid(layout)).collect();
    let (weights, moments) = new.split_first_mut().expect("weights");
    let descent = Descent::new(weights.view_mut(), moments.iter_mut().map(Grid::view_mut), update);
    call.product(isa, rows, lanes, Epilogue::Update(descent));
    new
}

/// Bounds of the parameters after the update.
fn reference<T: Scalar>([rows, lanes]: [&Grid<T>; 2], old: &Parameters<T>, update: Update) -> Vec<Matrix> {
    let rate = update.learning_rate;
    let optimizer = match update.optimizer {
        Optimizer::Sgd => reference::Optimizer::Sgd { rate },
        Optimizer::Momentum { mu } => reference::Optimizer::Momentum { rate, momentum: mu },
        Optimizer::Adam { beta1, beta2, epsilon } => reference::Optimizer::Adam { rate, beta1, beta2, epsilon },
        other => panic!("{other:?} has no reference"),
    };
    let decay = match update.decay {
        Decay::None => reference::Decay::None,
        Decay::Coupled(lambda) => reference::Decay::Coupled(lambda),
        Decay::Decoupled(lambda) => reference::Decay::Decoupled(lambda),
        other => panic!("{other:?} has no reference"),
    };
    let scale = T::PRECISION.parameter(update.scale);
    let mut new: Vec<Matrix> = old.iter().map(Grid::exact).collect();
    let gradient = bounds(rows, lanes, |terms, _, _| scaled_dot(scale, terms));
    for i in 0..gradient.rows {
        for j in 0..gradient.cols {
            let old = |number: usize| old.get(number).map_or(T::PRECISION.exact(0.0), |grid| exact(grid.get(i, j)));
            let mut slots = Slots { first: old(1), second: old(2) };
            let weight = optimizer.update(decay, update.step as u32, old(0), &mut slots, gradient[(i, j)]);
            for (matrix, bound) in new.iter_mut().zip([weight, slots.first, slots.second]) {
                matrix[(i, j)] = bound;
            }
        }
    }
    new
}

fn random_updates<T: Scalar>() {
    let tallies: [Tally; 3] = core::array::from_fn(|_| Tally::default());
    let family = select(vec![Family::Uniform, Family::Mixed, Family::HeavyTailed, Family::Subnormal]);
    let settings = (family, select(vec![0.1, 1e-3]), select(vec![1.0, -0.125, 0.01]));
    for_all(40, (problem(), [call(), call()], settings), |(problem, calls, (family, rate, scale))| {
        let (rows, lanes) = (problem.rows::<T>(), problem.lanes::<T>());
        for update in updates(rate, scale) {
            let old = parameters(&problem, family, &update);
            let bounds = reference([&rows, &lanes], &old, update);
            let mut first: Option<Parameters<T>> = None;
            for isa in Isa::available() {
                for call in &calls {
                    let new = updated(call, isa, [&rows, &lanes], &old, update);
                    let first = first.get_or_insert_with(|| new.clone());
                    for (got, wanted) in new.iter().zip(first) {
                        got.check_bits(wanted, &(isa.name(), call, update))?;
                    }
                }
            }
            let first = first.expect("the portable set is always available");
            for ((tally, bound), got) in tallies.iter().zip(&bounds).zip(&first) {
                tally.check(bound, got, &(problem, update))?;
            }
        }
        Ok(())
    });
    let names = ["weights", "first moments", "second moments"];
    tallies.iter().zip(names).for_each(|(tally, name)| tally.conclude::<T>(name));
}

/// Each layout of the weights with each of the moments, in both roles.
fn every_operand_layout<T: Scalar>() {
    let problem = Problem { m: 9, n: 50, depth: 3, families: [Family::Uniform; 2], seed: 5 };
    let (rows, lanes) = (problem.rows::<T>(), problem.lanes::<T>());
    for update in updates(0.1, 0.5).filter(|update| update.step == 2) {
        let old = parameters(&problem, Family::Uniform, &update);
        let wanted = updated(&Call::plain(), Isa::best(), [&rows, &lanes], &old, update);
        for isa in Isa::available() {
            for weights in Layout::all() {
                for moments in Layout::all() {
                    for swapped in [false, true] {
                        let call = Call { operands: [weights, moments, Layout::default()], swapped, ..Call::plain() };
                        let new = updated(&call, isa, [&rows, &lanes], &old, update);
                        for (got, wanted) in new.iter().zip(&wanted) {
                            got.check_bits(wanted, &(isa.name(), call, update)).unwrap();
                        }
                    }
                }
            }
        }
    }
}

/// Optimizers that go over a band while the next one is summed, or over a tile in registers: few and many bands, rows of less than a vector,
/// blocks of columns, more than a tile's share of vectors, and rows whole pages apart have the bits of an epilogue that comes afterwards.
fn beside_the_next_band<T: Scalar>() {
    let shapes = [
        [16, 48, 24],
        [17, 49, 25],
        [33, 200, 50],
        [9, 1000, 24],
        [70, 1000, 31],
        [24, 305, 100],
        [80, 16, 40],
        [40, 3, 30],
        [20, 1024, 9],
    ];
    for (seed, [m, n, depth]) in shapes.into_iter().enumerate() {
        let problem = Problem { m, n, depth, families: [Family::Uniform; 2], seed: seed as u64 };
        let (rows, lanes) = (problem.rows::<T>(), problem.lanes::<T>());
        for update in updates(0.1, 0.5).filter(|update| update.step == 2) {
            let old = parameters(&problem, Family::Uniform, &update);
            let afterwards = Call { cut: Cut::Given(Blocking { mc: m, kc: 7, nc: 1, group: 1 }), ..Call::plain() };
            let wanted =
                updated(&afterwards, Isa::by_name("portable").expect("it is always there"), [&rows, &lanes], &old, update);
            for isa in Isa::available() {
                let narrow = [1, 2, 3].map(|nc| Cut::Given(Blocking { mc: 1, kc: depth, nc, group: 1 }));
                for cut in narrow.into_iter().chain([Cut::StreamingRows]) {
                    for (packed, par) in [(false, Par::Seq), (true, Par::Seq), (true, Par::rayon(3))] {
                        let form = Form { packed, layout: Layout::default() };
                        let call = Call { rows: form, lanes: form, cut, par, ..Call::plain() };
                        let new = updated(&call, isa, [&rows, &lanes], &old, update);
                        for (got, wanted) in new.iter().zip(&wanted) {
                            got.check_bits(wanted, &(isa.name(), call, update, [m, n, depth])).unwrap();
                        }
                    }
                }
            }
        }
    }
}

/// A rate times a scale may leave the range of numbers, or their precision, where each step from the sum to the weight does not.
fn rate_times_scale_out_of_range<T: Scalar>() {
    let problem = Problem { m: 9, n: 50, depth: 2, families: [Family::Integer; 2], seed: 3 };
    let largest = if T::NAME == "f32" { 2f64.powi(120) } else { 2f64.powi(1000) };
    for factor in [largest, largest.recip()] {
        // Sums of whole numbers over the scale, and zeros.
        let rows = problem.rows::<T>().map(|x| T::from_f64(x.to_f64() / factor));
        let lanes = problem.lanes::<T>();
        let learning_rate = if factor > 1.0 { 2f64.powi(20) } else { 2f64.powi(-40) };
        let update = Update { optimizer: Optimizer::Sgd, decay: Decay::None, learning_rate, step: 1, scale: factor };
        let old = parameters::<T>(&problem, Family::Integer, &update);
        let sums = chains(&problem.rows::<T>(), &lanes);
        for isa in Isa::available() {
            let new = updated(&Call::plain(), isa, [&rows, &lanes], &old, update);
            for i in 0..problem.m {
                for j in 0..problem.n {
                    let wanted = T::from_f64((-learning_rate).mul_add(sums.get(i, j).to_f64(), old[0].get(i, j).to_f64()));
                    assert_eq!(new[0].get(i, j), wanted, "({i}, {j}) with {factor:e} on {isa}");
                }
            }
        }
    }
}

/// Small integers and powers of two leave nothing to round.
fn integers_are_exact<T: Scalar>() {
    let problem = Problem { m: 17, n: 97, depth: 5, families: [Family::Integer; 2], seed: 9 };
    let (rows, lanes) = (problem.rows::<T>(), problem.lanes::<T>());
    let gradient = chains(&rows, &lanes);
    let (mu, rate, lambda) = (0.5, 0.25, 0.5);
    for optimizer in [Optimizer::Sgd, Optimizer::Momentum { mu }] {
        for decay in [Decay::None, Decay::Coupled(lambda), Decay::Decoupled(lambda)] {
            let update = Update { optimizer, decay, learning_rate: rate, step: 3, scale: -2.0 };
            let moments = (0..optimizer.moments() as u64).map(|number| problem.operand(Family::Integer, 1 + number));
            let old: Parameters<T> = [problem.operand(Family::Integer, 0)].into_iter().chain(moments).collect();
            let wanted = |i, j| {
                let w = old[0].get(i, j).to_f64();
                let g = -2.0 * gradient.get(i, j).to_f64() + if let Decay::Coupled(lambda) = decay { lambda * w } else { 0.0 };
                let m = old.get(1).map_or(g, |m| mu * m.get(i, j).to_f64() + g);
                let kept = if let Decay::Decoupled(lambda) = decay { (1.0 - rate * lambda) * w } else { w };
                [kept - rate * m, m]
            };
            for isa in Isa::available() {
                let new = updated(&Call::plain(), isa, [&rows, &lanes], &old, update);
                for (number, got) in new.iter().enumerate() {
                    for i in 0..problem.m {
                        for j in 0..problem.n {
                            assert_eq!(got.get(i, j).to_f64(), wanted(i, j)[number], "{number} ({i}, {j}) {isa} {update:?}");
                        }
                    }
                }
            }
        }
    }
}

/// NaN in one weight or moment makes that weight NaN and touches no other.
fn nan_stays_in_its_weight<T: Scalar>() {
    let problem = Problem { m: 9, n: 51, depth: 3, families: [Family::Uniform; 2], seed: 5 };
    let (rows, lanes) = (problem.rows::<T>(), problem.lanes::<T>());
    for update in updates(0.1, 0.5).filter(|update| update.step == 2) {
        let old = parameters::<T>(&problem, Family::Uniform, &update);
        for isa in Isa::available() {
            let clean = updated(&Call::plain(), isa, [&rows, &lanes], &old, update);
            for poisoned in 0..old.len() {
                for (row, col) in [(0, 0), (4, 48), (8, 50)] {
                    let mut old = old.clone();
                    old[poisoned].set(row, col, T::from_f64(f64::NAN));
                    let new = updated(&Call::plain(), isa, [&rows, &lanes], &old, update);
                    assert!(new[0].get(row, col).to_f64().is_nan(), "{isa} {update:?}: NaN in operand {poisoned}");
                    for (got, clean) in new.iter().zip(&clean) {
                        let mut wanted = clean.clone();
                        wanted.set(row, col, got.get(row, col));
                        got.check_bits(&wanted, &(isa.name(), update, poisoned)).unwrap();
                    }
                }
            }
        }
    }
}

/// Without coupled decay, or with a factor of 0, moments do not depend on the weights, even if these are infinite or NaN.
fn weights_without_coupled_decay_are_not_in_the_gradient<T: Scalar>() {
    let problem = Problem { m: 9, n: 51, depth: 3, families: [Family::Uniform; 2], seed: 5 };
    let (rows, lanes) = (problem.rows::<T>(), problem.lanes::<T>());
    for optimizer in OPTIMIZERS {
        for decay in [Decay::None, Decay::Coupled(0.0), Decay::Decoupled(0.01)] {
            let update = Update { optimizer, decay, learning_rate: 0.1, step: 2, scale: 0.5 };
            let old = parameters::<T>(&problem, Family::Uniform, &update);
            for isa in Isa::available() {
                let clean = updated(&Call::plain(), isa, [&rows, &lanes], &old, update);
                for poison in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN].map(T::from_f64) {
                    let mut old = old.clone();
                    let poisoned = [(0, 0), (4, 48), (8, 50)];
                    poisoned.iter().for_each(|&(row, col)| old[0].set(row, col, poison));
                    let new = updated(&Call::plain(), isa, [&rows, &lanes], &old, update);
                    let mut weights = clean[0].clone();
                    poisoned.iter().for_each(|&(row, col)| weights.set(row, col, poison));
                    for (got, wanted) in new.iter().zip([&weights].into_iter().chain(&clean[1..])) {
                        got.check_bits(wanted, &(isa.name(), update, poison)).unwrap();
                    }
                }
            }
        }
    }
}

fn misuse_panics<T: Scalar>() {
    let problem = Problem { m: 5, n: 9, depth: 2, families: [Family::Uniform; 2], seed: 1 };
    let (rows, lanes) = (problem.rows::<T>(), problem.lanes::<T>());
    let grid = |rows, cols| Grid::<T>::blank(rows, cols, Layout::default());
    for update in updates(0.1, 1.0).filter(|update| update.step == 1) {
        let moments = update.optimizer.moments();
        for count in (0..4).filter(|&count| count != moments) {
            let (mut weights, mut kept) = (grid(5, 9), vec![grid(5, 9); count]);
            assert_panics("number of moments", || {
                Descent::new(weights.view_mut(), kept.iter_mut().map(Grid::view_mut), update);
            });
        }
        for wrong in 0..=moments {
            for (m, n) in [(4, 9), (6, 9), (5, 8), (5, 10), (9, 5)] {
                let mut old: Parameters<T> = vec![grid(5, 9); 1 + moments];
                old[wrong] = grid(m, n);
                for isa in Isa::available() {
                    assert_panics("epilogue", || {
                        updated(&Call::plain(), isa, [&rows, &lanes], &old, update);
                    });
                }
            }
        }
    }
}
