//! What the benches share: problems, peers, checks, and one way to time a row.
//!
//! ```text
//! cargo bench                                       all families; `cargo bench --bench update -- Adam` a part of one
//! cargo bench -- --test                             every row once, with its check
//! DUALPROP_RECORD=benches/record/<cpu>-<date>.csv cargo bench      appends the medians to a table
//! ```
//!
//! Everything runs on one thread and in the instruction set of `DUALPROP_ISA` (the best one by default); peers choose theirs, with
//! their AVX-512 features on. A group is one problem. Each of its rows is run once and compared with `dualprop-reference` before it is
//! timed. Throughput is in flops (criterion writes `elem/s`), in bytes where a machine of 3 flops a byte waits for its memory.
//! The clock of a shared machine moves: ratios are to be formed with rows of the same run, those of the group `machine` among them.
#![allow(dead_code, unreachable_pub, reason = "every bench is a crate of its own and uses a part of this one")]

pub mod machine;
pub mod ours;
pub mod passes;
pub mod peers;

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use dualprop::{Isa, Mat, MatMut, MatRef, Real, Runtime};
use dualprop_reference::bound::{Bounded, Precision};
use dualprop_reference::generate::{Family, generate};

use peers::{Peer, locked_version};

/// An element type, as the reference and the peers know it.
pub trait Scalar: Real + faer::traits::ComplexField {
    /// Its arithmetic.
    const PRECISION: Precision;

    /// `out ← keep·out + scale·left·right` by matrixmultiply.
    fn matrixmultiply(out: MatMut<'_, Self>, keep: Self, scale: Self, left: MatRef<'_, Self>, right: MatRef<'_, Self>);
}

/// A row-major matrix, stored as the library stores its own.
#[derive(Clone)]
pub struct RowMajor<T>(Mat<T>);

impl<T: Scalar> RowMajor<T> {
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self(Mat::from_fn(cols, rows, |_, _| T::ZERO))
    }

    /// Entries uniform in `(−size, size)`.
    pub fn uniform(rows: usize, cols: usize, size: f64, seed: u64) -> Self {
        let numbers = generate(Family::Uniform, rows * cols, seed, T::PRECISION);
        Self(Mat::from_fn(cols, rows, |j, i| T::from_f64(size * numbers[i * cols + j])))
    }

    pub fn copied(view: MatRef<'_, T>) -> Self {
        Self(Mat::from_fn(view.ncols(), view.nrows(), |j, i| view[(i, j)]))
    }

    pub fn rows(&self) -> usize {
        self.0.ncols()
    }

    pub fn cols(&self) -> usize {
        self.0.nrows()
    }

    pub fn view(&self) -> MatRef<'_, T> {
        self.0.as_ref().transpose()
    }

    pub fn view_mut(&mut self) -> MatMut<'_, T> {
        self.0.as_mut().transpose_mut()
    }

    pub fn row(&self, row: usize) -> &[T] {
        self.0.col_as_slice(row)
    }

    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        self.0.col_as_slice_mut(row)
    }

    /// Entry `(i, j)`, as the reference takes it.
    pub fn exact(&self, i: usize, j: usize) -> Bounded {
        T::PRECISION.exact(self.0[(j, i)].to_f64())
    }

    /// All entries, row after row.
    pub fn values(&self) -> Vec<f64> {
        (0..self.rows()).flat_map(|i| self.row(i).iter().map(|x| x.to_f64())).collect()
    }
}

/// What the reference says about some entries of a matrix: columns 0, 13, 26, … and the last of the first, middle and last row.
pub struct Expected(Vec<(usize, usize, Bounded)>);

impl Expected {
    pub fn new(rows: usize, cols: usize, mut entry: impl FnMut(usize, usize) -> Bounded) -> Self {
        let places = [0, rows / 2, rows - 1].map(|i| (0..cols).step_by(13).chain([cols - 1]).map(move |j| (i, j)));
        Self(places.into_iter().flatten().map(|(i, j)| (i, j, entry(i, j))).collect())
    }

    /// The same for `f` of every entry.
    pub fn map(&self, f: impl Fn(Bounded) -> Bounded) -> Self {
        Self(self.0.iter().map(|&(i, j, x)| (i, j, f(x))).collect())
    }

    /// Panics unless every entry is as near as the reference allows, `slack` added.
    pub fn check<T: Scalar>(&self, got: &RowMajor<T>, slack: f64) {
        for &(i, j, bound) in &self.0 {
            let got = got.view()[(i, j)].to_f64();
            let wide = Bounded { error: bound.error + slack, ..bound };
            assert!(wide.admits(got), "entry ({i}, {j}) is {got:e}, expected {:e} ± {:e}", wide.value, wide.error);
        }
    }
}

/// What one call costs at the least.
#[derive(Clone, Copy)]
pub struct Work {
    pub flops: usize,
    /// Each operand once from memory, and once back if it is written.
    pub bytes: usize,
}

impl Work {
    /// Whether memory sets the bound.
    fn waits(self) -> bool {
        self.flops < 3 * self.bytes
    }

    fn throughput(self) -> Throughput {
        if self.waits() { Throughput::BytesDecimal(self.bytes as u64) } else { Throughput::Elements(self.flops as u64) }
    }

    fn rate(self, nanoseconds: f64) -> String {
        let (amount, unit) = if self.waits() { (self.bytes, "GB/s") } else { (self.flops, "GFLOP/s") };
        format!("{:.2} {unit}", amount as f64 / nanoseconds)
    }
}

/// Whose code a row times.
#[derive(Clone, Copy)]
pub enum By {
    Dualprop,
    Peer(Peer),
    /// A loop with functions of the standard library.
    Std,
    /// A yardstick.
    Machine,
}

/// Samples of a row: many short ones, so that the median shrugs off what else the machine does.
const SAMPLES: usize = 100;

/// A bench program.
pub struct Bench {
    criterion: Criterion,
    /// Where our rows run.
    pub isa: Isa,
    table: String,
}

impl Bench {
    /// Reads arguments and environment; times the yardsticks of the machine.
    pub fn new() -> Self {
        let criterion = Criterion::default()
            .warm_up_time(Duration::from_millis(60))
            .measurement_time(Duration::from_millis(250))
            .sample_size(SAMPLES)
            .nresamples(2000)
            .without_plots()
            .configure_from_args();
        let runtime = Runtime::from_env().expect("an instruction set of this machine");
        let mut bench = Self { criterion, isa: runtime.isa(), table: String::new() };
        machine::rows(&mut bench);
        bench
    }

    /// One problem.
    pub fn group(&mut self, name: &str, work: Work) -> Group<'_> {
        let mut group = self.criterion.benchmark_group(name);
        group.sampling_mode(SamplingMode::Flat).throughput(work.throughput());
        Group { group, name: name.to_owned(), work, isa: self.isa, table: &mut self.table }
    }

    /// Ends the program; appends to the table that `DUALPROP_RECORD` names.
    pub fn finish(self) {
        self.criterion.final_summary();
        let Some(path) = std::env::var_os("DUALPROP_RECORD") else { return };
        let mut file =
            OpenOptions::new().create(true).append(true).open(path).expect("DUALPROP_RECORD is a file that can be written");
        if file.metadata().is_ok_and(|meta| meta.len() == 0) {
            writeln!(file, "group,row,median_ns,throughput,isa,threads,peer_version").expect("room for a line");
        }
        file.write_all(self.table.as_bytes()).expect("room for the table");
    }
}

/// The rows of one problem.
pub struct Group<'a> {
    group: BenchmarkGroup<'a, WallTime>,
    name: String,
    work: Work,
    isa: Isa,
    table: &'a mut String,
}

impl Group<'_> {
    /// Times `run` on a state from `make`, after `check` has seen what the first run left there.
    pub fn row<S>(
        &mut self,
        by: By,
        what: &str,
        make: impl FnOnce() -> S,
        mut run: impl FnMut(&mut S),
        check: impl FnOnce(&mut S),
    ) {
        let name = match by {
            By::Dualprop => "dualprop",
            By::Peer(peer) => peer.name(),
            By::Std => "std",
            By::Machine => "machine",
        };
        let id = if what.is_empty() { name.to_owned() } else { format!("{name}, {what}") };
        let mut start = Some((make, check));
        let mut state = None;
        let mut times = Vec::new();
        self.group.bench_function(id.as_str(), |bencher| {
            if let Some((make, check)) = start.take() {
                let state = state.insert(make());
                run(state);
                check(state);
            }
            let state = state.as_mut().expect("made above");
            bencher.iter_custom(|calls| {
                let begin = Instant::now();
                (0..calls).for_each(|_| run(state));
                let time = begin.elapsed();
                times.push(time.as_nanos() as f64 / calls as f64);
                time
            });
        });
        // The warm-up comes before the samples.
        let warm = times.len().saturating_sub(SAMPLES);
        if let Some(median) = median(&mut times[warm..]) {
            let (isa, version) = match by {
                By::Dualprop => (self.isa.name(), locked_version("dualprop")),
                By::Peer(peer) => ("own choice", locked_version(peer.name())),
                By::Std | By::Machine => (Isa::best().name(), String::new()),
            };
            let rate = self.work.rate(median);
            writeln!(self.table, "\"{}\",\"{id}\",{median:.0},{rate},{isa},1,{version}", self.name)
                .expect("strings take everything");
        }
    }
}

fn median(times: &mut [f64]) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    let (a, b) = (times.get(times.len().checked_sub(1)? / 2)?, times.get(times.len() / 2)?);
    Some(a.midpoint(*b))
}
