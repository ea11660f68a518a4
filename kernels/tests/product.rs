//! Products against sums in f64 with their bounds, against the promised chain of fused multiply-adds to the bit, and against small
//! integers exactly; over instruction sets, operand forms, blockings and threads.

mod common;

use common::*;
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::isa::Isa;
use dualprop_kernels::pack::{Bands, Panels};
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};
use dualprop_kernels::strided::Input;
use dualprop_kernels::threads::SEQUENTIAL;
use dualprop_reference::bound::{dot, scaled_affine, scaled_dot};
use dualprop_reference::generate::Family;
use faer::Par;
use proptest::sample::select;

tests_of_both_types!(
    random_products,
    every_form_and_blocking,
    threads,
    single_rows,
    few_rows,
    far_operands,
    every_block_is_worked_on_once,
    small_integers_are_exact,
    bounds_notice_what_is_missing,
    empty_products,
    poison_stays_in_its_row_and_column,
    nothing_stale_is_used,
    repeated_factors,
    misuse_panics,
);

/// The product in a fresh matrix.
fn stored<T: Scalar>(call: &Call, isa: Isa, rows: &Grid<T>, lanes: &Grid<T>, scale: T) -> Grid<T> {
    let mut out = Grid::blank(rows.shape().0, lanes.shape().1, call.operands[0]);
    call.product(isa, rows, lanes, Epilogue::Store { out: out.output(), scale });
    out
}

/// The product added to `old`.
fn accumulated<T: Scalar>(call: &Call, isa: Isa, rows: &Grid<T>, lanes: &Grid<T>, scale: T, old: &Grid<T>) -> Grid<T> {
    let mut out = old.relaid(call.operands[0]);
    call.product(isa, rows, lanes, Epilogue::Accumulate { out: out.output(), scale });
    out
}

fn random_products<T: Scalar>() {
    let (sums, scaled, added) = (Tally::default(), Tally::default(), Tally::default());
    let scale = select(vec![1.0, -1.0, 0.5, -3.0, 0.1, 0.0]);
    for_all(500, (problem(), [call(), call()], scale, select(Family::ALL.to_vec())), |(problem, calls, scale, family)| {
        let (rows, lanes, old) = (problem.rows::<T>(), problem.lanes(), problem.operand(family, 0));
        let (chains, scale) = (chains(&rows, &lanes), T::from_f64(scale));
        sums.check(&bounds(&rows, &lanes, |terms, _, _| dot(T::PRECISION, terms)), &chains, &problem)?;
        let mut first: Option<[Grid<T>; 2]> = None;
        for isa in Isa::available() {
            for call in &calls {
                stored(call, isa, &rows, &lanes, T::ONE).check_bits(&chains, &(isa.name(), call))?;
                let store = stored(call, isa, &rows, &lanes, scale);
                let accumulate = accumulated(call, isa, &rows, &lanes, scale, &old);
                let [first_store, first_accumulate] = first.get_or_insert_with(|| [store.clone(), accumulate.clone()]);
                store.check_bits(first_store, &(isa.name(), call))?;
                accumulate.check_bits(first_accumulate, &(isa.name(), call))?;
            }
        }
        let [store, accumulate] = first.expect("the portable set is always available");
        scaled.check(&bounds(&rows, &lanes, |terms, _, _| scaled_dot(exact(scale), terms)), &store, &problem)?;
        let bound = bounds(&rows, &lanes, |terms, i, j| scaled_affine(exact(old.get(i, j)), exact(scale), terms));
        added.check(&bound, &accumulate, &problem)
    });
    sums.conclude::<T>("sums");
    scaled.conclude::<T>("scaled sums");
    added.conclude::<T>("accumulated sums");
}

/// Shapes with every kind of tail.
const SHAPES: [[usize; 3]; 4] = [[13, 53, 11], [1, 100, 9], [27, 1, 70], [8, 48, 8]];

fn every_form_and_blocking<T: Scalar>() {
    for [m, n, depth] in SHAPES {
        let problem = Problem { m, n, depth, families: [Family::Uniform, Family::Mixed], seed: 7 };
        let (rows, lanes, old) = (problem.rows::<T>(), problem.lanes(), problem.operand(Family::Uniform, 0));
        let chains = chains(&rows, &lanes);
        let sum = Grid::from_fn(m, n, Layout::default(), |i, j| T::ONE.mul_add(chains.get(i, j), old.get(i, j)));
        for isa in Isa::available() {
            for call in Call::each(isa) {
                stored(&call, isa, &rows, &lanes, T::ONE).check_bits(&chains, &(isa.name(), call, problem)).unwrap();
                accumulated(&call, isa, &rows, &lanes, T::ONE, &old).check_bits(&sum, &(isa.name(), call, problem)).unwrap();
            }
        }
    }
}

/// Products large enough to be shared out.
fn threads<T: Scalar>() {
    for [m, n, depth] in [[196, 180, 64], [231, 131, 71], [13, 701, 257], [700, 19, 160]] {
        assert!(m * n * depth >= SEQUENTIAL, "small products stay on one thread");
        let problem = Problem { m, n, depth, families: [Family::Uniform; 2], seed: 11 };
        let (rows, lanes) = (problem.rows::<T>(), problem.lanes());
        let chains = chains(&rows, &lanes);
        for isa in Isa::available() {
            let cuts = [Blocking { mc: 1, kc: 64, nc: 1, group: 1 }, Blocking { mc: 20, kc: 7, nc: 2, group: 5 }];
            let cuts = cuts.map(Cut::Given).into_iter().chain([Cut::StreamingPanels, Cut::StreamingRows, Cut::InPlace]);
            for (number, cut) in cuts.enumerate() {
                for par in [Par::Seq, Par::rayon(2), Par::rayon(3), Par::rayon(8)] {
                    let packed = Form { packed: number % 2 == 1, layout: Layout::default() };
                    let call = Call { cut, par, rows: packed, lanes: packed, swapped: number % 2 == 0, ..Call::plain() };
                    stored(&call, isa, &rows, &lanes, T::ONE).check_bits(&chains, &(isa.name(), call, problem)).unwrap();
                }
            }
        }
    }
}

/// A row alone, or left over, goes over some panels abreast, or not, and takes a narrower one at the end along.
fn single_rows<T: Scalar>() {
    for isa in Isa::available() {
        let (mr, nv) = isa.tile();
        let width = nv * isa.lanes::<T>();
        for (m, panels, depth) in [(1, 3, 9), (1, 4, 40), (1, 5, 300), (1, 9, 70), (mr + 1, 8, 21)] {
            for more in [0, 1, isa.lanes::<T>() + 1, width - 1] {
                let n = panels * width + more;
                let problem = Problem { m, n, depth, families: [Family::Uniform; 2], seed: 23 };
                let (rows, lanes) = (problem.rows::<T>(), problem.lanes());
                let chains = chains(&rows, &lanes);
                let cuts = [4, 6].map(|nc| Cut::Given(Blocking { mc: m, kc: 16, nc, group: 1 }));
                for cut in cuts.into_iter().chain([Cut::StreamingPanels, Cut::StreamingRows, Cut::InPlace]) {
                    for packed in [false, true] {
                        let call = Call { cut, lanes: Form { packed, layout: Layout::default() }, ..Call::plain() };
                        stored(&call, isa, &rows, &lanes, T::ONE).check_bits(&chains, &(isa.name(), call, problem)).unwrap();
                    }
                }
            }
        }
    }
}

/// Rows that are few enough for contiguous columns to be turned in registers, and one more; columns and depth with tails on either side of a vector.
fn few_rows<T: Scalar>() {
    for isa in Isa::available() {
        let (lanes, width) = (isa.lanes::<T>(), isa.tile().1 * isa.lanes::<T>());
        for m in 1..=isa.few() + 1 {
            for n in [1, lanes - lanes / 2, lanes, lanes + 1, width + 2 * lanes - 1] {
                for depth in [1, lanes.div_ceil(2), lanes + 1, 5 * lanes - 1] {
                    let problem = Problem { m, n, depth, families: [Family::Uniform, Family::Mixed], seed: 31 };
                    let (rows, columns) = (problem.rows::<T>(), problem.lanes());
                    let chains = chains(&rows, &columns);
                    for (padding, reversed) in [(0, false), (3, false), (1, true)] {
                        let far = |by_columns| Layout {
                            by_columns,
                            padding,
                            rows_reversed: !by_columns && reversed,
                            cols_reversed: reversed,
                        };
                        let form = |by_columns| Form { packed: false, layout: far(by_columns) };
                        for rows_by_columns in [false, true] {
                            let call = Call {
                                rows: form(rows_by_columns),
                                lanes: form(true),
                                operands: [far(false); 3],
                                ..Call::plain()
                            };
                            stored(&call, isa, &rows, &columns, T::ONE)
                                .check_bits(&chains, &(isa.name(), call, problem))
                                .unwrap();
                        }
                    }
                }
            }
        }
    }
}

/// Operands and results of a size from which on more is asked for beforehand than is at hand.
fn far_operands<T: Scalar>() {
    for [m, n, depth] in [[3, 701, 803], [20, 701, 803], [97, 701, 803], [9, 1501, 1501]] {
        let problem = Problem { m, n, depth, families: [Family::Uniform; 2], seed: 29 };
        let (rows, lanes) = (problem.rows::<T>(), problem.lanes());
        let chains = chains(&rows, &lanes);
        for isa in Isa::available() {
            let on_the_fly = Cut::Given(Blocking::on_the_fly(m));
            for (cut, packed, by_columns) in
                [(on_the_fly, false, true), (Cut::InPlace, false, false), (Cut::StreamingPanels, true, false)]
            {
                for operands in [Layout::default(), Layout { by_columns: true, ..Layout::default() }] {
                    let lanes_form = Form { packed, layout: Layout { by_columns, ..Layout::default() } };
                    let call = Call { cut, lanes: lanes_form, operands: [operands; 3], ..Call::plain() };
                    stored(&call, isa, &rows, &lanes, T::ONE).check_bits(&chains, &(isa.name(), call, problem)).unwrap();
                }
            }
        }
    }
}

/// Blocks that two tasks work on would be added twice.
fn every_block_is_worked_on_once<T: Scalar>() {
    let problem = Problem { m: 24, n: 288, depth: 304, families: [Family::Uniform; 2], seed: 19 };
    assert!(problem.m * problem.n * problem.depth >= SEQUENTIAL, "small products stay on one thread");
    let (rows, lanes, old) = (problem.rows::<T>(), problem.lanes(), problem.operand(Family::Uniform, 0));
    let cut = Cut::Given(Blocking { mc: 1, kc: 304, nc: 1, group: 2 });
    for isa in Isa::available() {
        let alone = accumulated(&Call { cut, ..Call::plain() }, isa, &rows, &lanes, T::ONE, &old);
        for tasks in 2..=16 {
            let call = Call { cut, par: Par::rayon(tasks), ..Call::plain() };
            accumulated(&call, isa, &rows, &lanes, T::ONE, &old).check_bits(&alone, &(isa.name(), tasks)).unwrap();
        }
    }
}

/// All tails of tiles and panels. No sum exceeds 64·17, so every partial sum is an integer that `T` holds.
fn small_integers_are_exact<T: Scalar>() {
    for isa in Isa::available() {
        let (mr, nv) = isa.tile();
        let calls = Call::each(isa);
        let mut calls = calls.iter().cycle();
        let mut nonzero = 0;
        let (most_rows, most_cols) = (2 * mr + 1, 2 * nv * isa.lanes::<T>() + 1);
        for depth in [0, 1, 2, 5, 17] {
            let problem = Problem { m: most_rows, n: most_cols, depth, families: [Family::Integer; 2], seed: depth as u64 };
            let (rows, lanes) = (problem.rows::<T>(), problem.lanes::<T>());
            let sum = |i, j| (0..depth).map(|p| rows.get(i, p).to_f64() as i64 * lanes.get(p, j).to_f64() as i64).sum::<i64>();
            let sums = Grid::from_fn(most_rows, most_cols, Layout::default(), |i, j| T::from_f64(sum(i, j) as f64));
            for m in 0..=most_rows {
                for n in 0..=most_cols {
                    let part = |grid: &Grid<T>, rows, cols| Grid::from_fn(rows, cols, Layout::default(), |i, j| grid.get(i, j));
                    let call = calls.next().expect("a cycle");
                    let got = stored(call, isa, &part(&rows, m, depth), &part(&lanes, depth, n), T::ONE);
                    got.check_canaries(&(isa.name(), call, m, n, depth)).unwrap();
                    for i in 0..m {
                        for j in 0..n {
                            assert_eq!(got.get(i, j), sums.get(i, j), "({i}, {j}) of {m} × {n}, depth {depth}, {isa}, {call:?}");
                            nonzero += usize::from(got.get(i, j) != T::ZERO);
                        }
                    }
                }
            }
        }
        assert!(nonzero > 0, "{isa}: all sums are zero");
    }
}

/// With factors of size at least ½ every term is larger than the bound of its sum.
fn bounds_notice_what_is_missing<T: Scalar>() {
    let problem = Problem { m: 9, n: 50, depth: 70, families: [Family::Uniform; 2], seed: 3 };
    let away = |x: T| if x < T::ZERO { (x - T::ONE) * T::from_f64(0.5) } else { (x + T::ONE) * T::from_f64(0.5) };
    let (rows, lanes) = (problem.rows::<T>().map(away), problem.lanes::<T>().map(away));
    let bound = bounds(&rows, &lanes, |terms, _, _| dot(T::PRECISION, terms));
    for isa in Isa::available() {
        for missing in 0..problem.depth {
            let mut rows = rows.clone();
            (0..problem.m).for_each(|i| rows.set(i, missing, T::ZERO));
            let got = stored(&Call::plain(), isa, &rows, &lanes, T::ONE);
            for i in 0..problem.m {
                for j in 0..problem.n {
                    assert!(!bound[(i, j)].admits(got.get(i, j).to_f64()), "({i}, {j}) without term {missing}");
                }
            }
        }
        // The last column left out of the product, and the last but one in its place.
        let n = problem.n - 1;
        let got = stored(&Call::plain(), isa, &rows, &lanes, T::ONE);
        for i in 0..problem.m {
            assert!(!bound[(i, n)].admits(0.0) && !bound[(i, n)].admits(got.get(i, n - 1).to_f64()), "column {n}");
        }
    }
}

fn empty_products<T: Scalar>() {
    for isa in Isa::available() {
        for call in Call::each(isa) {
            for (m, n, depth) in [(0, 0, 0), (0, 5, 3), (5, 0, 3), (0, 5, 0), (5, 0, 0)] {
                let problem = Problem { m, n, depth, families: [Family::Uniform; 2], seed: 5 };
                let out = stored(&call, isa, &problem.rows::<T>(), &problem.lanes(), T::ONE);
                out.check_canaries(&(isa.name(), call, problem)).unwrap();
            }
            let problem = Problem { m: 9, n: 51, depth: 0, families: [Family::Uniform; 2], seed: 5 };
            let (rows, lanes, old) = (problem.rows::<T>(), problem.lanes(), problem.operand(Family::Mixed, 0));
            let zeros = Grid::from_fn(problem.m, problem.n, Layout::default(), |_, _| T::ZERO);
            stored(&call, isa, &rows, &lanes, T::ONE).check_bits(&zeros, &(isa.name(), call)).unwrap();
            accumulated(&call, isa, &rows, &lanes, T::from_f64(-2.0), &old).check_bits(&old, &(isa.name(), call)).unwrap();
        }
    }
}

/// NaN and infinity at each place of each factor, against factors of ones (where ∞·1 = ∞) and of zeros (∞·0 = NaN).
fn poison_stays_in_its_row_and_column<T: Scalar>() {
    const SIZES: [usize; 3] = [10, 51, 5];
    let [m, n, depth] = SIZES;
    let filled = |rows, cols, x| Grid::from_fn(rows, cols, Layout::default(), |_, _| x);
    for isa in Isa::available() {
        let calls = Call::each(isa);
        let mut calls = calls.iter().cycle();
        for poison in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for other in [T::ONE, T::ZERO] {
                let expected = if other == T::ONE { T::from_f64(poison) } else { T::from_f64(f64::NAN) };
                let clean = filled(m, n, T::from_f64(depth as f64) * other);
                let mut check = |rows: &Grid<T>, lanes: &Grid<T>, is_hit: &dyn Fn(usize, usize) -> bool| {
                    let call = calls.next().expect("a cycle");
                    let wanted =
                        Grid::from_fn(m, n, Layout::default(), |i, j| if is_hit(i, j) { expected } else { clean.get(i, j) });
                    stored(call, isa, rows, lanes, T::ONE).check_bits(&wanted, &(isa.name(), call, poison, other)).unwrap();
                };
                for p in 0..depth {
                    for row in 0..m {
                        let mut rows = filled(m, depth, T::ONE);
                        rows.set(row, p, T::from_f64(poison));
                        check(&rows, &filled(depth, n, other), &|i, _| i == row);
                    }
                    for col in 0..n {
                        let mut lanes = filled(depth, n, T::ONE);
                        lanes.set(p, col, T::from_f64(poison));
                        check(&filled(m, depth, other), &lanes, &|_, j| j == col);
                    }
                }
            }
        }
    }
}

/// Bands, panels and scratch that have seen larger operands full of NaN, for any instruction set.
fn nothing_stale_is_used<T: Scalar>() {
    let (mut bands, mut panels, mut scratch) = (Bands::new(), Panels::new(), Scratch::new());
    let blocking = Blocking { mc: 9, kc: 4, nc: 2, group: 2 };
    for before in Isa::available() {
        for isa in Isa::available() {
            for [m, n, depth] in SHAPES {
                for layout in Layout::all() {
                    let (nan_rows, nan_lanes) = (Grid::<T>::blank(40, 90, layout), Grid::<T>::blank(90, 130, layout));
                    bands.pack(before, nan_rows.view());
                    panels.pack(before, Par::Seq, nan_lanes.view());
                    let mut out = Grid::blank(40, 130, layout);
                    let store = Epilogue::Store { out: out.output(), scale: T::ONE };
                    product(before, Par::Seq, Rows::Packed(&bands), Lanes::Packed(&panels), store, blocking, &mut scratch);

                    let problem = Problem { m, n, depth, families: [Family::Uniform; 2], seed: 13 };
                    let (rows, lanes) = (problem.rows::<T>().relaid(layout), problem.lanes::<T>().relaid(layout));
                    bands.pack(isa, rows.view());
                    panels.pack(isa, Par::Seq, lanes.view());
                    for right in [Lanes::Packed(&panels), Lanes::View(lanes.view())] {
                        let mut out = Grid::blank(m, n, layout);
                        let store = Epilogue::Store { out: out.output(), scale: T::ONE };
                        product(isa, Par::Seq, Rows::Packed(&bands), right, store, blocking, &mut scratch);
                        out.check_bits(&chains(&rows, &lanes), &(before.name(), isa.name(), problem, layout)).unwrap();
                    }
                }
            }
        }
    }
}

/// Factors whose rows or columns are one and the same in memory (stride 0).
fn repeated_factors<T: Scalar>() {
    let (m, n, depth) = (11, 51, 7);
    let line = Grid::<T>::random(1, 60, Family::Uniform, 17);
    let line: Vec<T> = (0..60).map(|j| line.get(0, j)).collect();
    let repeat = |rows, cols| faer::MatRef::from_repeated_row(faer::RowRef::from_slice(&line[..cols]), rows);
    let grid = |view: faer::MatRef<'_, T>| Grid::from_fn(view.nrows(), view.ncols(), Layout::default(), |i, j| view[(i, j)]);
    for isa in Isa::available() {
        for rows in [repeat(m, depth), repeat(depth, m).transpose()] {
            for lanes in [repeat(depth, n), repeat(n, depth).transpose()] {
                let wanted = chains(&grid(rows), &grid(lanes));
                let (mut bands, mut panels) = (Bands::new(), Panels::new());
                bands.pack(isa, rows);
                panels.pack(isa, Par::Seq, lanes);
                for left in [Rows::View(rows), Rows::Packed(&bands)] {
                    for right in [Lanes::View(lanes), Lanes::Packed(&panels)] {
                        let mut out = Grid::blank(m, n, Layout::default());
                        let store = Epilogue::Store { out: out.output(), scale: T::ONE };
                        product(isa, Par::Seq, left, right, store, Blocking::in_place::<T>(isa, m), &mut Scratch::new());
                        out.check_bits(&wanted, &(isa.name(), left, right)).unwrap();
                    }
                }
            }
        }
    }
}

fn misuse_panics<T: Scalar>() {
    let grid = |rows, cols| Grid::<T>::random(rows, cols, Family::Uniform, 1);
    for isa in Isa::available() {
        let run = |left: Rows<'_, T>, right: Lanes<'_, T>, epilogue: Epilogue<'_, T>| {
            product(isa, Par::Seq, left, right, epilogue, Blocking::in_place::<T>(isa, 1), &mut Scratch::new());
        };
        let (rows, lanes) = (grid(5, 4), grid(4, 9));
        let (left, right) = (Rows::View(rows.view()), Lanes::View(lanes.view()));

        let mut out = grid(5, 9);

        assert_panics("depth", || {
            run(left, Lanes::View(grid(3, 9).view()), Epilogue::Store { out: out.output(), scale: T::ONE })
        });
        assert_panics("depth", || {
            run(Rows::View(grid(5, 5).view()), right, Epilogue::Store { out: out.output(), scale: T::ONE })
        });
        assert_panics("depth", || {
            run(Rows::View(grid(0, 5).view()), right, Epilogue::Store { out: out.output(), scale: T::ONE })
        });

        for (m, n) in [(4, 9), (5, 8), (6, 9), (5, 10), (9, 5), (0, 0)] {
            let (mut wrong, mut fitting) = (grid(m, n), grid(5, 9));
            let input = grid(5, 9);
            assert_panics("epilogue", || run(left, right, Epilogue::Store { out: wrong.output(), scale: T::ONE }));
            assert_panics("epilogue", || run(left, right, Epilogue::Accumulate { out: wrong.output(), scale: T::ONE }));
            assert_panics("epilogue", || run(left, right, Epilogue::Drive { drive: wrong.output(), bias: input.input() }));
            let bias = [T::ONE; 10];
            let bias = Input::repeated(&bias[..n], m);
            assert_panics("epilogue", || run(left, right, Epilogue::Drive { drive: fitting.output(), bias }));
        }

        for other in Isa::available().filter(|&other| other != isa) {
            let (mut bands, mut panels) = (Bands::new(), Panels::new());
            bands.pack(other, rows.view());
            panels.pack(other, Par::Seq, lanes.view());
            assert_panics("packed for another instruction set", || {
                run(Rows::Packed(&bands), right, Epilogue::Store { out: out.output(), scale: T::ONE })
            });
            assert_panics("packed for another instruction set", || {
                run(left, Lanes::Packed(&panels), Epilogue::Store { out: out.output(), scale: T::ONE })
            });
        }
    }
}
