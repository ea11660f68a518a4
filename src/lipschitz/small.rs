//! The largest eigenvalue of small symmetric matrices, one after the other without allocations.

use super::enclosure::Proof;
use super::rounding::{down, gamma, up};

/// A positive semidefinite matrix in f64, known up to an error, and memory for its powers and factors.
#[derive(Clone, Debug)]
pub(crate) struct Small {
    n: usize,
    matrix: Vec<f64>,
    power: Vec<f64>,
    other: Vec<f64>,
}

/// `lower ≤ λ_max ≤ upper`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Largest {
    pub(crate) lower: f64,
    pub(crate) upper: f64,
    pub(crate) proof: Proof,
}

/// Squarings before the first proof is tried, and before each next one: the column of `S^(2^t)` that is taken misses `λ_max` by a
/// relative `n/2^t` at most, and by nothing where the next eigenvalue is far.
const SQUARINGS: [u32; 4] = [6, 4, 6, 8];

impl Small {
    pub(crate) fn new(n: usize) -> Self {
        let zeros = || vec![0.0; n * n];
        Self { n, matrix: zeros(), power: zeros(), other: zeros() }
    }

    /// Sets elements `(i, j)` and `(j, i)`.
    pub(crate) fn set(&mut self, i: usize, j: usize, x: f64) {
        self.matrix[i * self.n + j] = x;
        self.matrix[j * self.n + i] = x;
    }

    fn trace(&self, of: &[f64]) -> f64 {
        of.iter().step_by(self.n + 1).sum()
    }

    /// Bounds of the largest eigenvalue of a matrix that this one is within `error` of in the 2-norm; `upper ≤ (1 + gap)²·lower` unless rounding
    /// forbids it.
    pub(crate) fn enclose(&mut self, error: f64, gap: f64) -> Largest {
        let n = self.n;
        let trace = self.trace(&self.matrix);
        if trace == 0.0 && error == 0.0 {
            return Largest { lower: 0.0, upper: 0.0, proof: Proof::Zero };
        }
        let frobenius = up(self.matrix.iter().map(|x| x * x).sum::<f64>().sqrt(), n * n + 2);
        let fallback = Largest { lower: 0.0, upper: up(frobenius + error, 1), proof: Proof::Frobenius };
        if !(trace > 0.0 && frobenius.is_finite()) {
            return fallback;
        }
        self.power.iter_mut().zip(&self.matrix).for_each(|(p, x)| *p = x / trace);
        let mut lower: f64 = 0.0;
        for squarings in SQUARINGS {
            (0..squarings).for_each(|_| self.square());
            let best = (0..n).max_by(|&a, &b| self.power[a * (n + 1)].total_cmp(&self.power[b * (n + 1)])).unwrap_or(0);
            let v = &self.power[best * n..][..n];
            let length: f64 = v.iter().map(|v| v * v).sum();
            let image = |i: usize| self.matrix[i * n..][..n].iter().zip(v).map(|(a, v)| a * v).sum::<f64>();
            let quotient = (0..n).map(|i| v[i] * image(i)).sum::<f64>() / length;
            // `|vᵀSv|` is off by `γ_{2n} |v|ᵀ|S||v|`, and the length by `γ_n`.
            lower = lower.max(down(quotient - gamma(4 * n + 8) * frobenius, 2));
            // Nearer than this, rounding decides.
            let least = 4.0 * (gamma(4 * n + 8) * frobenius + gamma(n + 3) * (n as f64 * lower + 2.0 * trace));
            let tau = (lower * (1.0 + gap)).max(lower + least);
            if tau > 0.0 && self.factors(tau) {
                // `‖ΔB‖₂ ≤ φ tr B` (see `certificate.rs`), and one rounding on the diagonal.
                let rounding = gamma(n + 3) * (n as f64 * tau + 2.0 * trace);
                return Largest {
                    lower: down(lower - error, 1),
                    upper: up(tau + rounding + error, 4),
                    proof: Proof::Cholesky { tau },
                };
            }
        }
        Largest { lower: down(lower - error, 1), ..fallback }
    }

    /// `power ← power²/tr power²`.
    fn square(&mut self) {
        let n = self.n;
        for (i, out) in self.other.chunks_exact_mut(n).enumerate() {
            out.fill(0.0);
            for (k, row) in self.power.chunks_exact(n).enumerate() {
                let factor = self.power[i * n + k];
                out.iter_mut().zip(row).for_each(|(out, x)| *out += factor * x);
            }
        }
        let trace = self.trace(&self.other);
        self.power.iter_mut().zip(&self.other).for_each(|(p, x)| *p = x / trace);
    }

    /// Whether Cholesky's algorithm runs to its end on `τI − S`.
    fn factors(&mut self, tau: f64) -> bool {
        let n = self.n;
        for i in 0..n {
            for j in i..n {
                let mut b = if i == j { tau } else { 0.0 } - self.matrix[i * n + j];
                for k in 0..i {
                    b -= self.other[k * n + i] * self.other[k * n + j];
                }
                self.other[i * n + j] = if i == j { b.sqrt() } else { b / self.other[i * n + i] };
            }
            let pivot = self.other[i * n + i];
            if !(pivot > 0.0 && pivot.is_finite()) {
                return false;
            }
        }
        true
    }
}
