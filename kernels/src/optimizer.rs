//! Weight updates: a product whose epilogue is the optimizer, so that the gradient never goes to memory.

use faer::MatMut;

use crate::product::{Apply, Finish, Time, row_by_row};
use crate::strided::{Form, Target};
use crate::vector::{Real, Vector};

/// How weights follow their gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Optimizer {
    /// `w ← w − η g`.
    Sgd,
    /// Heavy ball: `m ← μ m + g`, `w ← w − η m`.
    Momentum {
        /// `μ`.
        mu: f64,
    },
    /// Adam (Kingma & Ba 2015): `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`, `w ← w − η m̂/(√v̂ + ε)` with `m̂ = m/(1−β₁ᵗ)`,
    /// `v̂ = v/(1−β₂ᵗ)`.
    Adam {
        /// `β₁`.
        beta1: f64,
        /// `β₂`.
        beta2: f64,
        /// `ε`.
        epsilon: f64,
    },
}

/// How weights are pulled to zero.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Decay {
    /// Not at all.
    None,
    /// `g ← g + λ w` before the optimizer.
    Coupled(f64),
    /// `w ← (1 − ηλ)w − …` beside the optimizer.
    Decoupled(f64),
}

/// One step of an optimizer: everything but the operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// The rule.
    pub optimizer: Optimizer,
    /// The pull to zero.
    pub decay: Decay,
    /// `η`.
    pub learning_rate: f64,
    /// `t`: 1 at the first step.
    pub step: u64,
    /// What turns the sum of outer products into the gradient.
    pub scale: f64,
}

impl Optimizer {
    /// Adam with the usual β₁ = 0.9, β₂ = 0.999, ε = 1e-8.
    pub const ADAM: Self = Self::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    /// Heavy ball with μ = 0.9.
    pub const MOMENTUM: Self = Self::Momentum { mu: 0.9 };

    /// Matrices of state beside the weights: 0, 1 or 2, zero before the first step.
    pub fn moments(&self) -> usize {
        match self {
            Self::Sgd => 0,
            Self::Momentum { .. } => 1,
            Self::Adam { .. } => 2,
        }
    }
}

/// Weights on their way down the gradient: the operands of [`Epilogue::Update`](crate::epilogue::Epilogue::Update).
///
/// The sums of the product times [`Update::scale`] are the gradient. The optimizer adds a fixed sequence of at most 12 rounded
/// operations; square root and division are exact IEEE operations, the powers `β^t` products in f64: the same bits everywhere. Each
/// weight and moment is read and written once: `8·(1 + moments)` bytes a weight in f32.
#[derive(Debug)]
pub struct Descent<'a, T> {
    weights: Target<'a, T>,
    moments: [Option<Target<'a, T>>; 2],
    update: Update,
    is_transposed: bool,
}

impl<'a, T: Real> Descent<'a, T> {
    /// `weights`, and as many matrices of state as the optimizer keeps, of the same shape.
    ///
    /// # Panics
    /// If `moments` has another number of matrices than [`Optimizer::moments`].
    pub fn new(weights: MatMut<'a, T>, moments: impl IntoIterator<Item = MatMut<'a, T>>, update: Update) -> Self {
        let mut moments = moments.into_iter().map(Target::new);
        let kept = [moments.next(), moments.next()];
        let count = kept.iter().flatten().count() + moments.count();
        assert_eq!(count, update.optimizer.moments(), "the optimizer keeps another number of moments");
        Self { weights: Target::new(weights), moments: kept, update, is_transposed: false }
    }

    /// Rows become columns.
    pub(crate) fn transpose(&mut self) {
        self.weights = self.weights.transpose();
        self.moments = self.moments.map(|moment| moment.map(Target::transpose));
        self.is_transposed = !self.is_transposed;
    }

    /// Whether rows have become columns.
    pub(crate) fn is_transposed(&self) -> bool {
        self.is_transposed
    }

    /// Rows and columns of the weights.
    pub(crate) fn shape(&self) -> (usize, usize) {
        self.weights.shape()
    }

    /// Hands the compiled form to `run`.
    pub(crate) fn with(&self, run: &mut dyn FnMut(&dyn Finish<T>)) {
        struct Run<'r, T>(&'r mut dyn FnMut(&dyn Finish<T>));
        impl<T: Real> Rule<T> for Run<'_, T> {
            fn follow<A: Descend<T>>(self, epilogue: A) {
                (self.0)(&epilogue);
            }
        }
        self.visit(Run(run));
    }

    /// Hands the epilogue to `rule`, in its own type.
    pub(crate) fn visit(&self, rule: impl Rule<T>) {
        let c = |x: f64| T::from_f64(x);
        let Update { optimizer, decay, learning_rate: rate, step: t, scale } = self.update;
        let (pull, keep) = match decay {
            Decay::None => (0.0, 1.0),
            Decay::Coupled(lambda) => (lambda, 1.0),
            Decay::Decoupled(lambda) => (0.0, 1.0 - rate * lambda),
        };
        let step = Step {
            weights: self.weights,
            scale: c(scale),
            pull: Some(c(pull)).filter(|&pull| pull != T::ZERO),
            keep: c(keep),
            rate: c(rate),
        };
        match (optimizer, self.moments) {
            (Optimizer::Sgd, _) if pull == 0.0 && is_normal(c(rate * scale)) => {
                rule.follow(Plain(Step { rate: c(rate * scale), ..step }));
            }
            (Optimizer::Sgd, _) => rule.follow(step),
            (Optimizer::Momentum { mu }, [Some(momentum), _]) => rule.follow(HeavyBall { step, momentum, mu: c(mu) }),
            (Optimizer::Adam { beta1, beta2, epsilon }, [Some(first), Some(second)]) => {
                let correction = (1.0 - power(beta2, t)).sqrt();
                let rate = c(rate * correction / (1.0 - power(beta1, t)));
                rule.follow(AdamStep {
                    step: Step { rate, ..step },
                    first,
                    second,
                    beta1: c(beta1),
                    beta2: c(beta2),
                    rest1: c(1.0 - beta1),
                    rest2: c(1.0 - beta2),
                    epsilon: c(epsilon * correction),
                });
            }
            _ => unreachable!("`new` has counted the moments"),
        }
    }
}

/// What is done with the epilogue of an optimizer.
pub(crate) trait Rule<T: Real> {
    /// Does it.
    fn follow<A: Descend<T>>(self, epilogue: A);
}

/// The epilogue of an optimizer.
pub(crate) trait Descend<T: Real>: Apply<T> {
    /// Matrices of state beside the weights.
    const MOMENTS: usize = 0;

    /// Whether [`fold`](Self::fold) may find a rate.
    const FOLDS: bool = false;

    /// [`Apply::apply`] that returns the new weights.
    ///
    /// # Safety
    /// As for [`Apply::apply`].
    unsafe fn step<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) -> S::V;

    /// What `δ` may be multiplied by before it meets `s̄`, rather than `δ s̄` after: all that becomes of the gradient of one sample, if
    /// nothing is lost by the order.
    fn fold(&self, _diff: &[T]) -> Option<T> {
        None
    }

    /// [`step`](Self::step) for the outer product of one sample, `δ s̄`; if `FOLDED`, `δ` has been multiplied by what `fold` found.
    ///
    /// # Safety
    /// As for [`Apply::apply`].
    #[inline(always)]
    unsafe fn outer<S: Vector<T>, const UNIT: bool, const FOLDED: bool>(
        &self,
        simd: S,
        (diff, mean): (S::V, S::V),
        row: usize,
        col: usize,
        live: usize,
    ) -> S::V {
        // SAFETY: passed on.
        unsafe { self.step::<S, UNIT>(simd, simd.mul_add(diff, mean, simd.splat(T::ZERO)), row, col, live) }
    }
}

/// Neither zero nor subnormal, nor infinite: a factor that loses nothing.
fn is_normal<T: Real>(x: T) -> bool {
    (T::NORMAL..f64::INFINITY).contains(&x.to_f64().abs())
}

/// `bⁿ` by squaring: products only, so the bits depend on no library.
fn power(mut b: f64, mut n: u64) -> f64 {
    let mut result = 1.0;
    while n > 0 {
        if n & 1 == 1 {
            result *= b;
        }
        b *= b;
        n >>= 1;
    }
    result
}

/// Gradient descent, and the part of it that the other optimizers share.
#[derive(Clone, Copy)]
struct Step<'a, T> {
    weights: Target<'a, T>,
    scale: T,
    pull: Option<T>,
    keep: T,
    rate: T,
}

impl<T: Real> Step<'_, T> {
    /// Gradient with coupled decay; without, the weight is not in it, whatever it is.
    #[inline(always)]
    fn gradient<S: Vector<T>>(&self, simd: S, sums: S::V, w: S::V) -> S::V {
        let gradient = simd.mul(simd.splat(self.scale), sums);
        self.pull.map_or(gradient, |pull| simd.mul_add(simd.splat(pull), w, gradient))
    }

    /// `keep·w − rate·direction`.
    #[inline(always)]
    fn descend<S: Vector<T>>(&self, simd: S, w: S::V, direction: S::V) -> S::V {
        self.less(simd, w, (simd.splat(self.rate), direction))
    }

    /// `keep·w − a·b`, the product not rounded.
    #[inline(always)]
    fn less<S: Vector<T>>(&self, simd: S, w: S::V, (a, b): (S::V, S::V)) -> S::V {
        simd.neg_mul_add(a, b, simd.mul(simd.splat(self.keep), w))
    }
}

// SAFETY: `apply` touches `col..col + live` of row `row` of what `all` lists.
unsafe impl<T: Real> Apply<T> for Step<'_, T> {
    fn all(&self, holds: impl Fn(Form) -> bool + Copy) -> bool {
        holds(self.weights.form())
    }

    #[inline(always)]
    fn prefetch<const SECOND: bool>(&self, row: usize, col: usize) {
        self.weights.prefetch::<SECOND>(row, col);
    }

    #[inline(always)]
    unsafe fn apply<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) {
        // SAFETY: passed on.
        unsafe { self.step::<S, UNIT>(simd, sums, row, col, live) };
    }
}

impl<T: Real> Descend<T> for Step<'_, T> {
    #[inline(always)]
    unsafe fn step<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) -> S::V {
        // SAFETY: contract of `apply`.
        let w = unsafe { self.weights.load::<S, UNIT>(simd, row, col, live) };
        let new = self.descend(simd, w, self.gradient(simd, sums, w));
        // SAFETY: contract of `apply`.
        unsafe { self.weights.store::<S, UNIT>(simd, row, col, live, new) };
        new
    }
}

/// Descent without coupled decay: so little arithmetic that the sums had better stay in registers. The rate has the scale in it.
#[derive(Clone, Copy)]
struct Plain<'a, T>(Step<'a, T>);

// SAFETY: as for `Step`.
unsafe impl<T: Real> Apply<T> for Plain<'_, T> {
    const TIME: Time = Time::InRegisters;

    fn all(&self, holds: impl Fn(Form) -> bool + Copy) -> bool {
        self.0.all(holds)
    }

    #[inline(always)]
    fn prefetch<const SECOND: bool>(&self, row: usize, col: usize) {
        self.0.prefetch::<SECOND>(row, col);
    }

    #[inline(always)]
    unsafe fn apply<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) {
        // SAFETY: passed on.
        unsafe { self.step::<S, UNIT>(simd, sums, row, col, live) };
    }

    /// Where rows look alike a load would wait for the store above it: there each column of vectors is stored while the next one is loaded.
    #[inline(always)]
    unsafe fn apply_tile<S: Vector<T>, const R: usize, const V: usize>(
        &self,
        simd: S,
        sums: [[S::V; V]; R],
        row: usize,
        col: usize,
    ) {
        if !self.0.weights.rows_look_alike() {
            // SAFETY: passed on.
            return unsafe { row_by_row::<T, S, Self, R, V>(self, simd, sums, row, col) };
        }
        let mut new = sums;
        for v in 0..V + 1 {
            for r in 0..R {
                if v < V {
                    // SAFETY: contract of `apply`.
                    let w = unsafe { self.0.weights.load::<S, true>(simd, row + r, col + v * S::LANES, S::LANES) };
                    new[r][v] = self.0.descend(simd, w, sums[r][v]);
                }
                if v > 0 {
                    // SAFETY: contract of `apply`.
                    unsafe { self.0.weights.store::<S, true>(simd, row + r, col + (v - 1) * S::LANES, S::LANES, new[r][v - 1]) };
                }
            }
        }
    }
}

impl<T: Real> Descend<T> for Plain<'_, T> {
    const FOLDS: bool = true;

    #[inline(always)]
    unsafe fn step<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) -> S::V {
        // SAFETY: passed on; all of the rate is in the first factor.
        unsafe { self.outer::<S, UNIT, true>(simd, (simd.splat(self.0.rate), sums), row, col, live) }
    }

    /// The rate, unless a product with it underflows or overflows (or is none): `s̄` might bring it back.
    fn fold(&self, diff: &[T]) -> Option<T> {
        let (rate, [least, infinity]) = (self.0.rate, [T::NORMAL, f64::INFINITY].map(T::from_f64));
        let is_lost = |d: T| (d != T::ZERO) & !(((rate * d).abs() >= least) & ((rate * d).abs() < infinity));
        // Counted, which the compiler does with vectors.
        (diff.iter().map(|&d| u32::from(is_lost(d))).sum::<u32>() == 0).then_some(rate)
    }

    #[inline(always)]
    unsafe fn outer<S: Vector<T>, const UNIT: bool, const FOLDED: bool>(
        &self,
        simd: S,
        (diff, mean): (S::V, S::V),
        row: usize,
        col: usize,
        live: usize,
    ) -> S::V {
        // SAFETY: contract of `apply`.
        let w = unsafe { self.0.weights.load::<S, UNIT>(simd, row, col, live) };
        let new = if FOLDED {
            self.0.less(simd, w, (diff, mean))
        } else {
            self.0.descend(simd, w, simd.mul_add(diff, mean, simd.splat(T::ZERO)))
        };
        // SAFETY: contract of `apply`.
        unsafe { self.0.weights.store::<S, UNIT>(simd, row, col, live, new) };
        new
    }
}

#[derive(Clone, Copy)]
struct HeavyBall<'a, T> {
    step: Step<'a, T>,
    momentum: Target<'a, T>,
    mu: T,
}

// SAFETY: as for `Step`.
unsafe impl<T: Real> Apply<T> for HeavyBall<'_, T> {
    const TIME: Time = Time::Beside;

    fn all(&self, holds: impl Fn(Form) -> bool + Copy) -> bool {
        self.step.all(holds) && holds(self.momentum.form())
    }

    #[inline(always)]
    fn prefetch<const SECOND: bool>(&self, row: usize, col: usize) {
        self.step.prefetch::<SECOND>(row, col);
        self.momentum.prefetch::<SECOND>(row, col);
    }

    #[inline(always)]
    unsafe fn apply<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) {
        // SAFETY: passed on.
        unsafe { self.step::<S, UNIT>(simd, sums, row, col, live) };
    }
}

impl<T: Real> Descend<T> for HeavyBall<'_, T> {
    const MOMENTS: usize = 1;

    #[inline(always)]
    unsafe fn step<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) -> S::V {
        // SAFETY: contract of `apply`.
        let w = unsafe { self.step.weights.load::<S, UNIT>(simd, row, col, live) };
        // SAFETY: contract of `apply`.
        let m = unsafe { self.momentum.load::<S, UNIT>(simd, row, col, live) };
        let m = simd.mul_add(simd.splat(self.mu), m, self.step.gradient(simd, sums, w));
        // SAFETY: contract of `apply`.
        unsafe { self.momentum.store::<S, UNIT>(simd, row, col, live, m) };
        let new = self.step.descend(simd, w, m);
        // SAFETY: contract of `apply`.
        unsafe { self.step.weights.store::<S, UNIT>(simd, row, col, live, new) };
        new
    }
}

/// Bias corrections are folded into the rate and ε: `η m̂/(√v̂ + ε) = η' m/(√v + ε')`.
#[derive(Clone, Copy)]
struct AdamStep<'a, T> {
    step: Step<'a, T>,
    first: Target<'a, T>,
    second: Target<'a, T>,
    beta1: T,
    beta2: T,
    rest1: T,
    rest2: T,
    epsilon: T,
}

// SAFETY: as for `Step`.
unsafe impl<T: Real> Apply<T> for AdamStep<'_, T> {
    const TIME: Time = Time::Beside;

    fn all(&self, holds: impl Fn(Form) -> bool + Copy) -> bool {
        self.step.all(holds) && holds(self.first.form()) && holds(self.second.form())
    }

    #[inline(always)]
    fn prefetch<const SECOND: bool>(&self, row: usize, col: usize) {
        self.step.prefetch::<SECOND>(row, col);
        self.first.prefetch::<SECOND>(row, col);
        self.second.prefetch::<SECOND>(row, col);
    }

    #[inline(always)]
    unsafe fn apply<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) {
        // SAFETY: passed on.
        unsafe { self.step::<S, UNIT>(simd, sums, row, col, live) };
    }
}

impl<T: Real> Descend<T> for AdamStep<'_, T> {
    const MOMENTS: usize = 2;

    #[inline(always)]
    unsafe fn step<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) -> S::V {
        // SAFETY: contract of `apply`.
        let w = unsafe { self.step.weights.load::<S, UNIT>(simd, row, col, live) };
        // SAFETY: contract of `apply`.
        let m = unsafe { self.first.load::<S, UNIT>(simd, row, col, live) };
        // SAFETY: contract of `apply`.
        let v = unsafe { self.second.load::<S, UNIT>(simd, row, col, live) };
        let g = self.step.gradient(simd, sums, w);
        let m = simd.mul_add(simd.splat(self.beta1), m, simd.mul(simd.splat(self.rest1), g));
        let v = simd.mul_add(simd.splat(self.beta2), v, simd.mul(simd.mul(simd.splat(self.rest2), g), g));
        let direction = simd.div(m, simd.add(simd.sqrt(v), simd.splat(self.epsilon)));
        // SAFETY: contract of `apply`.
        unsafe { self.first.store::<S, UNIT>(simd, row, col, live, m) };
        // SAFETY: contract of `apply`.
        unsafe { self.second.store::<S, UNIT>(simd, row, col, live, v) };
        let new = self.step.descend(simd, w, direction);
        // SAFETY: contract of `apply`.
        unsafe { self.step.weights.store::<S, UNIT>(simd, row, col, live, new) };
        new
    }
}
