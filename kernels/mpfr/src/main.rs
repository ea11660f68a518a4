//! The f64 elementary functions against MPFR: random points at several scales, the edges of the reduction, of the subnormals and of
//! overflow. Prints the largest error of each function in ulp and its argument; fails above the bound.
//!
//! ```sh
//! cargo run --release --manifest-path kernels/mpfr/Cargo.toml -- 1000000
//! ```
//!
//! The number of random points is an argument because MPFR is slow: a minute for 10⁶. The first build compiles GMP and MPFR, which takes a C
//! compiler, make and m4; that is why this is a package of its own, outside of the workspace.
#![forbid(unsafe_code)]

use dualprop_kernels::activation::Activation;
use dualprop_kernels::elementary::{Function, cos_pi, ln, map};
use dualprop_kernels::isa::Isa;
use dualprop_reference::generate::SplitMix64;
use rug::Float;
use rug::float::Constant;

/// Bits of the exact values: a relative error of 2⁻²⁰⁰, and an absolute one as small beside the subnormals.
const PRECISION: u32 = 200;

/// A function with its exact form, its arguments, and the bound in ulp.
struct Case {
    name: &'static str,
    run: fn(&mut [f64], &[f64]),
    exact: fn(Float) -> Float,
    arguments: fn(&mut Points, usize) -> Vec<f64>,
    bound: f64,
}

const CASES: &[Case] = &[
    Case {
        name: "exp",
        run: |out, x| map(Isa::best(), Function::Exp, out, x).expect("one length"),
        exact: Float::exp,
        arguments: |points, count| points.real(count),
        bound: 0.85,
    },
    Case {
        name: "expm1(-y)",
        run: |out, x| map(Isa::best(), Function::Expm1Neg, out, x).expect("one length"),
        exact: |y| (-y).exp_m1(),
        arguments: |points, count| points.real(count).into_iter().map(f64::abs).collect(),
        bound: 0.85,
    },
    Case {
        name: "tanh",
        run: |out, x| map(Isa::best(), Function::Tanh, out, x).expect("one length"),
        exact: Float::tanh,
        arguments: |points, count| points.real(count),
        bound: 0.85,
    },
    Case {
        name: "sigmoid",
        run: |out, x| map(Isa::best(), Function::Sigmoid, out, x).expect("one length"),
        exact: |x| 1u32 / ((-x).exp() + 1u32),
        arguments: |points, count| points.real(count),
        bound: 0.85,
    },
    Case {
        name: "tanh'",
        run: |out, x| Activation::Tanh.derivatives(Isa::best(), out, x).expect("one length"),
        exact: |x| x.sech().square(),
        arguments: |points, count| points.real(count),
        bound: 2.0,
    },
    Case {
        name: "sigmoid'",
        run: |out, x| Activation::Sigmoid.derivatives(Isa::best(), out, x).expect("one length"),
        exact: |x| (x / 2u32).sech().square() / 4u32,
        arguments: |points, count| points.real(count),
        bound: 2.0,
    },
    Case {
        name: "ln",
        run: |out, x| out.iter_mut().zip(x).for_each(|(out, &x)| *out = ln(x)),
        exact: Float::ln,
        arguments: Points::positive,
        bound: 0.62,
    },
    Case {
        name: "cos_pi",
        run: |out, x| out.iter_mut().zip(x).for_each(|(out, &x)| *out = cos_pi(x)),
        // sin(π(½ − x)) keeps the relative accuracy at the zero; ½ − x is exact in 200 bits but for x < 2⁻¹⁴⁶, where it makes no difference.
        exact: |x| ((0.5f64 - x) * Float::with_val(PRECISION, Constant::Pi)).sin(),
        arguments: Points::unit,
        bound: 0.8,
    },
];

/// Arguments from a seed.
struct Points(SplitMix64);

impl Points {
    /// Uniform in ±`scale`.
    fn within(&mut self, scale: f64) -> f64 {
        scale * self.0.symmetric()
    }

    /// `x` and the three numbers on either side of it, as far as they have its sign.
    fn around(x: f64) -> impl Iterator<Item = f64> {
        let near = (-3..=3).map(move |k| f64::from_bits(x.to_bits().saturating_add_signed(k)));
        near.filter(move |near| !near.is_nan() && near.is_sign_negative() == x.is_sign_negative())
    }

    /// Numbers of both signs at several scales, multiples of ln 2 / 2 as far as exponentials reach, their ends, powers of two.
    fn real(&mut self, count: usize) -> Vec<f64> {
        let scales = [1.0, 1.0, 5.0, 20.0, 40.0, 710.0, 746.0];
        let mut x: Vec<f64> = (0..count * 7 / 8).map(|i| self.within(scales[i % scales.len()])).collect();
        x.extend((x.len()..count).map(|_| self.within(1.0) * 2f64.powi(self.0.below(60) as i32 - 56)));
        let halves = (-2160..=2060).map(|n| f64::from(n) * 0.5 * std::f64::consts::LN_2);
        let ends = [1e-300, 5e-324, 19.06, 36.7, 708.396, 709.782_712_893_384, 710.0, 745.133, 746.0, 1e300];
        let powers = (-1074..=1023).flat_map(|k| [1.0, -1.0].map(|sign| sign * 2f64.powi(k)));
        x.extend(halves.chain(ends.into_iter().flat_map(|x| [x, -x])).chain(powers).flat_map(Self::around));
        x
    }

    /// Numbers above 0 of every size, near 1, and around √½ and its relatives.
    fn positive(&mut self, count: usize) -> Vec<f64> {
        let mut x: Vec<f64> = (0..count / 3).map(|_| f64::from_bits(self.0.below(f64::INFINITY.to_bits()))).collect();
        x.extend((0..count / 3).map(|_| 1.25 + self.within(0.85)));
        x.extend((x.len()..count).map(|_| 1.0 + self.within(1.0) * 2f64.powi(-3 - self.0.below(45) as i32)));
        let edges = [5e-324, f64::MIN_POSITIVE, f64::MAX, 1.0].into_iter();
        x.extend(edges.flat_map(Self::around));
        x.extend((-1022..1023).flat_map(|k| Self::around(2f64.powi(k) * std::f64::consts::FRAC_1_SQRT_2)));
        x.retain(|&x| x > 0.0 && x.is_finite());
        x
    }

    /// Numbers of `[0, 1]`, the ends of the pieces, and all sizes near 0, ½ and 1.
    fn unit(&mut self, count: usize) -> Vec<f64> {
        let mut x: Vec<f64> = (0..count).map(|_| 0.5 + 0.5 * self.0.symmetric()).collect();
        x.extend([0.25, 0.5, 0.75, 1.0].into_iter().flat_map(Self::around));
        x.extend((1..1074).flat_map(|k| [2f64.powi(-k), 0.5 - 2f64.powi(-k - 1), 0.5 + 2f64.powi(-k - 1), 1.0 - 2f64.powi(-k)]));
        x.retain(|x| (0.0..=1.0).contains(x));
        x
    }
}

/// The error of `got` in ulp of `exact`, below the normal range in spacings of the subnormals; infinite if it overflows wrongly.
fn ulps(got: f64, exact: &Float) -> f64 {
    if got.is_infinite() || exact.to_f64().is_infinite() {
        return if got == exact.to_f64() { 0.0 } else { f64::INFINITY };
    }
    let exponent = exact.get_exp().map_or(-1074, |exponent| (exponent - 53).max(-1074));
    let error = Float::with_val(PRECISION, exact - got).abs();
    (error >> exponent).to_f64()
}

fn main() {
    let count = std::env::args().nth(1).map_or(1_000_000, |count| count.parse().expect("the number of random points"));
    let mut exceeded = Vec::new();
    for Case { name, run, exact, arguments, bound } in CASES {
        let x = arguments(&mut Points(SplitMix64::new(1)), count);
        let mut out = vec![f64::NAN; x.len()];
        run(&mut out, &x);
        let errors = x.iter().zip(&out).map(|(&x, &out)| (ulps(out, &exact(Float::with_val(PRECISION, x))), x));
        let (worst, at) = errors.fold((0.0, f64::NAN), |worst, error| if error.0 > worst.0 { error } else { worst });
        println!("{name:<10} {worst:.4} ulp at {at:e}, {} points", x.len());
        if worst > *bound || out.iter().any(|out| out.is_nan()) {
            exceeded.push(*name);
        }
    }
    assert!(exceeded.is_empty(), "above the bound: {}", exceeded.join(", "));
}
