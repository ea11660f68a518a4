//! The upper bound of Temple and Kato: `‖A‖₂²` is near a Rayleigh quotient if no other eigenvalue of `AᵀA` is.
//!
//! For a unit vector `x` with the quotient `η = xᵀMx` and the residual `ε = ‖Mx − ηx‖`, `M = AᵀA`, and a level `s < η` with `λ₂ ≤ s`, all
//! eigenvalues of `(M − λ₁)(M − s)` are at least 0, hence `λ₁ ≤ η + ε²/(η − s)` (Kato 1949).
//!
//! `λ₂ ≤ s` is proven by a Cholesky factor of `sI + δvvᵀ − M`, for `λ₂(M) ≤ λ₂(sI + δvvᵀ)`. The level may lie anywhere between `λ₂` and `λ₁`, so
//! that the gap between them, not the one that is asked for, has to be above rounding: that of half the precision, in half the time.

use dualprop_kernels::gram::{image, wide_gram};
use dualprop_kernels::product::Scratch;
use dualprop_kernels::reduce::{dot, norm};
use dualprop_kernels::scan::scan;
use dualprop_kernels::vector::Real;
use faer::MatRef;
use faer::prelude::{Reborrow, ReborrowMut};

use super::cholesky::{CHAIN, Cholesky, roundings};
use super::rounding::{down, gamma, gamma_in, up};
use super::symmetric::{BLOCK, Symmetric};
use crate::runtime::Runtime;

/// A number that `‖A‖₂` is not above, and the level `s` behind it: not above `bound`, unless that cannot be proven.
///
/// `size` is not below `‖ |A| ‖₂`, and `next` is where `λ₂` is expected. Costs `mn·min(m,n) + min(m,n)³/3` flops in `T` unless `x` is too far from a
/// singular vector.
pub(crate) fn temple<T: Real>(
    a: MatRef<'_, T>,
    size: f64,
    x: &[f64],
    next: f64,
    bound: f64,
    runtime: &Runtime,
) -> Option<(f64, f64)> {
    let (isa, par, (m, n)) = (runtime.isa(), runtime.par(), a.shape());
    let (long, short) = (m.max(n), m.min(n));
    let mut residual = vec![0.0; n];
    wide_gram(isa, par, a, x, &mut residual, &mut Scratch::new());
    let square = dot(isa, x, x);
    let quotient = dot(isa, x, &residual) / square;
    residual.iter_mut().zip(x).for_each(|(r, x)| *r -= quotient * x);
    // Relatively to `size²‖x‖`: `m + n` roundings of the image, `n` of each product and of what it is divided by, and a few; and what underflows in
    // the image.
    let vanished = 4.0 * (1.0 + size) * (m * n) as f64 * f64::TINY;
    let error = up(gamma(m + 4 * n + 64) * size * size + vanished / square.sqrt(), 8);
    let (high, low) = (up(quotient + error, 1), down(quotient - error, 1));
    let residual = up(up(norm(isa, &residual), n + 8) / square.sqrt() + error, n + 8);

    // Any `v` and `δ` will do.
    let mut v = if m >= n { x.to_vec() } else { vec![0.0; m] };
    if m < n {
        image(isa, par, a, x, &mut v);
    }
    let length = norm(isa, &v);
    let v: Vec<T> = v.iter().map(|x| T::from_f64(x / length)).collect();
    let shift = T::from_f64(quotient);
    // Chains of products are subtracted one after the other from elements of `sI + δvvᵀ`, which have three roundings themselves; and what
    // underflows, here and in the factor.
    let chains = long.div_ceil(CHAIN);
    let shifted = up(low + shift.to_f64() * up(dot(isa, &v, &v), short + 8), 3);
    let vanished = (long * short) as f64 * short as f64 * f64::from(f32::MIN_POSITIVE) * (2.0 + low);
    let of_matrix = gamma_in::<T>(CHAIN + chains) * size * size + gamma_in::<T>(chains + 3) * shifted + vanished;

    // The highest level that is good enough, and the way down from it: half of it is left to what is between `next` and `λ₂`, half to the rounding
    // of the factor.
    let room = low - residual * residual / (bound * bound - high) - of_matrix - next;
    if !(bound * bound > high && room > 0.0) {
        return None;
    }
    let level = T::from_f64(next + 0.5 * room);
    let mut cholesky = Cholesky::new(short);
    let mut matrix = cholesky.matrix();
    for i in 0..short {
        let scale = shift * v[i];
        let row = matrix.rb_mut().row_mut(i).try_as_row_major_mut()?.as_slice_mut();
        row[i..].iter_mut().zip(&v[i..]).for_each(|(b, &v)| *b = scale * v);
        row[i] += level;
    }
    let mut symmetric = Symmetric::new();
    for p0 in (0..long).step_by(CHAIN) {
        let deep = CHAIN.min(long - p0);
        let slab = if m >= n { a.subrows(p0, deep) } else { a.subcols(p0, deep).transpose() };
        symmetric.add(-T::ONE, slab, matrix.rb_mut(), runtime);
    }
    if !cholesky.factor(runtime) {
        return None;
    }
    // What blocks have left below the diagonal is not of `R`.
    let mut factor = cholesky.matrix();
    for i in 0..short {
        factor.rb_mut().row_mut(i).subcols_mut(i.saturating_sub(BLOCK), i.min(BLOCK)).fill(T::ZERO);
    }
    let factor = scan(isa, factor.rb(), &mut Scratch::new()).ok()?;
    let norm = factor.frobenius().min(factor.holder());
    let of_factor = gamma_in::<T>(roundings(short)) * norm * norm + vanished;
    let level = up(level.to_f64() + of_matrix + of_factor, 8);
    (level < low).then(|| (up(up(high + residual * residual / (low - level), 4).sqrt(), 1), level))
}
