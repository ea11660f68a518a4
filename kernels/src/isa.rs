//! The instruction sets: tokens that prove support, their tile shapes, and the way into them.

use core::fmt;
use core::marker::PhantomData;
use pulp::{Simd, WithSimd};

use crate::vector::{Real, Vector};

/// A computation on elements of type `T` that runs under one instruction set.
pub trait Kernel<T: Real> {
    /// What it returns.
    type Output;
    /// The body. Must be `#[inline(always)]`, down to the last intrinsic: it has to land inside the function that enables the
    /// features (a call that is not inlined turns every operation below it into a call of an outlined intrinsic).
    fn run<S: Vector<T>>(self, simd: S) -> Self::Output;
}

struct Entered<S, K, T>(S, K, PhantomData<T>);

impl<T: Real, S: Vector<T>, K: Kernel<T>> WithSimd for Entered<S, K, T> {
    type Output = K::Output;
    #[inline(always)]
    fn with_simd<Same: Simd>(self, _: Same) -> K::Output {
        self.1.run::<S>(self.0)
    }
}

/// What the table says of a set, by its token.
pub trait Tiled {
    /// [`Isa::tile`].
    const TILE: (usize, usize);
}

macro_rules! isa_table {
    ($( $(#[doc = $doc:literal])* $(#[cfg($cfg:meta)])* $isa:ident($token:ty) = $name:literal, MR $mr:literal, NV $nv:literal, FEW $few:literal, $probe:expr; )*) => {
        /// An instruction set that this process may use; holding one is the proof.
        #[derive(Clone, Copy, Debug)]
        #[non_exhaustive]
        pub enum Isa { $( $(#[doc = $doc])* $(#[cfg($cfg)])* $isa($token), )* }

        $( $(#[cfg($cfg)])* impl Tiled for $token { const TILE: (usize, usize) = ($mr, $nv); } )*

        impl Isa {
            /// Every name that exists, here or elsewhere.
            pub const NAMES: &'static [&'static str] = &[ $( $name, )* ];

            /// The sets that this machine can run, best first; the portable one is always last.
            pub fn available() -> impl Iterator<Item = Isa> {
                [ $( $(#[cfg($cfg)])* $probe.map(Isa::$isa), )* ].into_iter().flatten()
            }

            /// The name that `DUALPROP_ISA` takes.
            pub fn name(self) -> &'static str {
                match self { $( $(#[cfg($cfg)])* Isa::$isa(_) => $name, )* }
            }

            /// Rows of a register tile (MR) and vectors of a tile's row (NV).
            pub const fn tile(self) -> (usize, usize) {
                match self { $( $(#[cfg($cfg)])* Isa::$isa(_) => <$token>::TILE, )* }
            }

            /// Rows of a product up to which contiguous columns of its right operand are turned in registers rather than packed: as many as that is
            /// faster for, none where there are no shuffles for it.
            pub const fn few(self) -> usize {
                match self { $( $(#[cfg($cfg)])* Isa::$isa(_) => $few, )* }
            }

            /// Enters the feature context for one element type; [`Isa::run`] is the way to call it.
            #[inline(always)]
            pub(crate) fn enter_f32<K: Kernel<f32>>(self, kernel: K) -> K::Output {
                match self {
                    $( $(#[cfg($cfg)])* Isa::$isa(token) => Simd::vectorize(token, Entered(token, kernel, PhantomData::<f32>)), )*
                }
            }

            /// As `enter_f32`.
            #[inline(always)]
            pub(crate) fn enter_f64<K: Kernel<f64>>(self, kernel: K) -> K::Output {
                match self {
                    $( $(#[cfg($cfg)])* Isa::$isa(token) => Simd::vectorize(token, Entered(token, kernel, PhantomData::<f64>)), )*
                }
            }
        }
    };
}

// MR·NV sums, NV loads and a broadcast stay below the register count: at exactly 16 on AVX2 a sum is spilled in every step.
isa_table! {
    /// 512-bit vectors, 32 registers.
    #[cfg(target_arch = "x86_64")]  Avx512(pulp::x86::V4)     = "avx512",   MR 8, NV 3, FEW 12, pulp::x86::V4::try_new();
    /// 256-bit vectors, 16 registers, with FMA.
    #[cfg(target_arch = "x86_64")]  Avx2(pulp::x86::V3)       = "avx2",     MR 6, NV 2, FEW 4, pulp::x86::V3::try_new();
    /// 128-bit vectors, 32 registers.
    #[cfg(target_arch = "aarch64")] Neon(pulp::aarch64::Neon) = "neon",     MR 8, NV 3, FEW 0, pulp::aarch64::Neon::try_new();
    /// Scalar code with the platform's `fma`: there to be right, not fast.
    Portable(pulp::Scalar)                                    = "portable", MR 4, NV 2, FEW 0, Some(pulp::Scalar::new());
}

/// Why an instruction set cannot be had by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsaError {
    /// No instruction set has that name.
    Unknown,
    /// It exists, but this machine (or build) does not run it.
    Unsupported,
}

impl Isa {
    /// The best set of this machine.
    pub fn best() -> Isa {
        Isa::available().next().expect("the portable set is always available")
    }

    /// The set of that name.
    ///
    /// # Errors
    /// [`IsaError`] tells a name that does not exist from one that does not run here.
    pub fn by_name(name: &str) -> Result<Isa, IsaError> {
        if !Isa::NAMES.contains(&name) {
            return Err(IsaError::Unknown);
        }
        Isa::available().find(|isa| isa.name() == name).ok_or(IsaError::Unsupported)
    }

    /// Elements of type `T` in a vector.
    pub fn lanes<T: Real>(self) -> usize {
        struct Lanes;
        impl<T: Real> Kernel<T> for Lanes {
            type Output = usize;
            #[inline(always)]
            fn run<S: Vector<T>>(self, _: S) -> usize {
                S::LANES
            }
        }
        self.run::<T, _>(Lanes)
    }

    /// Runs `kernel`. Costs a call or two: put whole loops in a kernel, not one vector.
    #[inline(always)]
    pub fn run<T: Real, K: Kernel<T>>(self, kernel: K) -> K::Output {
        T::enter(self, kernel)
    }
}

impl PartialEq for Isa {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Isa {}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
