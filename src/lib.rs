//! Contrastive-Hebbian learning on CPUs.
//!
//! Networks of dense layers are trained by dual propagation and its relatives ([`network::Method`]) on hand-tuned SIMD kernels that
//! are chosen at run time. Two numbers are kept for each unit, the mean of its two compartments and their difference; the mean goes
//! up, the difference goes down, and the weight update is the outer product of both with the optimizer inside.
//!
//! ```
//! use dualprop::network::{Init, Method, Network, Settings, Targets, Trainer};
//! use dualprop::{Activation, MatRef, Runtime};
//!
//! # fn main() -> Result<(), dualprop::Error> {
//! let mut network = Network::<f32>::new(&[2, 16, 2], Activation::Relu, true)?;
//! network.initialize(Init::LecunNormal, 1);
//! let settings = Settings::new(Method::DpTranspose { alpha: 0.5, beta: 0.5 });
//! let mut trainer = Trainer::new(network, &settings, 4, &Runtime::from_env()?)?;
//! let x = MatRef::from_row_major_slice(&[0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0], 4, 2);
//! let xor = Targets::Classes(&[0, 1, 1, 0]);
//! for _ in 0..500 {
//!     trainer.step(x, xor, 0.01)?;
//! }
//! assert_eq!(trainer.evaluate(x, xor)?.accuracy, 1.0);
//! # Ok(())
//! # }
//! ```
//!
//! # Conventions
//!
//! * A batch is a matrix with a sample in each row; weights are `n_out × n_in`. Matrices are faer views; any strides are taken, unit
//!   stride along the rows is fast.
//! * Everything is checked when a plan ([`network::Trainer`]) is made, which is also when memory is allocated; a step allocates nothing.
//! * Errors are values that name the argument, what was found and what is allowed; after an error the weights are what they were.
//! * NaN and infinity are refused at the door. A training that diverges ends with [`Error::Diverged`] and the last finite weights.
//! * The same bits come out on every instruction set, for every number of threads, with f32 and f64 each: every sum of a product
//!   is one chain of fused multiply-adds in a fixed order, and all elementary functions are our own.
//! * Threads are the calling one and others of the rayon pool that it belongs to.
#![forbid(unsafe_code)]

mod check;
mod error;
#[doc = include_str!("guarantees.md")]
pub mod guarantees {}
pub mod hebbian;
pub mod lipschitz;
mod matrix;
pub mod network;
pub mod random;
pub mod relax;
mod runtime;
pub mod sparse;
mod workspace;

pub use dualprop_kernels::activation::Activation;
pub use dualprop_kernels::isa::Isa;
pub use dualprop_kernels::vector::Real;
pub use error::Error;
pub use faer::{Mat, MatMut, MatRef, Par};
pub use runtime::Runtime;
pub use workspace::Workspace;
