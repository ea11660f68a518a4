//! Random numbers by counting: number `i` of a stream is a hash of the seed, the stream and `i`.
//!
//! Results depend on nothing but these three, on any machine and in any release.

use dualprop_kernels::elementary::ln;

/// A stream of random numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    key: u64,
    count: u64,
}

/// The finalizer of SplitMix64 (Steele, Lea & Flood 2014, with Stafford's constants): a bijection in which every bit avalanches.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Counter {
    /// The stream of that number under a seed; streams of one seed are independent.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { key: mix(mix(seed.wrapping_add(GOLDEN)) ^ stream.wrapping_mul(GOLDEN)), count: 0 }
    }

    /// 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.count = self.count.wrapping_add(1);
        mix(self.key.wrapping_add(self.count.wrapping_mul(GOLDEN)))
    }

    /// Uniform in `0..n`, without bias (Lemire 2019). `n` = 0 gives 0.
    pub fn below(&mut self, n: u64) -> u64 {
        let reject = n.wrapping_neg().checked_rem(n).unwrap_or(0);
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= reject {
                return (product >> 64) as u64;
            }
        }
    }

    /// Uniform in `[0, 1)`: a multiple of 2⁻⁵³.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Marsaglia's polar method).
    pub fn normal(&mut self) -> f64 {
        loop {
            let (x, y) = (2.0 * self.uniform() - 1.0, 2.0 * self.uniform() - 1.0);
            let s = x * x + y * y;
            if s > 0.0 && s < 1.0 {
                return x * (-2.0 * ln(s) / s).sqrt();
            }
        }
    }

    /// A uniform permutation (Fisher & Yates).
    pub fn shuffle<X>(&mut self, items: &mut [X]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_has_its_moments() {
        let mut rng = Counter::new(1, 2);
        let n = 200_000;
        let (mut m1, mut m2, mut m4) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            let x = rng.normal();
            m1 += x;
            m2 += x * x;
            m4 += x.powi(4);
        }
        let n = f64::from(n);
        // Five standard errors of each mean: Var x = 1, Var x² = 2, Var x⁴ = 96.
        assert!((m1 / n).abs() < 5.0 / n.sqrt());
        assert!((m2 / n - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
        assert!((m4 / n - 3.0).abs() < 5.0 * (96.0 / n).sqrt());
    }

    #[test]
    fn below_covers_its_range_evenly_and_shuffle_permutes() {
        let mut rng = Counter::new(7, 0);
        let mut count = [0u32; 7];
        for _ in 0..70_000 {
            count[rng.below(7) as usize] += 1;
        }
        // Five standard deviations of a binomial count.
        assert!(count.iter().all(|&c| (f64::from(c) - 10_000.0).abs() < 5.0 * (10_000.0f64 * 6.0 / 7.0).sqrt()), "{count:?}");
        let mut items: Vec<_> = (0..100).collect();
        rng.shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn streams_differ_and_repeat() {
        let draw = |seed, stream| Counter::new(seed, stream).next_u64();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }
}
