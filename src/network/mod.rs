//! Networks of dense layers and their training.

mod alignment;
mod evaluator;
mod learning_rate;
mod loss;
mod rule;
mod schedule;
mod settings;
mod state;
mod synapse;
mod targets;
mod trainer;

use dualprop_kernels::activation::Activation;
use dualprop_kernels::vector::Real;
use faer::{MatMut, MatRef};

use crate::check;
use crate::error::Error;
use crate::matrix::RowMajor;
use crate::random::Counter;

pub use learning_rate::LearningRate;
pub use loss::Loss;
pub use schedule::Schedule;
pub use settings::{Damping, Decay, Method, NudgeAt, Optimizer, Output, Settings};
pub use targets::Targets;
pub use trainer::{Evaluation, Step, Trainer};

/// A chain of dense layers: `a_{k+1} = W_k s_k + b_k`, `s_{k+1} = f(a_{k+1})`, with a linear output.
#[derive(Clone, Debug)]
pub struct Network<T> {
    widths: Vec<usize>,
    activation: Activation,
    pub(crate) weights: Vec<RowMajor<T>>,
    pub(crate) biases: Option<Vec<Vec<T>>>,
}

/// Distribution of initial weights; biases start at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Init {
    /// `N(0, 1/n_in)` (Høier & Zach 2024, MLP).
    LecunNormal,
    /// `U(±√(6/(n_in + n_out)))` (Høier, Staudt & Zach 2023, MLP).
    GlorotUniform,
}

impl<T: Real> Network<T> {
    /// A network of zeros: `widths[0]` inputs, then one layer of units for each further width, with biases or without.
    ///
    /// # Errors
    /// [`Error::Length`] unless there are at least two widths, [`Error::Parameter`] for a width of 0 or beyond the address space.
    pub fn new(widths: &[usize], activation: Activation, bias: bool) -> Result<Self, Error> {
        if widths.len() < 2 {
            return Err(Error::Length { argument: "widths", found: widths.len(), expected: 2 });
        }
        for &width in widths {
            check::parameter("width", width as f64, "at least 1", width > 0)?;
        }
        let pairs = || widths.windows(2).map(|w| (w[0], w[1]));
        for (n_in, n_out) in pairs() {
            let allowed = "small enough for the address space";
            check::parameter("width", n_in.max(n_out) as f64, allowed, fits_memory::<T>(n_in, n_out))?;
        }
        Ok(Self {
            widths: widths.to_vec(),
            activation,
            weights: pairs().map(|(n_in, n_out)| RowMajor::zeros(n_out, n_in)).collect(),
            biases: bias.then(|| pairs().map(|(_, n_out)| vec![T::ZERO; n_out]).collect()),
        })
    }

    /// Draws all weights anew, layer `k` from stream `k` of `seed`, in f64 and in row order: f32 and f64 networks start from the same
    /// numbers, rounded. Biases become 0.
    pub fn initialize(&mut self, init: Init, seed: u64) {
        for (k, weights) in self.weights.iter_mut().enumerate() {
            draw(weights, init, &mut Counter::new(seed, k as u64));
        }
        for bias in self.biases.iter_mut().flatten() {
            bias.fill(T::ZERO);
        }
    }

    /// Number of weight layers, L.
    pub fn layers(&self) -> usize {
        self.weights.len()
    }

    /// Weights of the largest layer.
    pub(crate) fn largest(&self) -> usize {
        self.widths.windows(2).map(|widths| widths[0] * widths[1]).max().unwrap_or(0)
    }

    /// Units of each layer, inputs first.
    pub fn widths(&self) -> &[usize] {
        &self.widths
    }

    /// The activation of the hidden layers.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// `W_k`, `widths[k+1] × widths[k]`, with unit stride along its rows.
    ///
    /// # Panics
    /// If there is no layer `k`.
    pub fn weights(&self, k: usize) -> MatRef<'_, T> {
        self.weights[k].view()
    }

    /// `W_k`.
    ///
    /// # Panics
    /// If there is no layer `k`.
    pub fn weights_mut(&mut self, k: usize) -> MatMut<'_, T> {
        self.weights[k].view_mut()
    }

    /// `b_k`, if the network has biases.
    ///
    /// # Panics
    /// If there is no layer `k`.
    pub fn bias(&self, k: usize) -> Option<&[T]> {
        self.biases.as_ref().map(|biases| &biases[k][..])
    }

    /// `b_k`, if the network has biases.
    ///
    /// # Panics
    /// If there is no layer `k`.
    pub fn bias_mut(&mut self, k: usize) -> Option<&mut [T]> {
        self.biases.as_mut().map(|biases| &mut biases[k][..])
    }

    /// Weights and biases into layer `k` of units; `zeros` stand in for biases that the network does not have.
    pub(crate) fn incoming<'a>(&'a self, k: usize, zeros: &'a [T]) -> (MatRef<'a, T>, &'a [T]) {
        (self.weights[k - 1].view(), self.bias(k - 1).unwrap_or(&zeros[..self.widths[k]]))
    }

    /// All weights and biases are finite.
    pub(crate) fn check_finite(&self) -> Result<(), Error> {
        for weights in &self.weights {
            check::finite("weights", weights.view())?;
        }
        for bias in self.biases.iter().flatten() {
            check::finite("bias", MatRef::from_row_major_slice(bias, 1, bias.len()))?;
        }
        Ok(())
    }
}

/// Whether a matrix of that size, with rows padded to cache lines, can exist.
fn fits_memory<T>(rows: usize, cols: usize) -> bool {
    let padded = |n: usize| n.checked_add(64);
    let elements = padded(rows).zip(padded(cols)).and_then(|(r, c)| r.checked_mul(c));
    elements.and_then(|n| n.checked_mul(size_of::<T>())).is_some_and(|bytes| isize::try_from(bytes).is_ok())
}

/// Fills `weights` in row order.
pub(crate) fn draw<T: Real>(weights: &mut RowMajor<T>, init: Init, rng: &mut Counter) {
    let (n_out, n_in) = (weights.rows(), weights.cols());
    for row in 0..n_out {
        for w in weights.row_mut(row) {
            *w = T::from_f64(match init {
                Init::LecunNormal => rng.normal() / (n_in as f64).sqrt(),
                Init::GlorotUniform => (2.0 * rng.uniform() - 1.0) * (6.0 / (n_in + n_out) as f64).sqrt(),
            });
        }
    }
}
