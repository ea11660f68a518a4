//! Reductions along a vector, in f64, in an order that depends on nothing but the length.
//!
//! Term `i` belongs to virtual lane `i mod 32`; each lane is one chain in ascending `i`, and the lanes are added up by halves. Most
//! loops are scalar code over arrays of 32: the compiler turns them into whatever vectors the instruction set has, and none of its
//! choices can change a bit. (It widens f32 one by one there, so that the dot product has its vectors spelt out.)

use crate::gram::widen;
use crate::isa::{Isa, Kernel};
use crate::vector::{Real, Vector};

const LANES: usize = 32;

/// Sums 32 lanes by halves: `l` and `l + 16`, then `l + 8`, 4, 2, 1.
#[inline(always)]
fn fold(mut lanes: [f64; LANES], combine: impl Fn(f64, f64) -> f64) -> f64 {
    for half in [16, 8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] = combine(lanes[l], lanes[l + half]);
        }
    }
    lanes[0]
}

/// `Σ x_i`. Error at most `γ_{n/32+6}·Σ|x_i|` in f64.
pub fn sum<T: Real>(isa: Isa, x: &[T]) -> f64 {
    (T::kernels().sum)(isa, x)
}

pub(crate) fn run_sum<T: Real>(isa: Isa, x: &[T]) -> f64 {
    struct Sum<'a, T>(&'a [T]);
    impl<T: Real> Kernel<T> for Sum<'_, T> {
        type Output = f64;
        #[inline(always)]
        fn run<S: Vector<T>>(self, _: S) -> f64 {
            let mut lanes = [0.0; LANES];
            let (blocks, rest) = self.0.as_chunks::<LANES>();
            for block in blocks {
                for l in 0..LANES {
                    lanes[l] += block[l].to_f64();
                }
            }
            for (lane, x) in lanes.iter_mut().zip(rest) {
                *lane += x.to_f64();
            }
            fold(lanes, |a, b| a + b)
        }
    }
    isa.run::<T, _>(Sum(x))
}

/// `Σ x_i y_i`. Error at most `γ_{n/32+6}·Σ|x_i y_i|` in f64, with the products of f32 exact.
///
/// # Panics
/// If the lengths differ.
pub fn dot<T: Real>(isa: Isa, x: &[T], y: &[T]) -> f64 {
    assert_eq!(x.len(), y.len(), "a dot product takes vectors of one length");
    (T::kernels().dot)(isa, x, y)
}

pub(crate) fn run_dot<T: Real>(isa: Isa, x: &[T], y: &[T]) -> f64 {
    struct Dot<'a, T>(&'a [T], &'a [T]);
    impl<T: Real> Kernel<f64> for Dot<'_, T> {
        type Output = f64;
        #[inline(always)]
        fn run<S: Vector<f64>>(self, simd: S) -> f64 {
            let mut lanes = [0.0; LANES];
            let ((xs, x_rest), (ys, y_rest)) = (self.0.as_chunks::<LANES>(), self.1.as_chunks::<LANES>());
            let (sums, _) = S::as_vectors_mut(&mut lanes);
            for (x, y) in xs.iter().zip(ys) {
                for (k, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: vectors `k` of the two blocks, of which there are as many as of the lanes.
                    let x = unsafe { widen::<T, S>(simd, x.as_ptr().wrapping_add(k * S::LANES), S::LANES) };
                    // SAFETY: as above.
                    let y = unsafe { widen::<T, S>(simd, y.as_ptr().wrapping_add(k * S::LANES), S::LANES) };
                    *sum = simd.mul_add(x, y, *sum);
                }
            }
            for (lane, (x, y)) in lanes.iter_mut().zip(x_rest.iter().zip(y_rest)) {
                *lane = x.to_f64().mul_add(y.to_f64(), *lane);
            }
            fold(lanes, |a, b| a + b)
        }
    }
    isa.run::<f64, _>(Dot(x, y))
}

/// `Σ (x_i − y_i)²` in the arithmetic of `T`, for vectors that are streamed. Error at most `γ_{n/32+9}` of it in units of `T`, and what
/// underflows: half of the least subnormal number a term.
///
/// # Panics
/// If the lengths differ.
pub fn square_distance<T: Real>(isa: Isa, x: &[T], y: &[T]) -> f64 {
    assert_eq!(x.len(), y.len(), "a distance is between vectors of one length");
    (T::kernels().square_distance)(isa, x, y)
}

pub(crate) fn run_square_distance<T: Real>(isa: Isa, x: &[T], y: &[T]) -> f64 {
    struct SquareDistance<'a, T>(&'a [T], &'a [T]);
    impl<T: Real> Kernel<T> for SquareDistance<'_, T> {
        type Output = f64;
        #[inline(always)]
        fn run<S: Vector<T>>(self, _: S) -> f64 {
            let mut lanes = [T::ZERO; LANES];
            let ((xs, x_rest), (ys, y_rest)) = (self.0.as_chunks::<LANES>(), self.1.as_chunks::<LANES>());
            for (x, y) in xs.iter().zip(ys) {
                for l in 0..LANES {
                    let d = x[l] - y[l];
                    lanes[l] = d.mul_add(d, lanes[l]);
                }
            }
            for (lane, (&x, &y)) in lanes.iter_mut().zip(x_rest.iter().zip(y_rest)) {
                let d = x - y;
                *lane = d.mul_add(d, *lane);
            }
            fold(lanes.map(Real::to_f64), |a, b| a + b)
        }
    }
    isa.run::<T, _>(SquareDistance(x, y))
}

/// `max |x_i|`, 0 for an empty vector, infinity if an element is infinite or NaN.
pub fn max_abs<T: Real>(isa: Isa, x: &[T]) -> f64 {
    (T::kernels().max_abs)(isa, x)
}

pub(crate) fn run_max_abs<T: Real>(isa: Isa, x: &[T]) -> f64 {
    struct MaxAbs<'a, T>(&'a [T]);
    impl<T: Real> Kernel<T> for MaxAbs<'_, T> {
        type Output = f64;
        #[inline(always)]
        fn run<S: Vector<T>>(self, simd: S) -> f64 {
            // Zero times an element: NaN if it is not finite.
            let (zero, mut nothing, mut largest) = (simd.splat(T::ZERO), [simd.splat(T::ZERO); 4], [simd.splat(T::ZERO); 4]);
            let (vectors, rest) = S::as_vectors(self.0);
            let (blocks, more) = vectors.as_chunks::<4>();
            let mut take = |k: usize, x: S::V| {
                nothing[k] = simd.mul_add(x, zero, nothing[k]);
                largest[k] = simd.at_least(simd.abs(x), largest[k]);
            };
            for block in blocks {
                block.iter().enumerate().for_each(|(k, &x)| take(k, x));
            }
            more.iter().enumerate().for_each(|(k, &x)| take(k, x));
            take(3, simd.load_partial(rest));
            let fold = |[a, b, c, d]: [S::V; 4], combine: &dyn Fn(S::V, S::V) -> S::V| combine(combine(a, b), combine(c, d));
            if simd.sum(fold(nothing, &|a, b| simd.add(a, b))) == T::ZERO {
                simd.largest(fold(largest, &|a, b| simd.at_least(a, b))).to_f64()
            } else {
                f64::INFINITY
            }
        }
    }
    isa.run::<T, _>(MaxAbs(x))
}

/// Euclidean norm `√Σ x_i²`: no overflow or underflow on the way.
///
/// Relative error at most `γ_{n/64+4}` in f64 (f64 input of extreme size is scaled by a power of two, which is exact).
pub fn norm<T: Real>(isa: Isa, x: &[T]) -> f64 {
    let square = dot(isa, x, x);
    if T::NAME == "f32" || (1e-280..1e280).contains(&square) {
        return square.sqrt();
    }
    let largest = max_abs(isa, x);
    if largest == 0.0 || !largest.is_finite() {
        return square.sqrt();
    }
    // A power of two near the largest element; halved exponents keep it and its inverse normal.
    let exponent = ((largest.to_bits() >> 52) as i64 - 1023).clamp(-1000, 1000);
    let scale = f64::from_bits(((1023 - exponent) as u64) << 52);
    let mut lanes = [0.0f64; LANES];
    for (i, x) in x.iter().enumerate() {
        let scaled = x.to_f64() * scale;
        lanes[i % LANES] = scaled.mul_add(scaled, lanes[i % LANES]);
    }
    fold(lanes, |a, b| a + b).sqrt() / scale
}

/// Index of the largest element, the first of equals; NaN counts as larger than every number (the first NaN wins). `None` if empty.
pub fn arg_max<T: Real>(x: &[T]) -> Option<usize> {
    let is_nan = |x: &T| x.partial_cmp(x).is_none();
    let mut best: Option<(usize, &T)> = None;
    for (i, x) in x.iter().enumerate() {
        match best {
            Some((_, top)) if is_nan(top) || !(is_nan(x) || x > top) => {}
            _ => best = Some((i, x)),
        }
    }
    best.map(|(i, _)| i)
}
