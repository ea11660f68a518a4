//! Spectral norms and Lipschitz constants as enclosures: `lower ≤ ‖A‖₂ ≤ upper`, with the proof behind `upper`.

mod adversarial;
mod certificate;
mod chain;
mod cholesky;
mod collatz;
mod compression;
mod convolution;
mod dense;
mod eclipse;
mod enclose;
mod enclosure;
mod few;
mod frequencies;
mod global;
mod krylov;
mod lanczos;
mod local;
mod operator;
mod rounding;
mod small;
mod sparse;
mod squaring;
mod symmetric;
mod temple;
mod tracker;
mod tridiagonal;

pub use adversarial::{Pair, stretch};
pub use chain::Chain;
pub use collatz::collatz;
pub use convolution::{Convolution, Geometry, Padding};
pub use dense::Dense;
pub use enclose::{CHOLESKY_SIDE, certify, enclose};
pub use enclosure::{Bracket, Certainty, Enclosed, Enclosure, Proof, Search, Seed, Status};
pub use frequencies::frequencies;
pub use global::{Global, global};
pub use krylov::{MAX_STEPS, lower_bound};
pub use local::{Kinks, local};
pub use operator::Operator;
pub use squaring::gram_iteration;
pub use tracker::{Tracker, Tracking};

pub(crate) use krylov::Warm;
