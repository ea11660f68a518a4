//! Other libraries, each behind one function.

use dualprop::{MatMut, MatRef, Par};
use dualprop_reference::bound::Precision;
use faer::Accum;
use faer::linalg::matmul::matmul;
use faer::prelude::Reborrow;

use super::Scalar;

/// A library with matrix products, under its best setting for one thread of this machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The crate gemm with its feature `x86-v4`.
    Gemm,
    /// faer with its feature `nightly`, which turns AVX-512 on and builds on stable.
    Faer,
    /// matrixmultiply, which dispatches to AVX-512 by default.
    Matrixmultiply,
}

impl Peer {
    pub const ALL: [Peer; 3] = [Peer::Gemm, Peer::Faer, Peer::Matrixmultiply];

    /// The name of the crate.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Gemm => "gemm",
            Peer::Faer => "faer",
            Peer::Matrixmultiply => "matrixmultiply",
        }
    }

    /// Whether the library scales what it accumulates to by other factors than 0 and 1.
    pub fn scales(self) -> bool {
        self != Peer::Faer
    }

    /// `out ← keep·out + scale·left·right`; with `keep` of 0 `out` is not read.
    pub fn product<T: Scalar>(self, mut out: MatMut<'_, T>, keep: T, scale: T, left: MatRef<'_, T>, right: MatRef<'_, T>) {
        let shapes = (left.shape(), right.shape());
        assert_eq!(shapes, ((out.nrows(), left.ncols()), (left.ncols(), out.ncols())), "shapes of a product");
        match self {
            Peer::Gemm => gemm(out, keep, scale, left, right),
            Peer::Matrixmultiply => T::matrixmultiply(out, keep, scale, left, right),
            Peer::Faer => {
                assert!(keep == T::ZERO || keep == T::ONE, "faer does not scale what it accumulates to");
                let accum = if keep == T::ZERO { Accum::Replace } else { Accum::Add };
                matmul(out.as_mut(), accum, left.rb(), right.rb(), scale, Par::Seq);
            }
        }
    }
}

fn gemm<T: Scalar>(out: MatMut<'_, T>, keep: T, scale: T, left: MatRef<'_, T>, right: MatRef<'_, T>) {
    let (m, n, k) = (out.nrows(), out.ncols(), left.ncols());
    let (out_strides, to) = ((out.col_stride(), out.row_stride()), out.as_ptr_mut());
    let (a, b) = (left.as_ptr(), right.as_ptr());
    // SAFETY: `Peer::product` has checked that the views are `m × n`, `m × k` and `k × n`; pointers and strides (column, then row) are
    // theirs, and `out` is exclusive.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            to,
            out_strides.0,
            out_strides.1,
            keep != T::ZERO,
            a,
            left.col_stride(),
            left.row_stride(),
            b,
            right.col_stride(),
            right.row_stride(),
            keep,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

macro_rules! scalar {
    ($t:ident, $precision:ident, $gemm:ident) => {
        impl Scalar for $t {
            const PRECISION: Precision = Precision::$precision;

            fn matrixmultiply(out: MatMut<'_, $t>, keep: $t, scale: $t, left: MatRef<'_, $t>, right: MatRef<'_, $t>) {
                let (m, n, k) = (out.nrows(), out.ncols(), left.ncols());
                let (to, row, col) = (out.as_ptr_mut(), out.row_stride(), out.col_stride());
                let (a, b) = ((left.as_ptr(), left.row_stride(), left.col_stride()), right);
                let b = (b.as_ptr(), b.row_stride(), b.col_stride());
                // SAFETY: `Peer::product` has checked that the views are `m × n`, `m × k` and `k × n`; pointers and strides (row, then
                // column) are theirs, and `out` is exclusive.
                unsafe { matrixmultiply::$gemm(m, k, n, scale, a.0, a.1, a.2, b.0, b.1, b.2, keep, to, row, col) };
            }
        }
    };
}

scalar!(f32, F32, sgemm);
scalar!(f64, F64, dgemm);

/// Name and version of a package in the lock file.
pub fn locked_version(package: &str) -> String {
    let lock = include_str!("../../Cargo.lock");
    let entry = format!("name = \"{package}\"\nversion = \"");
    let version = lock.split_once(&entry).and_then(|(_, rest)| rest.split('"').next()).unwrap_or("?");
    format!("{package} {version}")
}
