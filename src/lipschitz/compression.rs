//! Upper bounds for matrices that are too large for one factorization: the norm of the matrix of the norms of blocks.

use dualprop_kernels::vector::Real;
use faer::Mat;

use super::dense::Dense;
use super::enclose::enclose;
use super::enclosure::{Certainty, Search};
use super::operator::Operator;
use super::rounding::up;
use crate::runtime::Runtime;

/// Rows and columns of a block.
const BLOCK: usize = 1024;

/// The gap to which blocks are bounded: little against what compression itself loses.
const GAP: f64 = 1e-2;

/// `‖A‖₂ ≤ ‖N‖₂` with `N_ij ≥ ‖A_ij‖₂` for blocks `A_ij`. Takes `4/3·mn` times the side of a block in flops. Returns the bound and that side;
/// `None` if the operator does not know its elements or is a single block.
pub(crate) fn compress<T: Real>(operator: &dyn Operator<T>, search: &Search, runtime: &Runtime) -> Option<(f64, usize)> {
    let (m, n) = operator.shape();
    if m.max(n) <= BLOCK {
        return None;
    }
    let search = Search { gap: GAP, certainty: Certainty::Deterministic, ..*search };
    let mut norms = Mat::zeros(m.div_ceil(BLOCK), n.div_ceil(BLOCK));
    for i in 0..norms.nrows() {
        for j in 0..norms.ncols() {
            let (row, col) = (i * BLOCK, j * BLOCK);
            let mut block = Mat::zeros(BLOCK.min(n - col), BLOCK.min(m - row));
            let error = operator.block(row, col, block.as_mut().transpose_mut())?;
            let bound = enclose(&Dense::new(block.as_ref().transpose()), &search, runtime).ok()?;
            norms[(i, j)] = up(bound.enclosure.upper + error, 1);
        }
    }
    let norm = enclose(&Dense::<f64>::new(norms.as_ref()), &search, runtime).ok()?;
    Some((norm.enclosure.upper, BLOCK))
}
