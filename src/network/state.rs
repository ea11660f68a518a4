//! The state of a layer of units, and what it was computed from.

use dualprop_kernels::vector::Real;

use crate::matrix::RowMajor;

/// Mean, difference, bottom-up drive and feedback of a layer for a batch (`batch × units`), stamped with the moments they were written at.
///
/// Two equal stamps mean the same bits; [`STALE`] equals no stamp.
#[derive(Clone, Debug)]
pub(crate) struct Units<T> {
    pub(crate) mean: RowMajor<T>,
    pub(crate) diff: RowMajor<T>,
    pub(crate) drive: RowMajor<T>,
    /// The product of the difference above with the weights, if that is kept.
    pub(crate) feedback: RowMajor<T>,
    pub(crate) mean_stamp: u64,
    pub(crate) diff_stamp: u64,
    /// Stamp of the mean below that `drive` was computed from.
    pub(crate) drive_from: u64,
    /// Stamp of the difference above that `feedback` was computed from.
    pub(crate) feedback_from: u64,
    /// What `mean` and `diff` were last relaxed from.
    pub(crate) relaxed_from: Inputs,
}

/// The inputs of a relaxation, by their stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inputs {
    /// Of the mean below.
    pub(crate) below: u64,
    /// Of the difference above; [`NUDGED`] for an output that the loss nudges, [`FREE`] for one that it does not.
    pub(crate) above: u64,
}

pub(crate) const STALE: u64 = 0;
pub(crate) const NUDGED: u64 = 1;
pub(crate) const FREE: u64 = 2;

impl Inputs {
    pub(crate) const NONE: Self = Self { below: STALE, above: STALE };
}

/// Hands out stamps.
#[derive(Clone, Debug)]
pub(crate) struct Clock(u64);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(FREE)
    }

    pub(crate) fn tick(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}

impl<T: Real> Units<T> {
    pub(crate) fn new(batch: usize, units: usize) -> Self {
        let zeros = || RowMajor::zeros(batch, units);
        Self {
            mean: zeros(),
            diff: zeros(),
            drive: zeros(),
            feedback: zeros(),
            mean_stamp: STALE,
            diff_stamp: STALE,
            drive_from: STALE,
            feedback_from: STALE,
            relaxed_from: Inputs::NONE,
        }
    }

    /// Forgets what the state was computed from: the weights have changed, or the state was set from outside.
    pub(crate) fn forget(&mut self) {
        self.drive_from = STALE;
        self.feedback_from = STALE;
        self.relaxed_from = Inputs::NONE;
    }
}
