//! The order in which layers are updated (`mathematics.md` 1.2.3 and 2.3).

/// A schedule of inference. Layers are numbered `1, …, L`; `L` is the output, whose update nudges it.
///
/// Unless said otherwise it starts from a plain forward pass (all differences 0) and each update uses the newest neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// The MLP schedule of 1.2.3 for any depth: `L`; R times `[L−1, …, 1, 2, …, L]`; `L−1, …, 1`.
    ///
    /// `R = 0` is one sweep up and one down. Undamped, `R` equals `numiter − 1` of the `dualprop` schedule of 2.3, whose upward sweeps
    /// begin at layer 1: a second update with unchanged neighbours changes nothing.
    Rounds(usize),
    /// `fwK`: K times `[1, …, L]`.
    Forward(usize),
    /// `bw`: `L, …, 1` once.
    Backward,
    /// `fwbwK`: `L, …, 2`; K − 1 times `[1, …, L−1, L, …, 1]`; `1`. K = 0 counts as 1.
    ForwardBackward(usize),
    /// K times all odd layers, then all even ones, each in ascending order.
    OddEven(usize),
    /// K times all even layers, then all odd ones, each in ascending order.
    EvenOdd(usize),
    /// All states start at 0; K synchronous (Jacobi) updates of all layers from the states before the step. The output is nudged only
    /// from step `t ≥ L` on (`t = 1, 2, …`); before that it is the plain forward map, with difference 0.
    Parallel(usize),
    /// All states start at 0; the given layers, one after the other.
    Random(Vec<usize>),
    /// States persist from the previous batch (0 before the first); K times `[1, …, L−1, L, L−1, …, 1]`.
    Corrupted(usize),
    /// N inference passes, each followed by a weight update: `[L, L−1, …, 1]` after the forward pass; then N − 1 times
    /// `[1, …, L−1, L, L−1, …, 1]` from the states at hand. N = 0 counts as 1. An inference alone makes the first pass.
    MultiStep(usize),
}

/// States before the first update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Those of a plain forward pass.
    ForwardPass,
    /// All zero.
    Zero,
    /// Those the previous batch left; zero before the first.
    Previous,
}

impl Schedule {
    /// Where the schedule starts.
    pub fn start(&self) -> Start {
        match self {
            Schedule::Parallel(_) | Schedule::Random(_) => Start::Zero,
            Schedule::Corrupted(_) => Start::Previous,
            _ => Start::ForwardPass,
        }
    }

    /// The updates of one inference in a network of `layers` weight layers, in their order. For [`Schedule::Parallel`] they are
    /// synchronous and there is no order: the list is empty.
    ///
    /// # Panics
    /// If a layer of [`Schedule::Random`] is not in `1..=layers`.
    pub fn order(&self, layers: usize) -> Vec<usize> {
        let down = || (1..layers).rev();
        let mut order = Vec::new();
        match self {
            Schedule::Rounds(rounds) => {
                order.push(layers);
                for _ in 0..*rounds {
                    order.extend(down());
                    order.extend(2..=layers);
                }
                order.extend(down());
            }
            Schedule::Forward(sweeps) => {
                for _ in 0..*sweeps {
                    order.extend(1..=layers);
                }
            }
            Schedule::Backward => order.extend((1..=layers).rev()),
            Schedule::ForwardBackward(sweeps) => {
                order.extend((2..=layers).rev());
                for _ in 1..*sweeps {
                    order.extend(up_and_down(layers));
                }
                order.push(1);
            }
            Schedule::OddEven(sweeps) => {
                for _ in 0..*sweeps {
                    order.extend((1..=layers).step_by(2));
                    order.extend((2..=layers).step_by(2));
                }
            }
            Schedule::EvenOdd(sweeps) => {
                for _ in 0..*sweeps {
                    order.extend((2..=layers).step_by(2));
                    order.extend((1..=layers).step_by(2));
                }
            }
            Schedule::Parallel(_) => {}
            Schedule::Random(list) => {
                assert!(list.iter().all(|k| (1..=layers).contains(k)), "layers are numbered 1 to {layers}: {list:?}");
                order.extend(list);
            }
            Schedule::Corrupted(sweeps) => {
                for _ in 0..*sweeps {
                    order.extend(up_and_down(layers));
                }
            }
            Schedule::MultiStep(_) => {
                order.push(layers);
                order.extend(down());
            }
        }
        order
    }
}

/// `1, …, L−1, L, L−1, …, 1`.
pub fn up_and_down(layers: usize) -> Vec<usize> {
    (1..=layers).chain((1..layers).rev()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_of_the_text() {
        assert_eq!(Schedule::Rounds(0).order(3), [3, 2, 1]);
        // 1.2.3: nudge output; [layer 2, layer 1, layer 2, nudge output]; [layer 2, layer 1].
        assert_eq!(Schedule::Rounds(1).order(3), [3, 2, 1, 2, 3, 2, 1]);
        assert_eq!(Schedule::Forward(2).order(3), [1, 2, 3, 1, 2, 3]);
        assert_eq!(Schedule::Backward.order(3), [3, 2, 1]);
        assert_eq!(Schedule::ForwardBackward(1).order(3), [3, 2, 1]);
        assert_eq!(Schedule::ForwardBackward(2).order(3), [3, 2, 1, 2, 3, 2, 1, 1]);
        assert_eq!(Schedule::OddEven(1).order(4), [1, 3, 2, 4]);
        assert_eq!(Schedule::EvenOdd(1).order(4), [2, 4, 1, 3]);
        assert_eq!(Schedule::Corrupted(1).order(3), [1, 2, 3, 2, 1]);
        assert_eq!(Schedule::MultiStep(7).order(3), [3, 2, 1]);
        assert_eq!(Schedule::Random(vec![2, 2, 1]).order(2), [2, 2, 1]);
        assert!(Schedule::Parallel(4).order(3).is_empty());
    }

    #[test]
    fn a_single_layer_has_only_its_output() {
        assert_eq!(Schedule::Rounds(2).order(1), [1]);
        assert_eq!(Schedule::Corrupted(2).order(1), [1, 1]);
        assert_eq!(Schedule::MultiStep(1).order(1), [1]);
    }
}
