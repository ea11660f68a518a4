//! `y = Aᵀ(A x)`, the step of every power or Lanczos iteration, against pairs of products.
//!
//! The bound is one read of `A` (row "machine"); a pair of products reads it twice. `benches/peers/gram.py` has the peers of Python.

mod common;

use std::cell::OnceCell;

use common::passes::pass;
use common::peers::Peer;
use common::{Bench, By, Expected, RowMajor, Scalar, Work};
use dualprop::Par;
use dualprop_kernels::gram::{abs_gram, gram, image};
use dualprop_kernels::isa::Kernel;
use dualprop_kernels::product::Scratch;
use dualprop_kernels::scan::scan;
use dualprop_kernels::vector::Vector;
use dualprop_reference::bound::{Bounded, dot};

fn main() {
    let mut bench = Bench::new();
    for (m, n) in [(1000, 784), (1024, 1024), (4096, 4096), (10_000, 8192)] {
        rows::<f32>(&mut bench, m, n);
    }
    rows::<f64>(&mut bench, 1024, 1024);
    bench.finish();
}

fn rows<T: Scalar>(bench: &mut Bench, m: usize, n: usize) {
    let isa = bench.isa;
    let a = RowMajor::<T>::uniform(m, n, 1.0, 1);
    let bytes = m * n * size_of::<T>();
    let products = [const { OnceCell::new() }; 8];
    for p in [1, 4, 8] {
        // The first rows are those of fewer vectors.
        let x = RowMajor::<T>::uniform(p, n, 1.0, 2);
        // A vector at a time costs one read each; a sweep for all of them costs one.
        let work = Work { flops: 4 * p * m * n, bytes };
        let mut group = bench.group(&format!("gram/{} {m}x{n} p={p}", T::NAME), work);
        let expected = OnceCell::new();
        let check = |y: &RowMajor<T>| expected.get_or_init(|| reference(&a, &x, &products)).check(y, 0.0);

        let state = || (RowMajor::zeros(p, n), vec![0.0; p], Scratch::new());
        let ours = |(y, squares, scratch): &mut (RowMajor<T>, Vec<f64>, Scratch<T>)| {
            gram(isa, Par::Seq, a.view(), x.view(), y.view_mut(), squares, scratch);
        };
        group.row(By::Dualprop, "one sweep", state, ours, |(y, ..)| check(y));
        for peer in Peer::ALL {
            let state = || (RowMajor::zeros(p, n), RowMajor::zeros(p, m));
            let pair = |(y, t): &mut (RowMajor<T>, RowMajor<T>)| {
                peer.product(t.view_mut(), T::ZERO, T::ONE, x.view(), a.view().transpose());
                peer.product(y.view_mut(), T::ZERO, T::ONE, t.view(), a.view());
            };
            group.row(By::Peer(peer), "two products", state, pair, |(y, _)| check(y));
        }
        group.row(By::Machine, "one read of A", || T::ZERO, |sum| pass(Read { a: &a, sum }), |sum| assert!(sum.is_finite()));
    }

    let mut group = bench.group(&format!("gram/wide {} {m}x{n}", T::NAME), Work { flops: 0, bytes });
    let vectors = || (vec![1.0; n], vec![0.0; n.max(m)], Scratch::new());
    let finite = |(_, y, _): &mut (Vec<f64>, Vec<f64>, Scratch<f64>)| assert!(y.iter().all(|y| y.is_finite()));
    let run = |(x, y, scratch): &mut (Vec<f64>, Vec<f64>, _)| abs_gram(isa, Par::Seq, a.view(), x, &mut y[..n], scratch);
    group.row(By::Dualprop, "abs_gram", vectors, run, finite);
    let run = |(x, y, _): &mut (Vec<f64>, Vec<f64>, _)| image(isa, Par::Seq, a.view(), x, &mut y[..m]);
    group.row(By::Dualprop, "image", vectors, run, finite);
    let run = |(_, y, scratch): &mut (Vec<f64>, Vec<f64>, _)| y[0] = scan(isa, a.view(), scratch).expect("finite").square;
    group.row(By::Dualprop, "scan", vectors, run, |(_, y, _)| assert!(y[0] > 0.0));
    group.row(By::Machine, "one read of A", || T::ZERO, |sum| pass(Read { a: &a, sum }), |sum| assert!(sum.is_finite()));
}

/// Some elements of some `y_i`. The error of a product enters that of `y` as it does in any code. `products` keeps `A x_i`, most of the work.
fn reference<T: Scalar>(a: &RowMajor<T>, x: &RowMajor<T>, products: &[OnceCell<Vec<Bounded>>]) -> Expected {
    let (m, n) = (a.rows(), a.cols());
    let product = |i: usize| (0..m).map(|r| dot(T::PRECISION, (0..n).map(|j| (a.exact(r, j), x.exact(i, j))))).collect();
    Expected::new(x.rows(), n, |i, j| {
        let product: &Vec<Bounded> = products[i].get_or_init(|| product(i));
        dot(T::PRECISION, (0..m).map(|r| (a.exact(r, j), product[r])))
    })
}

/// Reads every element once, in eight chains.
struct Read<'a, T> {
    a: &'a RowMajor<T>,
    sum: &'a mut T,
}

impl<T: Scalar> Kernel<T> for Read<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        let mut sums = [simd.splat(T::ZERO); 8];
        for row in 0..self.a.rows() {
            let (vectors, _) = S::as_vectors(self.a.row(row));
            let (eights, rest) = vectors.as_chunks::<8>();
            for eight in eights {
                for k in 0..8 {
                    sums[k] = simd.add(sums[k], eight[k]);
                }
            }
            for &x in rest {
                sums[0] = simd.add(sums[0], x);
            }
        }
        let mut lanes = [T::ZERO; 16];
        S::as_vectors_mut(&mut lanes).0[0] = sums.into_iter().fold(simd.splat(T::ZERO), |a, b| simd.add(a, b));
        *self.sum = lanes.into_iter().fold(T::ZERO, |a, b| a + b);
    }
}
