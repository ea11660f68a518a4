//! Spectral norms and Lipschitz constants as enclosures: `lower ≤ ‖A‖₂ ≤ upper`, with the proof behind `upper`.

mod enclosure;
mod krylov;
mod operator;

pub use enclosure::{Bracket, Certainty, Enclosure, Proof, Search, Seed, Status};
pub use krylov::{MAX_STEPS, lower_bound};
pub use operator::Operator;

pub(crate) use krylov::Lanczos;
