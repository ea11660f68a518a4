//! The largest eigenvalue of small symmetric matrices, one after the other without allocations.

use dualprop_kernels::isa::Isa;
use dualprop_kernels::reduce;
use dualprop_kernels::selected::{Selected, selected};
use dualprop_kernels::vector::Real;
use faer::{MatMut, MatRef};

use super::enclosure::Proof;
use super::rounding::{down, gamma, up};

/// A positive semidefinite matrix `S` in f64, known up to an error, and memory for its powers.
///
/// `P_0 = S/tr S` and `P_{t+1} = P_t²/tr P_t²` are powers of `S`. A column of one is a vector for a Rayleigh quotient, and
/// `λ_max ≤ ‖S^(2^t)‖_F^(2^−t)` (Gram iteration, Delattre et al. 2023), for rank `n` at most `n^(2^(−t−1))` times too large.
///
/// Rounding of the upper bound: chains of `n` make `‖fl(P_t²) − P_t²‖₂ ≤ γ_n ‖P_t‖_F²`, and the quotients are off by `u ‖P_{t+1}‖_F`. With
/// `τ_t = tr fl(P_t²)`, so that `‖P_t‖_F² ≤ τ_t/(1 − γ_n)`,
///
/// ```text
/// ‖P_t‖₂² ≤ τ_t (‖P_{t+1}‖₂ + u ‖P_{t+1}‖_F + γ_{2n+2})
/// ```
///
/// from the last power, of which the Frobenius norm is taken, back to `P_0`.
#[derive(Clone, Debug)]
pub(crate) struct Small {
    n: usize,
    matrix: Vec<f64>,
    power: Vec<f64>,
    other: Vec<f64>,
    /// `τ_t`.
    traces: Vec<f64>,
    rows: Vec<u32>,
}

/// `lower ≤ λ_max ≤ upper`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Largest {
    pub(crate) lower: f64,
    pub(crate) upper: f64,
    pub(crate) proof: Proof,
}

impl Largest {
    /// Of a matrix of zeros.
    pub(crate) const ZERO: Self = Self { lower: 0.0, upper: 0.0, proof: Proof::Zero };
}

/// Most squarings: `ln n/2^25` is what they can leave of a gap, and less than `n²/2^24` of the Rayleigh quotient.
const SQUARINGS: usize = 24;

impl Small {
    pub(crate) fn new(n: usize) -> Self {
        let zeros = || vec![0.0; n * n];
        Self {
            n,
            matrix: zeros(),
            power: zeros(),
            other: zeros(),
            traces: Vec::with_capacity(SQUARINGS),
            rows: (0..n as u32).collect(),
        }
    }

    /// Sets elements `(i, j)` and `(j, i)`.
    pub(crate) fn set(&mut self, i: usize, j: usize, x: f64) {
        self.matrix[i * self.n + j] = x;
        self.matrix[j * self.n + i] = x;
    }

    /// The matrix, for who sets all of it. It has to be symmetric.
    pub(crate) fn matrix_mut(&mut self) -> MatMut<'_, f64> {
        MatMut::from_row_major_slice_mut(&mut self.matrix, self.n, self.n)
    }

    /// Sum of the diagonal.
    pub(crate) fn trace(&self) -> f64 {
        self.trace_of(&self.matrix)
    }

    fn trace_of(&self, of: &[f64]) -> f64 {
        of.iter().step_by(self.n + 1).sum()
    }

    /// Not below the norm.
    fn frobenius(&self, isa: Isa, of: &[f64]) -> f64 {
        up(reduce::norm(isa, of), of.len() / 32 + 8)
    }

    /// Bounds of the largest eigenvalue of a matrix that this one is within `error` of in the 2-norm; `upper ≤ (1 + gap)·lower` before the error
    /// is added, unless rounding forbids it.
    pub(crate) fn enclose(&mut self, isa: Isa, error: f64, gap: f64) -> Largest {
        let scale = self.trace();
        if scale == 0.0 && error == 0.0 {
            return Largest::ZERO;
        }
        let frobenius = self.frobenius(isa, &self.matrix);
        let mut best = Largest { lower: 0.0, upper: frobenius, proof: Proof::Frobenius };
        if !(scale > 0.0 && frobenius.is_finite()) {
            return Largest { upper: up(frobenius + error, 1), ..best };
        }
        self.power.iter_mut().zip(&self.matrix).for_each(|(p, x)| *p = x / scale);
        self.traces.clear();
        let mut lower: f64 = 0.0;
        for t in 0..SQUARINGS {
            let trace = self.square(isa);
            // The rest of the eigenvalues of `P_t` weighs about so much; its fourth power is about what the next bounds miss.
            let rest = 1.0 - trace;
            if rest.powi(4) > gap * (1u32 << t) as f64 && t + 1 < SQUARINGS {
                continue;
            }
            lower = lower.max(self.quotient(frobenius));
            let upper = up(scale * self.norm(isa), 1);
            if upper < best.upper {
                let squarings = self.traces.len() as u32;
                best = Largest { lower: 0.0, upper, proof: Proof::Gram { squarings } };
            }
            // Beyond that nothing but rounding is left of the others.
            if upper <= lower * (1.0 + gap) || rest < 4.0 * f64::EPSILON {
                break;
            }
        }
        Largest { lower: down(lower - error, 1), upper: up(best.upper + error, 1), ..best }
    }

    /// `power ← power²/tr power²`, which is returned.
    fn square(&mut self, isa: Isa) -> f64 {
        let n = self.n;
        let power = MatRef::from_row_major_slice(&self.power, n, n);
        let out = MatMut::from_row_major_slice_mut(&mut self.other, n, n);
        let square = Selected { rows: &self.rows, factors: &self.power, start: None, wanted: None, out };
        selected(isa, power, false, &mut [square]);
        let trace = self.trace_of(&self.other);
        self.power.iter_mut().zip(&self.other).for_each(|(p, x)| *p = x / trace);
        self.traces.push(trace);
        trace
    }

    /// `vᵀSv/‖v‖²` less all rounding, for the column of the power with the largest element of the diagonal.
    fn quotient(&self, frobenius: f64) -> f64 {
        let n = self.n;
        let best = (0..n).max_by(|&a, &b| self.power[a * (n + 1)].total_cmp(&self.power[b * (n + 1)])).unwrap_or(0);
        let v = &self.power[best * n..][..n];
        let length: f64 = v.iter().map(|v| v * v).sum();
        let image = |i: usize| self.matrix[i * n..][..n].iter().zip(v).map(|(a, v)| a * v).sum::<f64>();
        let quotient = (0..n).map(|i| v[i] * image(i)).sum::<f64>() / length;
        // `|vᵀSv|` is off by `γ_{2n} |v|ᵀ|S||v|`, and the length by `γ_n`.
        down(quotient - gamma(4 * n + 8) * frobenius, 2)
    }

    /// Not below `‖P_0‖₂ + u ‖P_0‖_F`.
    fn norm(&self, isa: Isa) -> f64 {
        let n = self.n;
        // What underflows, in a square or a quotient, against traces that are not below `1/n`.
        let vanished = (n * n * n) as f64 * f64::MIN_POSITIVE;
        let slack = up(gamma(2 * n + 2) + vanished, 1);
        let mut frobenius = self.frobenius(isa, &self.power);
        let mut norm = frobenius;
        for &trace in self.traces.iter().rev() {
            norm = up((trace * (norm + f64::UNIT_ROUNDOFF * frobenius + slack)).sqrt(), 5);
            frobenius = up(trace.sqrt(), n + 4);
        }
        up(norm + f64::UNIT_ROUNDOFF * frobenius + vanished, 3)
    }
}
