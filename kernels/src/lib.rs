//! The kernels of `dualprop`: all of its SIMD and all of its `unsafe`. Mechanism without policy: no defaults, no environment, no
//! input or output; memory comes from the caller and is allocated only when a buffer must grow.
//!
//! Vocabulary, as in the BLIS papers: a **micro-kernel** computes a **tile** of MR rows by NR = NV·LANES columns in registers. The left
//! operand is read in **bands** of MR rows, the right one in **panels** of NR columns; MC, NC and KC cut rows, columns and depth into
//! blocks that fit the caches. An **epilogue** is what happens to a finished sum.
//!
//! * [`isa`]: the instruction sets and the way into them; [`vector`]: one vocabulary for f32 and f64;
//! * [`product`]: the loops; [`pack`]: packed operands; [`epilogue`], [`optimizer`]: what becomes of the sums;
//! * [`activation`], [`elementary`]: activations and the functions under them; [`reduce`]: sums, norms, maxima;
//! * [`gram`], [`online`]: sweeps that do two products, or an update and a product, in one pass;
//! * [`sparse`]: products with sparse matrices and updates on a fixed pattern; [`selected`]: products with some rows of a matrix;
//! * [`strided`]: matrices as kernels see them; [`threads`]: work for several threads.
//!
//! Public functions are safe: they check what memory safety needs and panic on a caller's mistake. The crate `dualprop` on top checks
//! everything first and returns errors. The README of this crate says how to add things.

pub mod activation;
mod arch;
mod buffer;
mod cache;
pub mod cholesky;
pub mod elementary;
pub mod epilogue;
pub mod gram;
pub mod isa;
pub mod online;
pub mod optimizer;
pub mod pack;
pub mod product;
pub mod reduce;
pub mod scan;
pub mod selected;
pub mod sparse;
pub mod strided;
pub mod threads;
mod tile;
mod turned;
pub mod vector;
