//! Elementary functions of many numbers, and softmax of rows, beside loops with those of the standard library.

mod common;

use common::passes::pass;
use common::{Bench, By, RowMajor, Scalar, Work};
use dualprop_kernels::elementary::{self, Function};
use dualprop_kernels::isa::Kernel;
use dualprop_kernels::vector::Vector;
use dualprop_reference::bound::Bounded;
use dualprop_reference::elementary::{sigmoid, softmax};

/// What both may be off by, in roundings: two ulp.
const ROUNDINGS: f64 = 4.0;

fn main() {
    let mut bench = Bench::new();
    let functions: [(Function, &str, fn(f32) -> f32, fn(f64) -> f64); 3] = [
        (Function::Exp, "exp", f32::exp, f64::exp),
        (Function::Tanh, "tanh", f32::tanh, f64::tanh),
        (Function::Sigmoid, "sigmoid", |x| 1.0 / (1.0 + (-x).exp()), sigmoid),
    ];
    for len in [16_384, 1 << 22] {
        for (function, name, theirs, exact) in functions {
            let x = RowMajor::<f32>::uniform(1, len, 8.0, 1);
            let isa = bench.isa;
            let mut group = bench.group(&format!("elementary/{name} {len}"), Work { flops: 0, bytes: 8 * len });
            let check = |out: &mut Vec<f32>| {
                let numbers = x.row(0).iter().zip(out).step_by(97);
                numbers.for_each(|(&x, out)| admits(*out, exact(f64::from(x)), ROUNDINGS));
            };
            let ours = |out: &mut Vec<f32>| elementary::map(isa, function, out, x.row(0)).expect("two slices of one length");
            let loops = |out: &mut Vec<f32>| pass(Loop { x: x.row(0), out, function: theirs });
            group.row(By::Dualprop, "", || vec![0.0; len], ours, check);
            group.row(By::Std, "", || vec![0.0; len], loops, check);
        }
    }
    for (rows, cols) in [(1000, 10), (64, 256)] {
        let x = RowMajor::<f32>::uniform(rows, cols, 8.0, 1);
        let isa = bench.isa;
        let work = Work { flops: 0, bytes: 8 * rows * cols };
        let mut group = bench.group(&format!("elementary/softmax {rows}x{cols}"), work);
        let check = |out: &mut RowMajor<f32>| {
            for row in [0, rows - 1] {
                let exact = softmax(&x.row(row).iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
                // The sum of n terms in f32, each the exponential of a rounded difference of at most 16.
                let roundings = ROUNDINGS + 2.0 * 16.0 + cols as f64;
                out.row(row).iter().zip(exact).for_each(|(&out, exact)| admits(out, exact, roundings));
            }
        };
        let ours = |out: &mut RowMajor<f32>| {
            elementary::softmax_rows(isa, out.view_mut(), x.view());
        };
        let loops = |out: &mut RowMajor<f32>| {
            for row in 0..rows {
                let (x, out) = (x.row(row), out.row_mut(row));
                let largest = x.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
                out.iter_mut().zip(x).for_each(|(out, &x)| *out = (x - largest).exp());
                let sum: f32 = out.iter().sum();
                out.iter_mut().for_each(|out| *out /= sum);
            }
        };
        group.row(By::Dualprop, "", || RowMajor::zeros(rows, cols), ours, check);
        group.row(By::Std, "", || RowMajor::zeros(rows, cols), loops, check);
    }
    bench.finish();
}

fn admits(got: f32, exact: f64, roundings: f64) {
    let precision = f32::PRECISION;
    let bound = Bounded::new(exact, roundings * precision.unit() * exact.abs(), precision);
    assert!(bound.admits(f64::from(got)), "{got:e} for {exact:e}");
}

/// `out ← f(x)`.
struct Loop<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
    function: fn(f32) -> f32,
}

impl Kernel<f32> for Loop<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<f32>>(self, _: S) {
        self.out.iter_mut().zip(self.x).for_each(|(out, &x)| *out = (self.function)(x));
    }
}
