//! The public layer functions (drive, relax, update, gradient) with any shapes and parameters: exactly the bad ones are errors that
//! touch nothing, the others give the same bits on each instruction set, within the bounds of the reference.
#![no_main]

mod case;
#[path = "../../kernels/tests/common/mod.rs"]
mod common;

use arbitrary::{Arbitrary, Result, Unstructured};
use case::*;
use common::*;
use dualprop::hebbian::{Decay, Optimizer, Update, gradient, update};
use dualprop::relax::{Variant, drive, relax};
use dualprop::{Activation, Isa, Par, Runtime, Workspace};
use dualprop_reference::bound::{Bounded, affine, dot};
use dualprop_reference::relax::{self as reference_relax};
use faer::MatMut;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Drive,
    Relax,
    Update,
    Gradient,
}

/// A call of one function; `factors` are what it multiplies, `outputs` what it overwrites.
#[derive(Debug)]
struct Case<T> {
    kind: Kind,
    factors: [Grid<T>; 2],
    outputs: Vec<Grid<T>>,
    /// The drive that `relax` reads.
    read: Grid<T>,
    bias: Vec<T>,
    layouts: [Layout; 6],
    variant: Variant,
    activation: Activation,
    update: Update,
    scale: T,
}

/// Parameters: good ones, and any.
fn parameter(u: &mut Unstructured<'_>) -> Result<f64> {
    if u.ratio(7u8, 8u8)? { share(u) } else { u.arbitrary() }
}

impl<T: Scalar> Case<T> {
    fn new(u: &mut Unstructured<'_>) -> Result<Self> {
        let kind = u.arbitrary()?;
        let optimizer = match u.int_in_range(0..=2u8)? {
            0 => Optimizer::Sgd,
            1 => Optimizer::Momentum { mu: parameter(u)? },
            _ => Optimizer::Adam { beta1: parameter(u)?, beta2: parameter(u)?, epsilon: parameter(u)? },
        };
        let decay = match u.int_in_range(0..=2u8)? {
            0 => Decay::None,
            1 => Decay::Coupled(parameter(u)?),
            _ => Decay::Decoupled(parameter(u)?),
        };
        let step = if u.ratio(7u8, 8u8)? { 1 + u64::from(u.arbitrary::<u8>()?) } else { u.arbitrary()? };
        let update = Update { optimizer, decay, learning_rate: parameter(u)?, step, scale: parameter(u)? };
        let variant = match u.int_in_range(0..=2u8)? {
            0 => Variant::Dp { alpha: parameter(u)? },
            1 => Variant::DpTranspose { alpha: parameter(u)? },
            _ => Variant::Gain { gain: parameter(u)? },
        };
        // More than 16 samples are packed.
        let (batch, n_in, n_out) = (size(u, 19)?, size(u, 35)?, size(u, 35)?);
        // Mostly as it should be, also where bytes have run out.
        let shape = |u: &mut Unstructured<'_>, right: (usize, usize)| -> Result<(usize, usize)> {
            Ok(if u.ratio(31u8, 32u8)? { right } else { (u.int_in_range(0..=20)?, u.int_in_range(0..=40)?) })
        };
        // The factors, then what is written.
        let (left, right, out) = match kind {
            Kind::Drive => ((batch, n_in), (n_out, n_in), (batch, n_out)),
            Kind::Relax => ((batch, n_out), (n_out, n_in), (batch, n_in)),
            Kind::Update | Kind::Gradient => ((batch, n_out), (batch, n_in), (n_out, n_in)),
        };
        let (left, right, read) = (shape(u, left)?, shape(u, right)?, shape(u, out)?);
        let count = match kind {
            Kind::Drive | Kind::Gradient => 1,
            Kind::Relax => 2,
            Kind::Update if u.ratio(31u8, 32u8)? => 1 + optimizer.moments(),
            Kind::Update => 2,
        };
        let mut outputs = Vec::new();
        for number in 0..count {
            let (rows, cols) = shape(u, out)?;
            let output = grid::<T>(u, rows, cols)?;
            outputs.push(if number == 2 { output.map(T::abs) } else { output });
        }
        let biases = if u.ratio(31u8, 32u8)? { n_out } else { u.int_in_range(0..=40)? };
        Ok(Self {
            kind,
            factors: [grid(u, left.0, left.1)?, grid(u, right.0, right.1)?],
            outputs,
            read: grid(u, read.0, read.1)?,
            bias: elements(&grid(u, 1, biases)?).collect(),
            layouts: [any_layout(u)?, any_layout(u)?, any_layout(u)?, any_layout(u)?, any_layout(u)?, any_layout(u)?],
            variant,
            activation: *u.choose(Activation::ALL)?,
            update,
            scale: number(u)?,
        })
    }

    /// Whether the documentation promises a value.
    fn is_valid(&self) -> bool {
        let [left, right] = [0, 1].map(|factor| self.factors[factor].shape());
        let out = self.outputs[0].shape();
        let outputs_agree = self.outputs.iter().all(|output| output.shape() == out);
        match self.kind {
            Kind::Drive => left == (out.0, right.1) && right.0 == out.1 && self.bias.len() == right.0,
            Kind::Relax => {
                let parameter = match self.variant {
                    Variant::Gain { gain } => T::from_f64(gain) > T::ZERO && T::from_f64(gain).is_finite(),
                    Variant::Dp { alpha } | Variant::DpTranspose { alpha } => (0.0..=1.0).contains(&alpha),
                    _ => panic!("{:?} is new", self.variant),
                };
                parameter && outputs_agree && self.read.shape() == out && left == (out.0, right.0) && right.1 == out.1
            }
            Kind::Gradient | Kind::Update => {
                let fits = left == (right.0, out.0) && right.1 == out.1;
                let count = matches!(self.kind, Kind::Gradient) || self.outputs.len() == 1 + self.update.optimizer.moments();
                fits && outputs_agree && count && (matches!(self.kind, Kind::Gradient) || self.update.step > 0)
            }
        }
    }

    /// The outputs after the call, and whether it returned a value.
    fn run(&self, isa: Isa) -> (Vec<Grid<T>>, bool) {
        let mut work = Workspace::new(&Runtime::new(isa, Par::Seq));
        let [left, right] = [0, 1].map(|factor| self.factors[factor].relaid(self.layouts[factor]));
        let read = self.read.relaid(self.layouts[2]);
        let mut new: Vec<_> = self.outputs.iter().zip(&self.layouts[3..]).map(|(grid, &layout)| grid.relaid(layout)).collect();
        let (first, others) = new.split_first_mut().expect("an output");
        let out = first.view_mut();
        let result = match self.kind {
            Kind::Drive => drive(out, left.view(), right.view(), &self.bias, &mut work),
            Kind::Relax => {
                let (diff, a) = (others[0].view_mut(), read.view());
                relax(out, diff, a, left.view(), right.view(), self.variant, self.activation, &mut work)
            }
            Kind::Gradient => gradient(out, left.view(), right.view(), self.scale, &mut work),
            Kind::Update => {
                let mut moments: Vec<MatMut<'_, T>> = others.iter_mut().map(Grid::view_mut).collect();
                update(out, &mut moments, left.view(), right.view(), &self.update, &mut work)
            }
        };
        let valid = result.is_ok();
        if let Err(error) = result {
            assert!(!error.to_string().is_empty());
        }
        (new, valid)
    }

    /// What the reference allows of element `(i, j)` of the outputs; nothing for updates, which have a target of their own.
    fn bounds(&self, i: usize, j: usize) -> Vec<Bounded> {
        let [left, right] = &self.factors;
        let precision = T::PRECISION;
        match self.kind {
            Kind::Drive => {
                vec![affine(exact(self.bias[j]), (0..left.shape().1).map(|p| (exact(left.get(i, p)), exact(right.get(j, p)))))]
            }
            Kind::Gradient => {
                let terms = (0..left.shape().0).map(|p| (exact(left.get(p, i)), exact(right.get(p, j))));
                vec![exact(self.scale) * dot(precision, terms)]
            }
            Kind::Relax => {
                // The reference does not follow coefficients that vanish in `T`.
                let parameter = match self.variant {
                    Variant::Dp { alpha } | Variant::DpTranspose { alpha } => alpha,
                    Variant::Gain { gain } => gain,
                    _ => return Vec::new(),
                };
                if parameter != 0.0 && !(1e-6..=2.0).contains(&parameter) {
                    return Vec::new();
                }
                let nudge = match self.variant {
                    Variant::Dp { alpha } => reference_relax::Nudge::dp(precision, alpha),
                    Variant::DpTranspose { alpha } => reference_relax::Nudge::dp_transpose(precision, alpha),
                    Variant::Gain { gain } => reference_relax::Nudge::gain(precision, gain),
                    _ => return Vec::new(),
                };
                let v = dot(precision, terms(left, right, i, j));
                let dyad = reference_relax::relax(reference(self.activation), nudge, exact(self.read.get(i, j)), v);
                vec![dyad.mean, dyad.diff]
            }
            Kind::Update => Vec::new(),
        }
    }

    fn check(&self) {
        let mut first = None;
        for isa in Isa::available() {
            let (new, valid) = self.run(isa);
            assert_eq!(valid, self.is_valid(), "{isa}: {self:?}");
            if !valid {
                new.iter().zip(&self.outputs).for_each(|(new, old)| new.check_bits(old, self).unwrap());
            }
            agree(&mut first, new, &(isa, self));
        }
        if self.is_valid() {
            let outputs = first.expect("the portable set is always available");
            for (i, j) in samples(outputs[0].shape()) {
                for (got, bound) in outputs.iter().zip(self.bounds(i, j)) {
                    check_bound(bound, got.get(i, j), &(i, j, self));
                }
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    // Too few bytes are no case.
    let _ = if u.arbitrary().unwrap_or(false) {
        Case::<f64>::new(&mut u).map(|case| case.check())
    } else {
        Case::<f32>::new(&mut u).map(|case| case.check())
    };
});
