//! Elementary functions, rows and activations at any bit patterns: each instruction set to the bit, and the documented bounds.
#![no_main]

mod case;
#[path = "../../kernels/tests/common/mod.rs"]
mod common;

use arbitrary::{Arbitrary, Result, Unstructured};
use case::*;
use common::*;
use dualprop_kernels::activation::{Activate, Activation, Pair, Visit};
use dualprop_kernels::elementary::{Function, log_sum_exp, map, softmax};
use dualprop_kernels::isa::{Isa, Kernel};
use dualprop_kernels::vector::{Real, Vector};
use dualprop_reference::elementary::{self as reference_of, Wide};
use libfuzzer_sys::fuzz_target;

/// `out = f(x)` on every instruction set: the same bits, and nothing beside the output.
fn everywhere<T: Scalar>(x: &[T], f: impl Fn(Isa, &mut [T])) -> Vec<T> {
    let mut first: Option<Vec<T>> = None;
    for isa in Isa::available() {
        let mut out = Guarded::new(x.len());
        f(isa, out.slice());
        let out = out.finish();
        check_same(&out, first.get_or_insert_with(|| out.clone()), &(isa, x));
    }
    first.expect("the portable set is always available")
}

/// The function to far below the unit roundoff of `T`; `None` where double-double leaves its range.
fn exactly<T: Scalar>(function: Function, x: f64) -> Option<f64> {
    let wide = T::NAME == "f64";
    let in_range = x.abs() < 700.0 && (x.abs() > 1e-280 || x == 0.0);
    match function {
        _ if wide && !in_range => None,
        Function::Exp if wide => Some(Wide::from(x).exp().hi),
        Function::Exp => Some(x.exp()),
        Function::Expm1Neg if wide => Some(Wide::from(-x).exp_m1().hi),
        Function::Expm1Neg => Some((-x).exp_m1()),
        Function::Tanh if wide => Some(Wide::from(x).tanh().hi),
        Function::Tanh => Some(x.tanh()),
        Function::Sigmoid if wide => Some(Wide::from(x).sigmoid_scaled(0).hi),
        Function::Sigmoid => Some(reference_of::sigmoid(x)),
        _ => None,
    }
}

/// 0.85 ulp are at most 1.7 unit roundoffs; the reference rounds once.
fn check_function<T: Scalar>(function: Function, x: &[T]) {
    // `expm1_neg` takes arguments from 0 on.
    let x: Vec<T> = if function == Function::Expm1Neg { x.iter().map(|x| x.abs()).collect() } else { x.to_vec() };
    let out = everywhere(&x, |isa, out| map(isa, function, out, &x).expect("one length"));
    for (&x, &got) in x.iter().zip(&out) {
        assert_eq!(got.to_f64().is_nan(), x.to_f64().is_nan(), "{function:?}({x:e}) = {got:e}");
    }
    for (_, at) in samples((1, x.len())) {
        let (x, got) = (x[at], out[at]);
        let Some(want) = exactly::<T>(function, x.to_f64()).filter(|want| want.is_finite()) else { continue };
        let bound = (1.7 * T::UNIT_ROUNDOFF + f64::UNIT_ROUNDOFF) * want.abs() + 2.0 * T::TINY;
        let overflows = want.abs() + bound > T::PRECISION.largest();
        let error = (got.to_f64() - want).abs();
        assert!(overflows || error <= bound, "{function:?}({x:e}) = {got:e}, want {want:e} ± {bound:e}");
    }
}

/// Softmax and log-sum-exp, with the bounds of their documentation for finite rows.
fn check_row<T: Scalar>(x: &[T]) {
    let probabilities = everywhere(x, |isa, out| softmax(isa, out, x).expect("one length"));
    let totals: Vec<f64> = Isa::available().map(|isa| log_sum_exp(isa, x)).collect();
    check_same(&totals, &vec![totals[0]; totals.len()], &x);
    let exact: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
    // Beyond, double-double exponentials leave their range.
    let spread = exact.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    if spread.is_nan() || spread > 300.0 || exact.iter().any(|x| x.is_nan()) {
        return;
    }
    let (u, u64, chain) = (T::UNIT_ROUNDOFF, f64::UNIT_ROUNDOFF, x.len() as f64 / 16.0);
    for (&got, want) in probabilities.iter().zip(reference_of::softmax(&exact)) {
        let bound = (5.0 * u + (chain + 8.0) * u64) * want + 2.0 * T::TINY;
        assert!((got.to_f64() - want).abs() <= bound, "softmax {x:?}: {got:e}, want {want:e} ± {bound:e}");
    }
    let want = reference_of::log_sum_exp(&exact);
    let bound = 3.0 * u + (chain + 5.0) * u64 + u64 * (2.0 * want.abs() + 2.0 * (x.len() as f64).ln() + 1.0);
    let got = totals[0];
    assert!(got == want || (got - want).abs() <= bound, "log_sum_exp {x:?}: {got:e}, want {want:e} ± {bound:e}");
}

/// `f(hi)`, `f(lo)` and the rise between them, element by element.
struct Pairs<'a, T, A> {
    activation: A,
    hi: &'a [T],
    lo: &'a [T],
    q: &'a [T],
    /// The three results, one slice each.
    out: [&'a mut [T]; 3],
}

impl<T: Real, A: Activate> Kernel<T> for Pairs<'_, T, A> {
    type Output = ();
    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        let [up, down, rises] = self.out;
        for start in (0..self.hi.len()).step_by(S::LANES) {
            let range = start..(start + S::LANES).min(self.hi.len());
            let load = |x: &[T]| simd.load_partial(&x[range.clone()]);
            let Pair { hi, lo, rise } = self.activation.pair(simd, load(self.hi), load(self.lo), load(self.q));
            simd.store_partial(&mut up[range.clone()], hi);
            simd.store_partial(&mut down[range.clone()], lo);
            simd.store_partial(&mut rises[range], rise);
        }
    }
}

/// Values, derivatives and pairs of one activation.
struct CheckActivation<'a, T> {
    kind: Activation,
    lo: &'a [T],
    q: &'a [T],
}

impl<T: Scalar> Visit for CheckActivation<'_, T> {
    type Output = ();
    fn visit<A: Activate>(self, activation: A) {
        let Self { kind, lo, q } = self;
        let hi: Vec<T> = lo.iter().zip(q).map(|(&lo, &q)| lo + q).collect();
        let values = |x: &[T]| everywhere(x, |isa, out| kind.values(isa, out, x).expect("one length"));
        let (up, down) = (values(&hi), values(lo));
        let slopes = everywhere(lo, |isa, out| kind.derivatives(isa, out, lo).expect("one length"));
        let rises = everywhere(lo, |isa, out| {
            let (mut pair_up, mut pair_down) = (Guarded::new(lo.len()), Guarded::new(lo.len()));
            let outs = [pair_up.slice(), pair_down.slice(), out];
            isa.run(Pairs { activation, hi: &hi, lo, q, out: outs });
            check_same(&pair_up.finish(), &up, &(kind, isa, &hi));
            check_same(&pair_down.finish(), &down, &(kind, isa, lo));
        });
        let f = reference(kind);
        let is_nan = |x: T| x.to_f64().is_nan();
        for (i, &a) in lo.iter().enumerate().filter(|(_, a)| is_nan(**a)) {
            assert!(is_nan(rises[i]) && is_nan(down[i]) && is_nan(slopes[i]), "NaN is lost: {:?}", (kind, a, q[i]));
        }
        for (_, i) in samples((1, lo.len())) {
            let (a, spread) = (exact(lo[i]), exact(q[i]));
            let what = (kind, lo[i], q[i]);
            check_bound(f.value(a), down[i], &("value", what));
            check_bound(derivative(kind, a), slopes[i], &("derivative", what));
            let p = a + spread;
            if p.is_informative() && q[i].is_finite() {
                check_bound(f.rise(p, a, spread), rises[i], &("rise", what));
            }
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Function,
    Row,
    Activation,
}

fn run<T: Scalar>(mut u: Unstructured<'_>) -> Result<()> {
    let u = &mut u;
    let kind = u.arbitrary()?;
    // Arguments to saturation and beyond.
    let scale = T::from_f64(if u.arbitrary()? { u.arbitrary::<u8>()?.into() } else { 1.0 });
    let len = size(u, 67)?;
    let x: Vec<T> = elements(&grid(u, 1, len)?).map(|x| scale * x).collect();
    match kind {
        Kind::Function => check_function(*u.choose(Function::ALL)?, &x),
        Kind::Row => check_row(&x),
        Kind::Activation => {
            let kind = *u.choose(Activation::ALL)?;
            let q: Vec<T> = elements(&grid(u, 1, len)?).collect();
            kind.visit(CheckActivation { kind, lo: &x, q: &q });
        }
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| of_either_type(data, run::<f32>, run::<f64>));
