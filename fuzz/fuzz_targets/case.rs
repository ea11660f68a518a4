//! Cases from bytes: numbers of any bit pattern, matrices in any layout, and all ways to call a product.
#![allow(dead_code, reason = "every target uses its part")]

use crate::common::{Call, Cut, Form, Grid, Layout, Scalar, exact, same};
use arbitrary::{Result, Unstructured};
use core::fmt::Debug;
use dualprop_kernels::isa::Isa;
use dualprop_kernels::product::Blocking;
use dualprop_reference::bound::Bounded;
use dualprop_reference::generate::Family;
use faer::Par;

/// Runs the case that the bytes after the first one make, with the numbers that it chooses. Too few bytes are no case.
pub fn of_either_type(data: &[u8], narrow: fn(Unstructured<'_>) -> Result<()>, wide: fn(Unstructured<'_>) -> Result<()>) {
    let _ = match data.split_first() {
        Some((kind, rest)) if kind % 2 == 0 => narrow(Unstructured::new(rest)),
        Some((_, rest)) => wide(Unstructured::new(rest)),
        None => Ok(()),
    };
}

/// Any bit pattern.
pub fn raw<T: Scalar>(u: &mut Unstructured<'_>) -> Result<T> {
    let mut bytes = [0; 8];
    let bytes = &mut bytes[..size_of::<T>()];
    u.fill_buffer(bytes)?;
    Ok(bytemuck::pod_read_unaligned(bytes))
}

/// A number: mostly a small fraction, sometimes any bit pattern.
pub fn number<T: Scalar>(u: &mut Unstructured<'_>) -> Result<T> {
    match u.arbitrary::<i8>()? {
        i8::MIN => raw(u),
        small => Ok(T::from_f64(f64::from(small) / 16.0)),
    }
}

/// From 0 to 1.
pub fn share(u: &mut Unstructured<'_>) -> Result<f64> {
    Ok(f64::from(u.arbitrary::<u8>()?) / 255.0)
}

/// A matrix: numbers from a seed with a few others planted among them, or each from bytes of its own.
pub fn grid<T: Scalar>(u: &mut Unstructured<'_>, rows: usize, cols: usize) -> Result<Grid<T>> {
    let mut grid = if u.ratio(3u8, 4u8)? {
        let family = *u.choose(&Family::ALL)?;
        Grid::random(rows, cols, family, u.arbitrary::<u16>()?.into())
    } else {
        let mut grid = Grid::blank(rows, cols, Layout::default());
        for i in 0..rows {
            for j in 0..cols {
                grid.set(i, j, number(u)?);
            }
        }
        grid
    };
    if rows * cols > 0 {
        for _ in 0..u.int_in_range(0..=3u8)? {
            let (i, j) = (u.choose_index(rows)?, u.choose_index(cols)?);
            grid.set(i, j, raw(u)?);
        }
    }
    Ok(grid)
}

/// Every element of `grid`, in row order.
pub fn elements<T: Scalar>(grid: &Grid<T>) -> impl Iterator<Item = T> + '_ {
    let (rows, cols) = grid.shape();
    (0..rows).flat_map(move |i| (0..cols).map(move |j| grid.get(i, j)))
}

/// A size up to `most`, and mostly far below: small cases run often. Rarely 0.
pub fn size(u: &mut Unstructured<'_>, most: usize) -> Result<usize> {
    let ceiling = match u.int_in_range(0..=15u8)? {
        0 => most,
        15 => return Ok(0),
        k => most >> (1 + k % 4),
    };
    u.int_in_range(1..=ceiling.max(1))
}

/// A layout, and one bit more.
fn layout_and_bit(u: &mut Unstructured<'_>) -> Result<(Layout, bool)> {
    let bits = u.arbitrary::<u8>()?;
    let bit = |k: u8| bits >> k & 1 != 0;
    let padding = [0, 0, 1, 5][usize::from(bits & 3)];
    Ok((Layout { by_columns: bit(2), padding, rows_reversed: bit(3), cols_reversed: bit(4) }, bit(5)))
}

/// A layout.
pub fn any_layout(u: &mut Unstructured<'_>) -> Result<Layout> {
    Ok(layout_and_bit(u)?.0)
}

/// A layout whose rows are contiguous.
pub fn any_layout_by_rows(u: &mut Unstructured<'_>) -> Result<Layout> {
    Ok(Layout { by_columns: false, cols_reversed: false, ..any_layout(u)? })
}

/// A way to call a product, on one thread.
pub fn any_call(u: &mut Unstructured<'_>) -> Result<Call> {
    let mut form = || layout_and_bit(u).map(|(layout, packed)| Form { packed, layout });
    let (rows, lanes) = (form()?, form()?);
    let (first, swapped) = layout_and_bit(u)?;
    let (second, piecewise) = layout_and_bit(u)?;
    let operands = [first, second, any_layout(u)?];
    let cut = match u.int_in_range(0..=6u8)? {
        0 => Cut::StreamingPanels,
        1 => Cut::StreamingRows,
        2 => Cut::InPlace,
        3 => Cut::Deep,
        _ => {
            let mut size = |most: usize| u.int_in_range(0..=most);
            Cut::Given(Blocking { mc: size(20)?, kc: size(20)?, nc: size(3)?, group: size(3)? })
        }
    };
    Ok(Call { rows, lanes, piecewise, operands, cut, par: Par::Seq, swapped })
}

/// Every instruction set with a way to call a product of its own.
pub fn any_calls(u: &mut Unstructured<'_>) -> Result<Vec<(Isa, Call)>> {
    Isa::available().map(|isa| Ok((isa, any_call(u)?))).collect()
}

/// The elements that are compared with the reference: at most 23, spread over the matrix, the last one among them.
pub fn samples((rows, cols): (usize, usize)) -> impl Iterator<Item = (usize, usize)> {
    let (total, count) = (rows * cols, (rows * cols).min(23));
    (0..count).map(move |k| total - 1 - k * total / count).map(move |at| (at / cols, at % cols))
}

/// What the reference takes of the sum `(i, j)` of a product.
pub fn terms<T: Scalar>(rows: &Grid<T>, lanes: &Grid<T>, i: usize, j: usize) -> impl Iterator<Item = (Bounded, Bounded)> {
    (0..rows.shape().1).map(move |p| (exact(rows.get(i, p)), exact(lanes.get(p, j))))
}

/// Fails unless `outputs` have all of their canaries and the bits of the first ones that came; keeps the first.
pub fn agree<T: Scalar>(first: &mut Option<Vec<Grid<T>>>, outputs: Vec<Grid<T>>, what: &impl Debug) {
    let first = first.get_or_insert_with(|| outputs.clone());
    for (number, (got, wanted)) in outputs.iter().zip(first).enumerate() {
        got.check_bits(wanted, &(number, what)).unwrap();
    }
}

/// Fails unless `bound` admits `got` or says nothing.
pub fn check_bound<T: Scalar>(bound: Bounded, got: T, what: &impl Debug) {
    let holds = !bound.is_informative() || bound.admits(got.to_f64());
    assert!(holds, "{got:e} is not within {:e} ± {:e}: {what:?}", bound.value, bound.error);
}

/// Fails unless `got` has the bits of `wanted`, where any NaN equals any other.
pub fn check_same<T: Scalar>(got: &[T], wanted: &[T], what: &impl Debug) {
    assert_eq!(got.len(), wanted.len());
    for (i, (&got, &wanted)) in got.iter().zip(wanted).enumerate() {
        assert!(same(got, wanted), "element {i} is {got:e}, not {wanted:e}: {what:?}");
    }
}

/// An output slice between canaries.
pub struct Guarded<T> {
    memory: Vec<T>,
}

/// Elements on either side of a [`Guarded`] slice; odd, so that nothing is aligned.
const MARGIN: usize = 17;

impl<T: Scalar> Guarded<T> {
    pub fn new(len: usize) -> Self {
        Self { memory: vec![T::CANARY; len + 2 * MARGIN] }
    }

    pub fn slice(&mut self) -> &mut [T] {
        let end = self.memory.len() - MARGIN;
        &mut self.memory[MARGIN..end]
    }

    /// The slice; fails if a canary was overwritten.
    pub fn finish(mut self) -> Vec<T> {
        let inside = self.slice().to_vec();
        let (before, after) = (&self.memory[..MARGIN], &self.memory[MARGIN + inside.len()..]);
        assert!(before.iter().chain(after).all(|x| x.to_bits() == T::CANARY.to_bits()), "memory beside an output");
        inside
    }
}

/// The reference's function of that name.
pub fn reference(activation: dualprop_kernels::activation::Activation) -> dualprop_reference::activation::Activation {
    use dualprop_kernels::activation::Activation;
    use dualprop_reference::activation::Activation as Reference;
    match activation {
        Activation::Identity => Reference::Identity,
        Activation::Relu => Reference::Relu,
        Activation::LeakyRelu => Reference::LeakyRelu,
        Activation::HardSigmoid => Reference::HardSigmoid,
        Activation::Sigmoid => Reference::Sigmoid,
        Activation::Tanh => Reference::Tanh,
        _ => panic!("{activation} has no reference"),
    }
}

/// What the reference allows of `f'(a)`, and the documented 1.98 ulp: kernels compute smooth slopes as `4z/(1 + z)²`, not from values.
pub fn derivative(activation: dualprop_kernels::activation::Activation, a: Bounded) -> Bounded {
    let slope = reference(activation).derivative(a);
    slope.widen(4, slope.magnitude())
}
