//! One vector vocabulary for `f32` and `f64` over [pulp]'s instruction sets.
//!
//! pulp names its operations by element type (`mul_add_f32s`, `mul_add_f64s`); [`Vector<T>`] gives both the same name, so that
//! every kernel is written once. All operations are those of IEEE 754 with one rounding (`mul_add` is always fused), hence
//! the same bits on every instruction set.

use bytemuck::Pod;
use core::fmt::{Debug, Display, LowerExp};
use core::ops::{Add, AddAssign, Div, Mul, Neg, Sub};
use faer::{MatMut, MatRef, Par};
use pulp::{MemMask, Simd};

use crate::arch;
use crate::cholesky::Block;
use crate::elementary::{RowMajorMut, RowMajorRef};
use crate::epilogue::Epilogue;
use crate::isa::{Isa, Kernel, Tiled};
use crate::optimizer::{Descent, Update};
use crate::product::{Problem, Scratch};
use crate::scan::{NotFinite, Scan};
use crate::selected::{Crossing, Selected};
use crate::sparse::{Compressed, Matrix};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// `f32` or `f64`: the element types of every kernel.
pub trait Real:
    sealed::Sealed
    + Pod
    + Default
    + PartialOrd
    + Debug
    + Display
    + LowerExp
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// `"f32"` or `"f64"`.
    const NAME: &'static str;
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Unit roundoff `u`: 2⁻²⁴ or 2⁻⁵³.
    const UNIT_ROUNDOFF: f64;
    /// Smallest positive (subnormal) number.
    const TINY: f64;
    /// Smallest positive number that is not subnormal.
    const NORMAL: f64;
    /// `1.5·2^(p−1)`: adding it rounds to a whole number, which is then in the low bits.
    const SHIFT: Self;

    /// The nearest `Self`.
    fn from_f64(x: f64) -> Self;
    /// The same number, exactly.
    fn to_f64(self) -> f64;
    /// `self·a + b` with one rounding.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// `|self|`.
    fn abs(self) -> Self;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// Neither NaN nor infinite.
    fn is_finite(self) -> bool;
    /// The bit pattern, widened.
    fn to_bits(self) -> u64;

    /// Runs `kernel` under `isa`; called by [`Isa::run`].
    fn enter<K: Kernel<Self>>(isa: Isa, kernel: K) -> K::Output;

    /// The kernels of this type. Behind a function that is not generic and never inlined they are compiled once, in this crate, whatever crate and
    /// profile a generic caller is compiled in; and not for the unit tests of this crate, which as a static they would be.
    #[doc(hidden)]
    fn kernels() -> &'static Kernels<Self>;
}

/// The entry points of the kernels for one element type; the functions of the modules call them.
#[doc(hidden)]
pub struct Kernels<T: 'static> {
    pub(crate) product: fn(&Problem<'_, T>, &mut Scratch<T>),
    pub(crate) pack: fn(Isa, &mut [T], usize, usize, MatRef<'_, T>),
    pub(crate) sum: fn(Isa, &[T]) -> f64,
    pub(crate) dot: fn(Isa, &[T], &[T]) -> f64,
    pub(crate) square_distance: fn(Isa, &[T], &[T]) -> f64,
    pub(crate) max_abs: fn(Isa, &[T]) -> f64,
    pub(crate) softmax: fn(Isa, RowMajorMut<'_, T>, RowMajorRef<'_, T>),
    pub(crate) short_softmax: fn(Isa, RowMajorMut<'_, T>, RowMajorRef<'_, T>),
    pub(crate) log_sum_exp: fn(Isa, &[T]) -> f64,
    pub(crate) short_log_sum_exp: fn(Isa, &mut [f64], RowMajorRef<'_, T>),
    pub(crate) sparse_chain: fn(Isa, Par, &[&Compressed<T>], MatRef<'_, T>, MatMut<'_, T>, &mut [f64], &mut Scratch<T>),
    pub(crate) sparse_product: fn(Isa, Par, &Compressed<T>, MatRef<'_, T>, Epilogue<'_, T>, &mut Scratch<T>),
    pub(crate) sparse_update:
        fn(Isa, Par, &mut Matrix<T>, &mut [&mut [T]], MatRef<'_, T>, MatRef<'_, T>, Update, &mut Scratch<T>),
    pub(crate) sparse_wide: fn(Isa, &Compressed<T>, &[f64], &mut [f64], &mut [f64]),
    pub(crate) gram: fn(Isa, Par, MatRef<'_, T>, MatRef<'_, T>, MatMut<'_, T>, &mut [f64], &mut Scratch<T>),
    pub(crate) abs_gram: fn(Isa, Par, MatRef<'_, T>, &[f64], &mut [f64], &mut Scratch<f64>),
    pub(crate) wide_gram: fn(Isa, Par, MatRef<'_, T>, &[f64], &mut [f64], &mut Scratch<f64>),
    pub(crate) factor: fn(Isa, &mut Block<T>) -> bool,
    pub(crate) solve: fn(Isa, Par, &Block<T>, MatMut<'_, T>),
    pub(crate) image: fn(Isa, Par, MatRef<'_, T>, &[f64], &mut [f64]),
    pub(crate) online: fn(Isa, Par, Descent<'_, T>, &[T], &[T], Option<(&[T], &mut [T])>),
    pub(crate) scan: fn(Isa, MatRef<'_, T>, &mut Scratch<f64>) -> Result<Scan, NotFinite>,
    pub(crate) selected: fn(Isa, MatRef<'_, T>, bool, &mut [Selected<'_, T>]),
    pub(crate) crossing: fn(Isa, &mut Crossing<'_, T>),
    pub(crate) inner: fn(Isa, MatRef<'_, T>, MatMut<'_, f64>),
}

impl<T: Real> Kernels<T> {
    const fn new() -> Self {
        Self {
            product: crate::product::run::<T>,
            pack: crate::pack::run::<T>,
            sum: crate::reduce::run_sum::<T>,
            dot: crate::reduce::run_dot::<T>,
            square_distance: crate::reduce::run_square_distance::<T>,
            max_abs: crate::reduce::run_max_abs::<T>,
            softmax: crate::elementary::run_softmax::<T>,
            short_softmax: crate::elementary::run_short_softmax::<T>,
            log_sum_exp: crate::elementary::run_log_sum_exp::<T>,
            short_log_sum_exp: crate::elementary::run_short_log_sum_exp::<T>,
            sparse_chain: crate::sparse::run_chain::<T>,
            sparse_product: crate::sparse::run_product::<T>,
            sparse_update: crate::sparse::run_update::<T>,
            sparse_wide: crate::sparse::run_wide::<T>,
            gram: crate::gram::run_gram::<T>,
            abs_gram: crate::gram::run_abs_gram::<T>,
            wide_gram: crate::gram::run_wide_gram::<T>,
            factor: crate::cholesky::run_factor::<T>,
            solve: crate::cholesky::run_solve::<T>,
            image: crate::gram::run_image::<T>,
            online: crate::online::run::<T>,
            scan: crate::scan::run::<T>,
            selected: crate::selected::run_selected::<T>,
            crossing: crate::selected::run_crossing::<T>,
            inner: crate::selected::run_inner::<T>,
        }
    }
}

/// The operations of functions that treat every element alike.
pub trait Arithmetic<T: Real>: Copy {
    /// Elements of type `T`.
    type V: Copy + Debug + Send + Sync;
    /// One truth value a lane.
    type M: Copy + Debug + Send + Sync;

    /// `x` in every lane.
    fn splat(self, x: T) -> Self::V;
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a − b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a·b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a/b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a·b + c` with one rounding.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c − a·b` with one rounding.
    fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `√a`.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// `|a|`, NaN included (sign bit cleared).
    fn abs(self, a: Self::V) -> Self::V;
    /// `−a` (sign bit flipped).
    fn neg(self, a: Self::V) -> Self::V;
    /// The magnitude of `a` with the sign of `sign`.
    fn copysign(self, a: Self::V, sign: Self::V) -> Self::V;
    /// `a < b`; false if either is NaN.
    fn lt(self, a: Self::V, b: Self::V) -> Self::M;
    /// `a ≤ b`; false if either is NaN.
    fn le(self, a: Self::V, b: Self::V) -> Self::M;
    /// Both.
    fn both(self, a: Self::M, b: Self::M) -> Self::M;
    /// `yes` where the mask holds, else `no`.
    fn select(self, mask: Self::M, yes: Self::V, no: Self::V) -> Self::V;
    /// The larger of `a` and `low`, `a` where it is NaN; `low` is a number.
    fn at_least(self, a: Self::V, low: Self::V) -> Self::V;
    /// The smaller of `a` and `high`, `a` where it is NaN; `high` is a number.
    fn at_most(self, a: Self::V, high: Self::V) -> Self::V;
    /// `2^(n + more)` for `shifted = n + SHIFT` with a whole `n`; garbage beyond the normal exponents (−126…127 or −1022…1023).
    fn exp2_shifted(self, shifted: Self::V, more: i32) -> Self::V;
    /// The bits of `a` but for the last `p − 3`, moved to the end: those of the exponent and the first two of the fraction.
    fn leading(self, a: Self::V) -> Self::V;
    /// The entry of `table` whose number is in the last four bits of each lane.
    fn pick(self, index: Self::V, table: &[T; 16]) -> Self::V;
    /// The bits of `a` plus those of `shifted = m + SHIFT`, moved by `p − 5` places: `a·2^(m/16)` for `m` a multiple of 16.
    fn add_sixteenths(self, a: Self::V, shifted: Self::V) -> Self::V;
}

/// Vectors of `T` under an instruction set: `V` is a register, plain data without alignment of its own.
pub trait Vector<T: Real>: Simd + Tiled + Arithmetic<T, V: Pod> {
    /// Elements in a vector.
    const LANES: usize;

    /// Loads `live` elements from `ptr`; the other lanes are zero.
    ///
    /// # Safety
    /// `1 ≤ live ≤ LANES`, and `ptr` is valid for reading `live` elements.
    unsafe fn load_live(self, ptr: *const T, live: usize) -> Self::V;
    /// Loads elements `from..to` behind `ptr` into their lanes; the other lanes are zero.
    ///
    /// # Safety
    /// `from ≤ to ≤ LANES`, and these elements are valid for reading.
    unsafe fn load_between(self, ptr: *const T, from: usize, to: usize) -> Self::V;
    /// Stores the first `live` lanes to `ptr` and touches nothing else.
    ///
    /// # Safety
    /// `1 ≤ live ≤ LANES`, and `ptr` is valid for writing `live` elements.
    unsafe fn store_live(self, ptr: *mut T, live: usize, value: Self::V);

    /// The largest element; any number if one is NaN.
    fn largest(self, a: Self::V) -> T;
    /// The lanes added up by halves.
    fn sum(self, a: Self::V) -> T;
    /// `a` in the first `live` lanes and `x` in the others.
    fn first(self, live: usize, a: Self::V, x: T) -> Self::V;

    /// Whole vectors at the front of `slice`, and the rest.
    fn as_vectors(slice: &[T]) -> (&[Self::V], &[T]);
    /// Whole vectors at the front of `slice`, and the rest.
    fn as_vectors_mut(slice: &mut [T]) -> (&mut [Self::V], &mut [T]);

    /// The elements of `slice` (fewer than `LANES`), then zeros.
    #[inline(always)]
    fn load_partial(self, slice: &[T]) -> Self::V {
        if slice.is_empty() {
            return self.splat(T::ZERO);
        }
        debug_assert!(slice.len() <= Self::LANES);
        // SAFETY: `slice` has `1..=LANES` readable elements: it is not empty, and callers pass the rest of `as_vectors`.
        unsafe { self.load_live(slice.as_ptr(), slice.len().min(Self::LANES)) }
    }
    /// Fills `slice` (fewer than `LANES` elements) from the first lanes.
    #[inline(always)]
    fn store_partial(self, slice: &mut [T], value: Self::V) {
        if slice.is_empty() {
            return;
        }
        debug_assert!(slice.len() <= Self::LANES);
        // SAFETY: as in `load_partial`, writable through `&mut`.
        unsafe { self.store_live(slice.as_mut_ptr(), slice.len().min(Self::LANES), value) }
    }
}

macro_rules! vectors {
    ($t:ident, $bits:ident, $name:literal, $v:ident, $m:ident, $u:ident, $lanes:ident, $enter:ident, $unit:expr,
     [$splat:ident $add:ident $sub:ident $mul:ident $div:ident $fma:ident $nfma:ident $sqrt:ident],
     [$neg:ident $lt:ident $le:ident $both:ident $select:ident $min:ident $max:ident $largest:ident $sum:ident],
     [$splat_u:ident $and_u:ident $or_u:ident $to_u:ident $from_u:ident],
     [$between:ident $index:ident $load:ident $store:ident $slice:ident $slice_mut:ident], [$exp2:path, $leading:path, $pick:path, $sixteenths:path]) => {
        impl Real for $t {
            const NAME: &'static str = $name;
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const UNIT_ROUNDOFF: f64 = $unit;
            const TINY: f64 = $t::from_bits(1) as f64;
            const NORMAL: f64 = $t::MIN_POSITIVE as f64;
            const SHIFT: Self = (3u64 << ($t::MANTISSA_DIGITS - 2)) as $t;

            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn mul_add(self, a: Self, b: Self) -> Self {
                $t::mul_add(self, a, b)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $t::abs(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                $t::is_finite(self)
            }
            #[inline(always)]
            fn to_bits(self) -> u64 {
                u64::from($t::to_bits(self))
            }
            #[inline(never)]
            fn kernels() -> &'static Kernels<Self> {
                const { &Kernels::new() }
            }

            #[inline(always)]
            fn enter<K: Kernel<Self>>(isa: Isa, kernel: K) -> K::Output {
                isa.$enter(kernel)
            }
        }

        impl<S: Simd> Arithmetic<$t> for S {
            type V = S::$v;
            type M = S::$m;

            #[inline(always)]
            fn splat(self, x: $t) -> Self::V {
                self.$splat(x)
            }
            #[inline(always)]
            fn add(self, a: Self::V, b: Self::V) -> Self::V {
                self.$add(a, b)
            }
            #[inline(always)]
            fn sub(self, a: Self::V, b: Self::V) -> Self::V {
                self.$sub(a, b)
            }
            #[inline(always)]
            fn mul(self, a: Self::V, b: Self::V) -> Self::V {
                self.$mul(a, b)
            }
            #[inline(always)]
            fn div(self, a: Self::V, b: Self::V) -> Self::V {
                self.$div(a, b)
            }
            #[inline(always)]
            fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                self.$fma(a, b, c)
            }
            #[inline(always)]
            fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                self.$nfma(a, b, c)
            }
            #[inline(always)]
            fn sqrt(self, a: Self::V) -> Self::V {
                self.$sqrt(a)
            }
            #[inline(always)]
            fn abs(self, a: Self::V) -> Self::V {
                // pulp's own `abs` goes through a function that is not marked for inlining.
                self.$from_u(self.$and_u(self.$to_u(a), self.$splat_u(!(-0.0 as $t).to_bits())))
            }
            #[inline(always)]
            fn neg(self, a: Self::V) -> Self::V {
                self.$neg(a)
            }
            #[inline(always)]
            fn copysign(self, a: Self::V, sign: Self::V) -> Self::V {
                let sign = self.$and_u(self.$to_u(sign), self.$splat_u((-0.0 as $t).to_bits()));
                self.$from_u(self.$or_u(self.$to_u(<Self as Arithmetic<$t>>::abs(self, a)), sign))
            }
            #[inline(always)]
            fn lt(self, a: Self::V, b: Self::V) -> Self::M {
                self.$lt(a, b)
            }
            #[inline(always)]
            fn le(self, a: Self::V, b: Self::V) -> Self::M {
                self.$le(a, b)
            }
            #[inline(always)]
            fn both(self, a: Self::M, b: Self::M) -> Self::M {
                self.$both(a, b)
            }
            #[inline(always)]
            fn select(self, mask: Self::M, yes: Self::V, no: Self::V) -> Self::V {
                self.$select(mask, yes, no)
            }
            // On x86 the second operand is the result if one is NaN, on Arm a NaN is; the scalar functions drop it.
            #[inline(always)]
            fn at_least(self, a: Self::V, low: Self::V) -> Self::V {
                if S::IS_SCALAR { self.$select(self.$lt(a, low), low, a) } else { self.$max(low, a) }
            }
            #[inline(always)]
            fn at_most(self, a: Self::V, high: Self::V) -> Self::V {
                if S::IS_SCALAR { self.$select(self.$lt(high, a), high, a) } else { self.$min(high, a) }
            }
            #[inline(always)]
            fn exp2_shifted(self, shifted: Self::V, more: i32) -> Self::V {
                $exp2(self, shifted, more)
            }
            #[inline(always)]
            fn leading(self, a: Self::V) -> Self::V {
                $leading(self, a)
            }
            #[inline(always)]
            fn pick(self, index: Self::V, table: &[$t; 16]) -> Self::V {
                $pick(self, index, table)
            }
            #[inline(always)]
            fn add_sixteenths(self, a: Self::V, shifted: Self::V) -> Self::V {
                $sixteenths(self, a, shifted)
            }
        }

        impl<S: Simd + Tiled> Vector<$t> for S {
            const LANES: usize = S::$lanes;

            #[inline(always)]
            unsafe fn load_live(self, ptr: *const $t, live: usize) -> Self::V {
                if live == S::$lanes {
                    // SAFETY: `LANES` elements are readable (contract).
                    return unsafe { ptr.cast::<Self::V>().read_unaligned() };
                }
                // The mask without pulp's jump-table pointers: native masked moves instead of an indirect call.
                let mask = MemMask::new(self.$between(0, live as $index).mask());
                // SAFETY: the mask holds in the first `live` lanes only, which are readable (contract).
                unsafe { self.$load(mask, ptr) }
            }
            #[inline(always)]
            unsafe fn load_between(self, ptr: *const $t, from: usize, to: usize) -> Self::V {
                let mask = MemMask::new(self.$between(from as $index, to as $index).mask());
                // SAFETY: the mask holds in these lanes only, whose elements are readable (contract).
                unsafe { self.$load(mask, ptr) }
            }
            #[inline(always)]
            unsafe fn store_live(self, ptr: *mut $t, live: usize, value: Self::V) {
                if live == S::$lanes {
                    // SAFETY: `LANES` elements are writable (contract).
                    return unsafe { ptr.cast::<Self::V>().write_unaligned(value) };
                }
                let mask = MemMask::new(self.$between(0, live as $index).mask());
                // SAFETY: the mask holds in the first `live` lanes only, which are writable (contract).
                unsafe { self.$store(mask, ptr, value) }
            }
            #[inline(always)]
            fn largest(self, a: Self::V) -> $t {
                self.$largest(a)
            }
            #[inline(always)]
            fn sum(self, a: Self::V) -> $t {
                // NEON adds neighbours first.
                if S::$lanes == 4 && size_of::<Self::V>() == 16 {
                    let mut lanes = [0.0; 4];
                    S::$slice_mut(&mut lanes).0[0] = a;
                    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
                }
                self.$sum(a)
            }
            #[inline(always)]
            fn first(self, live: usize, a: Self::V, x: $t) -> Self::V {
                self.$select(self.$between(0, live as $index).mask(), a, self.$splat(x))
            }
            #[inline(always)]
            fn as_vectors(slice: &[$t]) -> (&[Self::V], &[$t]) {
                S::$slice(slice)
            }
            #[inline(always)]
            fn as_vectors_mut(slice: &mut [$t]) -> (&mut [Self::V], &mut [$t]) {
                S::$slice_mut(slice)
            }
        }
    };
}

/// `n` is in the low bits: shifted into the exponent field and added to the bits of `2^more`.
#[inline(always)]
fn exp2_shifted_f32<S: Simd>(simd: S, shifted: S::f32s, more: i32) -> S::f32s {
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(exponent, simd.splat_u32s(((127 + more) as u32) << 23)))
}

/// Adding 1.5·2²⁰ leaves `n` at bit 32 with zeros below, so a 32-bit shift by 20 moves it into the exponent field.
#[inline(always)]
fn exp2_shifted_f64<S: Simd>(simd: S, shifted: S::f64s, more: i32) -> S::f64s {
    let n = simd.sub_f64s(shifted, simd.splat_f64s(f64::SHIFT));
    let biased = simd.transmute_u64s_f64s(simd.add_f64s(n, simd.splat_f64s(1_572_864.0)));
    // Both branches are compiled for every set; `bytemuck::cast` checks the sizes where it is reached.
    let exponent: S::u64s = if S::IS_SCALAR {
        bytemuck::cast(bytemuck::cast::<_, u64>(biased) << 20)
    } else {
        bytemuck::cast(simd.wrapping_dyn_shl_u32s(bytemuck::cast(biased), simd.splat_u32s(20)))
    };
    simd.transmute_f64s_u64s(simd.add_u64s(exponent, simd.splat_u64s(((1023 + more) as u64) << 52)))
}

#[inline(always)]
fn leading_f32<S: Simd>(simd: S, a: S::f32s) -> S::f32s {
    simd.transmute_f32s_u32s(simd.wrapping_dyn_shr_u32s(simd.transmute_u32s_f32s(a), simd.splat_u32s(21)))
}

#[inline(always)]
fn add_sixteenths_f32<S: Simd>(simd: S, a: S::f32s, shifted: S::f32s) -> S::f32s {
    let moved = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(19));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(a), moved))
}

/// One lane after the other: no function in `f64` uses tables.
#[inline(always)]
fn leading_f64<S: Simd>(_: S, mut a: S::f64s) -> S::f64s {
    bytemuck::cast_slice_mut::<_, u64>(core::slice::from_mut(&mut a)).iter_mut().for_each(|a| *a >>= 50);
    a
}

#[inline(always)]
fn pick_f64<S: Simd>(_: S, mut index: S::f64s, table: &[f64; 16]) -> S::f64s {
    let lanes: &mut [f64] = bytemuck::cast_slice_mut(core::slice::from_mut(&mut index));
    lanes.iter_mut().for_each(|lane| *lane = table[(lane.to_bits() % 16) as usize]);
    index
}

#[inline(always)]
fn add_sixteenths_f64<S: Simd>(_: S, mut a: S::f64s, shifted: S::f64s) -> S::f64s {
    let shifted: &[u64] = bytemuck::cast_slice(core::slice::from_ref(&shifted));
    let a_bits: &mut [u64] = bytemuck::cast_slice_mut(core::slice::from_mut(&mut a));
    a_bits.iter_mut().zip(shifted).for_each(|(a, shifted)| *a = a.wrapping_add(shifted << 48));
    a
}

/// `N` vectors in lockstep: as many chains of operations side by side, where one leaves the units waiting for its results.
#[derive(Clone, Copy)]
pub(crate) struct Lockstep<S, const N: usize>(pub(crate) S);

macro_rules! lockstep {
    ($($name:ident($first:ident $(, $arg:ident)*);)*) => { $(
        #[inline(always)]
        fn $name(self, mut $first: Self::V $(, $arg: Self::V)*) -> Self::V {
            for i in 0..N {
                $first[i] = self.0.$name($first[i] $(, $arg[i])*);
            }
            $first
        }
    )* };
}

impl<T: Real, S: Arithmetic<T>, const N: usize> Arithmetic<T> for Lockstep<S, N> {
    type V = [S::V; N];
    type M = [S::M; N];

    #[inline(always)]
    fn splat(self, x: T) -> Self::V {
        [self.0.splat(x); N]
    }
    lockstep! {
        add(a, b);
        sub(a, b);
        mul(a, b);
        div(a, b);
        mul_add(a, b, c);
        neg_mul_add(a, b, c);
        sqrt(a);
        abs(a);
        neg(a);
        copysign(a, sign);
        at_least(a, low);
        at_most(a, high);
        leading(a);
        add_sixteenths(a, shifted);
    }
    #[inline(always)]
    fn lt(self, a: Self::V, b: Self::V) -> Self::M {
        let mut holds = [self.0.lt(a[0], b[0]); N];
        for i in 1..N {
            holds[i] = self.0.lt(a[i], b[i]);
        }
        holds
    }
    #[inline(always)]
    fn le(self, a: Self::V, b: Self::V) -> Self::M {
        let mut holds = [self.0.le(a[0], b[0]); N];
        for i in 1..N {
            holds[i] = self.0.le(a[i], b[i]);
        }
        holds
    }
    #[inline(always)]
    fn both(self, mut a: Self::M, b: Self::M) -> Self::M {
        for i in 0..N {
            a[i] = self.0.both(a[i], b[i]);
        }
        a
    }
    #[inline(always)]
    fn select(self, mask: Self::M, mut yes: Self::V, no: Self::V) -> Self::V {
        for i in 0..N {
            yes[i] = self.0.select(mask[i], yes[i], no[i]);
        }
        yes
    }
    #[inline(always)]
    fn exp2_shifted(self, mut shifted: Self::V, more: i32) -> Self::V {
        for i in 0..N {
            shifted[i] = self.0.exp2_shifted(shifted[i], more);
        }
        shifted
    }
    #[inline(always)]
    fn pick(self, mut index: Self::V, table: &[T; 16]) -> Self::V {
        for i in 0..N {
            index[i] = self.0.pick(index[i], table);
        }
        index
    }
}

vectors!(
    f32, u32, "f32", f32s, m32s, u32s, F32_LANES, enter_f32, 1.0 / (1u64 << 24) as f64,
    [splat_f32s add_f32s sub_f32s mul_f32s div_f32s mul_add_f32s negate_mul_add_f32s sqrt_f32s],
    [neg_f32s less_than_f32s less_than_or_equal_f32s and_m32s select_f32s min_f32s max_f32s reduce_max_f32s reduce_sum_f32s],
    [splat_u32s and_u32s or_u32s transmute_u32s_f32s transmute_f32s_u32s],
    [mask_between_m32s u32 mask_load_ptr_f32s mask_store_ptr_f32s as_simd_f32s as_mut_simd_f32s],
    [exp2_shifted_f32, leading_f32, arch::pick, add_sixteenths_f32]
);
vectors!(
    f64, u64, "f64", f64s, m64s, u64s, F64_LANES, enter_f64, 1.0 / (1u64 << 53) as f64,
    [splat_f64s add_f64s sub_f64s mul_f64s div_f64s mul_add_f64s negate_mul_add_f64s sqrt_f64s],
    [neg_f64s less_than_f64s less_than_or_equal_f64s and_m64s select_f64s min_f64s max_f64s reduce_max_f64s reduce_sum_f64s],
    [splat_u64s and_u64s or_u64s transmute_u64s_f64s transmute_f64s_u64s],
    [mask_between_m64s u64 mask_load_ptr_f64s mask_store_ptr_f64s as_simd_f64s as_mut_simd_f64s],
    [exp2_shifted_f64, leading_f64, pick_f64, add_sixteenths_f64]
);
