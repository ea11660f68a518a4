//! Sparse matrices from every format, their errors, training on a pattern, and norms as an operator.

mod common;

use common::{runtime, uniform};
use dualprop::hebbian::{Decay, Optimizer, Update};
use dualprop::lipschitz::{Certainty, Operator, Proof, Search, Seed, Status, enclose};
use dualprop::random::Counter;
use dualprop::relax::Variant;
use dualprop::sparse::Sparse;
use dualprop::{Activation, Error, Mat, MatMut, Workspace, hebbian, relax};
use faer::sparse::{SparseColMat, SparseColMatRef, SparseRowMatRef, SymbolicSparseRowMatRef, Triplet};

fn elements(sparse: &Sparse<f64>) -> Vec<(usize, usize, f64)> {
    (0..sparse.shape().0).flat_map(|i| sparse.row(i).map(move |(j, x)| (i, j, x))).collect()
}

fn keep(row: usize, col: usize) -> bool {
    (row * 7 + col * 3).is_multiple_of(4)
}

#[test]
fn every_format_is_the_same_matrix() {
    // (1 0 2 0; 0 0 3 4)
    let wanted = [(0, 0, 1.0), (0, 2, 2.0), (1, 2, 3.0), (1, 3, 4.0)];
    let rows = Sparse::from_csr(2, 4, &[0u32, 2, 4], &[0i32, 2, 2, 3], &[1.0, 2.0, 3.0, 4.0]).unwrap();
    assert_eq!(elements(&rows), wanted);
    assert_eq!((rows.shape(), rows.stored()), ((2, 4), 4));
    let cols = Sparse::from_csc(2, 4, &[0usize, 1, 1, 3, 4], &[0u16, 0, 1, 1], &[1.0, 2.0, 3.0, 4.0]).unwrap();
    assert_eq!(cols, rows);
    // What is not stored is NaN here, and never read.
    let dense = Mat::from_fn(2, 4, |i, j| wanted.iter().find(|&&(a, b, _)| (a, b) == (i, j)).map_or(f64::NAN, |&(_, _, x)| x));
    assert_eq!(Sparse::from_mask(dense.as_ref(), &[0b0101, 0b1100]).unwrap(), rows);
    assert_eq!(Sparse::from_dense(dense.as_ref(), |i, j| !dense[(i, j)].is_nan()).unwrap(), rows);
    // Uncompressed: rows end before the next begins.
    let symbolic = SymbolicSparseRowMatRef::<u32>::new_checked(2, 4, &[0, 3, 5], Some(&[2, 2]), &[0, 2, 0, 2, 3]);
    let loose = SparseRowMatRef::new(symbolic, &[1.0, 2.0, f64::NAN, 3.0, 4.0]);
    assert_eq!(Sparse::from_faer_rows(loose).unwrap(), rows);
    let triplets: Vec<_> = wanted.iter().map(|&(i, j, x)| Triplet::new(i as u32, j as u32, x)).collect();
    let faer = SparseColMat::<u32, f64>::try_new_from_triplets(2, 4, &triplets).unwrap();
    assert_eq!(Sparse::from_faer_cols(faer.as_ref()).unwrap(), rows);
    let transposed = Sparse::from_faer_rows(faer.as_ref().transpose()).unwrap();
    assert_eq!(elements(&transposed), [(0, 0, 1.0), (2, 0, 2.0), (2, 1, 3.0), (3, 1, 4.0)]);
    let blocks = Sparse::from_bsr(2, 4, (2, 2), &[0, 2], &[0, 1], &[1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 3.0, 4.0]).unwrap();
    assert_eq!(blocks.stored(), 8);
    assert_eq!(elements(&blocks).into_iter().filter(|&(.., x)| x != 0.0).collect::<Vec<_>>(), wanted);
}

#[test]
fn errors_name_the_place() {
    let csr = |indptr: &[i32], indices: &[i32], values: &[f64]| {
        Sparse::from_csr(2, 3, indptr, indices, values).map(|_| ()).map_err(|e| e.to_string())
    };
    let err = |s: &str| Err(s.to_owned());
    assert_eq!(csr(&[0, 1, 2], &[0, 1], &[1.0]), err("values has 1 elements, but must have 2"));
    let order = "indices must ascend strictly: sorted, no duplicates";
    assert_eq!(csr(&[0, 0, 2], &[1, 1], &[1.0; 2]), err(&format!("row 1 is broken at position 1: {order}")));
    assert_eq!(csr(&[0, 2, 2], &[2, 0], &[1.0; 2]), err(&format!("row 0 is broken at position 1: {order}")));
    let range = "indices must be below the number of columns (CSC: rows)";
    assert_eq!(csr(&[0, 1, 2], &[0, 3], &[1.0; 2]), err(&format!("row 1 is broken at position 1: {range}")));
    assert_eq!(csr(&[0, 2, 1], &[0, 1], &[1.0; 2]), err("row 1 is broken at position 2: pointers must not fall"));
    let csc = Sparse::<f64>::from_csc(3, 2, &[0, 1, 2], &[0, 3], &[1.0; 2]).unwrap_err();
    assert!(matches!(csc, Error::Pattern { line: "column", index: 1, position: 1, .. }));
    let bsr = |shape: (usize, usize), block, count| Sparse::from_bsr(shape.0, shape.1, block, &[0, 1], &[0], &vec![1.0; count]);
    assert!(matches!(bsr((2, 3), (2, 2), 4), Err(Error::Parameter { argument: "cols", .. })));
    assert!(matches!(bsr((2, 2), (0, 2), 0), Err(Error::Parameter { argument: "block", .. })));
    assert!(matches!(bsr((2, 2), (2, 2), 3), Err(Error::Length { argument: "values", .. })));
    let dense = Mat::<f64>::zeros(1, 3);
    assert!(matches!(Sparse::from_mask(dense.as_ref(), &[0b1000]), Err(Error::Pattern { index: 0, .. })));
    assert!(matches!(Sparse::from_mask(dense.as_ref(), &[]), Err(Error::Length { argument: "mask", .. })));
    // faer takes duplicates where they are not checked; here they are.
    let symbolic = SymbolicSparseRowMatRef::<u32>::new_unsorted_checked(1, 3, &[0, 2], None, &[1, 1]);
    let found = Sparse::from_faer_rows(SparseRowMatRef::new(symbolic, &[1.0, 2.0]));
    assert!(matches!(found, Err(Error::Pattern { line: "row", index: 0, position: 1, .. })));
    let symbolic = faer::sparse::SymbolicSparseColMatRef::<u32>::new_unsorted_checked(3, 1, &[0, 2], None, &[2, 1]);
    let found = Sparse::from_faer_cols(SparseColMatRef::new(symbolic, &[1.0, 2.0]));
    assert!(matches!(found, Err(Error::Pattern { line: "column", index: 0, position: 1, .. })));
}

/// A layer that is pruned has the states of a dense one with zeros.
#[test]
fn layers_are_those_of_the_dense_matrix() {
    let (batch, n_out, n_in) = (21, 150, 90);
    let values = uniform::<f32>(n_out, n_in, [-1.0, 1.0], 1);
    let sparse = Sparse::from_dense(values.as_ref(), keep).unwrap();
    let dense = Mat::from_fn(n_out, n_in, |i, j| if keep(i, j) { values[(i, j)] } else { 0.0 });
    let [below, above, drive] = [(n_in, 2), (n_out, 3), (n_in, 4)].map(|(n, seed)| uniform::<f32>(batch, n, [-1.0, 1.0], seed));
    let bias = vec![0.25; n_out];
    let mut work = Workspace::new(&runtime());
    let [mut a, mut b, mut f] = [(); 3].map(|()| Mat::<f32>::zeros(batch, n_out));
    sparse.drive(a.as_mut(), below.as_ref(), &bias, &mut work).unwrap();
    relax::drive(b.as_mut(), below.as_ref(), dense.as_ref(), &bias, &mut work).unwrap();
    assert_eq!(a, b);
    sparse.forward(b.as_mut(), f.as_mut(), below.as_ref(), &bias, Activation::Relu, &mut work).unwrap();
    assert_eq!(a, b);
    assert_eq!(f, Mat::from_fn(batch, n_out, |i, j| a[(i, j)].max(0.0)));
    let [mut mean, mut diff, mut mean2, mut diff2] = [(); 4].map(|()| Mat::<f32>::zeros(batch, n_in));
    let variant = Variant::Dp { alpha: 0.5 };
    sparse.relax(mean.as_mut(), diff.as_mut(), drive.as_ref(), above.as_ref(), variant, Activation::Tanh, &mut work).unwrap();
    let (m2, d2) = (mean2.as_mut(), diff2.as_mut());
    relax::relax(m2, d2, drive.as_ref(), above.as_ref(), dense.as_ref(), variant, Activation::Tanh, &mut work).unwrap();
    assert_eq!((mean, diff), (mean2, diff2));
    let mut out = Mat::<f32>::zeros(batch, n_in);
    sparse.top_down(out.as_mut(), above.as_ref(), &mut work).unwrap();
    let mut wide = Mat::<f32>::zeros(batch, n_in + 1);
    assert!(matches!(sparse.top_down(wide.as_mut(), above.as_ref(), &mut work), Err(Error::Shape { argument: "out", .. })));
    assert!(matches!(sparse.drive(a.as_mut(), above.as_ref(), &bias, &mut work), Err(Error::Shape { argument: "below", .. })));
    assert!(matches!(sparse.drive(a.as_mut(), below.as_ref(), &[], &mut work), Err(Error::Length { argument: "bias", .. })));
}

/// One step on the pattern is that of the dense matrix there, up to the order of the sum over the batch, and no element appears.
#[test]
fn updates_stay_on_the_pattern() {
    let (batch, n_out, n_in) = (40, 30, 25);
    let values = uniform::<f64>(n_out, n_in, [-1.0, 1.0], 1);
    let mut sparse = Sparse::from_dense(values.as_ref(), keep).unwrap();
    let mut dense = values.clone();
    let (diff, mean) = (uniform::<f64>(batch, n_out, [-1.0, 1.0], 2), uniform::<f64>(batch, n_in, [-1.0, 1.0], 3));
    let mut work = Workspace::new(&runtime());
    let update = Update { optimizer: Optimizer::Sgd, decay: Decay::None, learning_rate: 0.1, step: 1, scale: -1.0 };
    hebbian::update(dense.as_mut(), &mut [], diff.as_ref(), mean.as_ref(), &update, &mut work).unwrap();
    sparse.update(&mut [], diff.as_ref(), mean.as_ref(), &update, &mut work).unwrap();
    for (i, j, x) in elements(&sparse) {
        let size: f64 = (0..batch).map(|b| (diff[(b, i)] * mean[(b, j)]).abs()).sum();
        // Both sums are off by at most γ_B of their terms, the step by two roundings.
        let bound = f64::EPSILON * (0.1 * batch as f64 * size + 2.0 * (values[(i, j)].abs() + 0.1 * size));
        assert!(keep(i, j) && (x - dense[(i, j)]).abs() <= bound, "({i}, {j})");
    }
    let before = sparse.clone();
    let short = &mut [0.0; 3][..];
    let momentum = Update { optimizer: Optimizer::MOMENTUM, ..update };
    let found = sparse.update(&mut [short], diff.as_ref(), mean.as_ref(), &momentum, &mut work);
    assert!(matches!(found, Err(Error::Length { argument: "moments", .. })));
    let found = sparse.update(&mut [], diff.as_ref(), diff.as_ref(), &update, &mut work);
    assert!(matches!(found, Err(Error::Shape { argument: "mean", .. })));
    assert_eq!(sparse, before);
    // Values can be written as well; products see it both ways.
    sparse.edit(|values| values.fill(1.0));
    let mut out = Mat::<f64>::zeros(batch, n_in);
    sparse.top_down(out.as_mut(), Mat::full(batch, n_out, 1.0).as_ref(), &mut work).unwrap();
    assert_eq!(out, Mat::from_fn(batch, n_in, |_, j| (0..n_out).filter(|&i| keep(i, j)).count() as f64));
}

fn search() -> Search {
    Search { gap: 1e-6, certainty: Certainty::Deterministic, max_steps: 256, starts: 1, seed: Seed::Fixed(1) }
}

/// Enclosures of matrices of every size of number hold the norm that a singular value decomposition finds.
#[test]
fn norms_are_enclosed() {
    let (m, n) = (60, 80);
    let values = uniform::<f64>(m, n, [-1.0, 1.0], 1);
    let norm = {
        let dense = Mat::from_fn(m, n, |i, j| if keep(i, j) { values[(i, j)] } else { 0.0 });
        dense.singular_values().unwrap()[0]
    };
    for scale in [0, 900, -900] {
        let power = 2f64.powi(scale);
        let scaled = Mat::from_fn(m, n, |i, j| values[(i, j)] * power);
        let sparse = Sparse::from_dense(scaled.as_ref(), keep).unwrap();
        let found = enclose(&sparse, &search(), &runtime()).unwrap();
        let (lower, upper) = (found.enclosure.lower / power, found.enclosure.upper / power);
        // The decomposition is good to a few units in the last place times a root of the size.
        let slack = 1e-13 * norm;
        assert!(lower <= norm + slack && norm - slack <= upper, "{lower} … {upper} for {norm}");
        assert_eq!(found.enclosure.status, Status::GapReached);
    }
}

#[test]
fn brackets_are_exact_where_they_can_be() {
    let zero = Sparse::<f64>::from_csr(3, 2, &[0, 0, 1, 1], &[1], &[0.0]).unwrap();
    assert_eq!(zero.bracket().unwrap().proof, Proof::Zero);
    let empty = Sparse::<f64>::from_csr(0, 0, &[0], &[] as &[u32], &[]).unwrap();
    assert_eq!(empty.bracket().unwrap().upper, 0.0);
    let row = Sparse::from_csr(1, 9, &[0, 2], &[1, 5], &[3.0, 4.0]).unwrap();
    let bracket = row.bracket().unwrap();
    assert!(bracket.lower <= 5.0 && 5.0 <= bracket.upper && bracket.upper - bracket.lower < 1e-13 && bracket.largest == 4.0);
    let bad = Sparse::from_csr(2, 9, &[0, 1, 3], &[1, 5, 7], &[3.0, 4.0, f64::NAN]).unwrap();
    assert!(matches!(bad.bracket(), Err(Error::NotFinite { row: 1, col: 7, .. })));
}

/// `image` is within its bound of sums in exact integers, `block` and `abs_gram` are exact for them.
#[test]
fn proofs_stand_on_the_stored_elements() {
    let mut random = Counter::new(3, 0);
    let mut integer = || random.below(17) as f64 - 8.0;
    let values = Mat::from_fn(20, 30, |i, j| if keep(i, j) { integer() } else { f64::NAN });
    let sparse = Sparse::from_dense(values.as_ref(), keep).unwrap();
    let element = |i: usize, j: usize| if keep(i, j) { values[(i, j)] } else { 0.0 };
    let x: Vec<f64> = (0..30).map(|j| (j % 5) as f64).collect();
    let mut y = vec![f64::NAN; 20];
    let bound = sparse.image(&x, &mut y);
    let exact: Vec<f64> = (0..20).map(|i| (0..30).map(|j| element(i, j) * x[j]).sum()).collect();
    assert_eq!(y, exact);
    assert!(bound > 0.0 && bound < 1e-11);
    let mut z = vec![f64::NAN; 30];
    assert!(sparse.abs_gram(&x, &mut z));
    let sizes: Vec<f64> = (0..20).map(|i| (0..30).map(|j| element(i, j).abs() * x[j]).sum()).collect();
    let wanted: Vec<f64> = (0..30).map(|j| (0..20).map(|i| element(i, j).abs() * sizes[i]).sum()).collect();
    assert_eq!(z, wanted);
    let mut block = Mat::from_fn(7, 11, |_, _| f64::NAN);
    assert_eq!(sparse.block(5, 13, block.as_mut()), Some(0.0));
    assert_eq!(block, Mat::from_fn(7, 11, |i, j| element(5 + i, 13 + j)));
    // A rescaled operator says what its rounded elements lose.
    let tiny = Sparse::from_csr(1, 1, &[0, 1], &[0], &[3.0f64]).unwrap();
    let scaled = tiny.rescaled(-1074).unwrap();
    let mut y = [0.0];
    let bound = scaled.image(&[1.0], &mut y);
    assert!(bound >= (3.0 * f64::from_bits(1) - y[0]).abs());
    let half = Sparse::from_csr(1, 1, &[0, 1], &[0], &[1.5f64]).unwrap();
    let scaled = half.rescaled(-1074).unwrap();
    assert!(scaled.block(0, 0, MatMut::from_row_major_slice_mut(&mut y, 1, 1)).unwrap() >= f64::from_bits(1));
}
