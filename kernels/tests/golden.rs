//! The same bits on every instruction set, for every number of threads and at every alignment, and the same as ever before.
//!
//! Each family of cases (a kernel with one kind of operands, for one element type) has a hash of all its outputs in
//! `tests/golden/bits.txt`. A change of bits is a decision: it is noted in the changelog under its own heading, and
//! `GOLDEN=write cargo test -p dualprop-kernels --test golden` writes the file anew.

mod common;

use common::{Grid, Layout, Scalar};
use core::fmt::Display;
use dualprop_kernels::activation::Activation;
use dualprop_kernels::elementary::{Function, cos_pi, ln, log_sum_exp, map, softmax};
use dualprop_kernels::epilogue::{Epilogue, Nudge};
use dualprop_kernels::gram::{abs_gram, gram, image, wide_gram};
use dualprop_kernels::isa::Isa;
use dualprop_kernels::online::online;
use dualprop_kernels::optimizer::{Decay, Descent, Optimizer, Update};
use dualprop_kernels::pack::{Bands, Panels};
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};
use dualprop_kernels::reduce::{arg_max, dot, max_abs, norm, square_distance, sum};
use dualprop_kernels::scan::scan;
use dualprop_kernels::selected::{OUTPUTS, Selected, crossing, inner, selected};
use dualprop_kernels::sparse::{self, Matrix, Pattern};
use dualprop_kernels::strided::{Input, Output};
use dualprop_kernels::threads::SEQUENTIAL;
use dualprop_kernels::vector::Real;
use dualprop_reference::bound::Precision;
use dualprop_reference::generate::{Family, SplitMix64, generate};
use faer::{MatMut, MatRef, Par};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::fmt::Write as _;
use std::path::Path;
use std::thread;

/// Numbers of threads, each with a pool of its own.
const THREADS: [usize; 7] = [1, 2, 3, 4, 7, 8, 16];

/// Elements by which operands are shifted from the beginning of a cache line: every alignment of both types, several times.
const OFFSETS: usize = 64;

/// Products of a family that stay on one thread, and those that are shared out.
const SMALL: u64 = 14;
const LARGE: u64 = 2;

/// Ways in which a small product is computed on each instruction set; a large one is computed once for each number of threads.
const WAYS: usize = 16;

/// Vectors of a family.
const VECTORS: u64 = 30;

/// 64-bit FNV-1a over words.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Hash(u64);

impl Hash {
    const START: Hash = Hash(0xcbf2_9ce4_8422_2325);

    fn word(&mut self, word: u64) {
        for byte in word.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// The bits of `x`, where any NaN counts as any other.
    fn number<T: Real>(&mut self, x: T) {
        self.word(if x.to_f64().is_nan() { u64::MAX } else { x.to_bits() });
    }

    fn of<T: Real>(numbers: &[T]) -> Hash {
        let mut hash = Hash::START;
        numbers.iter().for_each(|&x| hash.number(x));
        hash
    }
}

/// What must not change a bit.
#[derive(Clone, Copy, Debug)]
struct Way {
    isa: Isa,
    threads: usize,
    /// Elements from the beginning of a cache line to an operand; each has another one.
    offset: usize,
    /// Chooses forms, layouts and the blocking.
    choice: u64,
}

impl Way {
    /// At random. Cases are drawn from another sequence: they may not depend on how many instruction sets the machine has.
    fn drawn(isa: Isa, threads: usize, ways: &mut SplitMix64) -> Self {
        Self { isa, threads, offset: ways.below(OFFSETS as u64) as usize, choice: ways.bits() }
    }

    /// An offset for operand `number`.
    fn offset_of(&self, number: usize) -> usize {
        (self.offset + 11 * number) % OFFSETS
    }

    /// One of `count` for question `number`.
    fn choose(&self, number: u32, count: u64) -> u64 {
        SplitMix64::new(self.choice ^ u64::from(number) << 40).below(count)
    }

    fn placed<T: Scalar>(&self, number: usize, grid: &Grid<T>) -> Placed<T> {
        let layout = self.choose(number as u32, 4);
        Placed::new(grid, self.offset_of(number), layout & 1 == 1, if layout & 2 == 2 { 3 } else { 0 })
    }
}

/// Where a slice begins to have `len` elements at `offset` elements from the beginning of a cache line.
fn begin<T>(memory: &[T], offset: usize) -> usize {
    memory.as_ptr().align_offset(64) + offset
}

/// Elements of memory for `len` elements at any offset.
fn room<T>(len: usize) -> usize {
    len + OFFSETS + 64 / size_of::<T>()
}

/// A matrix at an offset from a cache line.
struct Placed<T> {
    memory: Vec<T>,
    begin: usize,
    rows: usize,
    cols: usize,
    stride: usize,
    by_columns: bool,
}

impl<T: Scalar> Placed<T> {
    fn new(grid: &Grid<T>, offset: usize, by_columns: bool, padding: usize) -> Self {
        let (rows, cols) = grid.shape();
        let (lines, stride) = if by_columns { (cols, rows + padding) } else { (rows, cols + padding) };
        let memory = vec![T::CANARY; room::<T>(lines * stride)];
        let mut placed = Self { begin: begin(&memory, offset), memory, rows, cols, stride, by_columns };
        for i in 0..rows {
            for j in 0..cols {
                let at = placed.at(i, j);
                placed.memory[at] = grid.get(i, j);
            }
        }
        placed
    }

    fn at(&self, i: usize, j: usize) -> usize {
        self.begin + if self.by_columns { j * self.stride + i } else { i * self.stride + j }
    }

    fn view(&self) -> MatRef<'_, T> {
        let memory = &self.memory[self.begin..];
        if self.by_columns {
            MatRef::from_column_major_slice_with_stride(memory, self.rows, self.cols, self.stride)
        } else {
            MatRef::from_column_major_slice_with_stride(memory, self.cols, self.rows, self.stride).transpose()
        }
    }

    fn view_mut(&mut self) -> MatMut<'_, T> {
        let memory = &mut self.memory[self.begin..];
        if self.by_columns {
            MatMut::from_column_major_slice_with_stride_mut(memory, self.rows, self.cols, self.stride)
        } else {
            MatMut::from_column_major_slice_with_stride_mut(memory, self.cols, self.rows, self.stride).transpose_mut()
        }
    }

    fn input(&self) -> Input<'_, T> {
        Input::new(self.view())
    }

    fn output(&mut self) -> Output<'_, T> {
        Output::new(self.view_mut())
    }

    fn hash_into(&self, hash: &mut Hash) {
        for i in 0..self.rows {
            for j in 0..self.cols {
                hash.number(self.memory[self.at(i, j)]);
            }
        }
    }
}

/// An epilogue whose bits are golden.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Store,
    Accumulate,
    Drive,
    Forward(Activation),
    Dyad(Activation),
    DampedDyad(Activation),
    DyadFromBelow(Activation),
    Derivative(Activation),
    Masked,
    Update(Optimizer, Decay),
}

impl Kind {
    fn all() -> Vec<Kind> {
        let mut all = vec![Kind::Store, Kind::Accumulate, Kind::Drive];
        for kind in [Kind::Forward, Kind::Dyad, Kind::DampedDyad, Kind::DyadFromBelow, Kind::Derivative] {
            all.extend(Activation::ALL.iter().map(|&activation| kind(activation)));
        }
        all.push(Kind::Masked);
        for optimizer in [Optimizer::Sgd, Optimizer::MOMENTUM, Optimizer::ADAM] {
            all.extend([Decay::None, Decay::Coupled(5e-4), Decay::Decoupled(1e-2)].map(|decay| Kind::Update(optimizer, decay)));
        }
        all
    }

    /// The name in the file: no spaces.
    fn name(self) -> String {
        match self {
            Kind::Store => "store".into(),
            Kind::Accumulate => "accumulate".into(),
            Kind::Drive => "drive".into(),
            Kind::Forward(f) => format!("forward/{f}"),
            Kind::Dyad(f) => format!("dyad/{f}"),
            Kind::DampedDyad(f) => format!("damped-dyad/{f}"),
            Kind::DyadFromBelow(f) => format!("dyad-from-below/{f}"),
            Kind::Derivative(f) => format!("derivative-of-layer/{f}"),
            Kind::Masked => "masked".into(),
            Kind::Update(optimizer, decay) => {
                let optimizer = match optimizer {
                    Optimizer::Sgd => "sgd",
                    Optimizer::Momentum { .. } => "momentum",
                    Optimizer::Adam { .. } => "adam",
                    other => panic!("name {other:?} here"),
                };
                let decay = match decay {
                    Decay::None => "plain",
                    Decay::Coupled(_) => "coupled",
                    Decay::Decoupled(_) => "decoupled",
                    other => panic!("name {other:?} here"),
                };
                format!("update/{optimizer}/{decay}")
            }
        }
    }

    /// Operands of the epilogue.
    fn operands(self) -> usize {
        match self {
            Kind::Store | Kind::Accumulate => 1,
            Kind::Drive | Kind::Derivative(_) | Kind::Masked => 2,
            Kind::Forward(_) | Kind::Dyad(_) | Kind::DampedDyad(_) => 3,
            Kind::DyadFromBelow(_) => 5,
            Kind::Update(optimizer, _) => 1 + optimizer.moments(),
        }
    }

    /// The epilogue with the parameters of case `number`.
    fn epilogue<'a, T: Scalar>(self, number: u64, operands: &'a mut [Placed<T>]) -> Epilogue<'a, T> {
        let pick = |choices: [f64; 5]| choices[(number % 5) as usize];
        let c = T::from_f64;
        let scale = c(pick([1.0, -1.0, 0.5, -3.0, 0.1]));
        // DP with different weights, and the gain of 2023.
        let (alpha, gain) = (pick([0.5, 0.0, 1.0, 0.3, 0.5]), pick([1.0, 1.0, 1.0, 1.0, 0.0625]));
        let up = if gain == 1.0 { alpha } else { 0.5 * gain };
        let nudge = Nudge { up: c(up), down: c(up - gain), gain: c(gain), alpha: c(alpha) };
        match (self, operands) {
            (Kind::Store, [out]) => Epilogue::Store { out: out.output(), scale },
            (Kind::Accumulate, [out]) => Epilogue::Accumulate { out: out.output(), scale },
            (Kind::Drive, [drive, bias]) => Epilogue::Drive { drive: drive.output(), bias: bias.input() },
            (Kind::Forward(activation), [drive, bias, mean]) => {
                Epilogue::Forward { drive: drive.output(), bias: bias.input(), mean: mean.output(), activation }
            }
            (Kind::Dyad(activation), [drive, mean, diff]) => {
                let (drive, mean, diff) = (drive.input(), mean.output(), diff.output());
                Epilogue::Dyad { drive, feedback: None, mean, diff, nudge, damping: None, activation }
            }
            (Kind::DampedDyad(activation), [drive, mean, diff]) => {
                let damping = Some(pick([0.5, 3.0, 0.1, 1.0, 0.0]));
                let (drive, mean, diff) = (drive.input(), mean.output(), diff.output());
                Epilogue::Dyad { drive, feedback: None, mean, diff, nudge, damping, activation }
            }
            (Kind::DyadFromBelow(activation), [drive, bias, feedback, mean, diff]) => {
                let (drive, bias, feedback) = (drive.output(), bias.input(), feedback.input());
                let (mean, diff) = (mean.output(), diff.output());
                Epilogue::DyadFromBelow { drive, bias, feedback, mean, diff, nudge, damping: None, activation }
            }
            (Kind::Derivative(activation), [drive, diff]) => {
                Epilogue::Derivative { drive: drive.input(), diff: diff.output(), activation }
            }
            (Kind::Masked, [slope, out]) => Epilogue::Masked { slope: slope.input(), out: out.output() },
            (Kind::Update(optimizer, decay), [weights, moments @ ..]) => {
                let step = [1, 2, 3, 10, 1000][(number % 5) as usize];
                let update = Update { optimizer, decay, learning_rate: pick([0.1, 0.01, 0.3, 1e-3, 0.05]), step, scale: -0.125 };
                let moments = moments.iter_mut().map(Placed::view_mut);
                Epilogue::Update(Descent::new(weights.view_mut(), moments, update))
            }
            (kind, operands) => unreachable!("{kind:?} has other than {} operands", operands.len()),
        }
    }
}

/// The numbers of a product; the same on every machine.
struct Problem<T> {
    kind: Kind,
    number: u64,
    rows: Grid<T>,
    lanes: Grid<T>,
    operands: Vec<Grid<T>>,
}

impl<T: Scalar> Problem<T> {
    /// Case `number` of a family; the last [`LARGE`] ones are shared out over threads.
    fn new(kind: Kind, number: u64) -> Self {
        let mut random = SplitMix64::new(number ^ 0x601d);
        let (m, n, depth) = match number.checked_sub(SMALL) {
            None => (random.below(20) as usize + 1, random.below(110) as usize + 1, random.below(70) as usize),
            Some(0) => (129, 131, 127),
            Some(_) => (19, 337, 331),
        };
        let family = |shift: u64| Family::ALL[((number + shift) % 6) as usize];
        let rows = Grid::random(m, depth, family(0), 2 * number);
        let lanes = Grid::random(depth, n, family(number / 6), 2 * number + 1);
        let operands = (0..kind.operands() as u64).map(|operand| {
            let grid =
                Grid::random(m, n, [Family::Uniform, Family::Mixed][(number / 2 % 2) as usize], 1000 * (operand + 1) + number);
            match (kind, operand) {
                // Half of the slopes are zero.
                (Kind::Masked, 0) => grid.map(|x| if x < T::ZERO { T::ZERO } else { x }),
                // Adam's second moment.
                (_, 2) => grid.map(T::abs),
                _ => grid,
            }
        });
        Self { kind, number, rows, lanes, operands: operands.collect() }
    }

    fn flops(&self) -> usize {
        let ((m, depth), (_, n)) = (self.rows.shape(), self.lanes.shape());
        m * n * depth
    }

    /// The outputs, computed in one way.
    fn hash(&self, way: Way, pool: &ThreadPool) -> Hash {
        let (rows, lanes) = (way.placed(0, &self.rows), way.placed(1, &self.lanes));
        let mut operands: Vec<_> = self.operands.iter().enumerate().map(|(k, grid)| way.placed(2 + k, grid)).collect();
        let (mut bands, mut panels) = (Bands::new(), Panels::new());
        let left = if way.choose(10, 2) == 0 {
            bands.pack(way.isa, rows.view());
            Rows::Packed(&bands)
        } else {
            Rows::View(rows.view())
        };
        let right = match way.choose(11, 3) {
            0 => {
                panels.pack(way.isa, Par::Seq, lanes.view());
                Lanes::Packed(&panels)
            }
            1 => Lanes::Piecewise(lanes.view()),
            _ => Lanes::View(lanes.view()),
        };
        let (m, depth) = self.rows.shape();
        let blocking = match way.choose(12, 5) {
            0 => Blocking::streaming_panels::<T>(way.isa, m),
            1 => Blocking::streaming_rows::<T>(way.isa, depth),
            2 => Blocking::in_place::<T>(way.isa, m),
            3 => Blocking::deep(m),
            _ => Blocking { mc: 7, kc: 13, nc: 2, group: 2 },
        };
        let par = if way.threads == 1 { Par::Seq } else { Par::rayon(way.threads) };
        let epilogue = self.kind.epilogue(self.number, &mut operands);
        pool.install(|| product(way.isa, par, left, right, epilogue, blocking, &mut Scratch::new()));
        let mut hash = Hash::START;
        operands.iter().for_each(|operand| operand.hash_into(&mut hash));
        hash
    }
}

/// A family of cases in the file.
struct Line {
    name: String,
    cases: u64,
    hash: Hash,
}

impl Line {
    fn new<T: Real>(name: &impl Display) -> Self {
        Self { name: format!("{}/{name}", T::NAME), cases: 0, hash: Hash::START }
    }

    /// Adds a case, given its hash in every way.
    fn add<W: Display>(&mut self, ways: impl IntoIterator<Item = (W, Hash)>) {
        let mut first: Option<(W, Hash)> = None;
        for (way, hash) in ways {
            match &first {
                None => first = Some((way, hash)),
                Some((other, wanted)) => {
                    assert!(hash == *wanted, "{} case {}: other bits {way} than {other}", self.name, self.cases);
                }
            }
        }
        self.hash.word(first.expect("at least one way").1.0);
        self.cases += 1;
    }
}

impl Display for Way {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Way { isa, threads, offset, choice } = self;
        write!(f, "on {isa} with {threads} threads at offset {offset} (choice {choice})")
    }
}

/// Products with every epilogue.
fn products<T: Scalar>(pools: &[ThreadPool; 7]) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut seen = [[false; OFFSETS]; 2];
    // Any sequence without a pattern, the same in every run.
    let mut ways = SplitMix64::new(5);
    for kind in Kind::all() {
        let mut line = Line::new::<T>(&format!("product/{}", kind.name()));
        for number in 0..SMALL + LARGE {
            let problem = Problem::<T>::new(kind, number);
            let is_large = number >= SMALL;
            assert_eq!(is_large, problem.flops() >= SEQUENTIAL, "large products are shared out, small ones are not");
            let mut hashes = Vec::new();
            for isa in Isa::available() {
                for turn in 0..if is_large { THREADS.len() } else { WAYS } {
                    let way = Way::drawn(isa, THREADS[turn % 7], &mut ways);
                    let pool = &pools[THREADS.iter().position(|&threads| threads == way.threads).expect("a pool for each")];
                    seen[usize::from(is_large)][way.offset] = true;
                    hashes.push((way, problem.hash(way, pool)));
                }
            }
            line.add(hashes);
        }
        lines.push(line);
    }
    assert_eq!(seen, [[true; OFFSETS]; 2], "every offset");
    lines
}

/// Sweeps over a matrix with contiguous rows; the last [`LARGE`] have several parts.
fn sweeps<T: Scalar>(pools: &[ThreadPool; 7]) -> Vec<Line> {
    let mut lines = ["gram", "abs-gram", "image", "scan", "wide-gram"].map(|name| Line::new::<T>(&name));
    let (mut random, mut ways) = (SplitMix64::new(6), SplitMix64::new(106));
    for number in 0..SMALL + LARGE {
        let (m, n) = match number.checked_sub(SMALL) {
            None => (random.below(40) as usize + 1, random.below(300) as usize + 1),
            Some(0) => (301, 900),
            Some(_) => (12, 45_000),
        };
        let p = [1, 4, 8, 3][number as usize % 4];
        let a = Grid::<T>::random(m, n, Family::ALL[number as usize % 6], number);
        let x = Grid::<T>::random(p, n, Family::Uniform, number + 100);
        let wide: Vec<f64> = (0..n).map(|j| x.get(0, j).to_f64()).collect();
        let sizes: Vec<f64> = wide.iter().map(|x| x.abs()).collect();
        let mut hashes = [const { Vec::new() }; 5];
        for isa in Isa::available() {
            for (pool, threads) in pools.iter().zip(THREADS) {
                let way = Way::drawn(isa, threads, &mut ways);
                let padding = [0, 3][way.choose(0, 2) as usize];
                let placed = |k, grid| Placed::new(grid, way.offset_of(k), false, padding);
                let (at_a, at_x, mut y) = (placed(0, &a), placed(1, &x), placed(2, &x));
                let (mut squares, mut abs, mut product) = (vec![0.0; p], vec![0.0; n], vec![0.0; m]);
                let mut both = vec![0.0; n];
                let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };
                pool.install(|| {
                    gram(isa, par, at_a.view(), at_x.view(), y.view_mut(), &mut squares, &mut Scratch::new());
                    abs_gram(isa, par, at_a.view(), &sizes, &mut abs, &mut Scratch::new());
                    image(isa, par, at_a.view(), &wide, &mut product);
                    wide_gram(isa, par, at_a.view(), &wide, &mut both, &mut Scratch::new());
                });
                let found = scan(isa, at_a.view(), &mut Scratch::new()).expect("finite elements");
                let mut of_y = Hash::of(&squares);
                y.hash_into(&mut of_y);
                let bounds = [found.lower(), found.frobenius(), found.holder(), found.largest];
                let hashes_now = [of_y, Hash::of(&abs), Hash::of(&product), Hash::of(&bounds), Hash::of(&both)];
                for (hashes, hash) in hashes.iter_mut().zip(hashes_now) {
                    hashes.push((way, hash));
                }
            }
        }
        lines.iter_mut().zip(hashes).for_each(|(line, hashes)| line.add(hashes));
    }
    lines.into()
}

/// Updates with products; the last [`LARGE`] are shared out over threads.
fn online_line<T: Scalar>(name: &str, optimizer: Optimizer, decay: Decay, pools: &[ThreadPool; 7]) -> Line {
    let mut line = Line::new::<T>(&name);
    let (mut random, mut ways) = (SplitMix64::new(9), SplitMix64::new(109));
    for number in 0..SMALL + LARGE {
        let (m, n) = if number < SMALL { (random.below(40) as usize + 1, random.below(90) as usize + 1) } else { (515, 1030) };
        let grid = |k: u64| Grid::<T>::random(m, n, Family::ALL[number as usize % 6], 10 * number + k);
        let (weights, momentum) = (grid(0), grid(1));
        let vector = |len, k| Grid::<T>::random(1, len, Family::Uniform, 10 * number + k);
        let (diff, mean, next) = (vector(m, 2), vector(n, 3), vector(n, 4));
        let update = Update { optimizer, decay, learning_rate: 0.1, step: 1 + number, scale: -0.125 };
        let mut hashes = Vec::new();
        for isa in Isa::available() {
            for (pool, threads) in pools.iter().zip(THREADS) {
                let way = Way::drawn(isa, threads, &mut ways);
                let (mut weights, mut momentum) = (way.placed(0, &weights), way.placed(1, &momentum));
                let [diff, mean, next] =
                    [(2, &diff), (3, &mean), (4, &next)].map(|(k, row)| Placed::new(row, way.offset_of(k), false, 0));
                let [diff, mean, next] = [&diff, &mean, &next].map(|row| &row.memory[row.begin..][..row.cols]);
                let mut image = vec![T::ZERO; m];
                let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };
                let moments = [momentum.view_mut()].into_iter().take(optimizer.moments());
                let descent = Descent::new(weights.view_mut(), moments, update);
                pool.install(|| online(isa, par, descent, diff, mean, next, &mut image));
                let mut hash = Hash::of(&image);
                weights.hash_into(&mut hash);
                momentum.hash_into(&mut hash);
                hashes.push((way, hash));
            }
        }
        line.add(hashes);
    }
    line
}

/// Sparse products, and updates of sparse weights; the last [`LARGE`] are shared out over threads.
fn sparse_lines<T: Scalar>(pools: &[ThreadPool; 7]) -> Vec<Line> {
    let mut lines = ["gram", "forward", "update"].map(|name| Line::new::<T>(&format!("sparse/{name}")));
    let (mut random, mut ways) = (SplitMix64::new(7), SplitMix64::new(107));
    for number in 0..SMALL + LARGE {
        let (m, n) = match number.checked_sub(SMALL) {
            None => (random.below(200) as usize + 1, random.below(90) as usize + 1),
            Some(_) => (430, 390),
        };
        let p = if number < SMALL { [1, 3, 8, 16, 21][number as usize % 5] } else { 16 };
        let share = [2, 20, 60][number as usize % 3].max(if number < SMALL { 0 } else { 60 });
        let (mut start, mut indices) = (vec![0], Vec::new());
        for _ in 0..m {
            indices.extend((0..n).filter(|_| random.below(100) < share));
            start.push(indices.len());
        }
        let values = generate(Family::ALL[number as usize % 6], indices.len(), number, T::PRECISION);
        let pattern = Pattern::new(m, n, &start, &indices).expect("a sound pattern");
        let matrix = Matrix::new(pattern, values.into_iter().map(T::from_f64).collect());
        let below = Grid::<T>::random(p, n, Family::Uniform, number + 100);
        let above = Grid::<T>::random(p, m, Family::Uniform, number + 200);
        let optimizer = Optimizer::MOMENTUM;
        let update = Update { optimizer, decay: Decay::Coupled(5e-4), learning_rate: 0.1, step: 1 + number, scale: -0.125 };
        let mut hashes = [const { Vec::new() }; 3];
        for isa in Isa::available() {
            for (pool, threads) in pools.iter().zip(THREADS) {
                let way = Way::drawn(isa, threads, &mut ways);
                let (x, t) = (way.placed(0, &below), way.placed(1, &above));
                let (mut y, mut out, mut squares) = (way.placed(2, &below), way.placed(3, &above), vec![0.0; p]);
                let (mut changed, mut momentum) = (matrix.clone(), vec![T::ZERO; indices.len()]);
                let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };
                let scratch = &mut Scratch::new();
                pool.install(|| {
                    sparse::gram(isa, par, &matrix, x.view(), y.view_mut(), &mut squares, scratch);
                    let epilogue = Epilogue::Store { out: out.output(), scale: T::ONE };
                    sparse::product(isa, par, matrix.rows(), x.view(), epilogue, scratch);
                    sparse::update(isa, par, &mut changed, &mut [&mut momentum], t.view(), x.view(), update, scratch);
                });
                let mut of_y = Hash::of(&squares);
                y.hash_into(&mut of_y);
                let mut of_out = Hash::START;
                out.hash_into(&mut of_out);
                let mut of_update = Hash::of(changed.columns().values());
                momentum.iter().for_each(|&x| of_update.number(x));
                for (hashes, hash) in hashes.iter_mut().zip([of_y, of_out, of_update]) {
                    hashes.push((way, hash));
                }
            }
        }
        lines.iter_mut().zip(hashes).for_each(|(line, hashes)| line.add(hashes));
    }
    lines.into()
}

/// Products with some rows of a matrix, a lower triangle every other time, or with some rows and columns; and inner products.
fn selections<T: Scalar>() -> Vec<Line> {
    let mut lines = ["selected", "crossing", "inner"].map(|name| Line::new::<T>(&name));
    let (mut random, mut ways) = (SplitMix64::new(8), SplitMix64::new(108));
    for number in 0..SMALL {
        let (m, n, height) = (random.below(30) as usize + 1, random.below(300) as usize + 1, random.below(200) as usize + 1);
        let (lower, family) = (number % 2 == 1, Family::ALL[number as usize % 6]);
        let whole = Grid::<T>::random(height, n, family, number);
        let matrix = Grid::from_fn(height, n, Layout::default(), |p, j| if lower && j > p { T::ZERO } else { whole.get(p, j) });
        let start = Grid::<T>::random(m, n, Family::Uniform, number + 100);
        let mut list = |end: usize| (0..end as u32).filter(|_| random.below(3) > 0).collect::<Vec<u32>>();
        let (rows, wanted) = (list(height), list(n));
        let factors =
            generate(family, rows.len() * m, number + 200, T::PRECISION).into_iter().map(T::from_f64).collect::<Vec<_>>();
        let outputs = OUTPUTS * (1 + number as usize % 3);
        let z = generate(Family::Uniform, rows.len() * outputs, number + 300, Precision::F64);
        let mut hashes = [const { Vec::new() }; 3];
        for isa in Isa::available() {
            for _ in 0..WAYS {
                let way = Way::drawn(isa, 1, &mut ways);
                let placed =
                    |k: usize, grid| Placed::new(grid, way.offset_of(k), false, [0, 3][way.choose(k as u32, 2) as usize]);
                let (at_w, at_start, mut out) = (placed(0, &matrix), placed(1, &start), placed(2, &start));
                let (mut first, mut products) = (placed(3, &start), Grid::<f64>::blank(m, m, Layout::default()));
                let product = |out, start, wanted| Selected { rows: &rows, factors: &factors, start, wanted, out };
                let both = &mut [
                    product(out.view_mut(), Some(at_start.view()), None),
                    product(first.view_mut().subcols_mut(0, n.div_ceil(2)), None, None),
                ];
                selected(isa, at_w.view(), lower, both);
                let mut some = placed(4, &start);
                selected(isa, at_w.view(), lower, &mut [product(some.view_mut(), Some(at_start.view()), Some(&wanted))]);
                let mut crossed = vec![0.0; wanted.len() * outputs];
                crossing(isa, at_w.view(), &rows, &wanted, &z, outputs, &mut crossed);
                inner(isa, at_start.view(), products.view_mut());
                let mut of_sums = Hash::START;
                out.hash_into(&mut of_sums);
                first.hash_into(&mut of_sums);
                let (out, some) = (out.view(), some.view());
                assert!(wanted.iter().all(|&j| (0..m).all(|i| common::same(some[(i, j as usize)], out[(i, j as usize)]))));
                let products: Vec<f64> = (0..m * m).map(|at| products.get(at / m, at % m)).collect();
                for (hashes, hash) in hashes.iter_mut().zip([of_sums, Hash::of(&crossed), Hash::of(&products)]) {
                    hashes.push((way, hash));
                }
            }
        }
        lines.iter_mut().zip(hashes).for_each(|(line, hashes)| line.add(hashes));
    }
    lines.into()
}

/// A kernel on one or two vectors: reads both, fills the output (of the same length), and returns a number.
type VectorKernel<T> = Box<dyn Fn(Isa, &[T], &[T], &mut [T]) -> f64>;

fn vector_kernels<T: Scalar>() -> Vec<(String, VectorKernel<T>)> {
    let mut all: Vec<(String, VectorKernel<T>)> = vec![
        ("sum".into(), Box::new(|isa, x, _, _| sum(isa, x))),
        ("dot".into(), Box::new(|isa, x, y, _| dot(isa, x, y))),
        ("square-distance".into(), Box::new(|isa, x, y, _| square_distance(isa, x, y))),
        ("max-abs".into(), Box::new(|isa, x, _, _| max_abs(isa, x))),
        ("norm".into(), Box::new(|isa, x, _, _| norm(isa, x))),
        ("arg-max".into(), Box::new(|_, x, _, _| arg_max(x).map_or(-1.0, |at| at as f64))),
        ("log-sum-exp".into(), Box::new(|isa, x, _, _| log_sum_exp(isa, x))),
        (
            "softmax".into(),
            Box::new(|isa, x, _, out| {
                softmax(isa, out, x).expect("one length");
                0.0
            }),
        ),
    ];
    for &function in Function::ALL {
        let run: VectorKernel<T> = Box::new(move |isa, x, _, out| {
            // `expm1_neg` takes no negative numbers.
            let sizes: Vec<T>;
            let x = if function == Function::Expm1Neg {
                sizes = x.iter().map(|x| x.abs()).collect();
                &sizes
            } else {
                x
            };
            map(isa, function, out, x).expect("one length");
            0.0
        });
        all.push((format!("{function:?}").to_lowercase(), run));
    }
    for &f in Activation::ALL {
        let values: VectorKernel<T> = Box::new(move |isa, x, _, out| {
            f.values(isa, out, x).expect("one length");
            0.0
        });
        let derivatives: VectorKernel<T> = Box::new(move |isa, x, _, out| {
            f.derivatives(isa, out, x).expect("one length");
            0.0
        });
        all.extend([(format!("value/{f}"), values), (format!("derivative/{f}"), derivatives)]);
    }
    all
}

/// Reductions and elementwise kernels, each case on every instruction set at every offset.
fn vectors<T: Scalar>() -> Vec<Line> {
    let numbers = |family, len, seed| -> Vec<T> {
        // Wide enough for the ends of exp and tanh, and a few exceptional values.
        let mut x: Vec<T> = generate(family, len, seed, T::PRECISION).into_iter().map(|x| T::from_f64(16.0 * x)).collect();
        let special = [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -0.0];
        if seed % 5 == 0 && len > 0 {
            x[(7 * seed as usize) % len] = T::from_f64(special[seed as usize / 5 % 4]);
        }
        x
    };
    let mut lines = Vec::new();
    for (name, kernel) in vector_kernels::<T>() {
        let mut line = Line::new::<T>(&name);
        for case in 0..VECTORS {
            let len = SplitMix64::new(case).below(if case % 10 == 9 { 1000 } else { 150 }) as usize;
            let family = Family::ALL[(case % 6) as usize];
            let (x, y) = (numbers(family, len, case), numbers(family, len, case + 100));
            let mut hashes = Vec::new();
            let mut memory = [0; 3].map(|_| vec![T::CANARY; room::<T>(len)]);
            for isa in Isa::available() {
                for offset in 0..OFFSETS {
                    let way = Way { isa, threads: 1, offset, choice: 0 };
                    let begins: [usize; 3] = core::array::from_fn(|k| begin(&memory[k], way.offset_of(k)));
                    let [at_x, at_y, out] = &mut memory;
                    let [at_x, at_y, out] = [(at_x, begins[0]), (at_y, begins[1]), (out, begins[2])]
                        .map(|(memory, begin)| &mut memory[begin..][..len]);
                    at_x.copy_from_slice(&x);
                    at_y.copy_from_slice(&y);
                    out.fill(T::ZERO);
                    let number = kernel(isa, at_x, at_y, out);
                    let mut hash = Hash::of(out);
                    hash.number(number);
                    hashes.push((way, hash));
                }
            }
            line.add(hashes);
        }
        lines.push(line);
    }
    lines
}

/// `ln` and `cos_pi`, which have one form.
fn scalars() -> Vec<Line> {
    [("ln", ln as fn(f64) -> f64), ("cos-pi", cos_pi)]
        .map(|(name, function)| {
            let mut line = Line::new::<f64>(&name);
            for (number, family) in Family::ALL.into_iter().enumerate() {
                let x = generate(family, 1000, number as u64, Precision::F64);
                let values: Vec<f64> = x.iter().map(|x| function(x.abs())).collect();
                line.add([("everywhere", Hash::of(&values))]);
            }
            line
        })
        .into()
}

fn of_type<T: Scalar>() -> Vec<Line> {
    let pools = THREADS.map(|threads| ThreadPoolBuilder::new().num_threads(threads).build().expect("threads"));
    products::<T>(&pools)
        .into_iter()
        .chain(sweeps::<T>(&pools))
        .chain([
            online_line::<T>("online", Optimizer::MOMENTUM, Decay::Coupled(5e-4), &pools),
            online_line::<T>("online/plain", Optimizer::Sgd, Decay::Decoupled(5e-4), &pools),
        ])
        .chain(sparse_lines::<T>(&pools))
        .chain(vectors::<T>())
        .chain(selections::<T>())
        .collect()
}

const HEAD: &str = "\
# Hashes of the bits of all kernels; `kernels/tests/golden.rs` says of what. A change is noted in the changelog.
# GOLDEN=write cargo test -p dualprop-kernels --test golden
# family, cases, hash
";

#[test]
fn bits_are_the_same_everywhere_and_as_they_were() {
    let isas: Vec<&str> = Isa::available().map(Isa::name).collect();
    println!("instruction sets: {}", isas.join(", "));
    // A panic of either half carries the message.
    let lines: Vec<Line> = thread::scope(|scope| {
        let halves = [scope.spawn(of_type::<f32>), scope.spawn(of_type::<f64>)];
        halves.into_iter().flat_map(|half| half.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let lines: Vec<Line> = lines.into_iter().chain(scalars()).collect();
    let cases: u64 = lines.iter().map(|line| line.cases).sum();
    println!("{cases} cases in {} families", lines.len());
    assert!(cases >= 2000, "only {cases} cases");

    let mut now = HEAD.to_owned();
    for Line { name, cases, hash } in &lines {
        writeln!(now, "{name:<44} {cases:>3} {:016x}", hash.0).expect("a string takes everything");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bits.txt");
    if std::env::var_os("GOLDEN").is_some_and(|golden| golden == "write") {
        std::fs::write(&path, now).expect("the file of the hashes");
        return;
    }
    let golden = std::fs::read_to_string(&path).expect("the file of the hashes");
    let families = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    };
    let (golden, now) = (families(&golden), families(&now));
    let changed: Vec<&str> = now.iter().filter(|line| !golden.contains(line)).map(String::as_str).collect();
    let gone: Vec<&str> = golden.iter().filter(|line| !now.contains(line)).map(String::as_str).collect();
    assert!(
        changed.is_empty() && gone.is_empty(),
        "The bits have changed, alike on {} with any threads and offset. Now:\n  {}\nin the file:\n  {}\n\
         If that was decided, note it in the changelog and run\n  GOLDEN=write cargo test -p dualprop-kernels --test golden",
        isas.join(", "),
        changed.join("\n  "),
        gone.join("\n  "),
    );
}
