//! Contrastive-Hebbian learning on CPUs.
#![forbid(unsafe_code)]

mod check;
mod error;
pub mod lipschitz;
mod matrix;
pub mod network;
pub mod random;
mod runtime;

pub use dualprop_kernels::activation::Activation;
pub use dualprop_kernels::isa::Isa;
pub use dualprop_kernels::vector::Real;
pub use error::Error;
pub use faer::{Mat, MatMut, MatRef, Par};
pub use runtime::Runtime;
