//! The proof that `‖A‖₂` is not above a number: `τI − AᵀA` has a Cholesky factor.

use dualprop_kernels::vector::Real;

use super::cholesky::{Cholesky, roundings};
use super::operator::Operator;
use super::rounding::{down, gamma, up};
use super::symmetric::Symmetric;
use crate::matrix::RowMajor;
use crate::runtime::Runtime;

/// Depth of a slab of `A` that is multiplied at once.
const SLAB: usize = 512;

/// `G = fl(AᵀA)` or `fl(AAᵀ)`, whichever is smaller, and what is known of its error.
///
/// With `Â` for the elements as [`Operator::block`] gives them, `‖A − Â‖₂ ≤ e`, every element of `G` is a sum over slabs of chains, so that
/// `|G − ÂᵀÂ| ≤ γ_q |Â|ᵀ|Â|` for `q = slab + number of slabs`, and `‖ |Â|ᵀ|Â| ‖₂ ≤ ‖Â‖_F² ≤ tr G/(1 − γ_q)`.
///
/// If Cholesky's algorithm runs to its end on `B = fl(τI − G)`, then `RᵀR = B + ΔB` with `|ΔB| ≤ γ_k|R|ᵀ|R|` (see [`roundings`]), hence
/// `‖ΔB‖₂ ≤ φ tr B` with `φ = γ_k/(1 − γ_k) ≤ γ_{k+1}`, and
/// `‖A‖₂ ≤ √(τ(1 + u) + φ tr B + γ_q ‖Â‖_F²) + e`.
pub(crate) struct Certificate {
    /// Upper triangle.
    gram: RowMajor<f64>,
    trace: f64,
    /// `γ_q ‖Â‖_F²` and what underflows.
    error: f64,
    /// `e`.
    lost: f64,
    phi: f64,
    cholesky: Cholesky<f64>,
}

impl Certificate {
    /// `None` if the operator does not know its elements. Takes `mn·min(m,n)` flops.
    pub(crate) fn new<T: Real>(operator: &dyn Operator<T>, runtime: &Runtime) -> Option<Self> {
        let (m, n) = operator.shape();
        let (long, short) = (m.max(n), m.min(n));
        let mut gram = RowMajor::zeros(short, short);
        let mut slab = RowMajor::zeros(SLAB.min(long), short);
        let (mut symmetric, mut lost) = (Symmetric::new(), 0.0);
        for p0 in (0..long).step_by(SLAB) {
            let deep = SLAB.min(long - p0);
            let out = slab.view_mut().subrows_mut(0, deep);
            let error = if m >= n { operator.block(p0, 0, out)? } else { operator.block(0, p0, out.transpose_mut())? };
            lost = up(lost + error * error, 2);
            symmetric.add(1.0, slab.view().subrows(0, deep), gram.view_mut(), runtime);
        }
        let trace: f64 = (0..short).map(|i| gram.row(i)[i]).sum();
        let q = SLAB.min(long) + long.div_ceil(SLAB);
        // Elements of the slabs may be subnormal: `long` products for each of `short²` sums.
        let vanished = (short * short) as f64 * (long as f64 * f64::TINY);
        let error = up(gamma(q) * up(trace, short + q + 2) + vanished, 4);
        let phi = gamma(roundings(short) + 1);
        Some(Self { gram, trace, error, lost: up(lost.sqrt(), 2), phi, cholesky: Cholesky::new(short) })
    }

    /// The upper triangle of `G`.
    pub(crate) fn gram(&self) -> &RowMajor<f64> {
        &self.gram
    }

    /// What `‖A‖₂` is not above if `‖G‖₂` is not above `norm`.
    pub(crate) fn bound_of(&self, norm: f64) -> f64 {
        up(up(norm + self.error, 1).sqrt() + self.lost, 2)
    }

    fn size(&self) -> f64 {
        self.gram.rows() as f64
    }

    /// What `‖A‖₂` is not above if Cholesky's algorithm runs to its end for `tau`.
    pub(crate) fn bound(&self, tau: f64) -> f64 {
        let n = self.gram.rows();
        // Products and quotients that underflow in the factorization.
        let vanished = self.size() * self.size() * f64::MIN_POSITIVE * (1.0 + tau);
        let trace = self.size() * tau - self.trace;
        let rounding = self.phi * (trace.max(0.0) + gamma(n + 4) * self.size() * tau);
        up(up((tau + f64::UNIT_ROUNDOFF * tau + rounding + self.error + vanished).next_up(), 12).sqrt() + self.lost, 3)
    }

    /// The largest `τ`, or one near it, for which [`bound`](Self::bound) is not above `bound`; not positive if there is none.
    pub(crate) fn tau(&self, bound: f64) -> f64 {
        let square = down(down(bound - self.lost, 2).powi(2), 2);
        let mut tau = square;
        // The slack depends on `τ` weakly: each step leaves a tiny part of the error of the one before.
        for _ in 0..4 {
            let slack = self.bound(tau).powi(2) - tau;
            tau = square - slack - 8.0 * f64::EPSILON * square;
        }
        tau
    }

    /// Whether Cholesky's algorithm runs to its end for `tau`. Takes `n³/3` flops for the smaller side `n`.
    pub(crate) fn holds(&mut self, tau: f64, runtime: &Runtime) -> bool {
        tau > 0.0 && tau.is_finite() && self.cholesky.runs_to_its_end(tau, &self.gram, runtime)
    }
}
