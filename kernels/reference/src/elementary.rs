//! Elementary functions, straight from their definitions: by the standard library in f64, for checking f32 kernels, and in
//! double-double (about 106 bits), for checking f64 kernels far below an ulp.

use core::ops::{Add, Div, Mul, Neg, Sub};

/// `1/(1 + e^(−x))`, with relative accuracy in both tails.
pub fn sigmoid(x: f64) -> f64 {
    if x < 0.0 { x.exp() / (1.0 + x.exp()) } else { 1.0 / (1.0 + (-x).exp()) }
}

/// `tanh'(x) = 1/cosh²x`.
pub fn tanh_derivative(x: f64) -> f64 {
    (1.0 / x.cosh()).powi(2)
}

/// `ln Σ e^(xᵢ)` in double-double, for finite entries; −∞ for an empty row.
pub fn log_sum_exp(x: &[f64]) -> f64 {
    let peak = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if x.is_empty() {
        return peak;
    }
    let sum = x.iter().fold(Wide::from(0.0), |sum, &x| sum + (Wide::from(x) - Wide::from(peak)).exp());
    (Wide::from(peak) + sum.ln()).hi
}

/// `e^(xᵢ)/Σ e^(xⱼ)` in double-double, for finite entries.
pub fn softmax(x: &[f64]) -> Vec<f64> {
    let peak = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let terms: Vec<Wide> = x.iter().map(|&x| (Wide::from(x) - Wide::from(peak)).exp()).collect();
    let sum = terms.iter().fold(Wide::from(0.0), |sum, &term| sum + term);
    terms.iter().map(|&term| (term / sum).hi).collect()
}

/// A number as an unevaluated sum of two f64, `|lo| ≤ ulp(hi)/2`: relative error about 2⁻¹⁰⁰ an operation (Dekker 1971, Hida–Li–Bailey 2001).
///
/// Overflow and subnormal parts are not handled: scale first.
#[derive(Clone, Copy, Debug)]
pub struct Wide {
    /// The nearest f64.
    pub hi: f64,
    /// The rest.
    pub lo: f64,
}

impl From<f64> for Wide {
    fn from(x: f64) -> Wide {
        Wide { hi: x, lo: 0.0 }
    }
}

impl Wide {
    /// `a + b` exactly (Knuth's TwoSum).
    pub fn sum(a: f64, b: f64) -> Wide {
        let hi = a + b;
        let back = hi - a;
        Wide { hi, lo: (a - (hi - back)) + (b - back) }
    }

    /// `a·b` exactly.
    pub fn product(a: f64, b: f64) -> Wide {
        let hi = a * b;
        Wide { hi, lo: a.mul_add(b, -hi) }
    }

    /// `ln 2`.
    pub const LN_2: Wide = Wide { hi: core::f64::consts::LN_2, lo: 2.319_046_813_846_299_6e-17 };
    /// `π`.
    pub const PI: Wide = Wide { hi: core::f64::consts::PI, lo: 1.224_646_799_147_353_2e-16 };

    /// `self·2ⁿ`.
    pub fn scale(self, n: i32) -> Wide {
        let (a, b) = (2f64.powi(n / 2), 2f64.powi(n - n / 2));
        Wide { hi: self.hi * a * b, lo: self.lo * a * b }
    }

    /// `|self|`.
    pub fn abs(self) -> Wide {
        if self.hi < 0.0 { -self } else { self }
    }

    /// `Σ_{k≥first} x^k/k!` for `|x| < 0.4`, divided by `x^first`.
    fn series(self, first: u32) -> Wide {
        let mut sum = Wide::from(1.0);
        for k in (first + 1..first + 30).rev() {
            sum = Wide::from(1.0) + sum * self / Wide::from(f64::from(k));
        }
        sum
    }

    /// `e^self·2^shift`.
    pub fn exp_scaled(self, shift: i32) -> Wide {
        let n = (self.hi / core::f64::consts::LN_2).round();
        let r = self - Wide::LN_2 * Wide::from(n);
        r.series(0).scale(n as i32 + shift)
    }

    /// `e^self`.
    pub fn exp(self) -> Wide {
        self.exp_scaled(0)
    }

    /// `e^self − 1`.
    pub fn exp_m1(self) -> Wide {
        if self.hi.abs() < 0.35 { self * self.series(1) } else { self.exp() - Wide::from(1.0) }
    }

    /// `ln self`: one step of Newton's from the f64 logarithm.
    pub fn ln(self) -> Wide {
        let exponent = self.hi.log2().round() as i32;
        let m = self.scale(-exponent);
        let start = Wide::from(m.hi.ln());
        let y = start + (m * (-start).exp() - Wide::from(1.0));
        y + Wide::LN_2 * Wide::from(f64::from(exponent))
    }

    /// `tanh self`.
    pub fn tanh(self) -> Wide {
        let em = (self.abs() * Wide::from(-2.0)).exp_m1();
        let t = -em / (em + Wide::from(2.0));
        if self.hi < 0.0 { -t } else { t }
    }

    /// `1/(1 + e^(−self))·2^shift`.
    pub fn sigmoid_scaled(self, shift: i32) -> Wide {
        if self.hi < 0.0 {
            self.exp_scaled(shift) / (Wide::from(1.0) + self.exp())
        } else {
            Wide::from(1.0).scale(shift) / (Wide::from(1.0) + (-self).exp())
        }
    }

    /// `sinh self`.
    pub fn sinh(self) -> Wide {
        let em = self.exp_m1();
        (em + em / (em + Wide::from(1.0))) * Wide::from(0.5)
    }

    /// `cosh self`.
    pub fn cosh(self) -> Wide {
        (self.exp() + (-self).exp()) * Wide::from(0.5)
    }

    /// `cos self` for `|self| ≤ 4`, by the series: the error is about 2⁻¹⁰⁰ of the largest term, absolutely.
    pub fn cos(self) -> Wide {
        let square = self * self;
        let mut sum = Wide::from(1.0);
        for k in (1..25).rev() {
            sum = Wide::from(1.0) - sum * square / Wide::from(f64::from((2 * k - 1) * (2 * k)));
        }
        sum
    }

    /// `sin self` for `|self| ≤ 4`, by the series; relative accuracy near 0.
    pub fn sin(self) -> Wide {
        let square = self * self;
        let mut sum = Wide::from(1.0);
        for k in (1..25).rev() {
            sum = Wide::from(1.0) - sum * square / Wide::from(f64::from(2 * k * (2 * k + 1)));
        }
        self * sum
    }
}

/// `tanh(lo + q) − tanh(lo) = sinh q/(cosh(lo + q)·cosh lo)` for `|lo|`, `|q|` below 300.
pub fn tanh_rise(lo: f64, q: f64) -> f64 {
    let hi = Wide::sum(lo, q);
    (Wide::from(q).sinh() / (hi.cosh() * Wide::from(lo).cosh())).hi
}

/// `σ(lo + q) − σ(lo)`, half the rise of `tanh` at half the arguments.
pub fn sigmoid_rise(lo: f64, q: f64) -> f64 {
    0.5 * tanh_rise(0.5 * lo, 0.5 * q)
}

impl Neg for Wide {
    type Output = Wide;
    fn neg(self) -> Wide {
        Wide { hi: -self.hi, lo: -self.lo }
    }
}

impl Add for Wide {
    type Output = Wide;
    fn add(self, other: Wide) -> Wide {
        let (high, low) = (Wide::sum(self.hi, other.hi), Wide::sum(self.lo, other.lo));
        let part = Wide::sum(high.hi, high.lo + low.hi);
        Wide::sum(part.hi, part.lo + low.lo)
    }
}

impl Sub for Wide {
    type Output = Wide;
    fn sub(self, other: Wide) -> Wide {
        self + -other
    }
}

impl Mul for Wide {
    type Output = Wide;
    fn mul(self, other: Wide) -> Wide {
        let p = Wide::product(self.hi, other.hi);
        Wide::sum(p.hi, p.lo + self.hi.mul_add(other.lo, self.lo * other.hi))
    }
}

impl Div for Wide {
    type Output = Wide;
    fn div(self, other: Wide) -> Wide {
        let a = self.hi / other.hi;
        let rest = self - other * Wide::from(a);
        let b = rest.hi / other.hi;
        let rest = rest - other * Wide::from(b);
        Wide::sum(a, b) + Wide::from(rest.hi / other.hi)
    }
}
