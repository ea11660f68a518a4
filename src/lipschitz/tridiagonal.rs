//! Symmetric tridiagonal matrices of Lanczos: largest eigenvalues, their vectors, and the polynomial behind the last step.

use dualprop_kernels::elementary::ln;

/// Halvings of an interval: enough for every bit of a double.
const BISECTIONS: usize = 64;

/// Steps of inverse iteration, from a shift that is right to all bits.
const INVERSE_STEPS: usize = 3;

/// Diagonal `d` and what is beside it, `e`; with `k` elements each: the last of `e` leads out of the matrix.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tridiagonal {
    pub(crate) d: Vec<f64>,
    pub(crate) e: Vec<f64>,
}

impl Tridiagonal {
    pub(crate) fn len(&self) -> usize {
        self.d.len()
    }

    pub(crate) fn clear(&mut self) {
        self.d.clear();
        self.e.clear();
    }

    /// Eigenvalues above `x`, up to `most` of them (Sturm).
    fn above(&self, x: f64, most: usize) -> usize {
        let (mut count, mut pivot) = (0, 1.0);
        for (i, d) in self.d.iter().enumerate() {
            let e = if i == 0 { 0.0 } else { self.e[i - 1] };
            pivot = x - d - e * e / pivot;
            if pivot <= 0.0 {
                count += 1;
                if count == most {
                    return count;
                }
                // A zero pivot is a tiny one.
                pivot = pivot.min(-f64::MIN_POSITIVE);
            }
        }
        count
    }

    /// The largest eigenvalue (`nth` = 1) or the one after it, from above; 0 if there are fewer.
    pub(crate) fn eigenvalue(&self, nth: usize) -> f64 {
        if self.len() < nth {
            return 0.0;
        }
        let largest = |x: &[f64]| x.iter().copied().fold(0.0, f64::max);
        let mut low = if nth == 1 { largest(&self.d) } else { 0.0 };
        let mut high = largest(&self.d) + 2.0 * largest(&self.e[..self.len() - 1]);
        high += 2.0 * f64::EPSILON * high + f64::MIN_POSITIVE;
        for _ in 0..BISECTIONS {
            let middle = low + 0.5 * (high - low);
            if middle <= low || middle >= high {
                break;
            }
            if self.above(middle, nth) < nth { high = middle } else { low = middle }
        }
        high
    }

    /// A unit eigenvector for the largest eigenvalue `theta`, by inverse iteration. Any vector gives a lower bound: how good it is decides
    /// tightness alone.
    pub(crate) fn eigenvector(&self, theta: f64, x: &mut Vec<f64>, pivots: &mut Vec<f64>) {
        let k = self.len();
        x.clear();
        x.resize(k, 1.0);
        pivots.resize(k, 0.0);
        // Far enough above that rounding leaves every pivot positive: `θ − T` is positive definite, and elimination needs no pivoting.
        let theta = theta + 8.0 * k as f64 * f64::EPSILON * theta + f64::MIN_POSITIVE;
        for _ in 0..INVERSE_STEPS {
            pivots[0] = theta - self.d[0];
            for i in 1..k {
                let factor = self.e[i - 1] / pivots[i - 1];
                pivots[i] = (theta - self.d[i] - factor * self.e[i - 1]).max(f64::MIN_POSITIVE);
                x[i] += factor * x[i - 1];
            }
            x[k - 1] /= pivots[k - 1];
            for i in (0..k - 1).rev() {
                x[i] = (x[i] + self.e[i] * x[i + 1]) / pivots[i];
            }
            let largest = x.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            x.iter_mut().for_each(|x| *x /= largest);
        }
        let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        x.iter_mut().for_each(|x| *x /= length);
    }

    /// `ln p_k(x)` for `x` above all eigenvalues, else minus infinity: `p_k` is the polynomial with `p_k(M)v_1 = v_{k+1}`, a product of pivots of `x − T` over `e`.
    fn ln_polynomial(&self, x: f64) -> f64 {
        let (mut log, mut product, mut pivot) = (0.0, 1.0, 1.0);
        for (i, (d, &e)) in self.d.iter().zip(&self.e).enumerate() {
            let before = if i == 0 { 0.0 } else { self.e[i - 1] };
            pivot = x - d - before * before / pivot;
            if pivot <= 0.0 {
                return f64::NEG_INFINITY;
            }
            if e == 0.0 {
                return f64::INFINITY;
            }
            product *= pivot / e;
            if !(1e-140..1e140).contains(&product) {
                log += ln(product);
                product = 1.0;
            }
        }
        log + ln(product)
    }

    /// The root above all eigenvalues (of which `theta` is the largest) of `ln p_k(x) = level`, from above.
    pub(crate) fn root(&self, theta: f64, level: f64) -> f64 {
        let (mut low, mut step) = (theta, theta * f64::EPSILON + f64::MIN_POSITIVE);
        while self.ln_polynomial(low + step) < level {
            low += step;
            step *= 4.0;
            if !(low + step).is_finite() {
                return f64::INFINITY;
            }
        }
        let mut high = low + step;
        for _ in 0..BISECTIONS {
            let middle = low + 0.5 * (high - low);
            if middle <= low || middle >= high {
                break;
            }
            if self.ln_polynomial(middle) < level { low = middle } else { high = middle }
        }
        high
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `2 − 2cos(jπ/(k+1))` are the eigenvalues of the second difference.
    #[test]
    fn eigenvalues_of_the_second_difference() {
        for k in [1, 2, 3, 10, 64] {
            let t = Tridiagonal { d: vec![2.0; k], e: vec![1.0; k] };
            let exact = |j: usize| 2.0 - 2.0 * (j as f64 * core::f64::consts::PI / (k + 1) as f64).cos();
            assert!((t.eigenvalue(1) - exact(k)).abs() < 1e-14 * exact(k), "{k}");
            if k > 1 {
                assert!((t.eigenvalue(2) - exact(k - 1)).abs() < 1e-14, "{k}");
            }
            let (mut x, mut pivots) = (vec![], vec![]);
            t.eigenvector(t.eigenvalue(1), &mut x, &mut pivots);
            for i in 0..k {
                let sides = [i.checked_sub(1), Some(i + 1)].into_iter().flatten().filter_map(|i| x.get(i)).sum::<f64>();
                assert!((2.0 * x[i] + sides - exact(k) * x[i]).abs() < 1e-13, "{k} {i}");
            }
        }
    }

    /// With all `e` = ½ and `d` = 0 the polynomials are those of Chebyshev of the second kind: `U_k(1) = k + 1`.
    #[test]
    fn roots_of_chebyshev_polynomials() {
        for k in [1, 2, 5, 40] {
            let t = Tridiagonal { d: vec![0.0; k], e: vec![0.5; k] };
            let root = t.root(t.eigenvalue(1), ln((k + 1) as f64));
            assert!((root - 1.0).abs() < 1e-14, "{k} {root}");
        }
    }
}
