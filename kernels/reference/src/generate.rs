//! Deterministic inputs for tests, fuzzers and benches, from a seed.
//!
//! Only integer arithmetic and correctly rounded operations are used, so a seed means the same numbers on every machine.

use crate::bound::Precision;

/// Sebastiano Vigna's splitmix64 (2015, public domain): a counter times an odd constant, mixed.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        SplitMix64(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform on 2⁵² points of the open interval (−1, 1), symmetric and never 0.
    pub fn symmetric(&mut self) -> f64 {
        ((self.bits() >> 12) as f64 + 0.5) / (1u64 << 51) as f64 - 1.0
    }

    /// An integer in `0..n`; the bias is below `n·2⁻⁶⁴`.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "there is no integer below 0");
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }
}

/// A kind of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Uniform on [−1, 1].
    Uniform,
    /// Integers from −8 to 8: sums of products are exact.
    Integer,
    /// Neighbours `x, −x(1 + 2⁻¹⁶r)`: pairs that cancel to a small remainder.
    Cancelling,
    /// Uniform times 2^k with k from −20 to 20.
    Mixed,
    /// Subnormal numbers of the precision.
    Subnormal,
    /// `r/(1 − |r|)` with uniform r: tails like those of the Cauchy distribution.
    HeavyTailed,
}

impl Family {
    /// All families.
    pub const ALL: [Family; 6] =
        [Family::Uniform, Family::Integer, Family::Cancelling, Family::Mixed, Family::Subnormal, Family::HeavyTailed];
}

/// `len` numbers of `family`, rounded to `precision`; the same for the same arguments.
pub fn generate(family: Family, len: usize, seed: u64, precision: Precision) -> Vec<f64> {
    let mut random = SplitMix64::new(seed);
    let mut numbers: Vec<f64> = Vec::with_capacity(len);
    for i in 0..len {
        let x = match family {
            Family::Uniform => random.symmetric(),
            Family::Integer => random.below(17) as f64 - 8.0,
            Family::Cancelling if i % 2 == 0 => random.symmetric(),
            Family::Cancelling => -numbers[i - 1] * (1.0 + random.symmetric() / 65536.0),
            Family::Mixed => random.symmetric() * 2f64.powi(random.below(41) as i32 - 20),
            Family::Subnormal => (random.below(1 << 22) as f64 - (1u64 << 21) as f64) * precision.tiny(),
            Family::HeavyTailed => {
                let r = random.symmetric();
                r / (1.0 - r.abs())
            }
        };
        numbers.push(precision.nearest(x));
    }
    numbers
}

/// A row-major `rows × classes` matrix with a single 1 in each row, at a random place.
pub fn one_hot(rows: usize, classes: usize, seed: u64) -> Vec<f64> {
    let mut random = SplitMix64::new(seed);
    let mut targets = vec![0.0; rows * classes];
    for row in targets.chunks_exact_mut(classes) {
        row[random.below(classes as u64) as usize] = 1.0;
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_gives_the_published_sequence() {
        let mut random = SplitMix64::new(1234567);
        let expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431];
        assert_eq!([(); 4].map(|()| random.bits()), expected);
    }

    #[test]
    fn families_are_what_they_claim() {
        for precision in [Precision::F32, Precision::F64] {
            for family in Family::ALL {
                let x = generate(family, 1000, 7, precision);
                assert_eq!(x, generate(family, 1000, 7, precision));
                assert_ne!(x, generate(family, 1000, 8, precision));
                assert!(x.iter().all(|&x| precision.nearest(x) == x && x.is_finite()));
                let normal = if precision == Precision::F32 { f32::MIN_POSITIVE.into() } else { f64::MIN_POSITIVE };
                let holds: fn(f64, f64) -> bool = match family {
                    Family::Uniform | Family::Cancelling => |x, _| x.abs() <= 1.0 + 1e-4,
                    Family::Integer => |x, _| x.fract() == 0.0 && x.abs() <= 8.0,
                    Family::Mixed => |x, _| x.abs() <= 1048576.0,
                    Family::Subnormal => |x, normal| x.abs() < normal,
                    Family::HeavyTailed => |_, _| true,
                };
                assert!(x.iter().all(|&x| holds(x, normal)), "{family:?} in {precision:?}");
            }
            let pairs = generate(Family::Cancelling, 1000, 7, precision);
            assert!(pairs.chunks_exact(2).all(|p| (p[0] + p[1]).abs() <= p[0].abs() / 32768.0));
            assert!(generate(Family::HeavyTailed, 1000, 7, precision).iter().any(|x| x.abs() > 100.0));
        }
    }

    #[test]
    fn one_hot_rows_hold_a_single_one() {
        let targets = one_hot(20, 4, 3);
        assert!(targets.chunks_exact(4).all(|row| row.iter().sum::<f64>() == 1.0 && row.contains(&1.0)));
    }
}
