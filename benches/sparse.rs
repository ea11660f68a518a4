//! Sparse products: `Aᵀ(A x)` for 1, 8 and 16 vectors, and a pruned layer in training, against faer.
//!
//! faer's sparse product is scalar, and the only one of its kind for both formats; `benches/peers/sparse.py` has MKL.

mod common;

use std::cell::OnceCell;

use common::peers::Peer;
use common::{Bench, By, Expected, RowMajor, Scalar, Work};
use dualprop::Par;
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::optimizer::{Decay, Optimizer, Update};
use dualprop_kernels::product::Scratch;
use dualprop_kernels::sparse::{self, Matrix, Pattern};
use dualprop_kernels::strided::Output;
use dualprop_reference::bound::{Bounded, dot};
use dualprop_reference::generate::SplitMix64;
use faer::sparse::linalg::matmul::sparse_dense_matmul;
use faer::sparse::{SparseColMatRef, SymbolicSparseColMatRef};
use faer::{Accum, Mat};

fn main() {
    let mut bench = Bench::new();
    for percent in [1, 5, 10] {
        rows::<f32>(&mut bench, 4096, percent);
    }
    rows::<f64>(&mut bench, 4096, 5);
    bench.finish();
}

/// A square matrix with elements at random places, by rows.
struct Raw<T> {
    start: Vec<u32>,
    indices: Vec<u32>,
    values: Vec<T>,
}

impl<T: Scalar> Raw<T> {
    fn new(n: usize, percent: u64) -> Self {
        let mut random = SplitMix64::new(1);
        let (mut start, mut indices) = (vec![0], Vec::new());
        for _ in 0..n {
            indices.extend((0..n as u32).filter(|_| random.below(100) < percent));
            start.push(indices.len() as u32);
        }
        let values = indices.iter().map(|_| T::from_f64(random.symmetric())).collect();
        Self { start, indices, values }
    }

    /// `Σ_j a_ij x_j`.
    fn row(&self, i: usize, x: impl Fn(usize) -> Bounded) -> Bounded {
        let row = self.start[i] as usize..self.start[i + 1] as usize;
        dot(T::PRECISION, row.map(|k| (T::PRECISION.exact(self.values[k].to_f64()), x(self.indices[k] as usize))))
    }
}

fn rows<T: Scalar>(bench: &mut Bench, n: usize, percent: u64) {
    let isa = bench.isa;
    let raw = Raw::<T>::new(n, percent);
    let pattern = Pattern::new(n, n, &raw.start, &raw.indices).expect("a sound pattern");
    let matrix = Matrix::new(pattern, raw.values.clone());
    let (stored, columns) = (raw.values.len(), matrix.columns().pattern());
    let bytes = 2 * stored * (size_of::<T>() + 2);

    // By columns, so that faer's one format gives both products.
    let of_columns: Vec<u32> = (0..=n).map(|j| if j < n { columns.line(j).start as u32 } else { stored as u32 }).collect();
    let in_columns: Vec<u32> = (0..stored).map(|k| columns.index(k) as u32).collect();
    let by_columns = SymbolicSparseColMatRef::new_checked(n, n, &of_columns, None, &in_columns);
    let by_columns = SparseColMatRef::new(by_columns, matrix.columns().values());
    let by_rows = SymbolicSparseColMatRef::new_checked(n, n, &raw.start, None, &raw.indices);
    let transposed = SparseColMatRef::new(by_rows, &raw.values);

    for p in [1, 8, 16] {
        let x = RowMajor::<T>::uniform(n, p, 1.0, 2);
        let mut group =
            bench.group(&format!("sparse/gram {} {n}x{n} {percent}% p={p}", T::NAME), Work { flops: 4 * p * stored, bytes });
        let expected = OnceCell::new();
        let reference = || {
            let products: Vec<Vec<_>> = (0..p).map(|v| (0..n).map(|i| raw.row(i, |j| x.exact(j, v))).collect()).collect();
            Expected::new(n, p, |j, v| {
                let terms =
                    columns.line(j).map(|k| (T::PRECISION.exact(matrix.columns().values()[k].to_f64()), columns.index(k)));
                dot(T::PRECISION, terms.map(|(a, i)| (a, products[v][i])))
            })
        };
        let check = |y: &RowMajor<T>| expected.get_or_init(reference).check(y, 0.0);
        let state = || (RowMajor::zeros(n, p), vec![0.0; p], Scratch::new());
        let ours = |(y, squares, scratch): &mut (RowMajor<T>, Vec<f64>, Scratch<T>)| {
            sparse::gram(isa, Par::Seq, &matrix, x.view().transpose(), y.view_mut().transpose_mut(), squares, scratch);
        };
        group.row(By::Dualprop, "two gathers", state, ours, |(y, ..)| check(y));
        let columns_of_x = Mat::from_fn(n, p, |j, v| x.view()[(j, v)]);
        let state = || (Mat::<T>::zeros(n, p), Mat::<T>::zeros(n, p));
        let pair = |(y, t): &mut (Mat<T>, Mat<T>)| {
            sparse_dense_matmul(t.as_mut(), Accum::Replace, by_columns, columns_of_x.as_ref(), T::ONE, Par::Seq);
            sparse_dense_matmul(y.as_mut(), Accum::Replace, transposed, t.as_ref(), T::ONE, Par::Seq);
        };
        group.row(By::Peer(Peer::Faer), "two sparse products", state, pair, |(y, _)| check(&RowMajor::copied(y.as_ref())));
    }

    let batch = 64;
    let states = RowMajor::<T>::uniform(batch, n, 1.0, 3);
    let work = || Work { flops: 2 * batch * stored, bytes: bytes / 2 };
    let mut group = bench.group(&format!("sparse/forward {} {n}x{n} {percent}% B={batch}", T::NAME), work());
    let expected = OnceCell::new();
    let check = |out: &RowMajor<T>| {
        let reference = || Expected::new(batch, n, |b, i| raw.row(i, |j| states.exact(b, j)));
        expected.get_or_init(reference).check(out, 0.0);
    };
    let forward = |(out, scratch): &mut (RowMajor<T>, Scratch<T>)| {
        let epilogue = Epilogue::Store { out: Output::new(out.view_mut()), scale: T::ONE };
        sparse::product(isa, Par::Seq, matrix.rows(), states.view(), epilogue, scratch);
    };
    group.row(By::Dualprop, "", || (RowMajor::zeros(batch, n), Scratch::new()), forward, |(out, _)| check(out));
    drop(group);

    let mut group = bench.group(&format!("sparse/update {} {n}x{n} {percent}% B={batch}", T::NAME), work());
    let update = Update { optimizer: Optimizer::Sgd, decay: Decay::None, learning_rate: 1e-3, step: 1, scale: 1.0 };
    let run = |(weights, scratch): &mut (Matrix<T>, Scratch<T>)| {
        sparse::update(isa, Par::Seq, weights, &mut [], states.view(), states.view(), update, scratch);
    };
    let finite = |(weights, _): &mut (Matrix<T>, Scratch<T>)| assert!(weights.columns().values().iter().all(|w| w.is_finite()));
    group.row(By::Dualprop, "SGD on the pattern", || (matrix.clone(), Scratch::new()), run, finite);
}
