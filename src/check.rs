//! Preconditions: every public function checks its arguments with these before it writes anything.

use core::ops::Range;

use dualprop_kernels::isa::Isa;
use dualprop_kernels::vector::Real;
use dualprop_kernels::{reduce, threads};
use faer::{MatRef, Par};

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
    finite_on(Par::Seq, argument, view)
}

/// [`finite`] on several threads.
pub(crate) fn finite_on<T: Real>(par: Par, argument: &'static str, view: MatRef<'_, T>) -> Result<(), Error> {
    let isa = Isa::best();
    let first = |mut rows: Range<usize>| {
        rows.find_map(|row| {
            let values = view.row(row);
            if values.try_as_row_major().is_some_and(|values| reduce::max_abs(isa, values.as_slice()).is_finite()) {
                return None;
            }
            values.iter().position(|value| !value.is_finite()).map(|col| (row, col))
        })
    };
    let tasks = threads::tasks(par, READING * view.nrows() * view.ncols());
    match threads::fold(tasks, 0..view.nrows(), &first, Option::or) {
        Some((row, col)) => Err(Error::NotFinite { argument, row, col, value: view[(row, col)].to_f64() }),
        None => Ok(()),
    }
}

/// Multiply-adds in the time of reading, copying or comparing an element.
pub(crate) const READING: usize = 8;

#[cfg(test)]
mod tests {
    use dualprop_kernels::threads::SEQUENTIAL;
    use faer::Mat;

    use super::*;

    /// The first in row order is named, whoever finds it.
    #[test]
    fn the_first_is_named() {
        const SIDE: usize = 600;
        const { assert!(READING * SIDE * SIDE >= SEQUENTIAL, "shared out") };
        let places = [(0, 5), (1, 0), (299, 599), (300, 0), (451, 17), (599, 599)];
        for k in 0..places.len() {
            let mut x = Mat::<f32>::zeros(SIDE, SIDE);
            places[k..].iter().for_each(|&place| x[place] = if place.0 % 2 == 0 { f32::NAN } else { f32::INFINITY });
            for par in [Par::Seq, Par::rayon(2), Par::rayon(3), Par::rayon(8)] {
                for view in [x.as_ref(), x.transpose()] {
                    let wanted = first_by_hand(view);
                    match finite_on(par, "x", view) {
                        Err(Error::NotFinite { argument: "x", row, col, .. }) => assert_eq!((row, col), wanted, "{par:?}"),
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        assert!(finite_on(Par::rayon(2), "x", Mat::<f32>::zeros(SIDE, SIDE).as_ref()).is_ok());
    }

    fn first_by_hand(view: MatRef<'_, f32>) -> (usize, usize) {
        let mut all = (0..view.nrows()).flat_map(|row| (0..view.ncols()).map(move |col| (row, col)));
        all.find(|&at| !view[at].is_finite()).expect("one that is not")
    }
}
