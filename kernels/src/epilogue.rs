//! What the products of a network do with their sums.
//!
//! An [`Epilogue`] names the operands; each kind has its kernel below, compiled for every instruction set and activation. Operands have
//! the orientation of the product; for a product with the roles of its factors swapped they are transposed (a view, not a copy).

use crate::activation::{Activate, Activation, Visit};
use crate::optimizer::Descent;
use crate::product::{Apply, Finish};
use crate::strided::{Form, Input, Output, Target};
use crate::vector::{Real, Vector};

/// What a product does with its sums, and the operands that it does it to; all have the shape of the product.
#[derive(Debug)]
pub enum Epilogue<'a, T> {
    /// `out ← scale·sum`, whatever was there before.
    Store {
        /// Never read.
        out: Output<'a, T>,
        /// Multiplies every sum.
        scale: T,
    },
    /// `out ← out + scale·sum`.
    Accumulate {
        /// Read once, written once.
        out: Output<'a, T>,
        /// Multiplies every sum.
        scale: T,
    },
    /// Bottom-up drive of a layer: `a ← sum + b`.
    Drive {
        /// `a`; never read.
        drive: Output<'a, T>,
        /// `b`, repeated for every sample; zeros for a layer without biases.
        bias: Input<'a, T>,
    },
    /// Forward pass: `a ← sum + b`, `mean ← f(a)`.
    Forward {
        /// `a`; never read.
        drive: Output<'a, T>,
        /// `b`.
        bias: Input<'a, T>,
        /// `f(a)`; never read.
        mean: Output<'a, T>,
        /// `f`.
        activation: Activation,
    },
    /// Relaxation of a layer (Høier & Zach 2024): with `v` the sum,
    ///
    /// ```text
    /// s⁺ = f(a + c⁺v)    diff ← s⁺ − s⁻
    /// s⁻ = f(a + c⁻v)    mean ← α s⁺ + (1−α) s⁻
    /// ```
    ///
    /// With damping `λ` the arguments are averaged with the old compartments, `p± = (a + c±v + λs±)/(1+λ)`.
    ///
    /// `diff` is accurate relative to `v` however small it is against `a`: it comes from `q = (c⁺−c⁻)v`, not from a subtraction. The
    /// mean starts from the compartment with the larger weight, so that α of 0 or 1 gives that compartment to the bit.
    Dyad {
        /// `a`.
        drive: Input<'a, T>,
        /// `v`, if it is to be kept; never read.
        feedback: Option<Output<'a, T>>,
        /// Read only with damping.
        mean: Output<'a, T>,
        /// Read only with damping.
        diff: Output<'a, T>,
        /// `c⁺`, `c⁻`, `α`.
        nudge: Nudge<T>,
        /// `λ`.
        damping: Option<f64>,
        /// `f`.
        activation: Activation,
    },
    /// [`Dyad`](Self::Dyad) for a layer whose feedback `v` is known and whose drive is not: `a ← sum + b`.
    DyadFromBelow {
        /// `a`; never read.
        drive: Output<'a, T>,
        /// `b`.
        bias: Input<'a, T>,
        /// `v`.
        feedback: Input<'a, T>,
        /// Read only with damping.
        mean: Output<'a, T>,
        /// Read only with damping.
        diff: Output<'a, T>,
        /// `c⁺`, `c⁻`, `α`.
        nudge: Nudge<T>,
        /// `λ`.
        damping: Option<f64>,
        /// `f`.
        activation: Activation,
    },
    /// Back-propagation through a layer: `diff ← f'(a)·sum`.
    Derivative {
        /// `a`.
        drive: Input<'a, T>,
        /// Never read.
        diff: Output<'a, T>,
        /// `f`.
        activation: Activation,
    },
    /// A diagonal matrix behind the product: `out ← slope·sum`, and 0 where the slope is 0, whatever the sum.
    Masked {
        /// The diagonal, a row for each row of the product; [`Input::repeated`] if they are all the same.
        slope: Input<'a, T>,
        /// Never read.
        out: Output<'a, T>,
    },
    /// A step of an optimizer: the sum is the gradient up to a factor.
    Update(Descent<'a, T>),
}

impl<T: Real> Epilogue<'_, T> {
    /// The same for the transposed product: rows of the operands become columns.
    pub fn transposed(mut self) -> Self {
        match &mut self {
            Epilogue::Store { out, .. } | Epilogue::Accumulate { out, .. } => out.0 = out.0.transpose(),
            Epilogue::Drive { drive, bias } => (drive.0, *bias) = (drive.0.transpose(), bias.transpose()),
            Epilogue::Forward { drive, bias, mean, .. } => {
                (drive.0, *bias, mean.0) = (drive.0.transpose(), bias.transpose(), mean.0.transpose());
            }
            Epilogue::Dyad { drive, feedback, mean, diff, .. } => {
                (*drive, mean.0, diff.0) = (drive.transpose(), mean.0.transpose(), diff.0.transpose());
                if let Some(feedback) = feedback {
                    feedback.0 = feedback.0.transpose();
                }
            }
            Epilogue::DyadFromBelow { drive, bias, feedback, mean, diff, .. } => {
                (drive.0, *bias, *feedback) = (drive.0.transpose(), bias.transpose(), feedback.transpose());
                (mean.0, diff.0) = (mean.0.transpose(), diff.0.transpose());
            }
            Epilogue::Derivative { drive, diff, .. } => (*drive, diff.0) = (drive.transpose(), diff.0.transpose()),
            Epilogue::Masked { slope, out } => (*slope, out.0) = (slope.transpose(), out.0.transpose()),
            Epilogue::Update(descent) => descent.transpose(),
        }
        self
    }

    /// Hands the compiled form to `run`.
    pub(crate) fn with(&self, run: &mut dyn FnMut(&dyn Finish<T>)) {
        match self {
            Epilogue::Store { out, scale } => run(&Store { out: out.0, scale: *scale }),
            Epilogue::Accumulate { out, scale } => run(&Accumulate { out: out.0, scale: *scale }),
            Epilogue::Drive { drive, bias } => run(&Drive { drive: drive.0, bias: *bias }),
            Epilogue::Masked { slope, out } => run(&Masked { slope: *slope, out: out.0 }),
            Epilogue::Update(descent) => descent.with(run),
            Epilogue::Forward { activation, .. }
            | Epilogue::Dyad { activation, .. }
            | Epilogue::DyadFromBelow { activation, .. }
            | Epilogue::Derivative { activation, .. } => {
                activation.visit(Activated { epilogue: self, run });
            }
        }
    }
}

/// An epilogue with an activation, whose type comes with the visit.
struct Activated<'a, 'r, T: Real> {
    epilogue: &'r Epilogue<'a, T>,
    run: &'r mut dyn FnMut(&dyn Finish<T>),
}

impl<T: Real> Visit for Activated<'_, '_, T> {
    type Output = ();

    fn visit<A: Activate>(self, activation: A) {
        match *self.epilogue {
            Epilogue::Forward { ref drive, bias, ref mean, .. } => {
                (self.run)(&Forward { drive: Drive { drive: drive.0, bias }, mean: mean.0, activation });
            }
            Epilogue::Dyad { drive, ref feedback, ref mean, ref diff, nudge, damping, .. } => {
                let feed = Feed::Above { drive, feedback: feedback.as_ref().map(|feedback| feedback.0) };
                Dyad { feed, mean: mean.0, diff: diff.0, nudge, activation }.run(damping, self.run);
            }
            Epilogue::DyadFromBelow { ref drive, bias, feedback, ref mean, ref diff, nudge, damping, .. } => {
                let feed = Feed::Below { drive: Drive { drive: drive.0, bias }, feedback };
                Dyad { feed, mean: mean.0, diff: diff.0, nudge, activation }.run(damping, self.run);
            }
            Epilogue::Derivative { drive, ref diff, .. } => (self.run)(&Derivative { drive, diff: diff.0, activation }),
            _ => unreachable!("the other epilogues have no activation"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Store<'a, T> {
    out: Target<'a, T>,
    scale: T,
}

// SAFETY: `apply` touches `col..col + live` of row `row` of what `all` lists.
unsafe impl<T: Real> Apply<T> for Store<'_, T> {
    fn all(&self, holds: impl Fn(Form) -> bool + Copy) -> bool {
        holds(self.out.form())
    }

    #[inline(always)]
    fn prefetch<const SECOND: bool>(&self, row: usize, col: usize) {
        self.out.prefetch::<SECOND>(row, col);
    }

    #[inline(always)]
    unsafe fn apply<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) {
        // SAFETY: contract of `apply`.
        unsafe { self.out.store::<S, UNIT>(simd, row, col, live, simd.mul(simd.splat(self.scale), sums)) };
    }
}

#[derive(Clone, Copy, Debug)]
struct Accumulate<'a, T> {
    out: Target<'a, T>,
    scale: T,
}

// SAFETY: as for `Store`.
unsafe impl<T: Real> Apply<T> for Accumulate<'_, T> {
    fn all(&self, holds: impl Fn(Form) -> bool + Copy) -> bool {
        holds(self.out.form())
    }

    #[inline(always)]
    fn prefetch<const SECOND: bool>(&self, row: usize, col: usize) {
        self.out.prefetch::<SECOND>(row, col);
    }

    #[inline(always)]
    unsafe fn apply<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) {
        // SAFETY: contract of `apply`.
        let old = unsafe { self.out.load::<S, UNIT>(simd, row, col, live) };
        // SAFETY: contract of `apply`.
        unsafe { self.out.store::<S, UNIT>(simd, row, col, live, simd.mul_add(simd.splat(self.scale), sums, old)) };
    }
}

/// The drive is never −0 afterwards, so that a layer nudged by nothing has the bits of one that is not nudged.
#[derive(Clone, Copy, Debug)]
struct Drive<'a, T> {
    drive: Target<'a, T>,
    bias: Input<'a, T>,
}

impl<T: Real> Drive<'_, T> {
    #[inline(always)]
    unsafe fn store<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) -> S::V {
        // SAFETY: passed on.
        let bias = unsafe { self.bias.load::<S, UNIT>(simd, row, col, live) };
        let drive = simd.add(simd.add(sums, bias), simd.splat(T::ZERO));
        // SAFETY: passed on.
        unsafe { self.drive.store::<S, UNIT>(simd, row, col, live, drive) };
        drive
    }
}

// SAFETY: as for `Store`.
unsafe impl<T: Real> Apply<T> for Drive<'_, T> {
    fn all(&self, holds: impl Fn(Form) -> bool + Copy) -> bool {
        holds(self.drive.form()) && holds(self.bias.form())
    }

    #[inline(always)]
    fn prefetch<const SECOND: bool>(&self, row: usize, col: usize) {
        self.drive.prefetch::<SECOND>(row, col);
    }

    #[inline(always)]
    unsafe fn apply<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) {
        // SAFETY: contract of `apply`.
        unsafe { self.store::<S, UNIT>(simd, sums, row, col, live) };
    }
}

#[derive(Clone, Copy, Debug)]
struct Forward<'a, T, A> {
    drive: Drive<'a, T>,
    mean: Target<'a, T>,
    activation: A,
}

// SAFETY: as for `Store`.
unsafe impl<T: Real, A: Activate> Apply<T> for Forward<'_, T, A> {
    fn all(&self, holds: impl Fn(Form) -> bool + Copy) -> bool {
        self.drive.all(holds) && holds(self.mean.form())
    }

    #[inline(always)]
    fn prefetch<const SECOND: bool>(&self, row: usize, col: usize) {
        self.drive.prefetch::<SECOND>(row, col);
        self.mean.prefetch::<SECOND>(row, col);
    }

    #[inline(always)]
    unsafe fn apply<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) {
        // SAFETY: contract of `apply`.
        let drive = unsafe { self.drive.store::<S, UNIT>(simd, sums, row, col, live) };
        // SAFETY: contract of `apply`.
        unsafe { self.mean.store::<S, UNIT>(simd, row, col, live, self.activation.value::<T, S>(simd, drive)) };
    }
}

/// The nudges of a dyad, and how its mean weighs the two compartments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nudge<T> {
    /// `c⁺`: what the upper compartment adds of the feedback.
    pub up: T,
    /// `c⁻`.
    pub down: T,
    /// `c⁺ − c⁻`, exactly.
    pub gain: T,
    /// `α`, the weight of the upper compartment in the mean.
    pub alpha: T,
}

/// Where the drive `a` and the feedback `v` of a layer come from.
#[derive(Clone, Copy, Debug)]
enum Feed<'a, T> {
    /// The sum is `v`, which is kept if there is a place for it.
    Above { drive: Input<'a, T>, feedback: Option<Target<'a, T>> },
    /// The sum is `a` without the bias.
    Below { drive: Drive<'a, T>, feedback: Input<'a, T> },
}

impl<T: Real> Feed<'_, T> {
    fn all(&self, holds: impl Fn(Form) -> bool + Copy) -> bool {
        match self {
            Feed::Above { drive, feedback } => holds(drive.form()) && feedback.is_none_or(|feedback| holds(feedback.form())),
            Feed::Below { drive, feedback } => drive.all(holds) && holds(feedback.form()),
        }
    }

    #[inline(always)]
    fn prefetch<const SECOND: bool>(&self, row: usize, col: usize) {
        match self {
            Feed::Above { drive, feedback } => {
                drive.prefetch::<SECOND>(row, col);
                if let Some(feedback) = feedback {
                    feedback.prefetch::<SECOND>(row, col);
                }
            }
            Feed::Below { drive, feedback } => {
                drive.prefetch::<SECOND>(row, col);
                feedback.prefetch::<SECOND>(row, col);
            }
        }
    }

    /// `a` and `v`.
    ///
    /// # Safety
    /// That of [`Apply::apply`].
    #[inline(always)]
    unsafe fn take<S: Vector<T>, const UNIT: bool>(
        &self,
        simd: S,
        sums: S::V,
        row: usize,
        col: usize,
        live: usize,
    ) -> (S::V, S::V) {
        match self {
            Feed::Above { drive, feedback } => {
                if let Some(feedback) = feedback {
                    // SAFETY: contract of `apply`.
                    unsafe { feedback.store::<S, UNIT>(simd, row, col, live, sums) };
                }
                // SAFETY: contract of `apply`.
                (unsafe { drive.load::<S, UNIT>(simd, row, col, live) }, sums)
            }
            Feed::Below { drive, feedback } => {
                // SAFETY: contract of `apply`.
                let a = unsafe { drive.store::<S, UNIT>(simd, sums, row, col, live) };
                // SAFETY: contract of `apply`.
                (a, unsafe { feedback.load::<S, UNIT>(simd, row, col, live) })
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Dyad<'a, T, A> {
    feed: Feed<'a, T>,
    mean: Target<'a, T>,
    diff: Target<'a, T>,
    nudge: Nudge<T>,
    activation: A,
}

impl<T: Real> Nudge<T> {
    /// Mean and difference of the compartments with arguments `hi` and `lo`, `q` apart.
    #[inline(always)]
    fn settle<S: Vector<T>, A: Activate>(&self, simd: S, activation: A, hi: S::V, lo: S::V, q: S::V) -> (S::V, S::V) {
        let pair = activation.pair::<T, S>(simd, hi, lo, q);
        let mean = if self.alpha.to_f64() >= 0.5 {
            simd.neg_mul_add(simd.splat(T::ONE - self.alpha), pair.rise, pair.hi)
        } else {
            simd.mul_add(simd.splat(self.alpha), pair.rise, pair.lo)
        };
        (mean, pair.rise)
    }
}

impl<T: Real, A: Activate> Dyad<'_, T, A> {
    fn run(self, damping: Option<f64>, run: &mut dyn FnMut(&dyn Finish<T>)) {
        let c = |x: f64| T::from_f64(x);
        match damping {
            None => run(&self),
            Some(lambda) => run(&DampedDyad { dyad: self, fresh: c(1.0 / (1.0 + lambda)), kept: c(lambda / (1.0 + lambda)) }),
        }
    }
}

// SAFETY: as for `Store`.
unsafe impl<T: Real, A: Activate> Apply<T> for Dyad<'_, T, A> {
    fn all(&self, holds: impl Fn(Form) -> bool + Copy) -> bool {
        self.feed.all(holds) && holds(self.mean.form()) && holds(self.diff.form())
    }

    #[inline(always)]
    fn prefetch<const SECOND: bool>(&self, row: usize, col: usize) {
        self.feed.prefetch::<SECOND>(row, col);
        self.mean.prefetch::<SECOND>(row, col);
        self.diff.prefetch::<SECOND>(row, col);
    }

    #[inline(always)]
    unsafe fn apply<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) {
        // SAFETY: contract of `apply`.
        let (a, v) = unsafe { self.feed.take::<S, UNIT>(simd, sums, row, col, live) };
        let hi = simd.mul_add(simd.splat(self.nudge.up), v, a);
        let lo = simd.mul_add(simd.splat(self.nudge.down), v, a);
        let q = simd.mul(simd.splat(self.nudge.gain), v);
        let (mean, diff) = self.nudge.settle(simd, self.activation, hi, lo, q);
        // SAFETY: contract of `apply`.
        unsafe { self.mean.store::<S, UNIT>(simd, row, col, live, mean) };
        // SAFETY: contract of `apply`.
        unsafe { self.diff.store::<S, UNIT>(simd, row, col, live, diff) };
    }
}

/// With the old compartments `s⁺ = mean + (1−α)diff` and `s⁻ = mean − α diff`.
#[derive(Clone, Copy, Debug)]
struct DampedDyad<'a, T, A> {
    /// The layer; `mean` and `diff` are read before they are written.
    dyad: Dyad<'a, T, A>,
    /// `1/(1+λ)`.
    fresh: T,
    /// `λ/(1+λ)`.
    kept: T,
}

// SAFETY: as for `Store`.
unsafe impl<T: Real, A: Activate> Apply<T> for DampedDyad<'_, T, A> {
    fn all(&self, holds: impl Fn(Form) -> bool + Copy) -> bool {
        self.dyad.all(holds)
    }

    #[inline(always)]
    fn prefetch<const SECOND: bool>(&self, row: usize, col: usize) {
        self.dyad.prefetch::<SECOND>(row, col);
    }

    #[inline(always)]
    unsafe fn apply<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) {
        let Dyad { feed, mean, diff, nudge, activation } = self.dyad;
        // SAFETY: contract of `apply`.
        let (a, v) = unsafe { feed.take::<S, UNIT>(simd, sums, row, col, live) };
        // SAFETY: contract of `apply`.
        let old_mean = unsafe { mean.load::<S, UNIT>(simd, row, col, live) };
        // SAFETY: contract of `apply`.
        let old_diff = unsafe { diff.load::<S, UNIT>(simd, row, col, live) };
        let (fresh, kept) = (simd.splat(self.fresh), simd.splat(self.kept));
        let upper = simd.mul_add(simd.splat(T::ONE - nudge.alpha), old_diff, old_mean);
        let lower = simd.neg_mul_add(simd.splat(nudge.alpha), old_diff, old_mean);
        let hi = simd.mul_add(fresh, simd.mul_add(simd.splat(nudge.up), v, a), simd.mul(kept, upper));
        let lo = simd.mul_add(fresh, simd.mul_add(simd.splat(nudge.down), v, a), simd.mul(kept, lower));
        let q = simd.mul_add(fresh, simd.mul(simd.splat(nudge.gain), v), simd.mul(kept, old_diff));
        let (new_mean, new_diff) = nudge.settle(simd, activation, hi, lo, q);
        // SAFETY: contract of `apply`.
        unsafe { mean.store::<S, UNIT>(simd, row, col, live, new_mean) };
        // SAFETY: contract of `apply`.
        unsafe { diff.store::<S, UNIT>(simd, row, col, live, new_diff) };
    }
}

#[derive(Clone, Copy, Debug)]
struct Derivative<'a, T, A> {
    drive: Input<'a, T>,
    diff: Target<'a, T>,
    activation: A,
}

// SAFETY: as for `Store`.
unsafe impl<T: Real, A: Activate> Apply<T> for Derivative<'_, T, A> {
    fn all(&self, holds: impl Fn(Form) -> bool + Copy) -> bool {
        holds(self.drive.form()) && holds(self.diff.form())
    }

    #[inline(always)]
    fn prefetch<const SECOND: bool>(&self, row: usize, col: usize) {
        self.drive.prefetch::<SECOND>(row, col);
        self.diff.prefetch::<SECOND>(row, col);
    }

    #[inline(always)]
    unsafe fn apply<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) {
        // SAFETY: contract of `apply`.
        let drive = unsafe { self.drive.load::<S, UNIT>(simd, row, col, live) };
        let slope = self.activation.derivative::<T, S>(simd, drive);
        // SAFETY: contract of `apply`.
        unsafe { self.diff.store::<S, UNIT>(simd, row, col, live, simd.mul(slope, sums)) };
    }
}

#[derive(Clone, Copy, Debug)]
struct Masked<'a, T> {
    slope: Input<'a, T>,
    out: Target<'a, T>,
}

// SAFETY: as for `Store`.
unsafe impl<T: Real> Apply<T> for Masked<'_, T> {
    fn all(&self, holds: impl Fn(Form) -> bool + Copy) -> bool {
        holds(self.slope.form()) && holds(self.out.form())
    }

    #[inline(always)]
    fn prefetch<const SECOND: bool>(&self, row: usize, col: usize) {
        self.slope.prefetch::<SECOND>(row, col);
        self.out.prefetch::<SECOND>(row, col);
    }

    #[inline(always)]
    unsafe fn apply<S: Vector<T>, const UNIT: bool>(&self, simd: S, sums: S::V, row: usize, col: usize, live: usize) {
        // SAFETY: contract of `apply`.
        let slope = unsafe { self.slope.load::<S, UNIT>(simd, row, col, live) };
        let zero = simd.splat(T::ZERO);
        let out = simd.select(simd.le(simd.abs(slope), zero), zero, simd.mul(slope, sums));
        // SAFETY: contract of `apply`.
        unsafe { self.out.store::<S, UNIT>(simd, row, col, live, out) };
    }
}
