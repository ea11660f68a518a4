//! Inference and gradients of whole networks (`mathematics.md` 1.2, 1.3.1 and 2.2–2.4).
//!
//! Layer `0` is the input and layer `L` the output; `weights[k]` (`n_{k+1} × n_k`) and `biases[k]` lead from layer `k` to `k + 1`.

use crate::activation::Activation;
use crate::bound::{Bounded, Precision};
use crate::output::{Loss, from_previous_mean, linearised, proximal};
use crate::product::{Matrix, column_sums, forward, outer, top_down};
use crate::relax::{Dyad, Nudge, relax, relax_damped};
use crate::schedule::{Schedule, Start, up_and_down};

/// A dense network with one activation in its hidden layers and a linear output.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Arithmetic of the code under test.
    pub precision: Precision,
    /// Activation of the hidden layers.
    pub activation: Activation,
    /// `W_k`, `n_{k+1} × n_k`, for `k = 0, …, L−1`.
    pub weights: Vec<Matrix>,
    /// `b_k`, `n_{k+1}` entries; no layer has one or all have.
    pub biases: Option<Vec<Vec<Bounded>>>,
    /// Feedback weights `C_k` of [`Method::KpDp`], shaped like `W_k`. `C_0` is trained but never used.
    pub feedback: Option<Vec<Matrix>>,
}

/// How errors get into the states.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// Back-propagation of the mean loss.
    Backprop,
    /// One-step adversarial training: back-propagation at `x' = x + step·∇_x ℓ`, with the loss of each sample (1.3.2, mode 6).
    Adversarial {
        /// Step size (β of the MLP code).
        step: f64,
    },
    /// DP, 1.2.1 (1).
    Dp {
        /// Asymmetry `α` of the nudging.
        alpha: f64,
        /// Nudging strength `β`.
        beta: f64,
    },
    /// DP⊤, 1.2.1 (2).
    DpTranspose {
        /// Asymmetry `α` of the nudging.
        alpha: f64,
        /// Nudging strength `β`.
        beta: f64,
    },
    /// Damped DP, 1.2.4; the output is not damped.
    DpDamped {
        /// Asymmetry `α` of the nudging.
        alpha: f64,
        /// Nudging strength `β`.
        beta: f64,
        /// `λ_k` of the hidden layers `k = 1, …, L−1`, from [`crate::relax::Damping::lambda`] or given.
        lambda: Vec<Bounded>,
    },
    /// "Old style" DP, 1.2.5: `α` in the output's nudges only, ½ in the hidden layers and in all means.
    DpOld {
        /// Asymmetry `α` of the output.
        alpha: f64,
        /// Nudging strength `β`.
        beta: f64,
    },
    /// DP with feedback gain, 2.2: `α = ½`, hidden nudges `±γ/2`, output with `β = γ`; with [`Output::PreviousMean`] the gain acts
    /// at the output only and the hidden nudges are `±½`.
    DpGain {
        /// Feedback gain `γ`.
        gamma: f64,
    },
    /// DP without weight transport, 2.6: feedback weights `C_k` in place of `W_k` in the top-down drive.
    KpDp {
        /// Asymmetry `α` of the nudging.
        alpha: f64,
        /// Nudging strength `β`.
        beta: f64,
    },
}

/// How the output is nudged (1.2.2, 2.2). Back-propagation ignores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// (a), and (4) of 2.2: proximal, squared error only.
    Proximal,
    /// (b) and (d): along the loss gradient at the current `a_L`.
    LinearisedCurrent,
    /// (c) and (e): along the loss gradient at the prediction of a plain forward pass at the start of the inference.
    LinearisedInitial,
    /// (5) of 2.2: along `y − z*`, `z*` the mean of the output before the update; squared error and [`Method::DpGain`] only.
    PreviousMean,
}

/// A training method in full.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Learning rule.
    pub method: Method,
    /// Loss.
    pub loss: Loss,
    /// Output rule.
    pub output: Output,
    /// Order of the updates. Back-propagation ignores it.
    pub schedule: Schedule,
}

/// States of all layers, `batch × n_k` for `k = 0, …, L`.
#[derive(Clone, Debug, PartialEq)]
pub struct States {
    /// `s̄_k`; `s̄_0 = x` (`x'` for [`Method::Adversarial`]).
    pub mean: Vec<Matrix>,
    /// `Δ_k`; `Δ_0 = 0`. For back-propagation `Δ_k = −∂ℓ/∂a_k`, so that one gradient formula serves all methods, with β = 1.
    pub diff: Vec<Matrix>,
    /// Output of the plain forward pass at the start of the inference.
    pub prediction: Matrix,
}

/// Gradient of the mean loss, or its estimate.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// `∂/∂W_k`.
    pub weights: Vec<Matrix>,
    /// `∂/∂b_k`, whether or not the network has biases.
    pub biases: Vec<Vec<Bounded>>,
}

/// `(α, β, w)` at the output, the nudges of the hidden layers, and the damping.
struct Coefficients {
    alpha: Bounded,
    beta: Bounded,
    weight: Bounded,
    hidden: Nudge,
    lambda: Option<Vec<Bounded>>,
}

impl Network {
    /// A network from row-major weights, `weights[k]` with `sizes[k+1]·sizes[k]` entries, and optional biases. All entries exact.
    ///
    /// # Panics
    /// If the numbers of entries do not fit.
    pub fn new(
        precision: Precision,
        activation: Activation,
        sizes: &[usize],
        weights: &[Vec<f64>],
        biases: Option<&[Vec<f64>]>,
    ) -> Self {
        let biases = biases.map(|biases| {
            assert_eq!(biases.len() + 1, sizes.len(), "one bias vector for each layer of weights");
            for (bias, &size) in biases.iter().zip(&sizes[1..]) {
                assert_eq!(bias.len(), size, "entries of a bias vector");
            }
            biases.iter().map(|bias| bias.iter().map(|&b| precision.exact(b)).collect()).collect()
        });
        let weights = matrices(precision, sizes, weights);
        Network { precision, activation, weights, biases, feedback: None }
    }

    /// The same network with feedback weights for [`Method::KpDp`].
    ///
    /// # Panics
    /// If the numbers of entries do not fit.
    pub fn with_feedback(mut self, feedback: &[Vec<f64>]) -> Self {
        let sizes: Vec<usize> = self.weights.iter().map(|w| w.cols).chain(self.weights.last().map(|w| w.rows)).collect();
        self.feedback = Some(matrices(self.precision, &sizes, feedback));
        self
    }

    /// Number `L` of weight layers.
    pub fn layers(&self) -> usize {
        self.weights.len()
    }

    /// Bottom-up drive `a_k = W_{k−1} s̄_{k−1} + b_{k−1}` of layer `k = 1, …, L`.
    pub fn drive(&self, k: usize, below: &Matrix) -> Matrix {
        let bias = self.biases.as_ref().map(|biases| biases[k - 1].as_slice());
        forward(self.precision, below, &self.weights[k - 1], bias)
    }

    /// Plain forward pass: the drives `a_1, …, a_L` and the states `s_0 = x, s_k = f(a_k), …, s_L = a_L`.
    pub fn forward_pass(&self, x: &Matrix) -> (Vec<Matrix>, Vec<Matrix>) {
        let (mut drives, mut states) = (Vec::new(), vec![x.clone()]);
        for k in 1..=self.layers() {
            let drive = self.drive(k, &states[k - 1]);
            states.push(if k < self.layers() { drive.map(|a| self.activation.value(a)) } else { drive.clone() });
            drives.push(drive);
        }
        (drives, states)
    }

    /// The network's prediction for `x`.
    pub fn predict(&self, x: &Matrix) -> Matrix {
        self.forward_pass(x).1.remove(self.layers())
    }

    /// Mean loss of a plain forward pass.
    pub fn loss(&self, loss: Loss, x: &Matrix, y: &Matrix) -> Bounded {
        loss.mean(&self.predict(x), y)
    }

    /// `δ_L = ∇ℓ(a_L)`, `δ_k = (W_kᵀ δ_{k+1}) ⊙ f'(a_k)`; returns the states and `δ_1, …, δ_L`.
    fn back_propagate(&self, loss: Loss, x: &Matrix, y: &Matrix) -> (Vec<Matrix>, Vec<Matrix>) {
        let (drives, states) = self.forward_pass(x);
        let mut deltas = vec![loss.gradient(&states[self.layers()], y)];
        for k in (1..self.layers()).rev() {
            let error = top_down(self.precision, &deltas[0], &self.weights[k]);
            deltas.insert(0, error.zip(&drives[k - 1], |v, a| v * self.activation.derivative(a)));
        }
        (states, deltas)
    }

    /// `x' = x + step·∇_x ℓ` with the gradient `W_0ᵀ δ_1` of each sample's loss (1.3.2, mode 6).
    pub fn adversarial_input(&self, loss: Loss, step: f64, x: &Matrix, y: &Matrix) -> Matrix {
        let (_, deltas) = self.back_propagate(loss, x, y);
        let gradient = top_down(self.precision, &deltas[0], &self.weights[0]);
        let step = self.precision.parameter(step);
        x.zip(&gradient, |x, g| x + step * g)
    }

    /// States after inference on the batch `x` (`batch × n_0`) with targets `y` (`batch × n_L`).
    ///
    /// `previous` are the states the last batch left; only [`Schedule::Corrupted`] uses them.
    ///
    /// # Panics
    /// If shapes do not fit, or the recipe contradicts itself (see [`Output`]).
    pub fn infer(&self, recipe: &Recipe, x: &Matrix, y: &Matrix, previous: Option<&States>) -> States {
        match recipe.method {
            Method::Backprop => self.back_propagated_states(recipe.loss, x, y),
            Method::Adversarial { step } => {
                self.back_propagated_states(recipe.loss, &self.adversarial_input(recipe.loss, step, x, y), y)
            }
            _ => self.relaxed_states(recipe, x, y, previous),
        }
    }

    /// Continues an inference on the same batch by one up-and-down pass `[1, …, L−1, L, L−1, …, 1]` ([`Schedule::MultiStep`]).
    /// The initial prediction stays. Back-propagation starts again.
    pub fn resume(&self, recipe: &Recipe, x: &Matrix, y: &Matrix, states: &mut States) {
        if let Method::Backprop | Method::Adversarial { .. } = recipe.method {
            *states = self.infer(recipe, x, y, None);
            return;
        }
        let coefficients = self.coefficients(recipe);
        for k in up_and_down(self.layers()) {
            (states.mean[k], states.diff[k]) = self.update(recipe, &coefficients, y, states, k);
        }
    }

    /// `∂/∂W_k = −1/(β_{k+1} B) Δ_{k+1}ᵀ s̄_k`, `∂/∂b_k = −1/(β_{k+1} B) Σ Δ_{k+1}` (1.3.1), with the states as constants.
    ///
    /// `β_k` is β; 1 for back-propagation; for the gain (2.1, 2.4) `γ^(L−k+1)`, and 2γ in all layers with [`Output::PreviousMean`].
    pub fn gradients(&self, recipe: &Recipe, states: &States) -> Gradients {
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        let batch = self.precision.exact(states.mean[0].rows as f64);
        for k in 0..self.layers() {
            let scale = -(self.precision.exact(1.0) / (self.layer_beta(recipe, k + 1) * batch));
            weights.push(outer(scale, &states.diff[k + 1], &states.mean[k]));
            biases.push(column_sums(scale, &states.diff[k + 1]));
        }
        Gradients { weights, biases }
    }

    /// `β_k` of layer `k = 1, …, L`, see [`Network::gradients`].
    fn layer_beta(&self, recipe: &Recipe, k: usize) -> Bounded {
        match recipe.method {
            Method::Backprop | Method::Adversarial { .. } => self.precision.exact(1.0),
            Method::Dp { beta, .. }
            | Method::DpTranspose { beta, .. }
            | Method::DpDamped { beta, .. }
            | Method::DpOld { beta, .. }
            | Method::KpDp { beta, .. } => self.precision.parameter(beta),
            Method::DpGain { gamma } if recipe.output == Output::PreviousMean => {
                self.precision.exact(2.0) * self.precision.parameter(gamma)
            }
            Method::DpGain { gamma } => self.precision.parameter(gamma).powi((self.layers() - k + 1) as u32),
        }
    }

    /// States of back-propagation: `s̄_k = s_k`, `Δ_k = −δ_k`.
    fn back_propagated_states(&self, loss: Loss, x: &Matrix, y: &Matrix) -> States {
        let (states, deltas) = self.back_propagate(loss, x, y);
        let mut diff = vec![Matrix::zeros(self.precision, x.rows, x.cols)];
        diff.extend(deltas.iter().map(|delta| delta.map(|d| -d)));
        let prediction = states[self.layers()].clone();
        States { mean: states, diff, prediction }
    }

    /// States of the contrastive methods, by the recipe's schedule.
    fn relaxed_states(&self, recipe: &Recipe, x: &Matrix, y: &Matrix, previous: Option<&States>) -> States {
        let (_, forward_states) = self.forward_pass(x);
        let zeros = || forward_states.iter().map(|s| Matrix::zeros(self.precision, s.rows, s.cols)).collect::<Vec<_>>();
        let prediction = forward_states[self.layers()].clone();
        let mut states = match (recipe.schedule.start(), previous) {
            (Start::ForwardPass, _) => States { diff: zeros(), mean: forward_states, prediction },
            (Start::Previous, Some(previous)) => States { prediction, ..previous.clone() },
            (Start::Zero, _) | (Start::Previous, None) => States { diff: zeros(), mean: zeros(), prediction },
        };
        states.mean[0] = x.clone();
        let coefficients = self.coefficients(recipe);
        if let Schedule::Parallel(steps) = recipe.schedule {
            for t in 1..=steps {
                self.update_all(recipe, &coefficients, y, &mut states, t);
            }
        }
        for k in recipe.schedule.order(self.layers()) {
            (states.mean[k], states.diff[k]) = self.update(recipe, &coefficients, y, &states, k);
        }
        states
    }

    /// Step `t` of [`Schedule::Parallel`]: every layer from the states before the step.
    fn update_all(&self, recipe: &Recipe, coefficients: &Coefficients, y: &Matrix, states: &mut States, t: usize) {
        let before = states.clone();
        for k in 1..=self.layers() {
            (states.mean[k], states.diff[k]) = if k == self.layers() && t < self.layers() {
                let drive = self.drive(k, &before.mean[k - 1]);
                let zero = Matrix::zeros(self.precision, drive.rows, drive.cols);
                (drive, zero)
            } else {
                self.update(recipe, coefficients, y, &before, k)
            };
        }
    }

    /// New mean and difference of layer `k = 1, …, L` from the states of its neighbours.
    fn update(&self, recipe: &Recipe, coefficients: &Coefficients, y: &Matrix, states: &States, k: usize) -> (Matrix, Matrix) {
        if k == self.layers() {
            self.update_output(recipe, coefficients, y, states)
        } else {
            self.update_hidden(recipe, coefficients, states, k)
        }
    }

    /// Hidden layer: [`relax`] or [`relax_damped`] of `a_k` and `v_k = W_kᵀ Δ_{k+1}`.
    fn update_hidden(&self, recipe: &Recipe, at: &Coefficients, states: &States, k: usize) -> (Matrix, Matrix) {
        let drive = self.drive(k, &states.mean[k - 1]);
        let feedback = top_down(self.precision, &states.diff[k + 1], self.downward(recipe, k));
        dyads(drive.rows, drive.cols, |i, j| {
            let (a, v) = (drive[(i, j)], feedback[(i, j)]);
            let old = Dyad { mean: states.mean[k][(i, j)], diff: states.diff[k][(i, j)] };
            match &at.lambda {
                Some(lambda) => relax_damped(self.activation, at.hidden, lambda[k - 1], a, v, old),
                None => relax(self.activation, at.hidden, a, v),
            }
        })
    }

    /// Output layer: the recipe's rule with the current `a_L`.
    fn update_output(&self, recipe: &Recipe, at: &Coefficients, y: &Matrix, states: &States) -> (Matrix, Matrix) {
        let layers = self.layers();
        let drive = self.drive(layers, &states.mean[layers - 1]);
        let prediction = if recipe.output == Output::LinearisedInitial { &states.prediction } else { &drive };
        let gradient = recipe.loss.gradient(prediction, y);
        dyads(drive.rows, drive.cols, |i, j| {
            let (a, y, g) = (drive[(i, j)], y[(i, j)], gradient[(i, j)]);
            match recipe.output {
                Output::Proximal => proximal(at.alpha, at.beta, at.weight, a, y),
                Output::LinearisedCurrent | Output::LinearisedInitial => linearised(at.alpha, at.beta, at.weight, a, g),
                Output::PreviousMean => from_previous_mean(at.beta, a, y, states.mean[layers][(i, j)]),
            }
        })
    }

    /// The matrix `M` of the top-down drive `v_k = Mᵀ Δ_{k+1}`: `W_k`, or `C_k` for [`Method::KpDp`].
    fn downward(&self, recipe: &Recipe, k: usize) -> &Matrix {
        match (&recipe.method, &self.feedback) {
            (Method::KpDp { .. }, Some(feedback)) => &feedback[k],
            (Method::KpDp { .. }, None) => panic!("KP-DP needs feedback weights"),
            _ => &self.weights[k],
        }
    }

    /// What the recipe means, layer by layer; rejects recipes that contradict themselves.
    fn coefficients(&self, recipe: &Recipe) -> Coefficients {
        let p = self.precision;
        let gain = matches!(recipe.method, Method::DpGain { .. });
        match recipe.output {
            Output::Proximal => assert!(recipe.loss == Loss::Squared, "the proximal output is for the squared error"),
            Output::PreviousMean => assert!(gain && recipe.loss == Loss::Squared, "rule (5) is for the gain and squared error"),
            Output::LinearisedCurrent | Output::LinearisedInitial => {}
        }
        let dyadic = |alpha: f64, beta: f64, hidden: Nudge| Coefficients {
            alpha: p.parameter(alpha),
            beta: p.parameter(beta),
            weight: hidden.weight,
            hidden,
            lambda: None,
        };
        match &recipe.method {
            Method::Dp { alpha, beta } | Method::KpDp { alpha, beta } => dyadic(*alpha, *beta, Nudge::dp(p, *alpha)),
            Method::DpTranspose { alpha, beta } => dyadic(*alpha, *beta, Nudge::dp_transpose(p, *alpha)),
            Method::DpDamped { alpha, beta, lambda } => {
                assert_eq!(lambda.len() + 1, self.layers(), "one λ for each hidden layer");
                Coefficients { lambda: Some(lambda.clone()), ..dyadic(*alpha, *beta, Nudge::dp(p, *alpha)) }
            }
            Method::DpOld { alpha, beta } => dyadic(*alpha, *beta, Nudge::dp(p, 0.5)),
            Method::DpGain { gamma } => {
                let hidden = if recipe.output == Output::PreviousMean { 1.0 } else { *gamma };
                dyadic(0.5, *gamma, Nudge::gain(p, hidden))
            }
            Method::Backprop | Method::Adversarial { .. } => unreachable!("back-propagation does not relax"),
        }
    }
}

/// Matrices of the means and of the differences of `dyad(i, j)`.
fn dyads(rows: usize, cols: usize, dyad: impl Fn(usize, usize) -> Dyad) -> (Matrix, Matrix) {
    (Matrix::from_fn(rows, cols, |i, j| dyad(i, j).mean), Matrix::from_fn(rows, cols, |i, j| dyad(i, j).diff))
}

/// `n_{k+1} × n_k` matrices from their entries.
fn matrices(precision: Precision, sizes: &[usize], entries: &[Vec<f64>]) -> Vec<Matrix> {
    assert_eq!(entries.len() + 1, sizes.len(), "one matrix for each pair of neighbouring layers");
    let pairs = sizes.windows(2).zip(entries);
    pairs.map(|(sizes, entries)| Matrix::exact(precision, sizes[1], sizes[0], entries)).collect()
}

#[cfg(test)]
mod tests;
