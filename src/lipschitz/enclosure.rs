//! The form of every answer: two bounds, and what stands behind them.

/// `lower ≤ ‖A‖₂ ≤ upper`.
///
/// `lower` is `‖Ax‖/‖x‖` for a vector that was really multiplied, less all rounding; what stands behind `upper` is its
/// [`Proof`]. Both are about the map of real numbers that the stored elements define.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Enclosure {
    /// Not above the norm.
    pub lower: f64,
    /// Not below the norm (for [`Proof::Probabilistic`] but for a chance of `delta`).
    pub upper: f64,
    /// Why.
    pub proof: Proof,
    /// Why the search ended.
    pub status: Status,
    /// Products with `AᵀA` (each one sweep over the elements) that it took.
    pub products: u32,
}

/// An [`Enclosure`], and a vector that anyone can multiply again.
#[derive(Clone, Debug, PartialEq)]
pub struct Enclosed {
    /// The bounds.
    pub enclosure: Enclosure,
    /// `x` with `‖Ax‖ ≥ lower·‖x‖`; empty where `lower` is the norm of a row or column, or 0.
    pub witness: Vec<f64>,
}

impl Enclosure {
    /// Exactly 0.
    pub(crate) const ZERO: Self = Self { lower: 0.0, upper: 0.0, proof: Proof::Zero, status: Status::GapReached, products: 0 };

    /// `upper/lower − 1`: 0 for an exact answer, infinity if `lower` is 0 and `upper` is not.
    pub fn gap(&self) -> f64 {
        if self.upper == self.lower { 0.0 } else { self.upper / self.lower - 1.0 }
    }
}

/// What kind of proof stands behind an upper bound.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Proof {
    /// There is nothing but zeros: exact.
    Zero,
    /// Nothing is known: infinity.
    None,
    /// `‖A‖_F`.
    Frobenius,
    /// `√(‖A‖₁‖A‖_∞)`.
    Holder,
    /// `max_j (|A|ᵀ|A|x)_j/x_j`, `x > 0` (Collatz, Wielandt).
    Collatz {
        /// Sweeps that `x` has come through.
        sweeps: u32,
    },
    /// Schatten norm `‖(AᵀA)^(2^t)‖_F^(2^−t−1)` (Gram iteration, Delattre et al. 2023), with rounding.
    Gram {
        /// `t`.
        squarings: u32,
    },
    /// `τI − AᵀA` was factored by Cholesky in floating point (Rump 2006), with rounding.
    Cholesky {
        /// `τ`, in the square of the operator's units (infinity or 0 where that leaves the range of numbers).
        tau: f64,
    },
    /// `η + ε²/(η − s)` for a Rayleigh quotient `η` of `AᵀA` and its residual `ε` (Temple, Kato 1949), where a factor of `sI + δvvᵀ − AᵀA` shows that
    /// only one eigenvalue is above `s`; with rounding.
    Temple {
        /// `s`, in the square of the operator's units (infinity or 0 where that leaves the range of numbers).
        level: f64,
    },
    /// The norm of the matrix of norms of blocks.
    Compression {
        /// Rows and columns of a block.
        block: usize,
    },
    /// The last certified bound, and how far the matrix has moved since (Weyl).
    Drift {
        /// The step of the certificate.
        from_step: u64,
    },
    /// The Lanczos polynomial at a random start: fails with a chance of at most `delta` (van Dorsselaer, Hochstenbach & van der Vorst 2000).
    Probabilistic {
        /// `δ`.
        delta: f64,
    },
    /// The product of the norms of the factors.
    Product,
    /// Layer-by-layer elimination of slope multipliers (ECLipsE-Fast, Xu & Sivaranjani 2024), with rounding.
    Eclipse,
    /// The largest norm of a frequency's block of a convolution.
    Frequencies,
}

/// Why a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// The gap that was asked for.
    GapReached,
    /// The budget is spent; the enclosure is as good as it got.
    Budget,
    /// The Krylov space is invariant: no further step can add anything.
    KrylovExhausted,
}

/// What one pass over the elements tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bracket {
    /// The largest `|a_ij|`, exactly; infinity if unknown.
    pub largest: f64,
    /// Not above the norm: the largest norm of a row or column, rounding taken off.
    pub lower: f64,
    /// Not below the norm.
    pub upper: f64,
    /// Not below `‖A‖_F`.
    pub frobenius: f64,
    /// Why.
    pub proof: Proof,
}

impl Bracket {
    /// Nothing is known.
    pub const UNKNOWN: Self =
        Self { largest: f64::INFINITY, lower: 0.0, upper: f64::INFINITY, frobenius: f64::INFINITY, proof: Proof::None };
}

/// How far a search for an enclosure goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    /// The relative gap `upper/lower − 1` at which it ends.
    pub gap: f64,
    /// The proof that `upper` must have.
    pub certainty: Certainty,
    /// Most products with `AᵀA` from each start.
    pub max_steps: usize,
    /// Independent random starts, which share their sweeps over the elements.
    pub starts: usize,
    /// Seed of the starts.
    pub seed: Seed,
}

/// What an upper bound has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Certainty {
    /// True but for a chance of `delta` that the random start was a bad one (tier 1): needs products alone.
    Probabilistic {
        /// `δ`.
        delta: f64,
    },
    /// True (tier 2): a Cholesky factorization on the smaller side, or blocks where that is too large.
    Deterministic,
}

/// Where random start vectors come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Seed {
    /// Reproducible. Enough for every matrix that was not made from the seed's own start vector.
    Fixed(u64),
    /// From the operating system: for matrices that an adversary may have made. Results differ from run to run.
    Entropy,
}

impl Search {
    /// Gap 10⁻⁶, deterministic, at most 256 steps from one start, seed 0.
    pub fn new() -> Self {
        Self { gap: 1e-6, certainty: Certainty::Deterministic, max_steps: 256, starts: 1, seed: Seed::Fixed(0) }
    }
}

impl Default for Search {
    fn default() -> Self {
        Self::new()
    }
}
