//! Elementary functions and activations against f64 (for f32) and double-double (for f64) references.
//!
//! `cargo test --release -p dualprop-kernels --test elementary -- --ignored --nocapture every_f32` sweeps all 2³² inputs of each f32
//! function on each instruction set but the portable one; it prints the maxima that the documentation states, and the hashes of all
//! results. `every_result_of_the_portable_set` finds the same hashes; its fused multiply-adds are a library's and take hours, unless the
//! processor's are allowed, which have the same results by definition: `RUSTFLAGS=-Ctarget-feature=+fma cargo test …` takes two minutes.

use dualprop_kernels::activation::{Activate, Activation, LeakyRelu, Pair, Relu, Sigmoid, Tanh, Visit};
use dualprop_kernels::elementary::{
    Function, LengthMismatch, cos_pi, ln, log_sum_exp, log_sum_exp_rows, map, softmax, softmax_rows,
};
use dualprop_kernels::isa::{Isa, Kernel};
use dualprop_kernels::vector::{Real, Vector};
use dualprop_reference::elementary::{self as reference, Wide};
use faer::{MatMut, MatRef};
use proptest::prelude::*;
use std::fmt;

/// The documented maxima, in ulp; for f64 a little above the largest found.
const MAX_ULP_F32: f64 = 0.818;
const MAX_ULP_F64: f64 = 0.85;
const MAX_ULP_DERIVATIVE: f64 = 1.98;

/// splitmix64.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * ((self.bits() >> 11) as f64 * (0.5f64).powi(53))
    }
}

fn same<T: Real>(a: T, b: T) -> bool {
    a.to_bits() == b.to_bits() || (a.to_f64().is_nan() && b.to_f64().is_nan())
}

// ------------------------------------------------------------------------------------------------------------------ f32, by sweeps

/// Spacing of the f32 at `x`.
fn ulp32(x: f64) -> f64 {
    let exponent = ((x.abs().to_bits() >> 52) as i32 - 1023).clamp(-126, 127);
    2f64.powi(exponent - 23)
}

/// Error of `got` in ulp; an overflow must happen exactly where rounding to nearest overflows.
fn error32(got: f32, want: f64) -> f64 {
    let overflows = want.abs() >= f64::from(f32::MAX) + 2f64.powi(103);
    match (got.is_infinite(), overflows) {
        (true, true) => 0.0,
        (false, false) => (f64::from(got) - want).abs() / ulp32(want),
        _ => f64::INFINITY,
    }
}

/// The `i`-th f32 from −NaN over −∞, −0, +0, ∞ to NaN.
fn ordered(i: u32) -> f32 {
    f32::from_bits(if i < 0x8000_0000 { !i } else { i & 0x7fff_ffff })
}

/// 64-bit FNV-1a over the results as 32-bit words, where any NaN counts as any other.
#[derive(PartialEq, Eq)]
struct Hash(u64);

impl Hash {
    const START: Hash = Hash(0xcbf2_9ce4_8422_2325);

    fn take(&mut self, results: &[f32]) {
        for &x in results {
            let word = if x.is_nan() { u32::MAX } else { x.to_bits() };
            self.0 = (self.0 ^ u64::from(word)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// A function with its reference; `monotone` says that the results must not decrease. The hashes are those of the results in ascending
/// order of the inputs, from `first` on; a change of them is noted in the changelog.
struct Swept {
    name: &'static str,
    run: fn(Isa, &mut [f32], &[f32]),
    exact: fn(f64) -> f64,
    first: f32,
    monotone: bool,
    max_ulp: f64,
    /// For the inputs of [`samples`].
    hash_of_samples: Hash,
    /// For every input.
    hash: Hash,
}

const SWEPT: &[Swept] = &[
    Swept {
        name: "exp",
        run: |isa, out, x| map(isa, Function::Exp, out, x).unwrap(),
        exact: f64::exp,
        first: f32::NEG_INFINITY,
        monotone: true,
        max_ulp: MAX_ULP_F32,
        hash_of_samples: Hash(0x0fb0_e21c_2520_e654),
        hash: Hash(0x4e47_2d8d_cd55_ee97),
    },
    Swept {
        name: "expm1(-y)",
        run: |isa, out, x| {
            map(isa, Function::Expm1Neg, out, x).unwrap();
            out.iter_mut().for_each(|out| *out = -*out);
        },
        exact: |y| -(-y).exp_m1(),
        first: 0.0,
        monotone: true,
        max_ulp: MAX_ULP_F32,
        hash_of_samples: Hash(0xbbf7_d9d5_1447_f93f),
        hash: Hash(0xcfc8_8945_f00b_5370),
    },
    Swept {
        name: "tanh",
        run: |isa, out, x| map(isa, Function::Tanh, out, x).unwrap(),
        exact: f64::tanh,
        first: f32::NEG_INFINITY,
        monotone: true,
        max_ulp: MAX_ULP_F32,
        hash_of_samples: Hash(0xd0be_cf1e_c9d7_a238),
        hash: Hash(0xf33f_a659_c0b2_7a89),
    },
    Swept {
        name: "sigmoid",
        run: |isa, out, x| map(isa, Function::Sigmoid, out, x).unwrap(),
        exact: reference::sigmoid,
        first: f32::NEG_INFINITY,
        monotone: true,
        max_ulp: MAX_ULP_F32,
        hash_of_samples: Hash(0xbe7b_8af2_5e85_33ff),
        hash: Hash(0xa1e3_e89e_4bae_cfce),
    },
    Swept {
        name: "tanh'",
        run: |isa, out, x| Activation::Tanh.derivatives(isa, out, x).unwrap(),
        exact: |x| Tanh.exact_derivative(x),
        first: f32::NEG_INFINITY,
        monotone: false,
        max_ulp: MAX_ULP_DERIVATIVE,
        hash_of_samples: Hash(0x6c24_b496_6a09_f2d7),
        hash: Hash(0x59aa_9c52_efac_091f),
    },
    Swept {
        name: "sigmoid'",
        run: |isa, out, x| Activation::Sigmoid.derivatives(isa, out, x).unwrap(),
        exact: |x| Sigmoid.exact_derivative(x),
        first: f32::NEG_INFINITY,
        monotone: false,
        max_ulp: MAX_ULP_DERIVATIVE,
        hash_of_samples: Hash(0x9d48_21d9_bdac_c24b),
        hash: Hash(0xbe40_204c_b46f_57ef),
    },
];

/// The largest error over `x` (ascending), with its argument.
struct Worst {
    ulp: f64,
    at: f32,
    last: f32,
}

impl Worst {
    fn new() -> Worst {
        Worst { ulp: 0.0, at: 0.0, last: f32::NEG_INFINITY }
    }

    fn take(&mut self, swept: &Swept, x: &[f32], out: &[f32]) {
        for (&x, &out) in x.iter().zip(out) {
            if x.is_nan() {
                assert!(out.is_nan(), "{}({x:e}) = {out:e}", swept.name);
                continue;
            }
            if swept.monotone {
                assert!(out >= self.last, "{} falls at {x:e} from {:e} to {out:e}", swept.name, self.last);
                self.last = out;
            }
            let ulp = error32(out, (swept.exact)(f64::from(x)));
            assert!(ulp <= swept.max_ulp, "{}({x:e} = {:#010x}) = {out:e}: {ulp} ulp", swept.name, x.to_bits());
            if ulp > self.ulp {
                (self.ulp, self.at) = (ulp, x);
            }
        }
    }
}

/// Every 4099th f32 and NaN, the neighbourhoods of the breakpoints, ascending from `first`.
fn samples(first: f32) -> Vec<f32> {
    let mut at: Vec<u32> = (0..=u32::MAX).step_by(4099).collect();
    let ln2 = std::f64::consts::LN_2;
    let halves = (-302..=302).map(|n| f64::from(n) * 0.25 * ln2);
    let ends = [
        0.0,
        f64::from(f32::MIN_POSITIVE),
        9.0109,
        16.0,
        17.33,
        32.0,
        52.0,
        87.33,
        88.7228,
        103.97,
        104.0,
        108.0,
        3.5e38,
        f64::NAN,
    ];
    for x in halves.chain(ends.iter().flat_map(|&x| [x, -x])) {
        let bits = (x as f32).to_bits();
        let center = if bits >> 31 == 1 { !bits } else { bits | 0x8000_0000 };
        at.extend((0..40).map(|k| center.saturating_add(k).saturating_sub(20)));
    }
    at.sort_unstable();
    at.into_iter().map(ordered).filter(|&x| x.is_nan() || x >= first).collect()
}

#[test]
fn f32_errors_are_within_an_ulp_with_equal_bits_everywhere() {
    let mut changed = Vec::new();
    for swept in SWEPT {
        let x = samples(swept.first);
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let mut out = vec![0.0; x.len()];
            (swept.run)(isa, &mut out, &x);
            let want = first.get_or_insert_with(|| {
                Worst::new().take(swept, &x, &out);
                out.clone()
            });
            for ((&x, &a), &b) in x.iter().zip(want.iter()).zip(&out) {
                assert!(same(a, b), "{} at {x:e}: {a:e} and {b:e} on {isa}", swept.name);
            }
        }
        let mut hash = Hash::START;
        hash.take(&first.expect("the portable set is always available"));
        if hash != swept.hash_of_samples {
            changed.push(format!("{}: {hash}", swept.name));
        }
    }
    assert!(changed.is_empty(), "the bits have changed, alike everywhere; now:\n  {}", changed.join("\n  "));
}

/// Hashes of all results on each set; with `worst`, those of the first set are compared with the reference.
fn sweep(swept: &Swept, sets: impl Iterator<Item = Isa>, mut worst: Option<Worst>) {
    let mut hashes: Vec<(Isa, Hash)> = sets.map(|isa| (isa, Hash::START)).collect();
    let (mut x, mut out) = (Vec::new(), vec![0.0; 1 << 16]);
    for block in 0..1u32 << 16 {
        x.clear();
        x.extend((0..1u32 << 16).map(|i| ordered(block << 16 | i)).filter(|&x| x.is_nan() || x >= swept.first));
        let out = &mut out[..x.len()];
        for (number, (isa, hash)) in hashes.iter_mut().enumerate() {
            (swept.run)(*isa, out, &x);
            hash.take(out);
            if let (0, Some(worst)) = (number, &mut worst) {
                worst.take(swept, &x, out);
            }
        }
    }
    if let Some(worst) = worst {
        println!("{}: {:.4} ulp at {:e} ({:#010x})", swept.name, worst.ulp, worst.at, worst.at.to_bits());
    }
    hashes.iter().for_each(|(isa, hash)| println!("{}: {hash} on {isa}", swept.name));
    let others: Vec<_> = hashes.iter().filter(|(_, hash)| *hash != swept.hash).map(|(isa, _)| isa.name()).collect();
    assert!(others.is_empty(), "{}: other bits than {} on {}", swept.name, swept.hash, others.join(", "));
}

fn sweep_everything(name: &str) {
    let swept = SWEPT.iter().find(|swept| swept.name == name).unwrap();
    let hardware = || Isa::available().filter(|isa| isa.name() != "portable");
    let sets = if hardware().next().is_some() { hardware().collect() } else { vec![Isa::best()] };
    sweep(swept, sets.into_iter(), Some(Worst::new()));
}

#[test]
#[ignore = "all 2^32 inputs without SIMD: minutes in release with +fma, hours without"]
fn every_result_of_the_portable_set() {
    for swept in SWEPT {
        sweep(swept, Isa::available().filter(|isa| isa.name() == "portable"), None);
    }
}

macro_rules! sweeps {
    ($($test:ident = $name:literal;)*) => { $(
        #[test]
        #[ignore = "all 2^32 inputs: minutes in release"]
        fn $test() {
            sweep_everything($name);
        }
    )* };
}

sweeps! {
    every_f32_exp = "exp";
    every_f32_expm1 = "expm1(-y)";
    every_f32_tanh = "tanh";
    every_f32_sigmoid = "sigmoid";
    every_f32_tanh_derivative = "tanh'";
    every_f32_sigmoid_derivative = "sigmoid'";
}

fn at<T: Real>(function: Function, x: f64) -> f64 {
    let mut out = [T::ZERO];
    map(Isa::best(), function, &mut out, &[T::from_f64(x)]).unwrap();
    out[0].to_f64()
}

fn special_values<T: Real>() {
    let inf = f64::INFINITY;
    assert_eq!(at::<T>(Function::Exp, -inf), 0.0);
    assert_eq!(at::<T>(Function::Exp, inf), inf);
    for zero in [0.0, -0.0] {
        assert_eq!(at::<T>(Function::Exp, zero), 1.0);
        assert_eq!(at::<T>(Function::Sigmoid, zero), 0.5);
        assert_eq!(at::<T>(Function::Tanh, zero).to_bits(), f64::to_bits(zero));
    }
    assert_eq!(at::<T>(Function::Expm1Neg, 0.0), 0.0);
    assert_eq!(at::<T>(Function::Expm1Neg, inf), -1.0);
    assert_eq!((at::<T>(Function::Tanh, -inf), at::<T>(Function::Tanh, inf)), (-1.0, 1.0));
    assert_eq!((at::<T>(Function::Sigmoid, -inf), at::<T>(Function::Sigmoid, inf)), (0.0, 1.0));
    for subnormal in [T::TINY, 5.0 * T::TINY, -T::TINY] {
        assert_eq!(at::<T>(Function::Tanh, subnormal), subnormal);
        assert_eq!(at::<T>(Function::Expm1Neg, subnormal.abs()), -subnormal.abs());
        assert_eq!(at::<T>(Function::Exp, subnormal), 1.0);
    }
    for &function in Function::ALL {
        assert!(at::<T>(function, f64::NAN).is_nan());
    }
}

#[test]
fn special_values_are_those_of_ieee() {
    special_values::<f32>();
    special_values::<f64>();
    // Gradual underflow: the last exponentials that do not round to zero.
    assert_eq!(at::<f32>(Function::Exp, -103.9), f64::from(f32::from_bits(1)));
    assert_eq!(at::<f64>(Function::Exp, -745.1), f64::from_bits(1));
    assert_eq!(at::<f32>(Function::Sigmoid, -103.9), f64::from(f32::from_bits(1)));
}

fn lanes_and_tails<T: Real>() {
    let mut random = Random(7);
    let mut x: Vec<T> = (0..3 * 16 + 2).map(|_| T::from_f64(random.uniform(-30.0, 30.0))).collect();
    for (i, special) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 1e30, -100.0, T::TINY].into_iter().enumerate() {
        x[3 + 7 * i] = T::from_f64(special);
    }
    for &function in Function::ALL {
        let alone: Vec<T> = x
            .iter()
            .map(|&x| {
                let mut out = [T::ZERO];
                map(Isa::best(), function, &mut out, &[x]).unwrap();
                out[0]
            })
            .collect();
        for isa in Isa::available() {
            for length in 0..=3 * 16 + 1 {
                for offset in [0, 1] {
                    let canary = T::from_f64(-77.0);
                    let mut out = vec![canary; length + 2];
                    map(isa, function, &mut out[1..=length], &x[offset..][..length]).unwrap();
                    assert!(same(out[0], canary) && same(out[length + 1], canary), "{function:?} wrote outside");
                    for i in 0..length {
                        let (got, want) = (out[i + 1], alone[offset + i]);
                        assert!(same(got, want), "{function:?} {isa} element {i} of {length}: {got:e}, alone {want:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_result_does_not_depend_on_lane_or_length() {
    lanes_and_tails::<f32>();
    lanes_and_tails::<f64>();
}

#[test]
fn lengths_are_checked() {
    let mismatch = LengthMismatch { out: 1, x: 2 };
    assert_eq!(map(Isa::best(), Function::Exp, &mut [0f32], &[1.0, 2.0]), Err(mismatch));
    assert_eq!(softmax(Isa::best(), &mut [0f64], &[1.0, 2.0]), Err(mismatch));
    assert_eq!(Activation::Relu.values(Isa::best(), &mut [0f32], &[1.0, 2.0]), Err(mismatch));
    assert_eq!(mismatch.to_string(), "`out` has 1 elements and `x` has 2");
}

// ------------------------------------------------------------------------------------------------------- f64, against double-double

/// Error of `got` in ulp, where `want` is the exact result times `2^shift`.
fn error64(got: f64, want: Wide, shift: i32) -> f64 {
    let exponent = ((want.hi.abs().to_bits() >> 52) as i32 - 1023).max(-1022 + shift);
    let got = got * 2f64.powi(shift);
    if want.hi == 0.0 {
        return if got == 0.0 { 0.0 } else { f64::INFINITY };
    }
    // In two steps: `powi` goes through the reciprocal, which overflows for subnormal powers.
    (Wide::from(got) - want).abs().hi * 2f64.powi(52) * 2f64.powi(-exponent / 2) * 2f64.powi(-exponent - -exponent / 2)
}

/// A shift that keeps a result of about `e^x` and its low part normal.
fn shift_for(x: f64) -> i32 {
    if x < -300.0 {
        800
    } else if x > 300.0 {
        -300
    } else {
        0
    }
}

type ExactWide = fn(f64) -> (Wide, i32);

const WIDE: &[(Function, ExactWide)] = &[
    (Function::Exp, |x| (Wide::from(x).exp_scaled(shift_for(x)), shift_for(x))),
    (Function::Expm1Neg, |x| (Wide::from(-x.abs()).exp_m1(), 0)),
    (Function::Tanh, |x| (Wide::from(x).tanh(), 0)),
    (Function::Sigmoid, |x| (Wide::from(x).sigmoid_scaled(shift_for(x.min(0.0))), shift_for(x.min(0.0)))),
];

/// Random arguments at several scales, edges of the reduction, of the subnormals and of overflow.
fn samples64(count: usize, seed: u64) -> Vec<f64> {
    let mut random = Random(seed);
    let mut x = Vec::new();
    for scale in [1.0, 1.0, 1.0, 5.0, 20.0, 40.0, 709.0] {
        x.extend((0..count / 8).map(|_| random.uniform(-scale, scale)));
    }
    x.extend((0..count / 8).map(|_| 2f64.powf(random.uniform(-60.0, 3.0)) * if random.bits() & 1 == 0 { 1.0 } else { -1.0 }));
    let edges = (-2150..=2046).map(|n| f64::from(n) * 0.5 * std::f64::consts::LN_2).chain([
        -745.133,
        -708.396,
        709.78271289338,
        19.06,
        36.7,
    ]);
    for edge in edges {
        x.extend(
            (-3..=3).map(|k| f64::from_bits(edge.to_bits().saturating_add_signed(k))).filter(|x| (-745.13..709.78).contains(x)),
        );
    }
    x
}

fn largest_f64_errors(count: usize, seed: u64) {
    let mut x = samples64(count, seed);
    x.sort_unstable_by(f64::total_cmp);
    for &(function, exact) in WIDE {
        let arguments: Vec<f64> = if function == Function::Expm1Neg {
            let mut y: Vec<f64> = x.iter().map(|x| x.abs()).collect();
            y.sort_unstable_by(f64::total_cmp);
            y
        } else {
            x.clone()
        };
        let mut first: Option<Vec<f64>> = None;
        for isa in Isa::available() {
            let mut out = vec![0.0; arguments.len()];
            map(isa, function, &mut out, &arguments).unwrap();
            let first = first.get_or_insert_with(|| out.clone());
            assert!(out.iter().zip(&*first).all(|(&a, &b)| same(a, b)), "{function:?}: bits on {isa}");
        }
        let out = first.unwrap();
        let (mut worst, mut place) = (0.0, 0.0);
        for (&x, &out) in arguments.iter().zip(&out) {
            let (want, shift) = exact(x);
            let error = error64(out, want, shift);
            assert!(error <= MAX_ULP_F64, "{function:?}({x:e}) = {out:e}: {error} ulp");
            if error > worst {
                (worst, place) = (error, x);
            }
        }
        let falls = out.windows(2).any(|pair| if function == Function::Expm1Neg { pair[1] > pair[0] } else { pair[1] < pair[0] });
        assert!(!falls, "{function:?} is not monotone");
        println!("f64 {function:?}: {worst:.4} ulp at {place:e}");
    }
}

#[test]
fn f64_errors_are_within_an_ulp() {
    largest_f64_errors(100_000, 1);
}

#[test]
#[ignore = "2·10⁷ points: minutes in release"]
fn f64_errors_at_many_points() {
    for seed in 0..20 {
        largest_f64_errors(1_000_000, 100 + seed);
    }
}

#[test]
fn neighbouring_f64_are_in_order() {
    let mut random = Random(3);
    for _ in 0..200 {
        let start = random.uniform(-40.0, 40.0);
        let mut x: Vec<f64> = (0..1000).map(|k| f64::from_bits(start.to_bits() + k)).collect();
        if start < 0.0 {
            x.reverse();
        }
        for function in [Function::Exp, Function::Tanh, Function::Sigmoid] {
            let mut out = vec![0.0; x.len()];
            map(Isa::best(), function, &mut out, &x).unwrap();
            assert!(out.is_sorted(), "{function:?} near {start:e}");
        }
    }
}

#[test]
fn ln_is_within_an_ulp() {
    let mut random = Random(5);
    let mut x: Vec<f64> = (0..60_000).map(|_| 2f64.powf(random.uniform(-1000.0, 1000.0))).collect();
    x.extend((0..60_000).map(|_| random.uniform(0.4, 2.2)));
    x.extend((0..60_000).map(|_| 1.0 + random.uniform(-1.0, 1.0) * 2f64.powf(random.uniform(-40.0, -3.0))));
    x.extend((0..1000).map(|k| f64::from_bits(std::f64::consts::FRAC_1_SQRT_2.to_bits() + k - 500)));
    let (mut worst, mut place) = (0.0, 0.0);
    for x in x {
        let error = error64(ln(x), Wide::from(x).ln(), 0);
        if error > worst {
            (worst, place) = (error, x);
        }
    }
    println!("ln: {worst:.4} ulp at {place:e}");
    assert!(worst <= 0.62, "{worst} ulp at {place:e}");
    for tiny in [f64::from_bits(1), f64::from_bits(12345), 1e-310] {
        let want = Wide::from(tiny * 2f64.powi(200)).ln() - Wide::LN_2 * Wide::from(200.0);
        assert!(error64(ln(tiny), want, 0) <= 0.62);
    }
    assert_eq!((ln(0.0), ln(-0.0), ln(f64::INFINITY), ln(1.0)), (f64::NEG_INFINITY, f64::NEG_INFINITY, f64::INFINITY, 0.0));
    assert!(ln(-1.0).is_nan() && ln(f64::NAN).is_nan() && ln(f64::NEG_INFINITY).is_nan());
}

#[test]
fn cos_pi_is_within_an_ulp() {
    let mut random = Random(6);
    let mut x: Vec<f64> = (0..100_000).map(|_| random.uniform(0.0, 1.0)).collect();
    x.extend([0.25, 0.75, 0.5].iter().flat_map(|&x: &f64| (0..100).map(move |k| f64::from_bits(x.to_bits() + k - 50))));
    x.extend((1..200).map(|k| 0.5 - 2f64.powi(-k)));
    let (mut worst, mut place, mut absolute) = (0.0, 0.0, 0.0f64);
    for x in x {
        // cos(πx) = sin(π(½ − x)) keeps the relative accuracy at the zero.
        let exact = if (x - 0.5).abs() < 0.3 { (Wide::PI * Wide::sum(0.5, -x)).sin() } else { (Wide::PI * Wide::from(x)).cos() };
        if exact.hi == 0.0 {
            assert_eq!(cos_pi(x), 0.0);
            continue;
        }
        absolute = absolute.max((Wide::from(cos_pi(x)) - exact).abs().hi);
        let error = error64(cos_pi(x), exact, 0);
        if error > worst {
            (worst, place) = (error, x);
        }
    }
    println!("cos_pi: {worst:.4} ulp at {place:e}, absolute {absolute:e}");
    assert!(worst <= 0.8, "{worst} ulp at {place:e}");
    assert_eq!((cos_pi(0.0), cos_pi(0.5), cos_pi(1.0)), (1.0, 0.0, -1.0));
    assert!(cos_pi(1.1).is_nan() && cos_pi(-0.1).is_nan() && cos_pi(f64::NAN).is_nan());
}

// -------------------------------------------------------------------------------------------------------------- rows

/// `u` and the smallest number of `T`: what the bounds are made of.
fn unit<T: Real>() -> f64 {
    T::UNIT_ROUNDOFF
}

/// Softmax and log-sum-exp of one row, checked against double-double.
///
/// A term is an exponential (0.8 ulp ≤ 1.6u) times `1 + rest` (u, and rest² < 2⁻³⁰u): 2.6u ≤ 3u. The f64 sum of positive terms
/// adds `n/16 + 5` roundings in f64, the sum in `T` one u, and the division one: `5u + (n/16 + 5)u₆₄`; terms below the normal range
/// may be off by a spacing each.
fn check_row<T: Real>(row: &[T]) {
    let exact: Vec<f64> = row.iter().map(|x| x.to_f64()).collect();
    let u64 = unit::<f64>();
    let sum_error = 3.0 * unit::<T>() + (row.len() as f64 / 16.0 + 5.0) * u64;
    let want = reference::softmax(&exact);
    let total = reference::log_sum_exp(&exact);
    let mut first: Option<(Vec<T>, f64)> = None;
    for isa in Isa::available() {
        let mut out = vec![T::ZERO; row.len()];
        softmax(isa, &mut out, row).unwrap();
        let got = log_sum_exp(isa, row);
        let (first_out, first_got) = first.get_or_insert_with(|| (out.clone(), got));
        assert!(out.iter().zip(&*first_out).all(|(&a, &b)| same(a, b)) && same(got, *first_got), "bits on {isa}");
        for (i, (&got, &want)) in out.iter().zip(&want).enumerate() {
            let bound = (sum_error + 2.0 * unit::<T>() + 3.0 * u64) * want + 2.0 * T::TINY;
            assert!((got.to_f64() - want).abs() <= bound, "softmax {i} of {row:?}: {got:e}, want {want:e}");
        }
        // The logarithm (2u₆₄) and the last addition (u₆₄) round too; the reference is exact to u₆₄.
        let bound = sum_error + u64 * (2.0 * total.abs() + 2.0 * (row.len() as f64).ln() + 1.0);
        assert!((got - total).abs() <= bound, "log_sum_exp of {row:?}: {got:e}, want {total:e} ± {bound:e}");
    }
}

fn any_row() -> impl Strategy<Value = Vec<f64>> {
    (prop::collection::vec(-1.0..1.0f64, 1..300), -8i32..10, -1e4..1e4f64)
        .prop_map(|(row, scale, shift)| row.into_iter().map(|x| x * 2f64.powi(scale) + shift).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn rows_are_within_their_bounds(row in any_row()) {
        check_row(&row);
        check_row(&row.iter().map(|&x| x as f32).collect::<Vec<f32>>());
    }
}

/// Rows together have the bits of rows alone, for every number of rows up to two blocks and a little, also apart from each other.
fn rows_together<T: Real>() {
    let mut random = Random(5);
    let special = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 3e38, -3e38, 1e-40];
    for cols in [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 40, 128, 300] {
        // Some rows have something special, others not.
        let every = if cols > 100 { 601 } else { 11 };
        for rows in 0..=19 {
            let stride = cols + rows % 3;
            let number = |i: usize| match i % every {
                0 if rows % 2 == 0 => special[i / every % special.len()],
                _ => random.uniform(-60.0, 60.0),
            };
            let x: Vec<T> = (0..rows * stride).map(number).map(T::from_f64).collect();
            for isa in Isa::available() {
                let canary = T::from_f64(-77.0);
                let (mut out, mut totals) = (vec![canary; rows * stride], vec![0.0; rows]);
                // faer 0.24.4 exchanges the strides of row-major slices.
                let to = MatMut::from_column_major_slice_with_stride_mut(&mut out, cols, rows, stride).transpose_mut();
                let from = MatRef::from_column_major_slice_with_stride(&x, cols, rows, stride).transpose();
                softmax_rows(isa, to, from);
                log_sum_exp_rows(isa, &mut totals, from);
                for row in 0..rows {
                    let (x, out) = (&x[row * stride..][..stride], &out[row * stride..][..stride]);
                    let mut alone = vec![canary; stride];
                    softmax(isa, &mut alone[..cols], &x[..cols]).unwrap();
                    assert!(out.iter().zip(&alone).all(|(&a, &b)| same(a, b)), "row {row} of {rows} x {cols} on {isa}: {x:?}");
                    assert!(same(totals[row], log_sum_exp(isa, &x[..cols])), "row {row} of {rows} x {cols} on {isa}: {x:?}");
                }
            }
        }
    }
}

#[test]
fn rows_together_have_the_bits_of_rows_alone() {
    rows_together::<f32>();
    rows_together::<f64>();
}

fn special_rows<T: Real>() {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    for isa in Isa::available() {
        let lse = |x: &[f64]| log_sum_exp::<T>(isa, &x.iter().map(|&x| T::from_f64(x)).collect::<Vec<T>>());
        let soft = |x: &[f64]| {
            let x: Vec<T> = x.iter().map(|&x| T::from_f64(x)).collect();
            let mut out = vec![T::ZERO; x.len()];
            softmax(isa, &mut out, &x).unwrap();
            out.into_iter().map(T::to_f64).collect::<Vec<f64>>()
        };
        assert_eq!(lse(&[]), -inf);
        assert_eq!(soft(&[]), []);
        assert_eq!(lse(&[-0.0]), 0.0);
        assert_eq!(soft(&[-3e38]), [1.0]);
        assert_eq!(soft(&[-inf, 0.0, -inf, 0.0]), [0.0, 0.5, 0.0, 0.5]);
        assert_eq!(soft(&[-3e38, 3e38]), [0.0, 1.0]);
        assert_eq!(lse(&[-3e38, 3e38, -inf]), T::from_f64(3e38).to_f64());
        for length in [1, 5, 16, 17, 64, 129, 300] {
            let mut row = vec![-inf; length];
            assert_eq!(lse(&row), -inf);
            assert!(soft(&row).iter().all(|x| x.is_nan()));
            for place in [0, length / 2, length - 1] {
                row.fill(1.0);
                row[place] = inf;
                assert_eq!(lse(&row), inf);
                assert!(soft(&row).iter().all(|x| x.is_nan()));
                row[length - 1 - place] = nan;
                assert!(lse(&row).is_nan());
                assert!(soft(&row).iter().all(|x| x.is_nan()));
            }
        }
    }
}

#[test]
fn rows_with_infinities_and_nan() {
    special_rows::<f32>();
    special_rows::<f64>();
}

// -------------------------------------------------------------------------------------------------------------- activations

#[test]
fn names_find_their_activation() {
    let names: Vec<&str> = Activation::ALL.iter().map(|activation| activation.name()).collect();
    assert_eq!(names, ["identity", "relu", "leaky-relu", "hard-sigmoid", "sigmoid", "tanh"]);
    for &activation in Activation::ALL {
        assert_eq!(Activation::by_name(activation.name()), Some(activation));
    }
    assert_eq!(Activation::by_name("gelu"), None);
}

struct PairOf<'a, T, A> {
    activation: A,
    hi: &'a [T],
    lo: &'a [T],
    q: &'a [T],
    out: &'a mut [[T; 3]],
}

impl<T: Real, A: Activate> Kernel<T> for PairOf<'_, T, A> {
    type Output = ();
    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        for start in (0..self.hi.len()).step_by(S::LANES) {
            let range = start..(start + S::LANES).min(self.hi.len());
            let load = |x: &[T]| simd.load_partial(&x[range.clone()]);
            let Pair { hi, lo, rise } = self.activation.pair(simd, load(self.hi), load(self.lo), load(self.q));
            let mut lanes = [[T::ZERO; 64]; 3];
            for (lanes, value) in lanes.iter_mut().zip([hi, lo, rise]) {
                simd.store_partial(&mut lanes[..S::LANES], value);
            }
            for (i, out) in self.out[range].iter_mut().enumerate() {
                *out = [lanes[0][i], lanes[1][i], lanes[2][i]];
            }
        }
    }
}

/// Rises on points `(lo, q)`: the exact upper argument is `lo + q`, the kernel gets it rounded.
struct CheckRises<'a> {
    points: &'a [(f64, f64)],
}

/// The length of `[lo, lo + q]` (or of `[lo + q, lo]`) inside `[a, b]`, with the sign of `q`, rounded once.
fn overlap(lo: f64, q: f64, a: f64, b: f64) -> f64 {
    let (near, far) = (Wide::from(lo), Wide::sum(lo, q));
    let (bottom, top) = if q < 0.0 { (far, near) } else { (near, far) };
    let (under, over) = ((bottom - Wide::from(a)).hi < 0.0, (top - Wide::from(b)).hi > 0.0);
    let size = match (under, over) {
        (false, false) => q.abs(),
        (true, false) => (top - Wide::from(a)).hi,
        (false, true) => (Wide::from(b) - bottom).hi,
        (true, true) => b - a,
    };
    size.max(0.0) * q.signum()
}

/// The exact rise, and the relative error that `pair` may have.
///
/// Piecewise linear: every candidate of the clamp is `q`, or one rounded argument or difference: `u`. Only `1 − hi` of the hard
/// sigmoid is sensitive to the rounding of `hi`, by `u|hi|`, where the span crosses 1 downwards (`kink` below). Leaky: the slope, the difference
/// below zero and its operand, and the fused sum: `3u`. Smooth: `expm1` and `z` 0.8 ulp ≤ 1.6u each, two reciprocals u each, three products u
/// each: 8.2u; the rounding of `hi` by `u|hi|` moves `ln E` by at most `2u|hi|` for tanh, `u|hi|` for the sigmoid. The reference adds u₆₄.
fn exact_rise(name: &str, lo: f64, q: f64) -> (f64, f64) {
    let far = 1e300;
    match name {
        "identity" => (q, 0.0),
        "relu" => (overlap(lo, q, 0.0, far), 1.0),
        "leaky-relu" => {
            let above = overlap(lo, q, 0.0, far);
            (above + LeakyRelu::SLOPE * overlap(-lo, -q, 0.0, far).abs() * q.signum(), 3.0)
        }
        "hard-sigmoid" => (overlap(lo, q, 0.0, 1.0), 1.0),
        "sigmoid" => (reference::sigmoid_rise(lo, q), 9.0 + (lo + q).abs()),
        "tanh" => (reference::tanh_rise(lo, q), 9.0 + 2.0 * (lo + q).abs()),
        other => panic!("no exact rise of {other}"),
    }
}

/// Counts of rises, and of those that the difference of the exact values of the rounded arguments gets wrong.
#[derive(Default)]
struct Tally {
    rises: usize,
    subtraction_fails: usize,
    largest: f64,
}

impl CheckRises<'_> {
    fn run<T: Real, A: Activate>(&self, activation: A) -> Tally {
        let (lo, q): (Vec<T>, Vec<T>) = self.points.iter().map(|&(lo, q)| (T::from_f64(lo), T::from_f64(q))).unzip();
        // In f64 the sum may round; from there to f32 once more, a quarter of a percent of the unit of the bound.
        let hi: Vec<T> = lo.iter().zip(&q).map(|(lo, q)| T::from_f64(lo.to_f64() + q.to_f64())).collect();
        let kind = Activation::by_name(A::NAME).unwrap();
        let (mut up, mut down) = (hi.clone(), lo.clone());
        kind.values(Isa::best(), &mut up, &hi).unwrap();
        kind.values(Isa::best(), &mut down, &lo).unwrap();
        let mut first: Option<Vec<[T; 3]>> = None;
        for isa in Isa::available() {
            let mut out = vec![[T::ZERO; 3]; lo.len()];
            isa.run(PairOf { activation, hi: &hi, lo: &lo, q: &q, out: &mut out });
            let first = first.get_or_insert_with(|| out.clone());
            for (a, b) in out.iter().zip(&*first) {
                assert!(a.iter().zip(b).all(|(&a, &b)| same(a, b)), "{}: bits on {isa}: {a:?} and {b:?}", A::NAME);
            }
        }
        let mut tally = Tally::default();
        for (i, out) in first.unwrap().into_iter().enumerate() {
            let (lo, q) = (lo[i].to_f64(), q[i].to_f64());
            assert!(same(out[0], up[i]) && same(out[1], down[i]), "{}: values of the pair at {lo:e}, {q:e}", A::NAME);
            let (want, roundings) = exact_rise(A::NAME, lo, q);
            let kink = if A::NAME == "hard-sigmoid" && q < 0.0 && lo > 1.0 - 2.0 * unit::<T>() { (lo + q).abs() } else { 0.0 };
            let bound = (roundings * unit::<T>() + 3.0 * unit::<f64>()) * want.abs() + unit::<T>() * kink + 2.0 * T::TINY;
            let error = (out[2].to_f64() - want).abs();
            assert!(
                error <= bound,
                "{} {}: rise at {lo:e} by {q:e} is {:e}, want {want:e} ± {bound:e}",
                T::NAME,
                A::NAME,
                out[2]
            );
            let plain = activation.exact(hi[i].to_f64()) - activation.exact(lo);
            tally.rises += usize::from(want != 0.0);
            tally.subtraction_fails += usize::from((plain - want).abs() > bound);
            if want.abs() > f64::from(f32::MIN_POSITIVE) {
                tally.largest = tally.largest.max(error / (unit::<T>() * want.abs()));
            }
        }
        tally
    }
}

impl Visit for CheckRises<'_> {
    type Output = [Tally; 2];
    fn visit<A: Activate>(self, activation: A) -> [Tally; 2] {
        [self.run::<f32, A>(activation), self.run::<f64, A>(activation)]
    }
}

fn check_rises(points: &[(f64, f64)]) -> Vec<[Tally; 2]> {
    Activation::ALL.iter().map(|activation| activation.visit(CheckRises { points })).collect()
}

/// Arguments up to saturation, spreads from 10⁻³⁰ of them to as large as they are; sign changes and kinks.
fn rise_points(count: usize) -> Vec<(f64, f64)> {
    let mut random = Random(11);
    let mut points = Vec::new();
    for i in 0..count {
        let scale = [0.1, 1.0, 4.0, 40.0][i % 4];
        let lo = random.uniform(-scale, scale);
        let size = 10f64.powf(random.uniform(-30.0, 0.3)) * lo.abs();
        points.push((lo, if random.bits() & 1 == 0 { size } else { -size }));
    }
    for kink in [0.0, 1.0, -1.0, 0.5] {
        for size in [1.0, 1e-2, 1e-5, 1e-7, 1e-9, 1e-20] {
            for (a, b) in [(0.0, 1.0), (1.0, -1.0), (-1.0, 2.0), (-0.5, 0.25), (1.0, -3.0), (-1.0, 1.0), (0.25, 0.25)] {
                points.push((kink + a * size, b * size));
            }
        }
    }
    points
}

#[test]
fn rises_keep_the_relative_accuracy_of_the_spread() {
    for (activation, tallies) in Activation::ALL.iter().zip(check_rises(&rise_points(20_000))) {
        for (name, tally) in ["f32", "f64"].into_iter().zip(tallies) {
            println!(
                "{activation} {name}: largest error {:.2} u, subtraction fails {} of {}",
                tally.largest, tally.subtraction_fails, tally.rises
            );
            assert!(tally.rises > 5_000, "vacuous: {} rises of {activation}", tally.rises);
        }
    }
}

/// The test has teeth: with spreads below 2⁻¹² of the argument the subtraction misses the bound almost always.
#[test]
fn a_subtraction_would_fail() {
    let points: Vec<(f64, f64)> = rise_points(20_000).into_iter().filter(|(lo, q)| q.abs() < lo.abs() * 2f64.powi(-12)).collect();
    for (activation, tallies) in Activation::ALL.iter().zip(check_rises(&points)) {
        for tally in tallies {
            let share = tally.subtraction_fails as f64 / tally.rises as f64;
            assert!(share > 0.9, "{activation}: only {share} fail");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn rises_are_within_their_bounds(lo in -40.0..40.0f64, exponent in -100..6i32, sign in prop::bool::ANY, mantissa in 1.0..2.0f64) {
        let q = 2f64.powi(exponent) * mantissa * if sign { -1.0 } else { 1.0 };
        // Also at the mirror image, and with the spread that just reaches the kink.
        check_rises(&[(lo, q), (-lo, -q), (lo, -lo), (lo, -2.0 * lo), (q, -q), (q, lo)]);
    }
}

struct Nans;

impl Visit for Nans {
    type Output = ();
    fn visit<A: Activate>(self, activation: A) {
        let nan = f32::NAN;
        // Inside, beyond either kink, and with an infinite partner.
        let places = [0.5, -3.0, 3.0, f32::INFINITY, f32::NEG_INFINITY];
        for isa in Isa::available() {
            for other in places {
                for q in [1.0, -1.0, 0.0] {
                    let (hi, lo, q) = ([nan, other, 0.5], [other, nan, 0.25], [q, q, nan]);
                    let mut out = [[0.0; 3]; 3];
                    isa.run(PairOf { activation, hi: &hi, lo: &lo, q: &q, out: &mut out });
                    assert!(out[0][0].is_nan() && out[1][1].is_nan(), "{}: value of NaN", A::NAME);
                    let rises = if A::NAME == "identity" { &out[2..] } else { &out[..] };
                    assert!(rises.iter().all(|out| out[2].is_nan()), "{}: rise of NaN: {out:?}", A::NAME);
                }
            }
            let mut out = [[0.0f32; 3]; 2];
            let (hi, lo, q) = ([f32::INFINITY, 2.0], [1.0, f32::NEG_INFINITY], [f32::INFINITY; 2]);
            isa.run(PairOf { activation, hi: &hi, lo: &lo, q: &q, out: &mut out });
            for (i, out) in out.iter().enumerate() {
                let want = activation.exact(f64::from(hi[i])) - activation.exact(f64::from(lo[i]));
                let close = f64::from(out[2]) == want || (f64::from(out[2]) - want).abs() <= 4.0 * unit::<f32>();
                assert!(close, "{}: infinite spread {out:?}, want {want}", A::NAME);
            }
        }
    }
}

#[test]
fn nan_reaches_the_rise_and_infinity_is_a_number() {
    for &activation in Activation::ALL {
        activation.visit(Nans);
    }
}

struct Values;

impl Visit for Values {
    type Output = ();
    fn visit<A: Activate>(self, activation: A) {
        let kind = Activation::by_name(A::NAME).unwrap();
        let x = samples(f32::NEG_INFINITY);
        let (mut value, mut slope) = (x.clone(), x.clone());
        for isa in Isa::available() {
            kind.values(isa, &mut value, &x).unwrap();
            kind.derivatives(isa, &mut slope, &x).unwrap();
            let mut last = f32::NEG_INFINITY;
            for ((&x, &value), &slope) in x.iter().zip(&value).zip(&slope) {
                if x.is_nan() {
                    assert!(value.is_nan() && slope.is_nan(), "{}({x})", A::NAME);
                    continue;
                }
                assert!(value >= last, "{} falls at {x:e}", A::NAME);
                last = value;
                let (smooth, exact) = (["sigmoid", "tanh"].contains(&A::NAME), activation.exact(f64::from(x)));
                // The slope of the leaky one is rounded, and so is the product.
                let bound = if smooth {
                    MAX_ULP_F32
                } else if A::NAME == "leaky-relu" {
                    1.5
                } else {
                    0.0
                };
                assert!(
                    value == exact as f32 || error32(value, exact) <= bound,
                    "{}({x:e}) = {value:e}, want {exact:e}",
                    A::NAME
                );
                let exact = activation.exact_derivative(f64::from(x));
                let bound = if smooth { MAX_ULP_DERIVATIVE } else { 0.5 };
                assert!(error32(slope, exact) <= bound, "{}'({x:e}) = {slope:e}, want {exact:e}", A::NAME);
                assert!((0.0..=A::LIPSCHITZ as f32).contains(&slope), "{}'({x:e}) = {slope:e}", A::NAME);
            }
        }
    }
}

#[test]
fn values_and_derivatives_of_activations() {
    for &activation in Activation::ALL {
        activation.visit(Values);
    }
    let mut out = [1f32];
    Activation::Relu.values(Isa::best(), &mut out, &[-0.0]).unwrap();
    assert_eq!(out[0].to_bits(), 0);
    assert_eq!(Relu.exact_derivative(0.0), 0.0);
}

/// The formulas of the impl itself (`exact_rise`) agree with the double-double ones where the arguments are exact.
#[test]
fn exact_rises_agree_with_double_double() {
    struct Exact(f64, f64);
    impl Visit for Exact {
        type Output = ();
        fn visit<A: Activate>(self, activation: A) {
            let Exact(lo, q) = self;
            let (want, _) = exact_rise(A::NAME, lo, q);
            let got = activation.exact_rise(lo + q, lo, q);
            assert!((got - want).abs() <= 1e-14 * want.abs(), "{} at {lo}, {q}: {got:e}, want {want:e}", A::NAME);
        }
    }
    for k in -40..=40 {
        for j in -30..=30 {
            for &activation in Activation::ALL {
                activation.visit(Exact(f64::from(k) * 0.25, f64::from(j) * 0.125));
            }
        }
    }
}
