//! Naive reference for `dualprop`: every formula of dual propagation written out in f64, with a bound on how far a correct f32 or
//! f64 code may be from it.
//!
//! Tests, fuzzers and benches compare the fast kernels with this crate. It shares no code with them, has no dependencies, and is
//! never fast and never clever: what it says follows line by line from the formulas (`mathematics.md`, sections 1 and 2; Høier & Zach,
//! arXiv 2402.08573; Høier, Staudt & Zach, arXiv 2302.01228).
//!
//! * [`bound`]: [`bound::Bounded`], a value with an error bound, and sums of products;
//! * [`activation`]: `f`, `f'`, and `f(p⁺) − f(p⁻)` without cancellation;
//! * [`product`]: matrices and the three products of a layer; [`sparse`]: sparse matrices;
//! * [`relax`]: the two-compartment update of a hidden unit;
//! * [`output`]: losses and output rules;
//! * [`schedule`]: the order of the updates;
//! * [`network`]: inference and gradients of whole networks;
//! * [`optimizer`], [`train`]: optimizers, and a training step;
//! * [`gram`]: products with `AᵀA`;
//! * [`generate`]: problems from seeds;
//! * [`elementary`]: elementary functions.
//!
//! Panics are assertions about the caller's test, such as shapes that do not fit.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod activation;
pub mod bound;
pub mod elementary;
pub mod generate;
pub mod gram;
pub mod network;
pub mod optimizer;
pub mod output;
pub mod product;
pub mod relax;
pub mod schedule;
pub mod sparse;
pub mod train;
