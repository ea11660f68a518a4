//! Products with rows of a matrix that a list names, with some rows and columns, and inner products of rows: the promised chains on each instruction
//! set, and within the bounds of the reference.
#![no_main]

mod case;
#[path = "../../kernels/tests/common/mod.rs"]
mod common;

use arbitrary::{Result, Unstructured};
use case::*;
use common::*;
use dualprop_kernels::isa::Isa;
use dualprop_kernels::selected::{OUTPUTS, Selected, crossing, inner, selected};
use dualprop_reference::bound::{Precision, affine, dot};
use libfuzzer_sys::fuzz_target;

/// Ascending numbers below `end`: one byte for each run that is skipped or kept.
fn ascending(u: &mut Unstructured<'_>, end: usize) -> Result<Vec<u32>> {
    let (mut list, mut at) = (Vec::new(), 0);
    while at < end {
        let (skip, kept) = (u.int_in_range(0..=9usize)?, u.int_in_range(1..=20usize)?);
        list.extend((at + skip..end.min(at + skip + kept)).map(|p| p as u32));
        at += skip + kept;
    }
    Ok(list)
}

/// One of several products with the same matrix.
struct Problem<T> {
    rows: Vec<u32>,
    factors: Grid<T>,
    start: Option<Grid<T>>,
    wanted: Option<Vec<u32>>,
    cols: usize,
    layout: Layout,
}

fn some_rows<T: Scalar>(u: &mut Unstructured<'_>, matrix: &Grid<T>) -> Result<()> {
    let ((height, width), m) = (matrix.shape(), size(u, 31)?);
    let mut problems = Vec::new();
    for _ in 0..u.int_in_range(1..=3u8)? {
        let (rows, cols) = (ascending(u, height)?, if u.arbitrary()? { width } else { u.int_in_range(0..=width)? });
        let start = if u.arbitrary()? { Some(grid::<T>(u, m, cols)?) } else { None };
        let wanted = if u.arbitrary()? { Some(ascending(u, cols)?) } else { None };
        problems.push(Problem { factors: grid(u, rows.len(), m)?, rows, start, wanted, cols, layout: any_layout_by_rows(u)? });
    }
    // What a lower triangle leaves out are zeros, which infinite factors would turn into NaN.
    let lower = u.arbitrary()? && problems.iter().all(|problem| elements(&problem.factors).all(|x| x.is_finite()));
    let entry = |p: usize, j: usize| if lower && j > p { T::ZERO } else { matrix.get(p, j) };
    let matrix = Grid::from_fn(height, width, any_layout_by_rows(u)?, entry);
    for isa in Isa::available() {
        let mut outs: Vec<Grid<T>> = problems.iter().map(|problem| Grid::blank(m, problem.cols, problem.layout)).collect();
        let starts: Vec<Option<Grid<T>>> =
            problems.iter().map(|problem| problem.start.as_ref().map(|start| start.relaid(problem.layout))).collect();
        let factors: Vec<Vec<T>> = problems.iter().map(|problem| elements(&problem.factors).collect()).collect();
        let mut products: Vec<Selected<'_, T>> = problems
            .iter()
            .zip(&mut outs)
            .zip(starts.iter().zip(&factors))
            .map(|((problem, out), (start, factors))| Selected {
                rows: &problem.rows,
                factors,
                start: start.as_ref().map(|start| start.view()),
                wanted: problem.wanted.as_deref(),
                out: out.view_mut(),
            })
            .collect();
        selected(isa, matrix.view(), lower, &mut products);
        for (problem, out) in problems.iter().zip(&outs) {
            let case = (isa, matrix.shape(), lower, &problem.rows, &problem.wanted, problem.cols, problem.layout);
            out.check_canaries(&case).unwrap();
            let wanted = |j: usize| problem.wanted.as_ref().is_none_or(|wanted| wanted.binary_search(&(j as u32)).is_ok());
            for i in 0..m {
                for j in (0..problem.cols).filter(|&j| wanted(j)) {
                    let pairs =
                        || problem.rows.iter().enumerate().map(|(at, &p)| (problem.factors.get(at, i), entry(p as usize, j)));
                    let first = problem.start.as_ref().map(|start| start.get(i, j));
                    let chain = pairs().fold(first.unwrap_or(T::ZERO), |sum, (z, w)| z.mul_add(w, sum));
                    let got = out.get(i, j);
                    assert!(equal(got, chain), "{got:e}, not {chain:e} at ({i}, {j}): {case:?}");
                    let pairs = pairs().map(|(z, w)| (exact(z), exact(w)));
                    let bound =
                        first.map_or_else(|| dot(T::PRECISION, pairs.clone()), |first| affine(exact(first), pairs.clone()));
                    check_bound(bound, got, &case);
                }
            }
        }
    }
    Ok(())
}

fn some_rows_and_columns<T: Scalar>(u: &mut Unstructured<'_>, matrix: &Grid<T>) -> Result<()> {
    let ((height, width), layout) = (matrix.shape(), any_layout(u)?);
    let mut list = |end: usize| -> Result<Vec<u32>> {
        let length = if end == 0 { 0 } else { u.int_in_range(0..=30usize)? };
        (0..length).map(|_| Ok(u.choose_index(end)? as u32)).collect()
    };
    let (rows, columns) = (list(height)?, list(width)?);
    let outputs = OUTPUTS * u.int_in_range(1..=3usize)?;
    let z: Vec<f64> = elements(&grid(u, rows.len(), outputs)?).collect();
    let relaid = matrix.relaid(layout);
    for isa in Isa::available() {
        let mut out = Guarded::new(columns.len() * outputs);
        crossing(isa, relaid.view(), &rows, &columns, &z, outputs, out.slice());
        for (at, got) in out.finish().into_iter().enumerate() {
            let (j, o) = (columns[at / outputs] as usize, at % outputs);
            let pairs = || rows.iter().enumerate().map(|(i, &p)| (matrix.get(p as usize, j).to_f64(), z[i * outputs + o]));
            let chain = pairs().fold(0.0, |sum, (w, z)| w.mul_add(z, sum));
            let case = (isa, matrix.shape(), layout, &rows, &columns, outputs);
            assert!(same(got, chain), "{got:e}, not {chain:e} at ({j}, {o}): {case:?}");
            check_bound(dot(Precision::F64, pairs().map(|(w, z)| (exact(w), exact(z)))), got, &case);
        }
    }
    Ok(())
}

fn inner_products<T: Scalar>(u: &mut Unstructured<'_>, x: &Grid<T>) -> Result<()> {
    let ((m, n), relaid, layout) = (x.shape(), x.relaid(any_layout_by_rows(u)?), any_layout(u)?);
    let mut first = None;
    for isa in Isa::available() {
        let mut out = Grid::<f64>::blank(m, m, layout);
        inner(isa, relaid.view(), out.view_mut());
        agree(&mut first, vec![out], &(isa, m, n, layout));
    }
    let out = &first.expect("the portable set is always available")[0];
    for (i, j) in samples((m, m)) {
        let bound = dot(T::PRECISION, (0..n).map(|p| (exact(x.get(i, p)), exact(x.get(j, p)))));
        check_bound(bound, out.get(i, j), &(i, j, m, n));
    }
    Ok(())
}

fn run<T: Scalar>(mut u: Unstructured<'_>) -> Result<()> {
    let (height, width) = (size(&mut u, 130)?, size(&mut u, 200)?);
    let matrix = grid::<T>(&mut u, height, width)?;
    match u.int_in_range(0..=3u8)? {
        0 => some_rows_and_columns(&mut u, &matrix),
        1 => inner_products(&mut u, &matrix),
        _ => some_rows(&mut u, &matrix),
    }
}

fuzz_target!(|data: &[u8]| of_either_type(data, run::<f32>, run::<f64>));
