//! What is counted on of the caches. Kernels cut their loops and choose their ways by these sizes; no bit depends on them.
//!
//! Those of x86-64 servers, tuned on Zen 4 and Zen 5; the machine is not asked.

/// Bytes of a first-level cache.
pub(crate) const FIRST: usize = 48 << 10;

/// Bytes of a second-level cache.
pub(crate) const SECOND: usize = 1 << 20;

/// Bytes of a last-level cache that one core may count on from one call to the next.
pub(crate) const LAST: usize = 16 << 20;

/// Bytes above which a matrix is taken to come from memory.
pub(crate) const MEMORY: usize = 8 << 20;
