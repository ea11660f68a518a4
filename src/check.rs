//! Preconditions: every public function checks its arguments with these before it writes anything.

use dualprop_kernels::isa::Isa;
use dualprop_kernels::reduce;
use dualprop_kernels::vector::Real;
use faer::MatRef;

use crate::error::Error;

pub(crate) fn shape<T>(argument: &'static str, view: MatRef<'_, T>, expected: (usize, usize)) -> Result<(), Error> {
    let found = (view.nrows(), view.ncols());
    if found == expected { Ok(()) } else { Err(Error::Shape { argument, found, expected }) }
}

pub(crate) fn length(argument: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Length { argument, found, expected }) }
}

pub(crate) fn parameter(argument: &'static str, value: f64, allowed: &'static str, holds: bool) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Parameter { argument, value, allowed }) }
}

/// `α` of a nudge: 0 to 1.
pub(crate) fn alpha(value: f64) -> Result<(), Error> {
    parameter("alpha", value, "from 0 to 1", (0.0..=1.0).contains(&value))
}

/// A number above zero.
pub(crate) fn positive(argument: &'static str, value: f64) -> Result<(), Error> {
    parameter(argument, value, "positive and finite", value > 0.0 && value.is_finite())
}

/// A number that is not negative.
pub(crate) fn not_negative(argument: &'static str, value: f64) -> Result<(), Error> {
    parameter(argument, value, "finite and at least 0", value >= 0.0 && value.is_finite())
}

/// No NaN, no infinity; the error names the first in row order.
pub(crate) fn finite<T: Real>(argument: &'static str, view: MatRef<'_, T>) -> Result<(), Error> {
    let isa = Isa::best();
    for row in 0..view.nrows() {
        let values = view.row(row);
        if values.try_as_row_major().is_some_and(|values| reduce::max_abs(isa, values.as_slice()).is_finite()) {
            continue;
        }
        if let Some(col) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::NotFinite { argument, row, col, value: values[col].to_f64() });
        }
    }
    Ok(())
}
