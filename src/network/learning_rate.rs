//! Learning-rate schedule.

use dualprop_kernels::elementary::cos_pi;

use crate::check;
use crate::error::Error;

/// Linear warm-up, half cosine, constant end (Høier & Zach 2024, section B): from `start` to `peak` over `warmup`, from there to `end`
/// at `total`, and `end` after it. Time is in whatever unit the caller counts: epochs or steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// Rate at time 0.
    pub start: f64,
    /// Rate at the end of the warm-up.
    pub peak: f64,
    /// Rate from `total` on.
    pub end: f64,
    /// Length of the warm-up.
    pub warmup: f64,
    /// When the cosine has come down; the warm-up counts inside it.
    pub total: f64,
}

impl LearningRate {
    /// The same rate at all times.
    pub fn constant(rate: f64) -> Self {
        Self { start: rate, peak: rate, end: rate, warmup: 0.0, total: 0.0 }
    }

    /// Checks that rates and times are finite and not negative, and that the warm-up ends before the cosine does.
    ///
    /// # Errors
    /// [`Error::Parameter`] names the field.
    pub fn check(&self) -> Result<(), Error> {
        for (name, value) in
            [("start", self.start), ("peak", self.peak), ("end", self.end), ("warmup", self.warmup), ("total", self.total)]
        {
            check::not_negative(name, value)?;
        }
        check::parameter("warmup", self.warmup, "no longer than the whole schedule", self.warmup <= self.total)
    }

    /// The rate at time `t`.
    pub fn at(&self, t: f64) -> f64 {
        if t < self.warmup {
            self.start + (self.peak - self.start) * (t / self.warmup)
        } else if t < self.total {
            let phase = (t - self.warmup) / (self.total - self.warmup);
            self.end + (self.peak - self.end) * 0.5 * (1.0 + cos_pi(phase))
        } else {
            self.end
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_comes_down_and_stays() {
        let rate = LearningRate { start: 0.001, peak: 0.025, end: 2e-6, warmup: 10.0, total: 120.0 };
        rate.check().unwrap();
        assert_eq!(rate.at(0.0), 0.001);
        assert_eq!(rate.at(10.0), 0.025);
        assert_eq!(rate.at(120.0), 2e-6);
        assert_eq!(rate.at(1e9), 2e-6);
        let middle = 2e-6 + (0.025 - 2e-6) * 0.5;
        assert!((rate.at(65.0) - middle).abs() <= 4.0 * f64::EPSILON * middle);
        assert!(LearningRate { warmup: 200.0, ..rate }.check().is_err());
        assert_eq!(LearningRate::constant(0.1).at(3.0), 0.1);
    }
}
