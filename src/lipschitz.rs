//! Spectral norms.
//!
//! For now a lower bound by Lanczos steps; enclosures are not there yet.

use dualprop_kernels::epilogue::Epilogue;
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

/// Power steps on the tridiagonal matrix. Any vector gives a lower bound, so this decides tightness alone.
const POWER_STEPS: usize = 64;

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
        let steps = steps.min(MAX_STEPS).min(widths.iter().copied().min().unwrap_or(0));
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
        let mut norm = reduce::norm(isa, &self.start);
        let mut built = 0;
        self.vectors[0].copy_from_slice(&self.start);
        while built < self.basis.rows() && norm > 0.0 && norm.is_finite() {
            let inverse = T::from_f64(1.0 / norm);
            for (b, &x) in self.basis.row_mut(built).iter_mut().zip(&self.vectors[0]) {
                *b = x * inverse;
            }
            self.vectors[0].copy_from_slice(self.basis.row(built));
            self.forward(chain, runtime);
            self.backward(chain, runtime);
            self.diagonal[built] = reduce::dot(isa, self.basis.row(built), &self.vectors[0]);
            let scale = reduce::norm(isa, &self.vectors[0]);
            // Twice is enough (Parlett): the rest is orthogonal to working precision.
            for _ in 0..2 {
                for b in 0..=built {
                    let along = reduce::dot(isa, self.basis.row(b), &self.vectors[0]);
                    for (x, &v) in self.vectors[0].iter_mut().zip(self.basis.row(b)) {
                        *x = T::from_f64(x.to_f64() - along * v.to_f64());
                    }
                }
            }
            norm = reduce::norm(isa, &self.vectors[0]);
            self.off_diagonal[built] = norm;
            built += 1;
            if norm <= 4.0 * T::UNIT_ROUNDOFF * scale {
                break;
            }
        }
        if built == 0 {
            return 0.0;
        }
        self.ritz(built);
        self.vectors[0].copy_from_slice(&self.start);
        self.forward(chain, runtime);
        let image = self.vectors.last().expect("at least the input");
        reduce::norm(isa, image) / reduce::norm(isa, &self.start)
    }

    /// `start ←` the combination of the first `built` basis vectors with the largest Rayleigh quotient of the tridiagonal matrix.
    fn ritz(&mut self, built: usize) {
        let (d, e) = (&self.diagonal[..built], &self.off_diagonal[..built]);
        // The matrix is positive semidefinite: its power iteration goes to the largest eigenvalue, and at this size costs nothing.
        let mut x = [0.0; MAX_STEPS];
        let mut y = [0.0; MAX_STEPS];
        x[0] = 1.0;
        for _ in 0..POWER_STEPS {
            let mut square = 0.0;
            for i in 0..built {
                let mut sum = d[i] * x[i];
                if i > 0 {
                    sum += e[i - 1] * x[i - 1];
                }
                if i + 1 < built {
                    sum += e[i] * x[i + 1];
                }
                y[i] = sum;
                square += sum * sum;
            }
            if square == 0.0 {
                break;
            }
            let inverse = 1.0 / square.sqrt();
            for i in 0..built {
                x[i] = y[i] * inverse;
            }
        }
        for (j, s) in self.start.iter_mut().enumerate() {
            let mut sum = 0.0;
            for (i, x) in x[..built].iter().enumerate() {
                sum += x * self.basis.row(i)[j].to_f64();
            }
            *s = T::from_f64(sum);
        }
    }

    /// `vectors[i+1] ← A_i vectors[i]` along the chain.
    fn forward(&mut self, chain: &[MatRef<'_, T>], runtime: &Runtime) {
        for (i, &matrix) in chain.iter().enumerate() {
            let (from, to) = self.vectors.split_at_mut(i + 1);
            let (x, y) = (&from[i][..], &mut to[0][..]);
            let out =
                Epilogue::Store { out: Output::new(MatMut::from_column_major_slice_mut(y, matrix.nrows(), 1)), scale: T::ONE };
            let lanes = Lanes::View(MatRef::from_column_major_slice(x, matrix.ncols(), 1));
            let blocking = Blocking::streaming_rows::<T>(runtime.isa(), matrix.ncols());
            product(runtime.isa(), runtime.par(), Rows::View(matrix), lanes, out, blocking, &mut self.scratch);
        }
    }

    /// `vectors[i] ← A_iᵀ vectors[i+1]` back along the chain.
    fn backward(&mut self, chain: &[MatRef<'_, T>], runtime: &Runtime) {
        for (i, &matrix) in chain.iter().enumerate().rev() {
            let (to, from) = self.vectors.split_at_mut(i + 1);
            let (x, y) = (&from[0][..], &mut to[i][..]);
            let out = Epilogue::Store { out: Output::new(MatMut::from_row_major_slice_mut(y, 1, matrix.ncols())), scale: T::ONE };
            let rows = Rows::View(MatRef::from_row_major_slice(x, 1, matrix.nrows()));
            let blocking = Blocking::in_place::<T>(runtime.isa(), 1);
            product(runtime.isa(), runtime.par(), rows, Lanes::View(matrix), out, blocking, &mut self.scratch);
        }
    }
}
