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
    let tt = std::time::Instant::now();
    let n_ = n;
    let mut residual = vec![0.0; n];
    wide_gram(isa, par, a, x, &mut residual, &mut Scratch::new());
    let square = dot(isa, x, x);
    let quotient = dot(isa, x, &residual) / square;
    residual.iter_mut().zip(x).for_each(|(r, x)| *r -= quotient * x);
    // Relatively to `size²‖x‖`: `m + n` roundings of the image, `n` of each product and of what it is divided by, a few more; and what underflows
    // in the image.
    let vanished = 4.0 * (1.0 + size) * (m * n) as f64 * f64::TINY;
    let error = up(gamma(m + 4 * n + 64) * size * size + vanished / square.sqrt(), 8);
    let (high, low) = (up(quotient + error, 1), down(quotient - error, 1));
    let residual = up(up(norm(isa, &residual), n + 8) / square.sqrt() + error, n + 8);
    let of_level = |s: f64| up(up(high + residual * residual / (low - s), 4).sqrt(), 1);

    let short = m.min(n);
    let chains = m.max(n).div_ceil(CHAIN);
    // `v` and `δ`: any will do.
    let mut v = if m >= n { x.to_vec() } else { vec![0.0; m] };
    if m < n {
        image(isa, par, a, x, &mut v);
    }
    let length = norm(isa, &v);
    let v: Vec<T> = v.iter().map(|x| T::from_f64(x / length)).collect();
    let shift = T::from_f64(quotient);
    // A chain is of `CHAIN` products, and they are subtracted one after the other from an element of `sI + δvvᵀ` with three roundings.
    let shifted = up(low + shift.to_f64() * up(dot(isa, &v, &v), short + 8), 3);
    let vanished = (short * short) as f64 * f64::from(f32::MIN_POSITIVE) * (2.0 + low);
    let of_gram = gamma_in::<T>(CHAIN + chains) * size * size + gamma_in::<T>(chains + 3) * shifted + (m.max(n) + short) as f64 * vanished;

    let highest = low - residual * residual / (bound * bound - high);
    let room = highest - of_gram - next;
    
    if !(bound * bound > high && room > 0.0 && shift.is_finite()) {
        return None;
    }
    let t0 = std::time::Instant::now();
    let level = T::from_f64(next + 0.5 * room);
    let mut cholesky = Cholesky::new(short);
    let mut matrix = cholesky.matrix();
    for i in 0..short {
        let scale = shift * v[i];
        let row = matrix.rb_mut().row_mut(i).try_as_row_major_mut()?.as_slice_mut();
        row[i..].iter_mut().zip(&v[i..]).for_each(|(b, &v)| *b = scale * v);
        row[i] += level;
    }
    let t1 = std::time::Instant::now();
    let mut symmetric = Symmetric::new();
    for p0 in (0..m.max(n)).step_by(CHAIN) {
        let deep = CHAIN.min(m.max(n) - p0);
        let slab = if m >= n { a.subrows(p0, deep) } else { a.subcols(p0, deep).transpose() };
        symmetric.add(-T::ONE, slab, matrix.rb_mut(), runtime);
    }
    let t2 = std::time::Instant::now();
    if !cholesky.factor(runtime) {
        return None;
    }
    let t3 = std::time::Instant::now();
    // What blocks have left below the diagonal.
    let mut factor = cholesky.matrix();
    for i in 0..short {
        factor.rb_mut().row_mut(i).subcols_mut(i.saturating_sub(BLOCK), i.min(BLOCK)).fill(T::ZERO);
    }
    let factor = scan(isa, factor.rb(), &mut Scratch::new()).ok()?;
    let norm = factor.frobenius().min(factor.holder());
    let s = up(level.to_f64() + of_gram + gamma_in::<T>(roundings(short)) * norm * norm + vanished, 8);
    
    let us = |d: std::time::Duration| d.as_secs_f64() * 1e6;
    let n = short as f64;
    eprintln!("wide {:.0} init {:.0} gram {:.0} ({:.1} GF) chol {:.0} ({:.1}) scan {:.0}", us(t0-tt), us(t1-t0), us(t2-t1), (m*n_)as f64*n/us(t2-t1)/1e3, us(t3-t2), n*n*n/3.0/us(t3-t2)/1e3, us(t3.elapsed()));
    (s < low).then(|| (of_level(s), s))
}
