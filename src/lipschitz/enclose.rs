//! The search for an enclosure.

use dualprop_kernels::vector::Real;

use super::certificate::Certificate;
use super::collatz;
use super::compression::compress;
use super::enclosure::{Bracket, Certainty, Enclosed, Enclosure, Proof, Search, Seed, Status};
use super::krylov::length;
use super::lanczos::{Lanczos, Ritz};
use super::operator::Operator;
use super::rounding::{exponent_of, scaled, up};
use super::temple::temple;
use crate::check;
use crate::error::Error;
use crate::runtime::Runtime;
use crate::workspace::Workspace;

/// Up to this smaller side a deterministic search factors `τI − AᵀA`; above it blocks are bounded one by one.
pub const CHOLESKY_SIDE: usize = 4096;

/// Exponents of the largest element that products in f32 bear without loss.
const EXPONENTS: core::ops::RangeInclusive<i32> = -24..=24;

/// Factors by which a bound that could not be proven is widened, and how often.
const WIDEN: f64 = 16.0;
const RETRIES: usize = 4;

/// Most sweeps of a Collatz bound that begins at a Ritz vector.
const COLLATZ_SWEEPS: u32 = 16;

/// `lower ≤ ‖A‖₂ ≤ upper` with `upper ≤ (1 + gap)·lower`, or as near to it as the budget allows.
///
/// Cheapest first: the bracket of one pass over the elements; Lanczos steps from random starts, whose Ritz vector gives `lower` and whose
/// polynomial gives a probable `upper`; for [`Certainty::Deterministic`] a Collatz bound at the Ritz vector (which ends the search for matrices
/// without negative elements), then a Cholesky factorization of `τI − AᵀA` with `τ` from the gap that is asked for. If that fails, `lower` is
/// too low: more steps follow, new starts where the old ones are exhausted, and when the budget is spent, a wider gap.
///
/// `lower` has all rounding taken off, and so has `upper` added, but for [`Proof::Probabilistic`]: it holds in exact arithmetic, and is widened by
/// `4u√(k(m+n))` relatively for `k` steps in the operator's precision, which is how random rounding errors of sweeps add up.
///
/// Costs one read of `A` for each step, and `mn·min(m,n) + min(m,n)³/3` flops in f64 for a certificate (`8·min(m,n)²` bytes twice). The result has the
/// same bits for every instruction set and number of threads.
///
/// # Errors
/// [`Error::NotFinite`] for NaN or infinity among the elements, [`Error::Parameter`] for a gap that is negative or NaN, `delta` outside (0, 1), or no
/// steps or starts.
pub fn enclose<T: Real>(operator: &dyn Operator<T>, search: &Search, runtime: &Runtime) -> Result<Enclosed, Error> {
    check::not_negative("gap", search.gap)?;
    check::parameter("max_steps", search.max_steps as f64, "at least 1", search.max_steps > 0)?;
    check::parameter("starts", search.starts as f64, "at least 1", search.starts > 0)?;
    if let Certainty::Probabilistic { delta } = search.certainty {
        check::parameter("delta", delta, "between 0 and 1", delta > 0.0 && delta < 1.0)?;
    }
    let (m, n) = operator.shape();
    if m == 0 || n == 0 {
        return Ok(Enclosed { enclosure: Enclosure::ZERO, witness: vec![] });
    }
    let (found, exponent) = in_range(operator, |operator, bracket| {
        if bracket.upper == 0.0 {
            return Enclosed { enclosure: Enclosure::ZERO, witness: vec![] };
        }
        Hunt::new(operator, bracket, search, runtime).run()
    })?;
    let Enclosure { lower, upper, proof, .. } = found.enclosure;
    let proof = match proof {
        Proof::Cholesky { tau } => Proof::Cholesky { tau: scaled(tau, 2 * exponent) },
        Proof::Temple { level } => Proof::Temple { level: scaled(level, 2 * exponent) },
        other => other,
    };
    let enclosure =
        Enclosure { lower: scaled_down(lower, exponent), upper: scaled_up(upper, exponent), proof, ..found.enclosure };
    Ok(Enclosed { enclosure, ..found })
}

/// Runs `run` on the operator times a power of two, if that takes elements out of ranges where products over- or underflow. Returns the
/// exponent that leads back.
pub(crate) fn in_range<T: Real, R>(
    operator: &dyn Operator<T>,
    run: impl FnOnce(&dyn Operator<T>, Bracket) -> R,
) -> Result<(R, i32), Error> {
    let bracket = operator.bracket()?;
    let size = if bracket.largest.is_finite() { bracket.largest } else { bracket.upper };
    let exponent = if size.is_finite() && size > 0.0 { binary_exponent(size) } else { 0 };
    if !EXPONENTS.contains(&exponent)
        && let Some(operator) = operator.rescaled(-exponent)
    {
        let bracket = operator.bracket()?;
        return Ok((run(&*operator, bracket), exponent));
    }
    Ok((run(operator, bracket), 0))
}

/// `x·2^exponent`, rounded down and finite.
pub(crate) fn scaled_down(x: f64, exponent: i32) -> f64 {
    let y = scaled(x, exponent).min(f64::MAX);
    if scaled(y, -exponent) > x || (y != 0.0 && y < f64::MIN_POSITIVE) { y.next_down().max(0.0) } else { y }
}

/// `x·2^exponent`, rounded up.
pub(crate) fn scaled_up(x: f64, exponent: i32) -> f64 {
    let y = scaled(x, exponent);
    if exponent != 0 && x != 0.0 && y < f64::MIN_POSITIVE { y.next_up() } else { y }
}

/// What is known so far, and how to know more.
struct Hunt<'a, T> {
    operator: &'a dyn Operator<T>,
    search: &'a Search,
    runtime: &'a Runtime,
    work: Workspace<T>,
    bracket: Bracket,
    lower: f64,
    witness: Vec<f64>,
    /// The largest Ritz value met.
    ritz: f64,
    upper: f64,
    proof: Proof,
    products: u32,
}

impl<'a, T: Real> Hunt<'a, T> {
    fn new(operator: &'a dyn Operator<T>, bracket: Bracket, search: &'a Search, runtime: &'a Runtime) -> Self {
        let Bracket { lower, upper, proof, .. } = bracket;
        let work = Workspace::new(runtime);
        Self { operator, search, runtime, work, bracket, lower, witness: vec![], ritz: 0.0, upper, proof, products: 0 }
    }

    fn run(mut self) -> Enclosed {
        let status = if self.reached() {
            Status::GapReached
        } else {
            let n = self.operator.shape().1;
            let mut lanczos = Lanczos::new(n, self.search.max_steps, self.search.starts);
            let seed = match self.search.seed {
                Seed::Fixed(seed) => seed,
                // Keyed by the operating system.
                Seed::Entropy => std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), n),
            };
            lanczos.begin(seed, 0);
            match self.search.certainty {
                Certainty::Probabilistic { delta } => self.probably(&mut lanczos, delta),
                Certainty::Deterministic => self.certainly(&mut lanczos, seed),
            }
        };
        self.finish(status)
    }

    fn finish(mut self, mut status: Status) -> Enclosed {
        // A probable bound may be wrong, and is seen to be so here; nothing else can be.
        if !(self.lower <= self.upper) {
            (self.upper, self.proof, status) = (self.bracket.upper, self.bracket.proof, Status::Budget);
        }
        if !(self.lower <= self.upper) {
            (self.upper, self.proof) = (f64::INFINITY, Proof::None);
        }
        let Self { lower, upper, proof, products, witness, .. } = self;
        Enclosed { enclosure: Enclosure { lower, upper, proof, status, products }, witness }
    }

    fn gap_to(&self, upper: f64) -> f64 {
        Enclosure { lower: self.lower, upper, ..Enclosure::ZERO }.gap()
    }

    fn reached(&self) -> bool {
        self.gap_to(self.upper) <= self.search.gap
    }

    /// `lower` from a vector, less all rounding.
    fn raise(&mut self, x: &[f64]) {
        if let Some(lower) = length(self.operator, x, self.runtime).filter(|&lower| lower > self.lower) {
            self.lower = lower;
            self.witness = x.to_vec();
        }
    }

    /// What upper bounds are tried above: `lower`, or the Ritz value where the operator has no images in f64.
    fn base(&self) -> f64 {
        if self.lower >= 0.99 * self.ritz { self.lower } else { self.ritz }
    }

    fn improve(&mut self, upper: f64, proof: Proof) {
        if upper < self.upper {
            (self.upper, self.proof) = (upper, proof);
        }
    }

    fn step(&mut self, lanczos: &mut Lanczos<T>) {
        lanczos.step(self.operator, &mut self.work);
        self.products += 1;
    }

    /// Lanczos steps until the polynomial is good enough.
    fn probably(&mut self, lanczos: &mut Lanczos<T>, delta: f64) -> Status {
        let (m, n) = self.operator.shape();
        let mut x = vec![0.0; n];
        while lanczos.may_go_on() {
            self.step(lanczos);
            if lanczos.may_go_on() && !is_milestone(lanczos.steps()) {
                continue;
            }
            let Some(ritz) = lanczos.best() else { break };
            let rounding = 4.0 * T::UNIT_ROUNDOFF * (lanczos.steps() as f64 * (m + n) as f64).sqrt();
            let upper = up(lanczos.probable_square(delta), 16).sqrt() * (1.0 + rounding);
            self.improve(up(upper, 4), Proof::Probabilistic { delta });
            if !lanczos.may_go_on() || self.upper <= ritz.square.sqrt() * (1.0 + self.search.gap) {
                lanczos.vector(ritz, &mut x);
                self.raise(&x);
                if self.reached() {
                    return Status::GapReached;
                }
            }
        }
        if lanczos.is_exhausted() { Status::KrylovExhausted } else { Status::Budget }
    }

    /// Lanczos steps until the lower bound seems good enough, then proofs; again from the beginning where they fail.
    fn certainly(&mut self, lanczos: &mut Lanczos<T>, seed: u64) -> Status {
        let (m, n) = self.operator.shape();
        let gap = self.search.gap;
        let mut certificate = None;
        let mut x = vec![0.0; n];
        if self.temple(lanczos, &mut x) {
            return Status::GapReached;
        }
        let mut tolerance = gap / 8.0;
        for attempt in 0..=RETRIES {
            self.approach(lanczos, tolerance, &mut x);
            if self.reached() {
                return Status::GapReached;
            }
            if attempt == 0 {
                self.collatz(&x);
                if self.reached() {
                    return Status::GapReached;
                }
                if m.min(n) <= CHOLESKY_SIDE {
                    certificate = Certificate::new(self.operator, self.runtime);
                }
            }
            let Some(certificate) = &mut certificate else { break };
            if self.prove(certificate, self.base() * (1.0 + gap)) && self.reached() {
                return Status::GapReached;
            }
            if certificate.tau(self.base() * (1.0 + gap)) <= self.base().powi(2) {
                // The rounding of the certificate alone is more than the gap.
                break;
            }
            if !lanczos.may_go_on() {
                lanczos.begin(seed, ((attempt + 1) * self.search.starts) as u64);
            }
            tolerance /= 64.0;
        }
        self.widen(certificate.as_mut());
        Status::Budget
    }

    /// Lanczos steps until the lower bound seems good enough. Returns the last Ritz value.
    fn approach(&mut self, lanczos: &mut Lanczos<T>, tolerance: f64, x: &mut [f64]) -> Option<Ritz> {
        let mut ritz = None;
        while lanczos.may_go_on() {
            self.step(lanczos);
            if lanczos.may_go_on() && !is_milestone(lanczos.steps()) {
                continue;
            }
            let Some(best) = lanczos.best() else { break };
            let is_near = best.error <= tolerance || self.upper <= best.square.sqrt() * (1.0 + self.search.gap);
            if is_near || !lanczos.may_go_on() {
                lanczos.vector(best, x);
                self.raise(x);
                self.ritz = self.ritz.max(best.square.sqrt());
                ritz = Some(best);
                break;
            }
        }
        ritz
    }

    /// The bound of Temple, where it takes half the time of a certificate. Returns whether the gap is reached.
    fn temple(&mut self, lanczos: &mut Lanczos<T>, x: &mut [f64]) -> bool {
        let elements =
            self.operator.elements().filter(|a| size_of::<T>() < size_of::<f64>() && a.nrows().min(a.ncols()) <= CHOLESKY_SIDE);
        let Some(elements) = elements else { return false };
        // The bound is as far above the norm as the quotient is below it if the level is at the next eigenvalue.
        let Some(ritz) = self.approach(lanczos, 0.5 * self.search.gap, x) else { return self.reached() };
        if !self.reached() {
            self.collatz(x);
        }
        if !self.reached() {
            let size = match self.bracket.proof {
                Proof::Frobenius | Proof::Holder => self.bracket.upper,
                _ => self.bracket.frobenius,
            };
            let bound = self.lower * (1.0 + self.search.gap);
            self.products += 1;
            if let Some((upper, level)) = temple(elements, size, x, ritz.next, bound, self.runtime) {
                self.improve(upper, Proof::Temple { level });
            }
        }
        self.reached()
    }

    /// The bound of Collatz at `|x|`, as long as it comes nearer.
    fn collatz(&mut self, x: &[f64]) {
        let mut x: Vec<f64> = x.iter().map(|x| x.abs()).collect();
        let mut y = vec![0.0; x.len()];
        let mut last = f64::INFINITY;
        for sweeps in 1..=COLLATZ_SWEEPS {
            let Some(upper) = collatz::sweep(self.operator, &mut x, &mut y) else { return };
            self.products += 1;
            self.improve(upper, Proof::Collatz { sweeps });
            // Far from the goal it will not get there: `‖ |A| ‖₂` is what it tends to.
            if self.reached() || upper > 1.1 * self.lower || self.gap_to(upper) > 0.7 * last {
                return;
            }
            last = self.gap_to(upper);
        }
    }

    /// Tries to prove that the norm is not above `bound`.
    fn prove(&mut self, certificate: &mut Certificate, bound: f64) -> bool {
        let tau = certificate.tau(bound);
        let holds = tau > self.base().powi(2) && certificate.holds(tau, self.runtime);
        if holds {
            self.improve(certificate.bound(tau), Proof::Cholesky { tau });
        }
        holds
    }

    /// The nearest upper bound that can be had: wider and wider gaps, or blocks.
    fn widen(&mut self, certificate: Option<&mut Certificate>) {
        match certificate {
            Some(certificate) => {
                // What the certificate loses to rounding.
                let least = certificate.bound(self.base().powi(2)) / self.base() - 1.0;
                let mut gap = self.search.gap.max(2.0 * least);
                for _ in 0..=RETRIES {
                    let bound = self.base() * (1.0 + gap);
                    if bound >= self.upper || self.prove(certificate, bound) {
                        return;
                    }
                    gap *= WIDEN;
                }
            }
            None => {
                if let Some((upper, block)) = compress(self.operator, self.search, self.runtime) {
                    self.improve(upper, Proof::Compression { block });
                }
            }
        }
    }
}

/// Whether a number of steps is one after which to look at what they brought.
fn is_milestone(steps: usize) -> bool {
    steps <= 4 || (steps <= 16 && steps.is_multiple_of(2)) || steps.is_multiple_of(4)
}

/// The exponent `e` for which `x·2^−e` is from 1 to 2, also for subnormal `x`.
fn binary_exponent(x: f64) -> i32 {
    if x < f64::MIN_POSITIVE { exponent_of(x * 2f64.powi(100)) - 100 } else { exponent_of(x) }
}

/// Proves that `‖A‖₂` is not above `bound`, or nearly so.
///
/// Factors `τI − AᵀA` by Cholesky with the `τ` for which success means at most `bound`. `None` if that fails: `‖A‖₂` is above `bound`, or so near
/// to it that rounding decides, or the operator does not know its elements. Costs `mn·min(m,n) + min(m,n)³/3` flops in f64.
///
/// # Errors
/// [`Error::NotFinite`] for NaN or infinity among the elements, [`Error::Parameter`] for a bound that is not positive.
pub fn certify<T: Real>(operator: &dyn Operator<T>, bound: f64, runtime: &Runtime) -> Result<Option<Enclosure>, Error> {
    check::positive("bound", bound)?;
    let (m, n) = operator.shape();
    if m == 0 || n == 0 {
        return Ok(Some(Enclosure::ZERO));
    }
    let (found, exponent) = in_range(operator, |operator, bracket| (Certificate::new(operator, runtime), bracket))?;
    let (Some(mut certificate), bracket) = found else { return Ok(None) };
    let tau = certificate.tau(scaled_down(bound, -exponent));
    Ok(certificate.holds(tau, runtime).then(|| Enclosure {
        lower: scaled_down(bracket.lower, exponent),
        upper: scaled_up(certificate.bound(tau), exponent),
        proof: Proof::Cholesky { tau: scaled(tau, 2 * exponent) },
        status: Status::GapReached,
        products: 0,
    }))
}
