//! Schedules: the order in which layers are relaxed.

use crate::random::Counter;

/// The order in which layers are relaxed, after a plain forward pass unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Schedule {
    /// Output; R × [`L−1 … 1`, `2 … L`]; `L−1 … 1`. The MLP experiments use R = 5 (15 damped); R = 0 is one sweep up and one down.
    Rounds(usize),
    /// `fwK`: K × [`1 … L`].
    Forward(usize),
    /// `bwK`: `L … 1`, once.
    Backward,
    /// `fwbwK`: `L … 2`, (K−1) × [`1 … L−1`, `L … 1`], `1`.
    ForwardBackward(usize),
    /// K × [odd layers, even layers].
    OddEven(usize),
    /// K × [even layers, odd layers].
    EvenOdd(usize),
    /// From zero states, K updates of all layers at once (Jacobi); the output is nudged from the L-th on.
    Parallel(usize),
    /// From zero states, K times one layer drawn uniformly.
    Random(usize),
    /// From the states of the last batch (zero at first), K × [`1 … L−1`, `L`, `L−1 … 1`].
    Corrupted(usize),
    /// [`L`, `L−1 … 1`], update; (N−1) × [`1 … L`, `L−1 … 1`, update]: several weight updates on one batch.
    Multistep(usize),
}

/// Calls `update(k)` for every layer update of a schedule that goes one layer at a time, after the forward pass (or the zero or
/// kept states) that it starts from. `layers` is L; the output layer has that number.
///
/// [`Schedule::Parallel`] and the repetitions of [`Schedule::Multistep`] are not sequences of this kind: the first has no updates
/// here, of the second this is the first pass.
pub(crate) fn sequence(schedule: Schedule, layers: usize, rng: &mut Counter, mut update: impl FnMut(usize)) {
    match schedule {
        Schedule::Rounds(rounds) => {
            update(layers);
            for _ in 0..rounds {
                (1..layers).rev().chain(2..=layers).for_each(&mut update);
            }
            (1..layers).rev().for_each(update);
        }
        Schedule::Forward(passes) => (0..passes).for_each(|_| (1..=layers).for_each(&mut update)),
        Schedule::Backward | Schedule::Multistep(_) => (1..=layers).rev().for_each(update),
        Schedule::ForwardBackward(passes) => {
            (2..=layers).rev().for_each(&mut update);
            for _ in 1..passes {
                (1..layers).chain((1..=layers).rev()).for_each(&mut update);
            }
            update(1);
        }
        Schedule::OddEven(passes) => {
            (0..passes).for_each(|_| (1..=layers).step_by(2).chain((2..=layers).step_by(2)).for_each(&mut update));
        }
        Schedule::EvenOdd(passes) => {
            (0..passes).for_each(|_| (2..=layers).step_by(2).chain((1..=layers).step_by(2)).for_each(&mut update));
        }
        Schedule::Random(updates) => (0..updates).for_each(|_| update(1 + rng.below(layers as u64) as usize)),
        Schedule::Corrupted(passes) => (0..passes).for_each(|_| (1..=layers).chain((1..layers).rev()).for_each(&mut update)),
        Schedule::Parallel(_) => {}
    }
}

/// What a schedule starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Forward,
    Zero,
    Kept,
}

impl Schedule {
    pub(crate) fn start(self) -> Start {
        match self {
            Schedule::Parallel(_) | Schedule::Random(_) => Start::Zero,
            Schedule::Corrupted(_) => Start::Kept,
            _ => Start::Forward,
        }
    }

    /// Whether a layer is relaxed more than once between two weight updates, so that packing weights pays.
    pub(crate) fn repeats(self) -> bool {
        !matches!(self, Schedule::Rounds(0) | Schedule::Backward | Schedule::Multistep(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(schedule: Schedule, layers: usize) -> Vec<usize> {
        let mut seen = Vec::new();
        sequence(schedule, layers, &mut Counter::new(3, 0), |k| seen.push(k));
        seen
    }

    #[test]
    fn orders_are_those_of_the_papers() {
        assert_eq!(order(Schedule::Rounds(0), 3), [3, 2, 1]);
        // mathematics 1.2.3: output; R × [2, 1, 2, output]; [2, 1].
        assert_eq!(order(Schedule::Rounds(2), 3), [3, 2, 1, 2, 3, 2, 1, 2, 3, 2, 1]);
        assert_eq!(order(Schedule::Forward(2), 3), [1, 2, 3, 1, 2, 3]);
        assert_eq!(order(Schedule::Backward, 3), [3, 2, 1]);
        assert_eq!(order(Schedule::ForwardBackward(1), 3), [3, 2, 1]);
        assert_eq!(order(Schedule::ForwardBackward(2), 3), [3, 2, 1, 2, 3, 2, 1, 1]);
        assert_eq!(order(Schedule::OddEven(1), 4), [1, 3, 2, 4]);
        assert_eq!(order(Schedule::EvenOdd(1), 4), [2, 4, 1, 3]);
        assert_eq!(order(Schedule::Corrupted(1), 3), [1, 2, 3, 2, 1]);
        assert_eq!(order(Schedule::Random(50), 3).len(), 50);
        assert!((1..=3).all(|k| order(Schedule::Random(50), 3).contains(&k)));
        assert_eq!(order(Schedule::Rounds(1), 1), [1]);
    }
}
