//! A bound of a network's Lipschitz constant that goes from layer to layer.

use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::reduce;
use dualprop_kernels::strided::Output;
use dualprop_kernels::vector::Real;
use faer::MatRef;
use faer::prelude::IntoConst;

use super::dense::Dense;
use super::enclose::enclose;
use super::enclosure::Search;
use super::rounding::{gamma, up};
use crate::error::Error;
use crate::matrix::RowMajor;
use crate::runtime::Runtime;
use crate::workspace::Workspace;

/// An upper bound of the Lipschitz constant of `W_L φ ⋯ φ W_1` for every `φ` that acts on each unit with slopes from 0 to `slope`: ECLipsE-Fast
/// (Xu & Sivaranjani 2024), with rounding. Infinity if numbers leave their range.
///
/// For two inputs and the differences `d_i` of the layers' states it keeps `d_iᵀM_id_i ≤ ‖d_0‖²`, with `M_0 = I` and
///
/// ```text
/// S_i = W_i M_{i−1}⁻¹ W_iᵀ,   s ≥ ‖S_i‖₂,   λ = 2/(slope² s),   M_i = λI − (λ slope/2)² S_i
/// ```
///
/// until `√‖S_L‖₂` is the bound. That is the S-procedure for `d(slope·z − d) ≥ 0` of each unit with one multiplier `λ` for the layer:
/// `zᵀS⁻¹z − dᵀMd ≥ λ dᵀ(slope·z − d)` for all `z` and `d`. As `1/s ≤ slope² M_i ≤ 2/s` no system is worse conditioned than 2, and the
/// bound never exceeds the product of the norms by more than rounding.
///
/// Rounding: `S_i ≤ (1 + κ)(Ŝ_i + εI)` in the order of symmetric matrices, where `κ = φ tr M/(λ_min(M))` is the backward error of Cholesky's
/// algorithm (`φ = γ_{n+1}/(1 − γ_{n+1})`), `ε` collects the triangular solution `X = R⁻ᵀWᵀ`, off by at most `ρ‖X‖_F` with
/// `ρ = γ_{n+1}‖R⁻¹‖₂‖R‖_F`, and the product `XᵀX`; the right-hand side takes the place of `S_i`.
///
/// Costs `n_i²n_{i+1} + 2n_in_{i+1}² + n_i³/3` flops in f64 for each layer, and a search for `‖Ŝ_i‖₂`.
pub(crate) fn eclipse<T: Real>(weights: &[MatRef<'_, T>], slope: f64, runtime: &Runtime) -> Result<f64, Error> {
    let mut work = Workspace::new(runtime);
    let search = Search { gap: 1e-9, ..Search::default() };
    let mut metric: Option<Metric> = None;
    for (i, &layer) in weights.iter().enumerate() {
        let (m, n) = (layer.nrows(), layer.ncols());
        // `M` and `Wᵀ` side by side become `R` and `X`.
        let mut both = RowMajor::<f64>::zeros(n, n + m);
        for j in 0..n {
            both.row_mut(j)[n..].iter_mut().zip(layer.col(j).iter()).for_each(|(x, w)| *x = w.to_f64());
        }
        let (mut kappa, mut rho) = (0.0, 0.0);
        if let Some(metric) = &metric {
            for j in 0..n {
                both.row_mut(j)[..n].iter_mut().zip(metric.lost.row(j)).for_each(|(x, s)| *x = -s);
                both.row_mut(j)[j] += metric.most;
            }
            if !eliminate(&mut both, &mut work) {
                return Ok(f64::INFINITY);
            }
            let phi = gamma(n + 3);
            kappa = up(phi * n as f64 * metric.most / metric.least, 4);
            if kappa.is_nan() || kappa >= 0.5 {
                return Ok(f64::INFINITY);
            }
            // `‖R‖_F² = tr RᵀR ≤ (1 + φ) tr M`, `‖R⁻¹‖₂² ≤ 1/((1 − κ)λ_min(M))`.
            rho = up(gamma(n + 2) * (2.0 * n as f64 * metric.most / ((1.0 - kappa) * metric.least)).sqrt(), 8);
        }
        let mut s = RowMajor::<f64>::zeros(m, m);
        let x = both.view().subcols(n, m);
        work.outer(x, x, Epilogue::Store { out: Output::new(s.view_mut()), scale: 1.0 });
        let square: f64 = (0..m).map(|j| s.row(j)[j]).sum();
        if square == 0.0 && (0..n).all(|j| reduce::max_abs(runtime.isa(), &both.row(j)[n..]) == 0.0) {
            return Ok(0.0);
        }
        let square = up(square, m + n + 2);
        if !(square.is_finite() && rho < 0.5) {
            return Ok(f64::INFINITY);
        }
        // `‖X̂ᵀX̂ − XᵀX‖ ≤ (2ρ + 3ρ²)‖X̂‖_F²`, and the product.
        let epsilon = up((gamma(n + 1) + 4.0 * rho) * square, 4);
        let found = enclose(&Dense::new(s.view()), &search, runtime)?.enclosure.upper;
        let norm = up((1.0 + kappa) * (found + epsilon), 3);
        if i + 1 == weights.len() {
            return Ok(up(norm.sqrt(), 1));
        }
        let lambda = 2.0 / (slope * slope * norm);
        let factor = up((lambda * slope / 2.0).powi(2) * (1.0 + kappa), 5);
        let frobenius = up((0..m).map(|j| reduce::dot(runtime.isa(), s.row(j), s.row(j))).sum::<f64>().sqrt(), 2 * m);
        // Elements of `factor·Ŝ` are rounded once, `τ` and the diagonal too.
        let lost = up(factor * (epsilon + 4.0 * f64::UNIT_ROUNDOFF * frobenius) + 4.0 * f64::UNIT_ROUNDOFF * lambda, 4);
        let tau = (lambda - lost).next_down();
        (0..m).for_each(|j| s.row_mut(j).iter_mut().for_each(|s| *s *= factor));
        let least = tau - up(factor * (found + epsilon), 4);
        if !(least > 0.0 && least.is_finite()) {
            return Ok(f64::INFINITY);
        }
        metric = Some(Metric { lost: s, least, most: tau });
    }
    Ok(1.0)
}

/// `M = most·I − lost`, with bounds of its eigenvalues.
struct Metric {
    lost: RowMajor<f64>,
    least: f64,
    most: f64,
}

/// Rows that are eliminated one after the other.
const BLOCK: usize = 16;

/// `[M, C] ← [R, R⁻ᵀC]` with `M = RᵀR`, row by row within blocks and in products between them; below its diagonal `R` is not zero. Returns whether all pivots
/// were positive numbers.
fn eliminate(both: &mut RowMajor<f64>, work: &mut Workspace<f64>) -> bool {
    let (n, width) = (both.rows(), both.cols());
    for i0 in (0..n).step_by(BLOCK) {
        let rows = BLOCK.min(n - i0);
        if i0 > 0 {
            let (above, rest) = both.view_mut().split_at_row_mut(i0);
            let above = above.into_const();
            let out = Output::new(rest.submatrix_mut(0, i0, rows, width - i0));
            work.outer(above.subcols(i0, rows), above.subcols(i0, width - i0), Epilogue::Accumulate { out, scale: -1.0 });
        }
        let mut row = core::mem::take(&mut work.spare[0]);
        for i in i0..i0 + rows {
            row.clear();
            row.extend_from_slice(&both.row(i)[i..]);
            for k in i0..i {
                let factor = both.row(k)[i];
                row.iter_mut().zip(&both.row(k)[i..]).for_each(|(x, above)| *x -= factor * above);
            }
            let pivot = row[0].sqrt();
            if !(pivot > 0.0 && pivot.is_finite()) {
                return false;
            }
            both.row_mut(i)[i..].iter_mut().zip(&row).for_each(|(x, r)| *x = r / pivot);
            both.row_mut(i)[i] = pivot;
        }
        work.spare[0] = row;
    }
    true
}
