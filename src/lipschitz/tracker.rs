//! The norm of a matrix that moves in small steps.

use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::reduce;
use dualprop_kernels::strided::Output;
use dualprop_kernels::vector::Real;
use faer::{MatMut, MatRef};

use super::dense::Dense;
use super::enclosure::{Bracket, Enclosure, Proof, Status};
use super::lanczos::Lanczos;
use super::operator::Operator;
use super::rounding::{down, gamma, up};
use crate::check;
use crate::error::Error;
use crate::matrix::RowMajor;
use crate::workspace::Workspace;

/// How tightly a [`Tracker`] follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tracking {
    /// The relative gap `upper/lower − 1` that is kept.
    pub gap: f64,
    /// Chance that a certificate fails.
    pub delta: f64,
    /// Random starts of a certificate, which share its sweeps.
    pub starts: usize,
    /// Most sweeps of a certificate.
    pub max_steps: usize,
    /// Seed of the starts.
    pub seed: u64,
}

impl Tracking {
    /// A gap of 5 %, `δ` = 10⁻⁹ for each certificate, 4 starts, at most 128 sweeps, seed 0.
    pub fn new() -> Self {
        Self { gap: 0.05, delta: 1e-9, starts: 4, max_steps: 128, seed: 0 }
    }

    /// # Errors
    /// [`Error::Parameter`] for a gap that is not positive, `delta` outside (0, 1), or no starts or steps.
    pub(crate) fn check(&self) -> Result<(), Error> {
        check::positive("gap", self.gap)?;
        check::parameter("delta", self.delta, "between 0 and 1", self.delta > 0.0 && self.delta < 1.0)?;
        check::parameter("starts", self.starts as f64, "at least 1", self.starts > 0)?;
        check::parameter("max_steps", self.max_steps as f64, "at least 1", self.max_steps > 0)
    }
}

impl Default for Tracking {
    fn default() -> Self {
        Self::new()
    }
}

/// Sizes whose squares, and those of their products with vectors of length 1, are normal numbers in f32.
const SIZES: core::ops::Range<f64> = 1e-15..1e15;

/// Encloses `‖W‖₂` again and again while `W` is trained, and does only as much as the gap asks for.
///
/// Between two certificates the bounds come from two sweeps: the lower one from the vector that was best last time, carried on by a
/// power step; the upper one from the last certificate and from how far `W` has moved since, `‖W‖₂ ≤ U + ‖W − W_U‖_F` (Weyl). When they are
/// further apart than the gap, Lanczos steps from fresh random starts give the next certificate: a vector that was carried along knows of the matrix and
/// proves nothing from above.
///
/// After the first call nothing is allocated. Bits depend neither on the instruction set nor on the number of threads.
#[derive(Clone, Debug)]
pub struct Tracker<T> {
    tracking: Tracking,
    lanczos: Lanczos<T>,
    /// `W_U`.
    reference: RowMajor<T>,
    reference_square: f64,
    /// `U`, and the call that it is from; infinity before the first.
    certified: f64,
    from_step: u64,
    step: u64,
    warm: Vec<T>,
    image: Vec<T>,
    ritz: Vec<f64>,
    certificates: u64,
    /// Sweeps of the last certificate.
    last_steps: usize,
}

impl<T: Real> Tracker<T> {
    /// For matrices of `rows × cols`.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a gap that is not positive, `delta` outside (0, 1), or no starts or steps.
    pub fn new(rows: usize, cols: usize, tracking: &Tracking) -> Result<Self, Error> {
        tracking.check()?;
        Ok(Self {
            tracking: *tracking,
            lanczos: Lanczos::new(cols, tracking.max_steps, tracking.starts).reserved(),
            reference: RowMajor::zeros(rows, cols),
            reference_square: 0.0,
            certified: f64::INFINITY,
            from_step: 0,
            step: 0,
            warm: vec![T::ZERO; cols],
            image: vec![T::ZERO; rows],
            ritz: vec![0.0; cols],
            certificates: 0,
            last_steps: 0,
        })
    }

    /// Certificates so far: what the calls since have cost.
    pub fn certificates(&self) -> u64 {
        self.certificates
    }

    /// Forgets the last certificate: the next call makes one.
    pub fn forget(&mut self) {
        self.certified = f64::INFINITY;
    }

    /// Bounds for the matrix as it is now. `products` counts the sweeps of this call. [`Proof::Drift`] stands on a probable certificate, which
    /// fails with a chance of at most `delta`, as [`Proof::Probabilistic`] does.
    ///
    /// A matrix of a size outside of 10⁻¹⁵ to 10¹⁵ gets its [`Bracket`] alone.
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape than that of [`new`](Self::new), [`Error::NotFinite`] for NaN or infinity.
    pub fn update(&mut self, matrix: MatRef<'_, T>, work: &mut Workspace<T>) -> Result<Enclosure, Error> {
        check::shape("matrix", matrix, (self.reference.rows(), self.reference.cols()))?;
        let (m, n) = (matrix.nrows(), matrix.ncols());
        self.step += 1;
        if m == 0 || n == 0 {
            return Ok(Enclosure::ZERO);
        }
        let dense = Dense::new(matrix);
        let (drift, frobenius) = self.distances(dense.matrix(), work);
        if !SIZES.contains(&frobenius) {
            // Zeros, or squares near the ends of the range of numbers.
            let Bracket { lower, upper, proof, .. } = dense.bracket()?;
            let status = if lower == upper { Status::GapReached } else { Status::Budget };
            return Ok(Enclosure { lower, upper, proof, status, products: 0 });
        }
        let mut found =
            Enclosure { lower: 0.0, upper: frobenius, proof: Proof::Frobenius, status: Status::GapReached, products: 0 };
        let upper = up(self.certified + drift, 1);
        if upper < found.upper {
            (found.upper, found.proof) = (upper, Proof::Drift { from_step: self.from_step });
        }
        if self.certified.is_finite() {
            found.lower = self.lower(dense.matrix(), frobenius, work);
            found.products += 1;
        }
        if self.is_open(&found) {
            self.certify(&dense, &mut found, frobenius, work);
        }
        if found.lower > found.upper {
            // A probable bound has failed, and is seen to have.
            (found.upper, found.proof) = (frobenius, Proof::Frobenius);
            self.certified = f64::INFINITY;
        }
        if self.is_open(&found) {
            found.status = Status::Budget;
        }
        Ok(found)
    }

    /// Whether the gap is not what it has to be; so it is for NaN.
    fn is_open(&self, found: &Enclosure) -> bool {
        found.gap().is_nan() || found.gap() > self.tracking.gap
    }

    /// `‖W − W_U‖_F` and `‖W‖_F`, rounded up: `‖W − R‖² = ‖W‖² − 2⟨W, R⟩ + ‖R‖²`, each off by `γ` of its size, which leaves a floor of some 10⁻⁷
    /// of the norm under the distance.
    fn distances(&mut self, matrix: MatRef<'_, T>, work: &Workspace<T>) -> (f64, f64) {
        let (isa, roundings) = (work.runtime().isa(), matrix.nrows() + matrix.ncols() + 8);
        let (mut along, mut square) = (0.0, 0.0);
        for i in 0..matrix.nrows() {
            let row = row(matrix, i);
            square += reduce::dot(isa, row, row);
            if self.certified.is_finite() {
                along += reduce::dot(isa, row, self.reference.row(i));
            }
        }
        let moved = (square - 2.0 * along + self.reference_square).max(0.0);
        // `2|⟨W, R⟩| ≤ ‖W‖² + ‖R‖²`.
        let error = gamma(roundings) * 2.0 * (square + self.reference_square);
        (up(up(moved + error, 8).sqrt(), 2), up(square.sqrt(), roundings))
    }

    /// A lower bound at the warm vector, which takes a power step.
    fn lower(&mut self, matrix: MatRef<'_, T>, frobenius: f64, work: &mut Workspace<T>) -> f64 {
        let isa = work.runtime().isa();
        let length = reduce::norm(isa, &self.warm);
        let mut square = 0.0;
        for i in 0..matrix.nrows() {
            let y = reduce::dot(isa, row(matrix, i), &self.warm);
            square += y * y;
            self.image[i] = T::from_f64(y / length);
        }
        let (m, n) = (matrix.nrows(), matrix.ncols());
        // Each `y` is off by `γ_n ‖row‖‖x‖` at most.
        let lower = (down(square.sqrt(), m + 2) / up(length, n + 8) - up(gamma(n + 8) * frobenius, 2)).next_down();
        let rows = MatRef::from_row_major_slice(&self.image, 1, m);
        let out = MatMut::from_row_major_slice_mut(&mut self.warm, 1, n);
        let store = Epilogue::Store { out: Output::new(out), scale: T::ONE };
        work.top_down(matrix, rows, store);
        lower.max(0.0)
    }

    /// Lanczos steps from fresh starts until the polynomials and the Ritz vector are near enough, or nothing more can come.
    fn certify(&mut self, dense: &Dense<'_, T>, found: &mut Enclosure, frobenius: f64, work: &mut Workspace<T>) {
        let matrix = dense.matrix();
        let (m, n) = (matrix.nrows(), matrix.ncols());
        self.lanczos.begin(self.tracking.seed, self.certificates.wrapping_mul(self.tracking.starts as u64));
        self.certificates += 1;
        while self.lanczos.may_go_on() {
            self.lanczos.step(dense, work);
            found.products += 1;
            let steps = self.lanczos.steps();
            // To look is not free: first where it was enough last time.
            if self.lanczos.may_go_on() && steps + 2 < self.last_steps {
                continue;
            }
            let Some(ritz) = self.lanczos.best() else { break };
            let rounding = 4.0 * T::UNIT_ROUNDOFF * (steps as f64 * (m + n) as f64).sqrt();
            let upper = up(up(self.lanczos.probable_square(self.tracking.delta), 16).sqrt() * (1.0 + rounding), 4);
            if self.lanczos.may_go_on() && upper > ritz.square.sqrt().max(found.lower) * (1.0 + self.tracking.gap) {
                continue;
            }
            self.lanczos.vector(ritz, &mut self.ritz);
            self.warm.iter_mut().zip(&self.ritz).for_each(|(x, &r)| *x = T::from_f64(r));
            found.lower = found.lower.max(self.lower(matrix, frobenius, work));
            found.products += 1;
            self.last_steps = steps;
            self.certified = upper.min(frobenius);
            self.from_step = self.step;
            if self.certified < found.upper || found.gap() > self.tracking.gap {
                (found.upper, found.proof) = (self.certified, Proof::Probabilistic { delta: self.tracking.delta });
            }
            self.reference_square = 0.0;
            for i in 0..m {
                let row = row(matrix, i);
                self.reference.row_mut(i).copy_from_slice(row);
                self.reference_square += reduce::dot(work.runtime().isa(), row, row);
            }
            if found.gap() <= self.tracking.gap {
                return;
            }
        }
    }
}

fn row<T>(matrix: MatRef<'_, T>, i: usize) -> &[T] {
    matrix.row(i).try_as_row_major().expect("rows of a dense operator are contiguous").as_slice()
}
