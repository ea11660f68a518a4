//! What somebody with a good matrix product writes around it: plain loops over rows, autovectorised under the best instruction set.

use core::array::from_fn;

use dualprop::{Isa, Real};
use dualprop_kernels::isa::Kernel;
use dualprop_kernels::vector::Vector;

use super::{RowMajor, Scalar};

/// Runs a loop where the compiler may use every instruction of the machine.
pub fn pass<T: Real>(kernel: impl Kernel<T, Output = ()>) {
    Isa::best().run::<T, _>(kernel);
}

/// `drive ← drive + bias`, `mean ← max(drive, 0)`.
pub struct BiasRelu<'a, T> {
    pub drive: &'a mut RowMajor<T>,
    pub mean: &'a mut RowMajor<T>,
    pub bias: &'a [T],
}

impl<T: Scalar> Kernel<T> for BiasRelu<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, _: S) {
        for row in 0..self.drive.rows() {
            let (drive, mean) = (self.drive.row_mut(row), self.mean.row_mut(row));
            for ((drive, mean), &bias) in drive.iter_mut().zip(mean).zip(self.bias) {
                *drive += bias;
                *mean = if *drive > T::ZERO { *drive } else { T::ZERO };
            }
        }
    }
}

/// `diff ← diff·max'(drive, 0)`.
pub struct Mask<'a> {
    pub diff: &'a mut RowMajor<f32>,
    pub drive: &'a RowMajor<f32>,
}

impl Kernel<f32> for Mask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<f32>>(self, _: S) {
        for row in 0..self.diff.rows() {
            for (diff, &drive) in self.diff.row_mut(row).iter_mut().zip(self.drive.row(row)) {
                *diff = if drive > 0.0 { *diff } else { 0.0 };
            }
        }
    }
}

/// The two compartments of DP⊤ with α = ½: `s± = f(drive ± ½ feedback)`, `mean ← (s⁺ + s⁻)/2`, `diff ← s⁺ − s⁻`.
pub struct Dyads<'a> {
    /// Gets its bias here.
    pub drive: &'a mut RowMajor<f32>,
    pub feedback: &'a RowMajor<f32>,
    pub bias: &'a [f32],
    pub mean: &'a mut RowMajor<f32>,
    pub diff: &'a mut RowMajor<f32>,
    pub tanh: bool,
}

impl Kernel<f32> for Dyads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<f32>>(self, _: S) {
        if self.tanh { self.rows::<true>() } else { self.rows::<false>() }
    }
}

impl Dyads<'_> {
    #[inline(always)]
    fn rows<const TANH: bool>(self) {
        for row in 0..self.drive.rows() {
            let (drive, feedback) = (self.drive.row_mut(row), self.feedback.row(row));
            let (mean, diff) = (self.mean.row_mut(row), self.diff.row_mut(row));
            let n = drive.len();
            let (feedback, bias, mean, diff) = (&feedback[..n], &self.bias[..n], &mut mean[..n], &mut diff[..n]);
            for j in 0..n {
                drive[j] += bias[j];
                let (p, q) = (drive[j] + 0.5 * feedback[j], drive[j] - 0.5 * feedback[j]);
                let (up, down) = if TANH { (tanh(p), tanh(q)) } else { (p.max(0.0), q.max(0.0)) };
                mean[j] = 0.5 * (up + down);
                diff[j] = up - down;
            }
        }
    }
}

/// The rational approximation of Eigen and XLA, good to a few ulp, which vectorises; `f32::tanh` is a call and would not.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    const ODD: [f32; 7] =
        [-2.760_768_5e-16, 2.000_188e-13, -8.604_672e-11, 5.122_297e-8, 1.485_722_4e-5, 6.372_619e-4, 4.893_524_6e-3];
    const EVEN: [f32; 4] = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];
    let x = x.clamp(-7.905_311, 7.905_311);
    let square = x * x;
    let horner = |p: f32, &c: &f32| p.mul_add(square, c);
    x * ODD[1..].iter().fold(ODD[0], horner) / EVEN[1..].iter().fold(EVEN[0], horner)
}

/// `m ← μm + g`, `w ← keep·w − rate·m`.
pub struct HeavyBall<'a> {
    pub weights: &'a mut RowMajor<f32>,
    pub moments: &'a mut [RowMajor<f32>],
    pub gradient: &'a RowMajor<f32>,
    pub mu: f32,
    pub keep: f32,
    pub rate: f32,
}

impl Kernel<f32> for HeavyBall<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<f32>>(self, _: S) {
        let [momentum] = self.moments else { panic!("heavy ball keeps one moment") };
        for row in 0..self.weights.rows() {
            let (w, m) = (self.weights.row_mut(row), momentum.row_mut(row));
            for ((w, m), &g) in w.iter_mut().zip(m).zip(self.gradient.row(row)) {
                *m = self.mu.mul_add(*m, g);
                *w = self.keep * *w - self.rate * *m;
            }
        }
    }
}

/// Adam with β = (0.9, 0.999) and ε = 1e-8: `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`, `w ← keep·w − rate·m̂/(√v̂ + ε)`.
pub struct Adam<'a> {
    pub weights: &'a mut RowMajor<f32>,
    pub moments: &'a mut [RowMajor<f32>],
    pub gradient: &'a RowMajor<f32>,
    pub keep: f32,
    pub rate: f32,
    /// `t`, from 1.
    pub step: i32,
}

impl Kernel<f32> for Adam<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<f32>>(self, _: S) {
        let [first, second] = self.moments else { panic!("Adam keeps two moments") };
        let [correct1, correct2] = [0.9f64, 0.999].map(|beta| (1.0 / (1.0 - beta.powi(self.step))) as f32);
        for row in 0..self.weights.rows() {
            let (w, g) = (self.weights.row_mut(row), self.gradient.row(row));
            let (m, v) = (first.row_mut(row), second.row_mut(row));
            for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
                *m = 0.9f32.mul_add(*m, 0.1 * g);
                *v = 0.999f32.mul_add(*v, 0.001 * g * g);
                *w = self.keep * *w - self.rate * (*m * correct1) / ((*v * correct2).sqrt() + 1e-8);
            }
        }
    }
}

/// `x ← a·x`, the lightest pass over a matrix in place.
pub struct Scale<'a, const N: usize> {
    pub streams: &'a mut [Vec<f32>; N],
    pub factor: f32,
}

impl<const N: usize> Kernel<f32> for Scale<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<f32>>(self, _: S) {
        // In pieces, so that all streams advance together.
        const PIECE: usize = 256;
        let len = self.streams[0].len();
        for start in (0..len).step_by(PIECE) {
            for stream in self.streams.iter_mut() {
                for x in &mut stream[start..len.min(start + PIECE)] {
                    *x *= self.factor;
                }
            }
        }
    }
}

/// `STEPS` multiply-adds on each of `N` chains that do not wait for each other.
pub struct Chains<T, const N: usize> {
    pub factor: T,
    pub term: T,
}

/// Length of a chain.
pub const STEPS: usize = 2000;

impl<T: Real, const N: usize> Kernel<T> for Chains<T, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        let (factor, term) = (simd.splat(self.factor), simd.splat(self.term));
        let mut chains: [S::V; N] = from_fn(|i| simd.splat(T::from_f64(i as f64)));
        for _ in 0..STEPS {
            for chain in &mut chains {
                *chain = simd.mul_add(*chain, factor, term);
            }
        }
        core::hint::black_box(chains);
    }
}
