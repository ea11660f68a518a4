//! Upper bounds by squaring `AᵀA` (Gram iteration, Delattre et al. 2023), with rounding.

use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};
use dualprop_kernels::reduce;
use dualprop_kernels::strided::Output;
use dualprop_kernels::vector::Real;

use super::certificate::Certificate;
use super::enclose::{in_range, scaled_down, scaled_up};
use super::enclosure::{Enclosure, Proof, Status};
use super::operator::Operator;
use super::rounding::{exponent_of, gamma, scaled, up};
use crate::error::Error;
use crate::matrix::RowMajor;
use crate::runtime::Runtime;

/// An upper bound by `squarings` squarings of `AᵀA`: `‖(AᵀA)^(2^t)‖_F^(2^(−t−1))`, at most `r^(2^(−t−2))` times the norm for rank `r`; `lower` is that of
/// [`Operator::bracket`].
///
/// Every square is scaled by a power of two to a Frobenius norm from ½ to 1, so that it is off by at most `γ_n` in 2-norm; this is added before each
/// root is taken. Costs `mn·min(m,n) + 2t·min(m,n)³` flops in f64, many times what [`certify`](super::certify) takes. An operator that does
/// not know its elements keeps the bound of its bracket.
///
/// # Errors
/// [`Error::NotFinite`] for NaN or infinity among the elements.
pub fn gram_iteration<T: Real>(operator: &dyn Operator<T>, squarings: u32, runtime: &Runtime) -> Result<Enclosure, Error> {
    let (m, n) = operator.shape();
    if m == 0 || n == 0 {
        return Ok(Enclosure::ZERO);
    }
    let (found, exponent) = in_range(operator, |operator, bracket| {
        let mut found =
            Enclosure { lower: bracket.lower, upper: bracket.upper, proof: bracket.proof, status: Status::Budget, products: 0 };
        if let Some(certificate) = Certificate::new(operator, runtime) {
            let upper = certificate.bound_of(square_root_norm(certificate.gram(), squarings, runtime));
            if upper < found.upper {
                (found.upper, found.proof) = (upper, Proof::Gram { squarings });
            }
        }
        found
    })?;
    Ok(Enclosure { lower: scaled_down(found.lower, exponent), upper: scaled_up(found.upper, exponent), ..found })
}

/// Not below `‖G‖₂` for the symmetric `G` of which this is the upper triangle: by `t` squarings.
fn square_root_norm(upper_triangle: &RowMajor<f64>, squarings: u32, runtime: &Runtime) -> f64 {
    let n = upper_triangle.rows();
    let (isa, par) = (runtime.isa(), runtime.par());
    let mut g = RowMajor::zeros(n, n);
    for i in 0..n {
        for j in i..n {
            g.row_mut(i)[j] = upper_triangle.row(i)[j];
            g.row_mut(j)[i] = upper_triangle.row(i)[j];
        }
    }
    // Not below the norm, and within `γ_{n²}` of it.
    let frobenius = |g: &RowMajor<f64>| {
        let norms: Vec<f64> = (0..n).map(|i| reduce::norm(isa, g.row(i))).collect();
        up(reduce::norm(isa, &norms), 2 * n + 16)
    };
    let mut square = RowMajor::zeros(n, n);
    let mut scratch = Scratch::new();
    let mut exponents = Vec::new();
    for t in 0..=squarings {
        let size = frobenius(&g);
        if size == 0.0 {
            break;
        }
        let exponent = exponent_of(size) + 1;
        exponents.push(exponent);
        (0..n).for_each(|i| g.row_mut(i).iter_mut().for_each(|x| *x = scaled(*x, -exponent)));
        if t < squarings {
            let epilogue = Epilogue::Store { out: Output::new(square.view_mut()), scale: 1.0 };
            let (rows, lanes) = (Rows::View(g.view()), Lanes::View(g.view()));
            product(isa, par, rows, lanes, epilogue, Blocking::on_the_fly(n), &mut scratch);
            core::mem::swap(&mut g, &mut square);
        }
    }
    // Scaling rounds what becomes subnormal, and squares underflow: far below this.
    let vanished = (n * n) as f64 * f64::MIN_POSITIVE;
    let mut bound = frobenius(&g);
    for (t, &exponent) in exponents.iter().enumerate().rev() {
        bound = scaled(up(bound + vanished, 1), exponent);
        if t > 0 {
            bound = up((bound + gamma(n)).sqrt(), 2);
        }
    }
    bound
}
