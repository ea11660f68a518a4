//! Weight updates with every optimizer and decay: each instruction set, called in its own way, to the bit, and the bounds of the reference. With
//! one sample also as a sweep, alone and with the product of the new weights.
#![no_main]

mod case;
#[path = "../../kernels/tests/common/mod.rs"]
mod common;

use arbitrary::{Result, Unstructured};
use case::*;
use common::*;
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::isa::Isa;
use dualprop_kernels::online::{self, online};
use dualprop_kernels::optimizer::{Decay, Descent, Optimizer, Update};
use dualprop_reference::bound::{Bounded, dot};
use dualprop_reference::optimizer::{self as reference, Slots};
use faer::Par;
use libfuzzer_sys::fuzz_target;

/// Any number, now and then a nonsensical one.
fn parameter(u: &mut Unstructured<'_>, sensible: &[f64]) -> Result<f64> {
    match u.int_in_range(0..=7u8)? {
        0 => u.arbitrary(),
        1..=3 => share(u),
        _ => Ok(*u.choose(sensible)?),
    }
}

fn update(u: &mut Unstructured<'_>) -> Result<Update> {
    let optimizer = match u.int_in_range(0..=2u8)? {
        0 => Optimizer::Sgd,
        1 => Optimizer::Momentum { mu: parameter(u, &[0.9, 0.0])? },
        _ => Optimizer::Adam {
            beta1: parameter(u, &[0.9, 0.0])?,
            beta2: parameter(u, &[0.999, 0.0])?,
            epsilon: parameter(u, &[1e-8, 1e-3])?,
        },
    };
    let decay = match u.int_in_range(0..=2u8)? {
        0 => Decay::None,
        1 => Decay::Coupled(parameter(u, &[5e-4, 0.0])?),
        _ => Decay::Decoupled(parameter(u, &[1e-2, 0.0])?),
    };
    let step = if u.arbitrary()? { u.int_in_range(1..=1000)? } else { u.arbitrary()? };
    Ok(Update { optimizer, decay, learning_rate: parameter(u, &[0.1, 1e-3])?, step, scale: parameter(u, &[1.0, -0.125])? })
}

/// The parameters in the layouts of a call after `run` has had them.
fn descended<T: Scalar>(call: &Call, old: &[Grid<T>], update: Update, run: impl FnOnce(Descent<'_, T>)) -> Vec<Grid<T>> {
    let mut new: Vec<_> = old.iter().zip(call.operands).map(|(grid, layout)| grid.relaid(layout)).collect();
    let (weights, moments) = new.split_first_mut().expect("weights");
    run(Descent::new(weights.view_mut(), moments.iter_mut().map(Grid::view_mut), update));
    new
}

/// The sweeps of one sample: the parameters of the product of depth 1 (`new`; of plain descent, which may round in another order, the same
/// everywhere, and returned), and an image of the new weights that is the same everywhere.
fn check_sweeps<T: Scalar>(
    calls: &[(Isa, Call)],
    factors: &[Grid<T>; 2],
    old: &[Grid<T>],
    update: Update,
    next: &[T],
    new: Option<Vec<Grid<T>>>,
) -> Option<Vec<Grid<T>>> {
    let mut new = new.filter(|_| update.optimizer != Optimizer::Sgd);
    let [diff, mean] = [0, 1].map(|factor: usize| elements(&factors[factor]).collect::<Vec<T>>());
    let mut first: Option<Vec<T>> = None;
    for (isa, call) in calls {
        let alone = descended(call, old, update, |descent| online::update(*isa, Par::Seq, descent, &diff, &mean));
        agree(&mut new, alone, &(isa, call, update));
        let mut image = Guarded::new(diff.len());
        let with_image = descended(call, old, update, |descent| {
            online(*isa, Par::Seq, descent, &diff, &mean, next, image.slice());
        });
        agree(&mut new, with_image, &(isa, call, update));
        let image = image.finish();
        check_same(&image, first.get_or_insert_with(|| image.clone()), &(isa, call, update));
    }
    let weights = &new.as_ref().expect("the portable set is always available")[0];
    for (i, &got) in first.expect("the portable set is always available").iter().enumerate() {
        let terms = next.iter().enumerate().map(|(j, &x)| (exact(weights.get(i, j)), exact(x)));
        check_bound(dot(T::PRECISION, terms), got, &(i, weights, next));
    }
    new
}

/// Whether the reference's derivation holds: parameters in their ranges, powers of β within reach of its bounds, and no factor so small
/// that a coefficient made of it loses digits to underflow.
fn is_sensible(update: &Update) -> bool {
    let is_factor = |x: f64| x == 0.0 || (1e-6..=1.0).contains(&x);
    let below_1 = 0.0..1.0;
    let optimizer = match update.optimizer {
        Optimizer::Momentum { mu } => is_factor(mu),
        Optimizer::Adam { beta1, beta2, epsilon } => {
            below_1.contains(&beta1) && below_1.contains(&beta2) && (1e-12..=1.0).contains(&epsilon)
        }
        _ => true,
    };
    let decay = match update.decay {
        Decay::Coupled(lambda) | Decay::Decoupled(lambda) => is_factor(lambda),
        _ => true,
    };
    let numbers = is_factor(update.learning_rate) && is_factor(update.scale.abs());
    optimizer && decay && numbers && (1..=1000).contains(&update.step)
}

/// Whether Adam's quotients and squares stay in range in each of their forms: kernels divide a moment by `ε√(1 − β₂ᵗ)` before they multiply
/// by the rate; the reference squares a gradient before it weighs it, divides by `1 − β₂ᵗ`, and takes the step of an infinite moment as 0.
fn is_in_range<T: Scalar>(update: &Update, gradient: Bounded, old: impl Fn(usize) -> f64) -> bool {
    let Optimizer::Adam { beta1, beta2, epsilon } = update.optimizer else { return true };
    let pull = if let Decay::Coupled(lambda) = update.decay { lambda * old(0).abs() } else { 0.0 };
    let size = gradient.magnitude() + pull;
    let [rest1, rest2] = [beta1, beta2].map(|beta| 1.0 - beta.powf(update.step as f64));
    let first = (size + old(1).abs()) / (epsilon * rest1 * rest2.sqrt());
    let second = (size * size + old(2)) / rest2;
    first < T::PRECISION.largest() && second < T::PRECISION.largest()
}

fn check_reference<T: Scalar>(factors: &[Grid<T>; 2], old: &[Grid<T>], update: Update, new: &[Grid<T>]) {
    let rate = update.learning_rate;
    let optimizer = match update.optimizer {
        Optimizer::Momentum { mu } => reference::Optimizer::Momentum { rate, momentum: mu },
        Optimizer::Adam { beta1, beta2, epsilon } => reference::Optimizer::Adam { rate, beta1, beta2, epsilon },
        _ => reference::Optimizer::Sgd { rate },
    };
    let decay = match update.decay {
        Decay::Coupled(lambda) => reference::Decay::Coupled(lambda),
        Decay::Decoupled(lambda) => reference::Decay::Decoupled(lambda),
        _ => reference::Decay::None,
    };
    let scale = T::PRECISION.parameter(update.scale);
    for (i, j) in samples(old[0].shape()) {
        let gradient = scale * dot(T::PRECISION, terms(&factors[0], &factors[1], i, j));
        if !is_in_range::<T>(&update, gradient, |number| old[number].get(i, j).to_f64()) {
            continue;
        }
        let at = |number: usize| old.get(number).map_or(T::PRECISION.exact(0.0), |grid| exact(grid.get(i, j)));
        let mut slots = Slots { first: at(1), second: at(2) };
        let weight = optimizer.update(decay, update.step as u32, at(0), &mut slots, gradient);
        for (got, bound) in new.iter().zip([weight, slots.first, slots.second]) {
            check_bound(bound, got.get(i, j), &(i, j, update, factors, old));
        }
    }
}

fn run<T: Scalar>(mut u: Unstructured<'_>) -> Result<()> {
    let u = &mut u;
    let (calls, update) = (any_calls(u)?, update(u)?);
    let (m, depth, n) = (size(u, 17)?, size(u, 20)?, size(u, 97)?);
    let factors = [grid(u, m, depth)?, grid(u, depth, n)?];
    let mut old = vec![grid::<T>(u, m, n)?];
    for number in 1..=update.optimizer.moments() {
        // Second moments are averages of squares.
        let moment = grid::<T>(u, m, n)?;
        old.push(if number == 2 { moment.map(T::abs) } else { moment });
    }
    let mut first = None;
    for (isa, call) in &calls {
        let new = descended(call, &old, update, |descent| {
            call.product(*isa, &factors[0], &factors[1], Epilogue::Update(descent));
        });
        agree(&mut first, new, &(&calls, update));
    }
    if depth == 1 {
        let next: Vec<T> = elements(&grid(u, 1, n)?).collect();
        let swept = check_sweeps(&calls, &factors, &old, update, &next, first.clone());
        if is_sensible(&update) {
            check_reference(&factors, &old, update, &swept.expect("the portable set is always available"));
        }
    }
    if is_sensible(&update) {
        check_reference(&factors, &old, update, &first.expect("the portable set is always available"));
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| of_either_type(data, run::<f32>, run::<f64>));
