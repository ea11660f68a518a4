//! Lower bounds by Lanczos steps.

use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::isa::Isa;
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};
use dualprop_kernels::reduce;
use dualprop_kernels::strided::Output;
use dualprop_kernels::vector::Real;
use faer::{MatMut, MatRef};

use crate::check;
use crate::error::Error;
use crate::matrix::RowMajor;
use crate::random::Counter;
use crate::runtime::Runtime;

/// Most Lanczos steps of one call; more are not taken.
pub const MAX_STEPS: usize = 64;

/// Halvings of the interval of the largest eigenvalue, and steps of inverse iteration. Any vector gives a lower bound, so these decide
/// tightness alone.
const BISECTIONS: usize = 60;
const INVERSE_STEPS: usize = 3;

/// A lower bound of the spectral norm of a product of matrices, `‖A_n ⋯ A_1‖₂`, up to rounding.
///
/// `chain` is `A_1, …, A_n` in the order of application: `A_{i+1}` has as many columns as `A_i` has rows. At most `steps` (and [`MAX_STEPS`]) Lanczos steps
/// (Golub & Kahan 1965, with full reorthogonalisation) from a random start; the result is `‖Au‖/‖u‖` for the Ritz vector `u`, which
/// no rounding but that of the last product can lift above the norm. Exact to rounding when `steps` reaches the rank. Costs two
/// products with a vector for each matrix and step.
///
/// # Errors
/// [`Error::Length`] for an empty chain, [`Error::Shape`] for matrices that do not fit, [`Error::NotFinite`] for NaN or infinity,
/// [`Error::Parameter`] for 0 steps.
pub fn lower_bound<T: Real>(chain: &[MatRef<'_, T>], steps: usize, seed: u64, runtime: &Runtime) -> Result<f64, Error> {
    check::parameter("steps", steps as f64, "at least 1", steps > 0)?;
    let Some(first) = chain.first() else {
        return Err(Error::Length { argument: "chain", found: 0, expected: 1 });
    };
    let mut widths = vec![first.ncols()];
    for &matrix in chain {
        check::shape("chain", matrix, (matrix.nrows(), *widths.last().expect("not empty")))?;
        check::finite("chain", matrix)?;
        widths.push(matrix.nrows());
    }
    Ok(Lanczos::new(&widths, steps, seed).lower_bound(chain, runtime))
}

/// A Lanczos iteration with its memory: the next bound of a matrix that has changed little starts from the last Ritz vector.
#[derive(Clone, Debug)]
pub(crate) struct Lanczos<T> {
    /// Orthonormal vectors of the input space, one in a row.
    basis: RowMajor<T>,
    /// One vector for each width of the chain.
    vectors: Vec<Vec<T>>,
    start: Vec<T>,
    diagonal: Vec<f64>,
    off_diagonal: Vec<f64>,
    scratch: Scratch<T>,
}

impl<T: Real> Lanczos<T> {
    /// For chains of matrices between spaces of these dimensions.
    pub(crate) fn new(widths: &[usize], steps: usize, seed: u64) -> Self {
        let n = widths[0];
        // The Krylov space of `AᵀA` has a dimension for each singular value and one for the null space, which the start is not free of.
        let rank = widths.iter().copied().min().unwrap_or(0);
        let steps = steps.min(MAX_STEPS).min(n).min(rank + usize::from(rank > 0));
        let mut rng = Counter::new(seed, n as u64);
        Self {
            basis: RowMajor::zeros(steps, n),
            vectors: widths.iter().map(|&w| vec![T::ZERO; w]).collect(),
            start: (0..n).map(|_| T::from_f64(rng.normal())).collect(),
            diagonal: vec![0.0; steps],
            off_diagonal: vec![0.0; steps],
            scratch: Scratch::new(),
        }
    }

    /// `‖Au‖/‖u‖` for the best `u` of the Krylov space of `AᵀA` from the last `u`. Allocates nothing after the first call.
    pub(crate) fn lower_bound(&mut self, chain: &[MatRef<'_, T>], runtime: &Runtime) -> f64 {
        let isa = runtime.isa();
        self.vectors[0].copy_from_slice(&self.start);
        let mut norm = normalize(isa, &mut self.vectors[0]);
        let mut unit = 0.0;
        let mut built = 0;
        while built < self.basis.rows() && norm > 0.0 && norm.is_finite() {
            self.basis.row_mut(built).copy_from_slice(&self.vectors[0]);
            let image = self.forward(chain, runtime);
            let back = self.backward(chain, runtime);
            if built == 0 {
                // The first image sets the unit of length, so that squares of norms stay in range.
                unit = image;
            }
            let factor = (image / unit) * (back / unit);
            if !(factor > 0.0 && factor.is_finite()) {
                // The chain maps the vector to zero (or out of range, where there is nothing to bound).
                self.diagonal[built] = 0.0;
                self.off_diagonal[built] = 0.0;
                built += 1;
                break;
            }
            self.diagonal[built] = factor * reduce::dot(isa, self.basis.row(built), &self.vectors[0]);
            // Twice is enough (Parlett): the rest is orthogonal to working precision.
            for _ in 0..2 {
                for b in 0..=built {
                    let along = reduce::dot(isa, self.basis.row(b), &self.vectors[0]);
                    for (x, &v) in self.vectors[0].iter_mut().zip(self.basis.row(b)) {
                        *x = T::from_f64(x.to_f64() - along * v.to_f64());
                    }
                }
            }
            norm = normalize(isa, &mut self.vectors[0]);
            self.off_diagonal[built] = factor * norm;
            built += 1;
            if norm <= 4.0 * T::UNIT_ROUNDOFF {
                break;
            }
        }
        if built == 0 {
            return 0.0;
        }
        self.ritz(built);
        normalize(isa, &mut self.start);
        self.vectors[0].copy_from_slice(&self.start);
        let length = reduce::norm(isa, &self.start);
        self.forward(chain, runtime) / length
    }

    /// `start ←` the combination of the first `built` basis vectors with the largest Rayleigh quotient of the tridiagonal matrix.
    fn ritz(&mut self, built: usize) {
        let (d, e) = (&self.diagonal[..built], &self.off_diagonal[..built]);
        // Just above the largest eigenvalue, by bisection: there all pivots of `θ − T` are positive.
        let above = |theta: f64| {
            let mut pivot = theta - d[0];
            for i in 1..built {
                if pivot <= 0.0 {
                    return false;
                }
                pivot = theta - d[i] - e[i - 1] * e[i - 1] / pivot;
            }
            pivot > 0.0
        };
        let mut low = d.iter().copied().fold(0.0, f64::max);
        let mut high = low + 2.0 * e[..built - 1].iter().copied().fold(0.0, f64::max);
        high += 2.0 * f64::EPSILON * high + f64::MIN_POSITIVE;
        for _ in 0..BISECTIONS {
            let middle = low + 0.5 * (high - low);
            if above(middle) { high = middle } else { low = middle }
        }
        // Its vector by inverse iteration; `θ − T` is positive definite, so elimination needs no pivoting.
        let mut x = [1.0; MAX_STEPS];
        let mut pivots = [0.0; MAX_STEPS];
        // Far enough above it that rounding leaves every pivot positive.
        let theta = high + 8.0 * built as f64 * f64::EPSILON * high + f64::MIN_POSITIVE;
        for _ in 0..INVERSE_STEPS {
            pivots[0] = theta - d[0];
            for i in 1..built {
                let factor = e[i - 1] / pivots[i - 1];
                pivots[i] = theta - d[i] - factor * e[i - 1];
                x[i] += factor * x[i - 1];
            }
            x[built - 1] /= pivots[built - 1];
            for i in (0..built - 1).rev() {
                x[i] = (x[i] + e[i] * x[i + 1]) / pivots[i];
            }
            let largest = x[..built].iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            x[..built].iter_mut().for_each(|x| *x /= largest);
        }
        for (j, s) in self.start.iter_mut().enumerate() {
            let mut sum = 0.0;
            for (i, x) in x[..built].iter().enumerate() {
                sum += x * self.basis.row(i)[j].to_f64();
            }
            *s = T::from_f64(sum);
        }
    }

    /// `vectors[i+1] ← A_i vectors[i]` along the chain, each of length 1. Returns the length that the last would have without.
    fn forward(&mut self, chain: &[MatRef<'_, T>], runtime: &Runtime) -> f64 {
        let mut length = 1.0;
        for (i, &matrix) in chain.iter().enumerate() {
            let (from, to) = self.vectors.split_at_mut(i + 1);
            let (x, y) = (&from[i][..], &mut to[0][..]);
            let out = Output::new(MatMut::from_column_major_slice_mut(y, matrix.nrows(), 1));
            let lanes = Lanes::View(MatRef::from_column_major_slice(x, matrix.ncols(), 1));
            let blocking = Blocking::streaming_rows::<T>(runtime.isa(), matrix.ncols());
            let store = Epilogue::Store { out, scale: T::ONE };
            product(runtime.isa(), runtime.par(), Rows::View(matrix), lanes, store, blocking, &mut self.scratch);
            length *= normalize(runtime.isa(), y);
        }
        length
    }

    /// `vectors[i] ← A_iᵀ vectors[i+1]` back along the chain, each of length 1. Returns the length that the first would have without.
    fn backward(&mut self, chain: &[MatRef<'_, T>], runtime: &Runtime) -> f64 {
        let mut length = 1.0;
        for (i, &matrix) in chain.iter().enumerate().rev() {
            let (to, from) = self.vectors.split_at_mut(i + 1);
            let (x, y) = (&from[0][..], &mut to[i][..]);
            let out = Output::new(MatMut::from_row_major_slice_mut(y, 1, matrix.ncols()));
            let rows = Rows::View(MatRef::from_row_major_slice(x, 1, matrix.nrows()));
            let blocking = Blocking::in_place::<T>(runtime.isa(), 1);
            let store = Epilogue::Store { out, scale: T::ONE };
            product(runtime.isa(), runtime.par(), rows, Lanes::View(matrix), store, blocking, &mut self.scratch);
            length *= normalize(runtime.isa(), y);
        }
        length
    }
}

/// Scales `x` to length 1, unless its length is zero or not finite. Returns the length it had.
fn normalize<T: Real>(isa: Isa, x: &mut [T]) -> f64 {
    let norm = reduce::norm(isa, x);
    if norm > 0.0 && norm.is_finite() {
        for x in x.iter_mut() {
            *x = T::from_f64(x.to_f64() / norm);
        }
    }
    norm
}
