//! Raw parts of sparse matrices: accepted exactly if the rule holds; products, Gram products and updates of what is accepted on each
//! instruction set to the bit, in the promised chains where there is more than one vector, and within the bounds of the reference.
#![no_main]

mod case;
#[path = "../../kernels/tests/common/mod.rs"]
mod common;

use arbitrary::{Result, Unstructured};
use case::*;
use common::*;
use dualprop_kernels::isa::Isa;
use dualprop_kernels::optimizer::{Decay, Optimizer, Update};
use dualprop_kernels::product::Scratch;
use dualprop_kernels::sparse::{self, Matrix, Pattern};
use dualprop_reference::sparse::Sparse;
use faer::Par;
use libfuzzer_sys::fuzz_target;

/// The rule, written out.
fn is_sound(rows: usize, cols: usize, start: &[i16], indices: &[i16]) -> bool {
    start.len() == rows + 1
        && start[0] == 0
        && start.is_sorted()
        && start[rows] as usize == indices.len()
        && (0..rows).all(|i| {
            let row = &indices[start[i] as usize..start[i + 1] as usize];
            row.is_sorted_by(|a, b| a < b) && row.iter().all(|&j| j >= 0 && (j as usize) < cols)
        })
}

fn run<T: Scalar>(mut u: Unstructured<'_>) -> Result<()> {
    let (m, n, p) = (u.int_in_range(0..=40usize)?, u.int_in_range(0..=70usize)?, u.int_in_range(0..=35usize)?);
    let (mut start, mut indices) = (vec![0i16], Vec::new());
    for _ in 0..m {
        // One byte for each run of columns that is skipped or kept.
        let mut col = 0;
        while col < n {
            let (skip, kept) = (u.int_in_range(0..=20usize)?, u.int_in_range(1..=20usize)?);
            indices.extend((col + skip..n.min(col + skip + kept)).map(|j| j as i16));
            col += skip + kept;
        }
        start.push(indices.len() as i16);
    }
    if u.ratio(1u8, 3u8)? {
        // Break something, or perhaps not.
        let list = if u.arbitrary()? { &mut start } else { &mut indices };
        match u.int_in_range(0..=2u8)? {
            0 => drop(list.pop()),
            1 => list.push(u.arbitrary()?),
            _ if !list.is_empty() => {
                let at = u.choose_index(list.len())?;
                list[at] = u.arbitrary()?;
            }
            _ => {}
        }
    }
    let pattern = Pattern::new(m, n, &start, &indices);
    assert_eq!(pattern.is_ok(), is_sound(m, n, &start, &indices), "{pattern:?}: {start:?} {indices:?}");
    let Ok(pattern) = pattern else { return Ok(()) };

    let values: Vec<T> = elements(&grid(&mut u, 1, indices.len())?).collect();
    let (x, above) = (grid::<T>(&mut u, p, n)?, grid::<T>(&mut u, p, m)?);
    let layouts = [any_layout(&mut u)?, any_layout(&mut u)?];
    let matrix = Matrix::new(pattern, values.clone());
    let update = Update { optimizer: Optimizer::Sgd, decay: Decay::None, learning_rate: 0.1, step: 1, scale: 1.0 };
    let mut first = None;
    for isa in Isa::available() {
        let (from, mut scratch) = (x.relaid(layouts[0]), Scratch::new());
        let (mut y, mut z, mut squares) = (Grid::blank(p, m, layouts[1]), Grid::blank(p, n, layouts[1]), vec![0.0; p]);
        sparse::apply(isa, Par::Seq, matrix.rows(), from.view(), y.view_mut(), &mut scratch);
        sparse::gram(isa, Par::Seq, &matrix, from.view(), z.view_mut(), &mut squares, &mut scratch);
        let mut changed = matrix.clone();
        sparse::update(isa, Par::Seq, &mut changed, &mut [], above.view(), from.view(), update, &mut scratch);
        let mut weights = Grid::blank(1, values.len(), Layout::default());
        changed.rows().values().iter().enumerate().for_each(|(k, &w)| weights.set(0, k, w));
        agree(&mut first, vec![y, z, weights], &(isa, m, n, p, layouts));
    }
    let first = first.expect("the portable set is always available");
    let row = |i: usize| start[i] as usize..start[i + 1] as usize;
    if p > 1 {
        let chain = |b: usize, i: usize| row(i).fold(T::ZERO, |sum, k| values[k].mul_add(x.get(b, indices[k] as usize), sum));
        first[0].check_bits(&Grid::from_fn(p, m, Layout::default(), chain), &(m, n, p)).unwrap();
    }
    let rows = (0..m).map(|i| row(i).map(|k| (indices[k] as usize, exact(values[k]))).collect()).collect();
    let reference = Sparse { cols: n, rows };
    for (bounds, got) in
        [reference.product(T::PRECISION, &x.exact()), reference.gram(T::PRECISION, &x.exact())].iter().zip(&first)
    {
        for b in 0..bounds.rows {
            bounds.row(b).iter().enumerate().for_each(|(j, &bound)| check_bound(bound, got.get(b, j), &(b, j, m, n, p)));
        }
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| of_either_type(data, run::<f32>, run::<f64>));
