//! Upper bounds from the sizes of elements alone: `‖A‖₂² ≤ max_j (|A|ᵀ|A|x)_j/x_j` for every `x > 0` (Collatz 1942, Wielandt 1950).

use dualprop_kernels::vector::Real;

use super::enclose::{in_range, scaled_down, scaled_up};
use super::enclosure::{Bracket, Enclosure, Proof, Status};
use super::operator::Operator;
use super::rounding::{gamma, up};
use crate::error::Error;

/// An upper bound by `sweeps` sweeps with `|A|ᵀ|A|`, the best of them; `lower` is that of [`Operator::bracket`].
///
/// The bounds of the sweeps tend to `‖ |A| ‖₂`: exact for matrices without negative elements (and those that signs of rows and columns make so),
/// a factor of about `√n` too large for random signs. An operator that does not know its elements keeps the bound of its bracket.
///
/// # Errors
/// [`Error::NotFinite`] for NaN or infinity among the elements.
pub fn collatz<T: Real>(operator: &dyn Operator<T>, sweeps: u32) -> Result<Enclosure, Error> {
    let (m, n) = operator.shape();
    if m == 0 || n == 0 {
        return Ok(Enclosure::ZERO);
    }
    let (found, exponent) = in_range(operator, |operator, bracket| {
        let Bracket { lower, upper, proof, .. } = bracket;
        let mut found = Enclosure { lower, upper, proof, status: Status::Budget, products: 0 };
        let (mut x, mut y) = (vec![1.0; n], vec![0.0; n]);
        for sweeps in 1..=sweeps {
            let Some(upper) = sweep(operator, &mut x, &mut y) else { break };
            found.products = sweeps;
            if upper < found.upper {
                (found.upper, found.proof) = (upper, Proof::Collatz { sweeps });
            }
        }
        found
    })?;
    Ok(Enclosure { lower: scaled_down(found.lower, exponent), upper: scaled_up(found.upper, exponent), ..found })
}

/// The bound at `x ≥ 0`, which is lifted where it is 0 and becomes what comes next. `None` if the operator does not know its elements.
pub(crate) fn sweep<T: Real>(operator: &dyn Operator<T>, x: &mut Vec<f64>, y: &mut Vec<f64>) -> Option<f64> {
    let (m, n) = operator.shape();
    let largest = x.iter().copied().fold(0.0, f64::max);
    let largest = if largest > 0.0 && largest.is_finite() { largest } else { 1.0 };
    x.iter_mut().for_each(|x| *x = (*x / largest).max(2f64.powi(-40)));
    if !operator.abs_gram(x, y) {
        return None;
    }
    let ratio = y.iter().zip(&*x).map(|(y, x)| y / x).fold(0.0, |most: f64, r| if r > most || r.is_nan() { r } else { most });
    // What underflows in `mn` products of elements up to 2²⁵, over 2⁻⁴⁰.
    let vanished = (m * n) as f64 * 2f64.powi(-1000);
    core::mem::swap(x, y);
    let square = up(ratio * (1.0 + gamma(m + n + 2)) + vanished, 5);
    Some(if square.is_nan() { f64::INFINITY } else { up(square.sqrt(), 1) })
}
