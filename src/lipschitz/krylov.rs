//! Lower bounds by a fixed number of Lanczos steps, for inner loops.

use dualprop_kernels::reduce;
use dualprop_kernels::vector::Real;
use faer::{MatMut, MatRef};

use super::chain::{pull, push};
use super::enclose::{in_range, scaled_down};
use super::lanczos::Lanczos;
use super::operator::Operator;
use super::rounding::{down, up};
use crate::check;
use crate::error::Error;
use crate::random::Counter;
use crate::runtime::Runtime;
use crate::workspace::Workspace;

/// Most Lanczos steps of one call; more are not taken.
pub const MAX_STEPS: usize = 256;

/// A lower bound of `‖A‖₂` by at most `steps` (and [`MAX_STEPS`]) Lanczos steps from a random start, rounding taken off.
///
/// It is `‖Au‖/‖u‖` for the Ritz vector `u`, or the bound of [`Operator::bracket`] if that is better (or the operator has no
/// [`image`](Operator::image)). As good as it can be when `steps` reaches the rank; how good it is, [`enclose`](super::enclose) says. Costs one
/// [`gram`](Operator::gram) a step.
///
/// # Errors
/// [`Error::Parameter`] for 0 steps, [`Error::NotFinite`] for NaN or infinity among the elements.
pub fn lower_bound<T: Real>(operator: &dyn Operator<T>, steps: usize, seed: u64, runtime: &Runtime) -> Result<f64, Error> {
    check::parameter("steps", steps as f64, "at least 1", steps > 0)?;
    let (m, n) = operator.shape();
    if m == 0 || n == 0 {
        return Ok(0.0);
    }
    let (bound, exponent) = in_range(operator, |operator, bracket| {
        let (mut lanczos, mut work) = (Lanczos::new(n, steps.min(MAX_STEPS), 1), Workspace::new(runtime));
        lanczos.begin(seed, 0);
        while lanczos.may_go_on() {
            lanczos.step(operator, &mut work);
        }
        let mut x = vec![0.0; n];
        let found = lanczos.best().and_then(|best| {
            lanczos.vector(best, &mut x);
            length(operator, &x, runtime)
        });
        found.map_or(bracket.lower, |found| found.max(bracket.lower))
    })?;
    Ok(scaled_down(bound, exponent))
}

/// Not above `‖Ax‖/‖x‖`: a lower bound of `‖A‖₂`. `None` for a vector or an image of which nothing is known.
pub(crate) fn length<T: Real>(operator: &dyn Operator<T>, x: &[f64], runtime: &Runtime) -> Option<f64> {
    let (m, n) = operator.shape();
    let mut y = vec![0.0; m];
    let error = operator.image(x, &mut y);
    let isa = runtime.isa();
    let image = down(reduce::norm(isa, &y), m + 8) - error;
    // Not for NaN.
    (image > 0.0).then(|| down(down(image, 2) / up(reduce::norm(isa, x), n + 8), 1)).filter(|length| length.is_finite())
}

/// Lanczos steps with a memory: the next bound of a matrix that has changed little starts from the last Ritz vector.
#[derive(Clone, Debug)]
pub(crate) struct Warm<T> {
    lanczos: Lanczos<T>,
    start: Vec<T>,
    image: Vec<T>,
    ritz: Vec<f64>,
    work: Option<Workspace<T>>,
}

impl<T: Real> Warm<T> {
    /// For chains of matrices between spaces of these dimensions.
    pub(crate) fn new(widths: &[usize], steps: usize, seed: u64) -> Self {
        let (n, m) = (widths[0], widths[widths.len() - 1]);
        // The Krylov space of `AᵀA` has a dimension for each singular value and one for the null space, which the start is not free of.
        let rank = widths.iter().copied().min().unwrap_or(0);
        let steps = if rank == 0 { 0 } else { steps.min(rank + 1) };
        let mut random = Counter::new(seed, n as u64);
        Self {
            lanczos: Lanczos::new(n, steps, 1),
            start: (0..n).map(|_| T::from_f64(random.normal())).collect(),
            image: vec![T::ZERO; m],
            ritz: vec![0.0; n],
            work: None,
        }
    }

    /// `‖Au‖/‖u‖` for the best `u` of the Krylov space of `AᵀA` from the last `u`; 0 where the chain maps into nothing, or squares leave
    /// the range of numbers. Allocates nothing after the first call.
    pub(crate) fn lower_bound(&mut self, chain: &[MatRef<'_, T>], runtime: &Runtime) -> f64 {
        let Self { lanczos, start, image, ritz, work } = self;
        let (operator, work) = (Factors(chain), work.get_or_insert_with(|| Workspace::new(runtime)));
        lanczos.begin_at(start);
        while lanczos.may_go_on() {
            lanczos.step(&operator, work);
        }
        if let Some(best) = lanczos.best() {
            lanczos.vector(best, ritz);
            start.iter_mut().zip(ritz.iter()).for_each(|(s, &x)| *s = T::from_f64(x));
        }
        let x = MatRef::from_row_major_slice(start, 1, start.len());
        let rows = image.len();
        operator.apply(x, MatMut::from_row_major_slice_mut(image, 1, rows), work);
        let (image, length) = (reduce::norm(runtime.isa(), image), reduce::norm(runtime.isa(), start));
        if image > 0.0 && image.is_finite() { image / length } else { 0.0 }
    }
}

/// A product of matrices; unlike [`Chain`](super::Chain) it is neither checked nor looked at beforehand.
struct Factors<'s, 'a, T>(&'s [MatRef<'a, T>]);

impl<T: Real> Operator<T> for Factors<'_, '_, T> {
    fn shape(&self) -> (usize, usize) {
        (self.0[self.0.len() - 1].nrows(), self.0[0].ncols())
    }

    fn apply(&self, x: MatRef<'_, T>, y: MatMut<'_, T>, work: &mut Workspace<T>) {
        push(self.0.len(), |l| self.0[l], |_| None, x, y, work);
    }

    fn apply_transposed(&self, y: MatRef<'_, T>, x: MatMut<'_, T>, work: &mut Workspace<T>) {
        pull(self.0.len(), |l| self.0[l], |_| None, y, x, work);
    }
}
