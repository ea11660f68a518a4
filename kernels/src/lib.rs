//! Mechanism
pub mod activation;
mod arch;
mod buffer;
pub mod elementary;
pub mod epilogue;
pub mod isa;
pub mod optimizer;
pub mod pack;
pub mod product;
pub mod reduce;
pub mod strided;
mod tile;
pub mod vector;
