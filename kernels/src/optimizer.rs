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

/// Something for the weights and for their moments, as many as the optimizer keeps; what lies behind these is of no account.
pub(crate) type Parameters<X> = [X; 3];

/// Weights on their way down the gradient: the operands of [`Epilogue::Update`](crate::epilogue::Epilogue::Update).
///
/// The sums of the product times [`Update::scale`] are the gradient. The optimizer adds a fixed sequence of at most 12 rounded
/// operations; square root and division are exact IEEE operations, the powers `β^t` products in f64: the same bits everywhere. Each
/// weight and moment is read and written once: `8·(1 + moments)` bytes a weight in f32.
#[derive(Debug)]
pub struct Descent<'a, T> {
    targets: Parameters<Target<'a, T>>,
    update: Update,
    is_transposed: bool,
}

impl<'a, T: Real> Descent<'a, T> {
    /// `weights`, and as many matrices of state as the optimizer keeps, of the same shape.
    ///
    /// # Panics
    /// If `moments` has another number of matrices than [`Optimizer::moments`].
    pub fn new(weights: MatMut<'a, T>, moments: impl IntoIterator<Item = MatMut<'a, T>>, update: Update) -> Self {
        let weights = Target::new(weights);
        let mut moments = moments.into_iter().map(Target::new);
        let kept = [moments.next(), moments.next()];
        let count = kept.iter().flatten().count() + moments.count();
        assert_eq!(count, update.optimizer.moments(), "the optimizer keeps another number of moments");
        let [first, second] = kept.map(|moment| moment.unwrap_or(weights));
        Self { targets: [weights, first, second], update, is_transposed: false }
    }

    /// Rows become columns.
    pub(crate) fn transpose(&mut self) {
        self.targets = self.targets.map(Target::transpose);
        self.is_transposed = !self.is_transposed;
    }

    /// Whether rows have become columns.
    pub(crate) fn is_transposed(&self) -> bool {
        self.is_transposed
    }

    /// Rows and columns of the weights.
    pub(crate) fn shape(&self) -> (usize, usize) {
        self.targets[0].shape()
    }

    /// Hands the compiled form to `run`.
    pub(crate) fn with(&self, run: &mut dyn FnMut(&dyn Finish<T>)) {
        struct Run<'r, T>(&'r mut dyn FnMut(&dyn Finish<T>));
        impl<T: Real> Visit<T> for Run<'_, T> {
            fn visit<R: Rule<T>>(self, epilogue: Descending<'_, T, R>) {
                (self.0)(&epilogue);
            }
        }
        self.visit(Run(run));
    }

    /// Hands the epilogue to `visitor`, in its own type.
    pub(crate) fn visit(&self, visitor: impl Visit<T>) {
        let c = |x: f64| T::from_f64(x);
        let Update { optimizer, decay, learning_rate: rate, step: t, scale } = self.update;
        let (pull, keep) = match decay {
            Decay::None => (0.0, 1.0),
            Decay::Coupled(lambda) => (lambda, 1.0),
            Decay::Decoupled(lambda) => (0.0, 1.0 - rate * lambda),
        };
        let step = Step { scale: c(scale), pull: Some(c(pull)).filter(|&pull| pull != T::ZERO), keep: c(keep), rate: c(rate) };
        match optimizer {
            Optimizer::Sgd if pull == 0.0 && is_normal(c(rate * scale)) => {
                visitor.visit(self.by(Plain(Step { rate: c(rate * scale), ..step })));
            }
            Optimizer::Sgd => visitor.visit(self.by(step)),
            Optimizer::Momentum { mu } => visitor.visit(self.by(HeavyBall { step, mu: c(mu) })),
            Optimizer::Adam { beta1, beta2, epsilon } => {
                let correction = (1.0 - power(beta2, t)).sqrt();
                let rate = c(rate * correction / (1.0 - power(beta1, t)));
                visitor.visit(self.by(AdamStep {
                    step: Step { rate, ..step },
                    beta1: c(beta1),
                    beta2: c(beta2),
                    rest1: c(1.0 - beta1),
                    rest2: c(1.0 - beta2),
                    epsilon: c(epsilon * correction),
                }));
            }
        }
    }

    fn by<R: Rule<T>>(&self, rule: R) -> Descending<'a, T, R> {
        debug_assert_eq!(R::MOMENTS, self.update.optimizer.moments());
        Descending { targets: self.targets, rule }
    }
}

/// What is done with the epilogue of an optimizer.
pub(crate) trait Visit<T: Real> {
    /// Does it.
    fn visit<R: Rule<T>>(self, epilogue: Descending<'_, T, R>);
}

/// The arithmetic of an optimizer.
pub(crate) trait Rule<T: Real>: Copy + Send + Sync {
    /// When sums of whole tiles had best meet it.
    const TIME: Time = Time::Beside;

    /// Matrices of state beside the weights: [`Optimizer::moments`].
    const MOMENTS: usize = 0;

    /// Whether [`fold`](Self::fold) may find a rate.
    const FOLDS: bool = false;

    /// The parameters after a step along these sums.
    fn follow<S: Vector<T>>(&self, simd: S, sums: S::V, old: Parameters<S::V>) -> Parameters<S::V>;

    /// What `δ` may be multiplied by before it meets `s̄`, rather than `δ s̄` after: all that becomes of the gradient of one sample, if
    /// nothing is lost by the order.
    fn fold(&self, _diff: &[T]) -> Option<T> {
        None
    }

    /// The parameters after a step along `δ s̄` of one sample, where `δ` has been multiplied by what [`fold`](Self::fold) found.
    #[inline(always)]
    fn follow_folded<S: Vector<T>>(&self, _simd: S, _diff: S::V, _mean: S::V, _old: Parameters<S::V>) -> Parameters<S::V> {
        unreachable!("it folds nothing")
    }
}

/// The epilogue of an optimizer.
#[derive(Clone, Copy)]
pub(crate) struct Descending<'a, T, R> {
    targets: Parameters<Target<'a, T>>,
    pub(crate) rule: R,
}

impl<T: Real, R: Rule<T>> Descending<'_, T, R> {
    /// The parameters of elements `col..col + live` of row `row`.
    ///
    /// # Safety
    /// As for [`Apply::apply`].
    #[inline(always)]
    pub(crate) unsafe fn load<S: Vector<T>, const UNIT: bool>(
        &self,
        simd: S,
        row: usize,
        col: usize,
        live: usize,
    ) -> Parameters<S::V> {
        let [weights, first, second] = self.targets;
        let load = |target: Target<'_, T>, is_kept: bool| match is_kept {
            // SAFETY: contract of `apply`.
            true => unsafe { target.load::<S, UNIT>(simd, row, col, live) },
            false => simd.splat(T::ZERO),
        };
        [load(weights, true), load(first, R::MOMENTS > 0), load(second, R::MOMENTS > 1)]
    }

    /// Overwrites the parameters of elements `col..col + live` of row `row`.
    ///
    /// # Safety
    /// As for [`Apply::apply`].
    #[inline(always)]
    pub(crate) unsafe fn store<S: Vector<T>, const UNIT: bool>(
        &self,
        simd: S,
        row: usize,
        col: usize,
        live: usize,
        new: Parameters<S::V>,
    ) {
        let [weights, first, second] = self.targets;
        let store = |target: Target<'_, T>, new: S::V, is_kept: bool| {
            if is_kept {
                // SAFETY: contract of `apply`.
                unsafe { target.store::<S, UNIT>(simd, row, col, live, new) };
            }
        };
        store(first, new[1], R::MOMENTS > 0);
        store(second, new[2], R::MOMENTS > 1);
        store(weights, new[0], true);
    }
}

// SAFETY: `apply` touches `col..col + live` of row `row` of what `all` lists.
unsafe impl<T: Real, R: Rule<T>> Apply<T> for Descending<'_, T, R> {
    const TIME: Time = R::TIME;

    fn all(&self, holds: impl Fn(Form) -> bool + Copy) -> bool {
        self.targets[..1 + R::MOMENTS].iter().all(|target| holds(target.form()))
    }

    #[inline(always)]
    fn prefetch<const SECOND: bool>(&self, row: usize, col: usize) {
        // One by one: a loop over them would keep them in memory.
        let [weights, first, second] = self.targets;
        weights.prefetch::<SECOND>(row, col);
        if R::MOMENTS > 0 {
            first.prefetch::<SECOND>(row, col);
        }
        if R::MOMENTS > 1 {
            second.prefetch::<SECOND>(row, col);
        }
    }

    #[inline(always)]
    unsafe fn apply<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) {
        // SAFETY: passed on.
        let old = unsafe { self.load::<S, UNIT>(simd, row, col, live) };
        // SAFETY: passed on.
        unsafe { self.store::<S, UNIT>(simd, row, col, live, self.rule.follow(simd, sums, old)) };
    }

    /// Where rows look alike a load would wait for the store above it: there each column of vectors is stored while the next one is loaded.
    #[inline(always)]
    unsafe fn apply_tile<S: Vector<T>, const H: usize, const V: usize>(
        &self,
        simd: S,
        sums: [[S::V; V]; H],
        row: usize,
        col: usize,
    ) {
        if !self.look_alike(1) {
            // SAFETY: passed on.
            return unsafe { row_by_row::<T, S, Self, H, V>(self, simd, sums, row, col) };
        }
        let mut new = [[[simd.splat(T::ZERO); 3]; V]; H];
        // The compiler does not unroll `0..=V`.
        for v in 0..V + 1 {
            for r in 0..H {
                if v < V {
                    // SAFETY: passed on.
                    let old = unsafe { self.load::<S, true>(simd, row + r, col + v * S::LANES, S::LANES) };
                    new[r][v] = self.rule.follow(simd, sums[r][v], old);
                }
                if v > 0 {
                    // SAFETY: passed on.
                    unsafe { self.store::<S, true>(simd, row + r, col + (v - 1) * S::LANES, S::LANES, new[r][v - 1]) };
                }
            }
        }
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
struct Step<T> {
    scale: T,
    pull: Option<T>,
    keep: T,
    rate: T,
}

impl<T: Real> Step<T> {
    /// Gradient with coupled decay; without, the weight is not in it, whatever it is.
    #[inline(always)]
    fn gradient<S: Vector<T>>(&self, simd: S, sums: S::V, w: S::V) -> S::V {
        let gradient = simd.mul(simd.splat(self.scale), sums);
        self.pull.map_or(gradient, |pull| simd.mul_add(simd.splat(pull), w, gradient))
    }

    /// `keep·w − rate·direction`.
    #[inline(always)]
    fn descend<S: Vector<T>>(&self, simd: S, w: S::V, rate: S::V, direction: S::V) -> S::V {
        simd.neg_mul_add(rate, direction, simd.mul(simd.splat(self.keep), w))
    }
}

impl<T: Real> Rule<T> for Step<T> {
    const TIME: Time = Time::Afterwards;

    #[inline(always)]
    fn follow<S: Vector<T>>(&self, simd: S, sums: S::V, [w, m, v]: Parameters<S::V>) -> Parameters<S::V> {
        [self.descend(simd, w, simd.splat(self.rate), self.gradient(simd, sums, w)), m, v]
    }
}

/// Descent without coupled decay: so little arithmetic that the sums had better stay in registers. The rate has the scale in it.
#[derive(Clone, Copy)]
struct Plain<T>(Step<T>);

impl<T: Real> Rule<T> for Plain<T> {
    const TIME: Time = Time::InRegisters;
    const FOLDS: bool = true;

    #[inline(always)]
    fn follow<S: Vector<T>>(&self, simd: S, sums: S::V, [w, m, v]: Parameters<S::V>) -> Parameters<S::V> {
        [self.0.descend(simd, w, simd.splat(self.0.rate), sums), m, v]
    }

    /// The rate, unless a product with it underflows or overflows (or is none): `s̄` might bring it back.
    fn fold(&self, diff: &[T]) -> Option<T> {
        let (rate, [least, infinity]) = (self.0.rate, [T::NORMAL, f64::INFINITY].map(T::from_f64));
        let is_lost = |d: T| (d != T::ZERO) & !(((rate * d).abs() >= least) & ((rate * d).abs() < infinity));
        // Counted, which the compiler does with vectors.
        (diff.iter().map(|&d| u32::from(is_lost(d))).sum::<u32>() == 0).then_some(rate)
    }

    #[inline(always)]
    fn follow_folded<S: Vector<T>>(&self, simd: S, diff: S::V, mean: S::V, [w, m, v]: Parameters<S::V>) -> Parameters<S::V> {
        [self.0.descend(simd, w, diff, mean), m, v]
    }
}

#[derive(Clone, Copy)]
struct HeavyBall<T> {
    step: Step<T>,
    mu: T,
}

impl<T: Real> Rule<T> for HeavyBall<T> {
    const MOMENTS: usize = 1;

    #[inline(always)]
    fn follow<S: Vector<T>>(&self, simd: S, sums: S::V, [w, m, v]: Parameters<S::V>) -> Parameters<S::V> {
        let m = simd.mul_add(simd.splat(self.mu), m, self.step.gradient(simd, sums, w));
        [self.step.descend(simd, w, simd.splat(self.step.rate), m), m, v]
    }
}

/// Bias corrections are folded into the rate and ε: `η m̂/(√v̂ + ε) = η' m/(√v + ε')`.
#[derive(Clone, Copy)]
struct AdamStep<T> {
    step: Step<T>,
    beta1: T,
    beta2: T,
    rest1: T,
    rest2: T,
    epsilon: T,
}

impl<T: Real> Rule<T> for AdamStep<T> {
    const MOMENTS: usize = 2;

    #[inline(always)]
    fn follow<S: Vector<T>>(&self, simd: S, sums: S::V, [w, m, v]: Parameters<S::V>) -> Parameters<S::V> {
        let g = self.step.gradient(simd, sums, w);
        let m = simd.mul_add(simd.splat(self.beta1), m, simd.mul(simd.splat(self.rest1), g));
        let v = simd.mul_add(simd.splat(self.beta2), v, simd.mul(simd.mul(simd.splat(self.rest2), g), g));
        let direction = simd.div(m, simd.add(simd.sqrt(v), simd.splat(self.epsilon)));
        [self.step.descend(simd, w, simd.splat(self.step.rate), direction), m, v]
    }
}
