//! What can be asked of a linear map whose norm is wanted.

use dualprop_kernels::reduce;
use dualprop_kernels::vector::Real;
use faer::{MatMut, MatRef};

use super::enclosure::Bracket;
use crate::error::Error;
use crate::workspace::Workspace;

/// A linear map `A: ℝⁿ → ℝᵐ`, known by its products with vectors.
///
/// Vectors come in blocks of `p`, one in a row: `p × n` before `A`, `p × m` after it, of any strides (column-major means interleaved, which
/// sparse operators like). Whoever calls has checked the shapes.
/// The two products and [`shape`](Self::shape) are all that a new operator needs; each further method makes a proof possible: with
/// [`image`](Self::image) there is a lower bound, with [`bracket`](Self::bracket), [`abs_gram`](Self::abs_gram) or [`block`](Self::block) an upper one that
/// is more than probable.
///
/// Elements that an operator does not have (pruned, masked out, padding) are never read: a NaN there is legal.
pub trait Operator<T: Real>: Sync {
    /// Rows `m` and columns `n`.
    fn shape(&self) -> (usize, usize);

    /// `yᵢ ← A xᵢ`.
    fn apply(&self, x: MatRef<'_, T>, y: MatMut<'_, T>, work: &mut Workspace<T>);

    /// `xᵢ ← Aᵀ yᵢ`.
    fn apply_transposed(&self, y: MatRef<'_, T>, x: MatMut<'_, T>, work: &mut Workspace<T>);

    /// `yᵢ ← AᵀA xᵢ`, `squaresᵢ ← ‖A xᵢ‖²`; overridden by whoever does it in one sweep.
    fn gram(&self, x: MatRef<'_, T>, y: MatMut<'_, T>, squares: &mut [f64], work: &mut Workspace<T>) {
        let (p, m) = (x.nrows(), self.shape().0);
        let mut image = core::mem::take(&mut work.spare[2]);
        image.resize(p * m, T::ZERO);
        self.apply(x, MatMut::from_row_major_slice_mut(&mut image, p, m), work);
        squares.fill(0.0);
        for (square, image) in squares.iter_mut().zip(image.chunks_exact(m.max(1))) {
            *square = reduce::dot(work.runtime().isa(), image, image);
        }
        self.apply_transposed(MatRef::from_row_major_slice(&image, p, m), y, work);
        work.spare[2] = image;
    }

    /// Stored elements, for reports.
    fn stored(&self) -> usize {
        let (m, n) = self.shape();
        m * n
    }

    /// Bounds from one pass over the elements (tier 0), and the check that all of them are finite.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the position of the first NaN or infinity.
    fn bracket(&self) -> Result<Bracket, Error> {
        Ok(Bracket::UNKNOWN)
    }

    /// `y ← A x` in f64. Returns a bound of `‖y − A x‖₂` with all rounding in it: what a rigorous lower bound rests on. Infinity if
    /// there is none to be had.
    fn image(&self, _x: &[f64], y: &mut [f64]) -> f64 {
        y.fill(0.0);
        f64::INFINITY
    }

    /// `y ← |A|ᵀ|A| x` for `x ≥ 0` in f64, each element with a relative error of at most `γ_{m+n+2}`; `false` if the elements are not known.
    fn abs_gram(&self, _x: &[f64], _y: &mut [f64]) -> bool {
        false
    }

    /// `out ←` the block of `A` that starts at `(row, col)`, in f64. Returns a bound of the 2-norm of its error (0: exact), `None` if the
    /// elements are not known.
    fn block(&self, _row: usize, _col: usize, _out: MatMut<'_, f64>) -> Option<f64> {
        None
    }

    /// The elements themselves, for an operator that has all of them, with contiguous rows.
    fn elements(&self) -> Option<MatRef<'_, T>> {
        None
    }

    /// `2^power · A`, for operators whose elements are too large or too small for products in `T`. What its [`image`](Self::image) and
    /// [`block`](Self::block) say of their errors is about `2^power · A` exactly, also where elements of theirs are rounded.
    fn rescaled(&self, _power: i32) -> Option<Box<dyn Operator<T> + '_>> {
        None
    }
}
