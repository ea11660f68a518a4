//! What the outputs should be.

use dualprop_kernels::vector::Real;
use faer::MatRef;

use crate::check;
use crate::error::Error;

/// What the outputs should be, one row or class for each sample of a batch.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a, T> {
    /// Class numbers, taken as one-hot rows.
    Classes(&'a [u32]),
    /// `batch × outputs`.
    Values(MatRef<'a, T>),
}

impl<T: Real> Targets<'_, T> {
    pub(crate) fn check(&self, samples: usize, n_out: usize) -> Result<(), Error> {
        match *self {
            Targets::Classes(labels) => {
                check::length("targets", labels.len(), samples)?;
                match labels.iter().position(|&label| label as usize >= n_out) {
                    Some(index) => Err(Error::Label { index, label: labels[index], classes: n_out }),
                    None => Ok(()),
                }
            }
            Targets::Values(values) => {
                check::shape("targets", values, (samples, n_out))?;
                check::finite("targets", values)
            }
        }
    }

    /// Writes the target of sample `i`.
    pub(crate) fn write(&self, i: usize, to: &mut [T]) {
        match *self {
            Targets::Classes(labels) => {
                to.fill(T::ZERO);
                to[labels[i] as usize] = T::ONE;
            }
            Targets::Values(values) => {
                for (to, col) in to.iter_mut().zip(0..) {
                    *to = values[(i, col)];
                }
            }
        }
    }
}
