//! The norm of a matrix that moves in small steps.

use dualprop_kernels::gram::PARTS;
use dualprop_kernels::reduce;
use dualprop_kernels::vector::Real;
use faer::prelude::ReborrowMut;
use faer::{MatMut, MatRef};

use super::dense::Dense;
use super::enclosure::{Bracket, Enclosure, Proof, Status};
use super::lanczos::Lanczos;
use super::operator::Operator;
use super::rounding::{down, gamma, up};
use super::small::Small;
use crate::check;
use crate::error::Error;
use crate::matrix::RowMajor;
use crate::random::Counter;
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

/// Up to so many rows `WWᵀ` is formed and its largest eigenvalue proven at every call.
const FEW: usize = 16;

/// Lanczos steps from the last vector before it is split off: a step less leaves more beside it, a step more costs a sweep.
const POLISH: usize = 3;

/// Encloses `‖W‖₂` again and again while `W` is trained, and does only as much as the gap asks for.
///
/// A unit vector `u` near the first right singular vector is split off. Of `M = WᵀW` one sweep gives `a = uᵀMu` and `b = ‖Mu − au‖`; of what
/// is beside `u` a bound is kept, `‖W(I − uuᵀ)‖₂ ≤ √c`, from the last certificate and from how far `W` has moved since:
///
/// ```text
/// √c = κ + ‖W − W_κ‖_F                                     (Weyl)
/// a + b²/a ≤ ‖W‖₂² ≤ (a + c)/2 + √((a − c)²/4 + b²)
/// ```
///
/// So `W` may move by nearly the distance between its first two singular values before another certificate is due: what happens along `u` is seen
/// at every call. Certificates come from Lanczos steps at fresh random starts (a vector that was carried along knows of the matrix and proves
/// nothing from above), in the complement of `u` if little is beside it, else, where the first singular values are close, on all of `W`; then `κ` bounds
/// `‖W_κ‖₂`. Matrices of at most 16 rows are proven by powers of `WWᵀ` at every call.
///
/// A call costs two reads of `W` and one of `W_κ`; a certificate `p` starts and `k` steps with `k` reads of `W` and `4pkmn` flops.
/// After the first call nothing is allocated. Bits depend neither on the instruction set nor on the number of threads.
#[derive(Clone, Debug)]
pub struct Tracker<T> {
    tracking: Tracking,
    lanczos: Lanczos<T>,
    polish: Lanczos<T>,
    small: Option<Small>,
    /// `W_κ`, and a bound of its Frobenius norm.
    reference: RowMajor<T>,
    frobenius: f64,
    /// `κ`, infinity before the first certificate; whether it is of the complement of `u`; the call that it is from.
    certified: f64,
    is_split: bool,
    from_step: u64,
    step: u64,
    /// `u`, of about length 1, and its last image under `M`, Gaussian before there is one.
    along: Vec<T>,
    image: Vec<T>,
    ritz: Vec<f64>,
    certificates: u64,
    /// Sweeps of the last certificate of either kind.
    last_steps: [usize; 2],
    shape: (usize, usize),
}

/// What a sweep says of `M = WᵀW`.
#[derive(Clone, Copy, Debug)]
struct Split {
    /// `√(a + b²/a)`, rounded down.
    lower: f64,
    /// Bounds of `a` and `b`.
    a: f64,
    b: f64,
}

impl Split {
    /// The norm, if nothing beside `u` is longer than `beside`.
    fn upper(&self, beside: f64) -> f64 {
        let c = up(beside * beside, 1);
        let half = 0.5 * (self.a - c);
        up(up(0.5 * (self.a + c) + (half * half + self.b * self.b).sqrt(), 8).sqrt(), 1)
    }
}

impl<T: Real> Tracker<T> {
    /// For matrices of `rows × cols`.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a gap that is not positive, `delta` outside (0, 1), or no starts or steps.
    pub fn new(rows: usize, cols: usize, tracking: &Tracking) -> Result<Self, Error> {
        tracking.check()?;
        // What `WWᵀ` decides needs no vectors.
        let is_small = rows <= FEW;
        let (m, n) = if is_small { (0, 0) } else { (rows, cols) };
        let mut random = Counter::new(tracking.seed, u64::MAX);
        Ok(Self {
            tracking: *tracking,
            lanczos: Lanczos::new(n, tracking.max_steps, tracking.starts).reserved(),
            polish: Lanczos::new(n, POLISH, 1).reserved(),
            small: is_small.then(|| Small::new(rows)),
            reference: RowMajor::zeros(m, n),
            frobenius: 0.0,
            certified: f64::INFINITY,
            is_split: false,
            from_step: 0,
            step: 0,
            along: vec![T::ZERO; n],
            image: (0..n).map(|_| T::from_f64(random.normal())).collect(),
            ritz: vec![0.0; n],
            certificates: 0,
            last_steps: [0; 2],
            shape: (rows, cols),
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
        check::shape("matrix", matrix, self.shape)?;
        let (m, n) = (matrix.nrows(), matrix.ncols());
        self.step += 1;
        if m == 0 || n == 0 {
            return Ok(Enclosure::ZERO);
        }
        let dense = Dense::new(matrix);
        let (moved, frobenius) = self.distances(dense.matrix(), work);
        if !SIZES.contains(&frobenius) {
            // Zeros, or squares near the ends of the range of numbers.
            let Bracket { lower, upper, proof, .. } = dense.bracket()?;
            let status = if lower == upper { Status::GapReached } else { Status::Budget };
            return Ok(Enclosure { lower, upper, proof, status, products: 0 });
        }
        let mut found =
            Enclosure { lower: 0.0, upper: frobenius, proof: Proof::Frobenius, status: Status::GapReached, products: 0 };
        if let Some(small) = &mut self.small {
            prove(small, dense.matrix(), frobenius, self.tracking.gap, &mut found, work);
        } else {
            if self.certified.is_finite() {
                let split = self.split(dense.matrix(), frobenius, work);
                found.products += 1;
                self.bound(&mut found, split, moved);
            }
            if self.is_open(&found) {
                self.certify(&dense, &mut found, (moved, frobenius), work);
            }
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

    /// What `split` and the last certificate prove of a matrix that is `moved` away from the one that it is of.
    fn bound(&self, found: &mut Enclosure, split: Split, moved: f64) {
        found.lower = found.lower.max(split.lower);
        let beside = up(self.certified + moved, 1);
        let upper = if self.is_split { split.upper(beside) } else { beside };
        if upper < found.upper {
            let is_new = self.from_step == self.step;
            let new = Proof::Probabilistic { delta: self.tracking.delta };
            (found.upper, found.proof) = (upper, if is_new { new } else { Proof::Drift { from_step: self.from_step } });
        }
    }

    /// `‖W − W_κ‖_F` (infinity before the first certificate) and `‖W‖_F`, rounded up.
    fn distances(&self, matrix: MatRef<'_, T>, work: &Workspace<T>) -> (f64, f64) {
        let (isa, m, n) = (work.runtime().isa(), matrix.nrows(), matrix.ncols());
        let mut moved = f64::INFINITY;
        if self.certified.is_finite() {
            let square: f64 = (0..m).map(|i| reduce::square_distance(isa, row(matrix, i), self.reference.row(i))).sum();
            let square = square / (1.0 - (n / 32 + 10) as f64 * T::UNIT_ROUNDOFF) + (m * n) as f64 * T::TINY;
            moved = up(square.sqrt(), m + 4);
        }
        // The sum says little of a matrix that has shrunk; so it is for NaN.
        if moved <= 0.5 * self.frobenius {
            return (moved, up(self.frobenius + moved, 1));
        }
        (moved, frobenius(matrix, work))
    }

    /// One sweep at `u`; `image ← WᵀWu`.
    fn split(&mut self, matrix: MatRef<'_, T>, frobenius: f64, work: &mut Workspace<T>) -> Split {
        let (m, n, isa) = (matrix.nrows(), matrix.ncols(), work.runtime().isa());
        let (x, mut square) = (MatRef::from_row_major_slice(&self.along, 1, n), [0.0]);
        work.gram(matrix, x, MatMut::from_row_major_slice_mut(&mut self.image, 1, n), &mut square);
        let (length, image) = (reduce::norm(isa, &self.along), reduce::norm(isa, &self.image));
        let t = square[0].sqrt();
        // Sums of a product `t` of a row have at most `n/8 + 8` roundings, sums over rows `m + 16`; these are bounds for the whole vectors.
        let gamma_of = |k: usize| {
            let ku = k as f64 * T::UNIT_ROUNDOFF;
            if ku < 0.5 { up(ku / (1.0 - ku), 2) } else { f64::INFINITY }
        };
        let t_error = up(gamma_of(n / 8 + 8) * frobenius * length, n + 12);
        let image_error = up(gamma_of(m + PARTS) * frobenius * t, m + 4);
        // `‖Wᵀt‖/‖t‖` and `‖Wu‖`.
        let lower = (down(image - image_error, n + 8) / up(t, m)).max(down(t - t_error, m) / up(length, n + 8));
        let inside = reduce::dot(isa, &self.image, &self.along) / length;
        let size = image * image;
        let beside = ((size - inside * inside).max(0.0) + gamma(4 * n + 32) * size).sqrt();
        let a = (t + t_error) / length;
        Split {
            lower: down(lower, 2).max(0.0),
            a: up(a * a, 2 * (m + n) + 32),
            b: up((beside + image_error + frobenius * t_error) / length, m + n + 32),
        }
    }

    /// Improves `u` by steps from its image.
    fn polish(&mut self, dense: &Dense<'_, T>, work: &mut Workspace<T>) {
        self.polish.begin_at(&self.image);
        while self.polish.may_go_on() {
            self.polish.step(dense, work);
        }
        if let Some(ritz) = self.polish.best() {
            self.polish.vector(ritz, &mut self.ritz);
            self.along.iter_mut().zip(&self.ritz).for_each(|(x, &r)| *x = T::from_f64(r));
        }
    }

    /// Lanczos steps from fresh starts until the bound is near enough, or nothing more can come.
    fn certify(&mut self, dense: &Dense<'_, T>, found: &mut Enclosure, (moved, frobenius): (f64, f64), work: &mut Workspace<T>) {
        let matrix = dense.matrix();
        // How far a call goes.
        let pace = moved / (self.step - self.from_step) as f64;
        let (m, n) = (matrix.nrows(), matrix.ncols());
        // Room for `Beside`, so that no later call has to make it.
        work.spare[2].resize(self.tracking.starts * n, T::ZERO);
        let gap = self.tracking.gap;
        self.certified = f64::INFINITY;
        self.polish(dense, work);
        let mut split = self.split(matrix, frobenius, work);
        found.products += 1 + self.polish.steps() as u32;
        found.lower = found.lower.max(split.lower);
        // Even if what is beside `u` were as long, half of the gap would be left.
        self.is_split = split.upper(split.a.sqrt()) <= (1.0 + 0.5 * gap) * split.lower;
        self.lanczos.begin(self.tracking.seed, self.certificates.wrapping_mul(self.tracking.starts as u64));
        self.certificates += 1;
        self.from_step = self.step;
        while self.lanczos.may_go_on() {
            let beside = Beside { dense, u: &self.along };
            self.lanczos.step(if self.is_split { &beside } else { dense }, work);
            found.products += 1;
            let steps = self.lanczos.steps();
            // To look is not free: first where it was enough last time.
            if self.lanczos.may_go_on() && steps + 2 < self.last_steps[usize::from(self.is_split)] {
                continue;
            }
            let Some(ritz) = self.lanczos.best() else { break };
            let rounding = 4.0 * T::UNIT_ROUNDOFF * (steps as f64 * (m + n) as f64).sqrt();
            self.certified = up(up(self.lanczos.probable_square(self.tracking.delta), 16).sqrt() * (1.0 + rounding), 4);
            let theta = ritz.square.sqrt();
            let limit = (1.0 + gap) * found.lower.max(theta);
            let room = limit - theta;
            // `k` steps leave an excess of some `1/k²`: a third of the room for it makes the fewest steps for a distance. Room that the next call
            // would use up is none.
            let enough = if self.is_split && room > 1.5 * pace { theta + room / 3.0 } else { limit };
            if self.lanczos.may_go_on() && self.certified > enough {
                continue;
            }
            self.last_steps[usize::from(self.is_split)] = steps;
            if !self.is_split {
                self.lanczos.vector(ritz, &mut self.ritz);
                self.along.iter_mut().zip(&self.ritz).for_each(|(x, &r)| *x = T::from_f64(r));
                split = self.split(matrix, frobenius, work);
                found.products += 1;
            }
            self.bound(found, split, 0.0);
            if !self.is_open(found) {
                break;
            }
        }
        (0..m).for_each(|i| self.reference.row_mut(i).copy_from_slice(row(matrix, i)));
        self.frobenius = self::frobenius(matrix, work);
    }
}

/// `‖W‖_F`, rounded up.
fn frobenius<T: Real>(matrix: MatRef<'_, T>, work: &Workspace<T>) -> f64 {
    let square: f64 = (0..matrix.nrows()).map(|i| reduce::dot(work.runtime().isa(), row(matrix, i), row(matrix, i))).sum();
    up(square.sqrt(), matrix.nrows() + matrix.ncols() + 8)
}

/// `W(I − uuᵀ)`.
struct Beside<'a, T> {
    dense: &'a Dense<'a, T>,
    u: &'a [T],
}

impl<T: Real> Beside<'_, T> {
    fn project(&self, x: &mut [T], work: &Workspace<T>) {
        let isa = work.runtime().isa();
        let factor = T::from_f64(reduce::dot(isa, x, self.u) / reduce::dot(isa, self.u, self.u));
        x.iter_mut().zip(self.u).for_each(|(x, &u)| *x = *x - factor * u);
    }

    fn project_rows(&self, mut x: MatMut<'_, T>, work: &Workspace<T>) {
        for i in 0..x.nrows() {
            let row = x.rb_mut().row_mut(i).try_as_row_major_mut().expect("the rows of Lanczos are contiguous");
            self.project(row.as_slice_mut(), work);
        }
    }

    /// Hands the projected rows of `x` on.
    fn with_projected(&self, x: MatRef<'_, T>, work: &mut Workspace<T>, next: impl FnOnce(MatRef<'_, T>, &mut Workspace<T>)) {
        let (p, n) = x.shape();
        let mut copy = core::mem::take(&mut work.spare[2]);
        copy.resize(p * n, T::ZERO);
        for (i, copy) in copy.chunks_exact_mut(n).enumerate() {
            copy.copy_from_slice(row(x, i));
            self.project(copy, work);
        }
        next(MatRef::from_row_major_slice(&copy, p, n), work);
        work.spare[2] = copy;
    }
}

impl<T: Real> Operator<T> for Beside<'_, T> {
    fn shape(&self) -> (usize, usize) {
        self.dense.shape()
    }

    fn apply(&self, x: MatRef<'_, T>, y: MatMut<'_, T>, work: &mut Workspace<T>) {
        self.with_projected(x, work, |x, work| self.dense.apply(x, y, work));
    }

    fn apply_transposed(&self, y: MatRef<'_, T>, mut x: MatMut<'_, T>, work: &mut Workspace<T>) {
        self.dense.apply_transposed(y, x.rb_mut(), work);
        self.project_rows(x, work);
    }

    fn gram(&self, x: MatRef<'_, T>, mut y: MatMut<'_, T>, squares: &mut [f64], work: &mut Workspace<T>) {
        self.with_projected(x, work, |x, work| self.dense.gram(x, y.rb_mut(), squares, work));
        self.project_rows(y, work);
    }
}

/// Bounds from `WWᵀ`.
fn prove<T: Real>(
    small: &mut Small,
    matrix: MatRef<'_, T>,
    frobenius: f64,
    gap: f64,
    found: &mut Enclosure,
    work: &Workspace<T>,
) {
    let isa = work.runtime().isa();
    for i in 0..matrix.nrows() {
        for j in 0..=i {
            small.set(i, j, reduce::dot(isa, row(matrix, i), row(matrix, j)));
        }
    }
    // An element is off by `γ‖wᵢ‖‖wⱼ‖`.
    let error = up(gamma(matrix.ncols() / 32 + 7) * up(frobenius * frobenius, 1), 1);
    let largest = small.enclose(isa, error, gap);
    found.lower = down(largest.lower.max(0.0).sqrt(), 1);
    let upper = up(largest.upper.sqrt(), 1);
    if upper < found.upper {
        (found.upper, found.proof) = (upper, largest.proof);
    }
    found.products += 1;
}

fn row<T>(matrix: MatRef<'_, T>, i: usize) -> &[T] {
    matrix.row(i).try_as_row_major().expect("rows of a dense operator are contiguous").as_slice()
}
