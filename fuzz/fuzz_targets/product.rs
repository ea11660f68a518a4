//! Products with every epilogue but the optimizers: each instruction set, called in its own way, to the bit; the promised chain of fused
//! multiply-adds, to the bit; and the bounds of the reference.
#![no_main]

mod case;
#[path = "../../kernels/tests/common/mod.rs"]
mod common;

use arbitrary::{Arbitrary, Result, Unstructured};
use case::*;
use common::*;
use dualprop_kernels::activation::Activation;
use dualprop_kernels::elementary::LengthMismatch;
use dualprop_kernels::epilogue::{Epilogue, Nudge};
use dualprop_kernels::isa::Isa;
use dualprop_kernels::strided::Input;
use dualprop_reference::bound::{Bounded, affine, dot};
use dualprop_reference::relax::{self, relax, relax_damped};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Store,
    Accumulate,
    Drive,
    Forward,
    Dyad,
    Derivative,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Rule {
    Dp,
    DpTransposed,
    Gain,
}

/// A product and its epilogue; `operands` are what the outputs hold before, the first also what is only read.
#[derive(Debug)]
struct Case<T> {
    kind: Kind,
    rows: Grid<T>,
    lanes: Grid<T>,
    operands: [Grid<T>; 3],
    scale: T,
    /// One bias for each column; handed over with a row stride of 0, or as a matrix.
    bias: Vec<T>,
    repeated: bool,
    activation: Activation,
    rule: Rule,
    /// `α` or half of the gain.
    parameter: f64,
    damping: Option<f64>,
}

impl<T: Scalar> Case<T> {
    fn new(u: &mut Unstructured<'_>) -> Result<Self> {
        let (m, depth, n) = (size(u, 17)?, size(u, 20)?, size(u, 97)?);
        Ok(Self {
            kind: u.arbitrary()?,
            scale: number(u)?,
            repeated: u.arbitrary()?,
            activation: *u.choose(Activation::ALL)?,
            rule: u.arbitrary()?,
            parameter: share(u)?,
            damping: if u.arbitrary()? { Some(16.0 * share(u)?) } else { None },
            rows: grid(u, m, depth)?,
            lanes: grid(u, depth, n)?,
            bias: elements(&grid(u, 1, n)?).collect(),
            operands: [grid(u, m, n)?, grid(u, m, n)?, grid(u, m, n)?],
        })
    }

    fn bias(&self) -> Grid<T> {
        Grid::from_fn(self.rows.shape().0, self.bias.len(), Layout::default(), |_, j| self.bias[j])
    }

    fn nudge(&self) -> Nudge<T> {
        let p = self.parameter;
        let (up, down, gain, alpha) = match self.rule {
            Rule::Dp => (p, p - 1.0, 1.0, p),
            Rule::DpTransposed => (1.0 - p, -p, 1.0, p),
            Rule::Gain => (p, -p, 2.0 * p, 0.5),
        };
        let [up, down, gain, alpha] = [up, down, gain, alpha].map(T::from_f64);
        Nudge { up, down, gain, alpha }
    }

    /// All outputs.
    fn run(&self, isa: Isa, call: &Call) -> Vec<Grid<T>> {
        let (m, n) = self.operands[0].shape();
        let blank = |operand: usize| Grid::blank(m, n, call.operands[operand]);
        let old = |operand: usize| self.operands[operand].relaid(call.operands[operand]);
        let (read, bias) = (old(0), self.bias().relaid(call.operands[2]));
        let bias = if self.repeated { Input::repeated(&self.bias, m) } else { bias.input() };
        let (scale, activation) = (self.scale, self.activation);
        let run = |epilogue| call.product(isa, &self.rows, &self.lanes, epilogue);
        match self.kind {
            Kind::Store => {
                let mut out = blank(0);
                run(Epilogue::Store { out: out.output(), scale });
                vec![out]
            }
            Kind::Accumulate => {
                let mut out = old(0);
                run(Epilogue::Accumulate { out: out.output(), scale });
                vec![out]
            }
            Kind::Drive => {
                let mut drive = blank(0);
                run(Epilogue::Drive { drive: drive.output(), bias });
                vec![drive]
            }
            Kind::Forward => {
                let (mut drive, mut mean) = (blank(0), blank(1));
                run(Epilogue::Forward { drive: drive.output(), bias, mean: mean.output(), activation });
                vec![drive, mean]
            }
            Kind::Dyad => {
                let [mut mean, mut diff] = if self.damping.is_some() { [old(1), old(2)] } else { [blank(1), blank(2)] };
                let (nudge, damping) = (self.nudge(), self.damping);
                let outputs = (mean.output(), diff.output());
                run(Epilogue::Dyad {
                    drive: read.input(),
                    feedback: None,
                    mean: outputs.0,
                    diff: outputs.1,
                    nudge,
                    damping,
                    activation,
                });
                vec![mean, diff]
            }
            Kind::Derivative => {
                let mut diff = blank(1);
                run(Epilogue::Derivative { drive: read.input(), diff: diff.output(), activation });
                vec![diff]
            }
        }
    }

    /// The outputs to the bit, from the promised chains, where the epilogue is one rounding or a function of one.
    fn promised(&self) -> Option<Vec<Grid<T>>> {
        let (chains, [operand, ..], bias) = (chains(&self.rows, &self.lanes), &self.operands, self.bias());
        let each = |f: &dyn Fn(usize, usize) -> T| {
            let (m, n) = chains.shape();
            Grid::from_fn(m, n, Layout::default(), f)
        };
        // Never −0.
        let drive = || each(&|i, j| chains.get(i, j) + bias.get(i, j) + T::ZERO);
        Some(match self.kind {
            Kind::Store => vec![each(&|i, j| self.scale * chains.get(i, j))],
            Kind::Accumulate => vec![each(&|i, j| self.scale.mul_add(chains.get(i, j), operand.get(i, j)))],
            Kind::Drive => vec![drive()],
            Kind::Forward => vec![drive(), self.all(Activation::values, &drive())],
            Kind::Derivative => {
                let slopes = self.all(Activation::derivatives, operand);
                vec![each(&|i, j| slopes.get(i, j) * chains.get(i, j))]
            }
            Kind::Dyad => return None,
        })
    }

    /// `f` or `f'` of all elements.
    fn all(
        &self,
        function: impl Fn(Activation, Isa, &mut [T], &[T]) -> std::result::Result<(), LengthMismatch>,
        x: &Grid<T>,
    ) -> Grid<T> {
        let x_of: Vec<T> = elements(x).collect();
        let mut out = vec![T::ZERO; x_of.len()];
        function(self.activation, Isa::best(), &mut out, &x_of).expect("one length");
        let (m, n) = x.shape();
        Grid::from_fn(m, n, Layout::default(), |i, j| out[i * n + j])
    }

    /// What the reference allows of element `(i, j)` of the outputs; the second is there if the epilogue has two.
    fn bounds(&self, i: usize, j: usize) -> [Bounded; 2] {
        let precision = T::PRECISION;
        let (f, scale, p) = (reference(self.activation), exact(self.scale), self.parameter);
        let terms = || terms(&self.rows, &self.lanes, i, j);
        // From the sum on, in the order of the kernels: `scaled_dot` does not see a sum overflow that a small factor would bring back.
        let sum = || dot(precision, terms());
        let drive = || affine(exact(self.bias[j]), terms());
        let operand = |number: usize| exact(self.operands[number].get(i, j));
        // Where it should say nothing.
        let nothing = precision.exact(f64::NAN);
        match self.kind {
            Kind::Store => [scale * sum(), nothing],
            Kind::Accumulate => [operand(0) + scale * sum(), nothing],
            Kind::Drive => [drive(), nothing],
            Kind::Forward => [drive(), f.value(drive())],
            Kind::Derivative => [derivative(self.activation, operand(0)) * sum(), nothing],
            Kind::Dyad => {
                let nudge = match self.rule {
                    Rule::Dp => relax::Nudge::dp(precision, p),
                    Rule::DpTransposed => relax::Nudge::dp_transpose(precision, p),
                    Rule::Gain => relax::Nudge::gain(precision, 2.0 * p),
                };
                let v = sum();
                // Where the reference divides by `1 + λ` in time, kernels may have overflowed before.
                let largest = v.magnitude() + (0..3).map(|k| operand(k).magnitude()).sum::<f64>();
                if 4.0 * largest > precision.largest() {
                    return [nothing; 2];
                }
                let relax::Dyad { mean, diff } = match self.damping {
                    None => relax(f, nudge, operand(0), v),
                    Some(lambda) => {
                        let old = relax::Dyad { mean: operand(1), diff: operand(2) };
                        relax_damped(f, nudge, precision.parameter(lambda), operand(0), v, old)
                    }
                };
                [mean, diff]
            }
        }
    }

    fn check(&self, calls: &[(Isa, Call)]) {
        let mut first = None;
        for (isa, call) in calls {
            agree(&mut first, self.run(*isa, call), &(calls, self));
        }
        let first = first.expect("the portable set is always available");
        for (got, wanted) in first.iter().zip(self.promised().into_iter().flatten()) {
            got.check_bits(&wanted, self).unwrap();
        }
        for (i, j) in samples(first[0].shape()) {
            for (got, bound) in first.iter().zip(self.bounds(i, j)) {
                check_bound(bound, got.get(i, j), &(i, j, self));
            }
        }
    }
}

fn run<T: Scalar>(mut u: Unstructured<'_>) -> Result<()> {
    let calls = any_calls(&mut u)?;
    Case::<T>::new(&mut u)?.check(&calls);
    Ok(())
}

fuzz_target!(|data: &[u8]| of_either_type(data, run::<f32>, run::<f64>));
