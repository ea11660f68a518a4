//! Lanczos steps on `AᵀA`, from several starts that share their sweeps.

use dualprop_kernels::elementary::ln;
use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};
use dualprop_kernels::reduce;
use dualprop_kernels::strided::Output;
use dualprop_kernels::vector::Real;
use faer::{MatMut, MatRef};

use super::operator::Operator;
use super::tridiagonal::Tridiagonal;
use crate::matrix::RowMajor;
use crate::random::Counter;
use crate::workspace::Workspace;

/// The iteration of Lanczos (1950) with full reorthogonalisation, twice by Gram and Schmidt, and its memory.
#[derive(Clone, Debug)]
pub(crate) struct Lanczos<T> {
    starts: Vec<Start<T>>,
    /// Most steps.
    limit: usize,
    /// The newest vectors, and their images under `AᵀA`, one in a row.
    x: RowMajor<T>,
    y: RowMajor<T>,
    squares: Vec<f64>,
    along: Vec<T>,
    scratch: Scratch<T>,
    ritz: Vec<f64>,
    pivots: Vec<f64>,
    steps: usize,
}

/// One start.
#[derive(Clone, Debug)]
struct Start<T> {
    /// Orthonormal vectors, one in a row.
    basis: RowMajor<T>,
    projection: Tridiagonal,
    is_exhausted: bool,
}

/// Vectors that there is memory for at first.
const FIRST: usize = 32;

impl<T: Real> Start<T> {
    /// Memory for so many vectors, and for as many again.
    fn make_room(&mut self, vectors: usize, limit: usize) {
        let old = &self.basis;
        if vectors > old.rows() {
            let mut basis = RowMajor::zeros((2 * vectors).min(limit), old.cols());
            (0..old.rows()).for_each(|row| basis.row_mut(row).copy_from_slice(old.row(row)));
            self.basis = basis;
        }
    }
}

/// The largest eigenvalue of a projection, as an approximation of `‖A‖₂²`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ritz {
    start: usize,
    /// `θ²`.
    pub(crate) square: f64,
    /// An estimate (no bound) of how far it is below `‖A‖₂²`, relatively.
    pub(crate) error: f64,
    /// The next eigenvalue of the projection.
    pub(crate) next: f64,
}

impl<T: Real> Lanczos<T> {
    /// For operators on vectors of length `n`, for at most `limit` steps from each of `starts` starts.
    pub(crate) fn new(n: usize, limit: usize, starts: usize) -> Self {
        let limit = limit.min(n);
        let start = Start { basis: RowMajor::zeros(limit.min(FIRST), n), projection: Tridiagonal::default(), is_exhausted: true };
        Self {
            starts: vec![start; starts],
            limit,
            x: RowMajor::zeros(starts, n),
            y: RowMajor::zeros(starts, n),
            squares: vec![0.0; starts],
            along: vec![T::ZERO; limit],
            scratch: Scratch::new(),
            ritz: Vec::with_capacity(limit),
            pivots: Vec::with_capacity(limit),
            steps: 0,
        }
    }

    /// The same with memory for all steps: none of them allocates.
    pub(crate) fn reserved(mut self) -> Self {
        for start in &mut self.starts {
            start.basis = RowMajor::zeros(self.limit, self.x.cols());
            start.projection = Tridiagonal { d: Vec::with_capacity(self.limit), e: Vec::with_capacity(self.limit) };
        }
        self
    }

    /// Begins at Gaussian vectors from these streams of a seed.
    pub(crate) fn begin(&mut self, seed: u64, stream: u64) {
        for i in 0..self.starts.len() {
            let mut random = Counter::new(seed, stream.wrapping_add(i as u64));
            self.x.row_mut(i).iter_mut().for_each(|x| *x = T::from_f64(random.normal()));
        }
        self.restart();
    }

    /// Begins at this vector.
    pub(crate) fn begin_at(&mut self, start: &[T]) {
        for i in 0..self.starts.len() {
            self.x.row_mut(i).copy_from_slice(start);
        }
        self.restart();
    }

    /// Begins at what is in `x`.
    fn restart(&mut self) {
        self.steps = 0;
        for (i, start) in self.starts.iter_mut().enumerate() {
            start.projection.clear();
            let x = self.x.row_mut(i);
            start.is_exhausted = self.limit == 0 || !normalize(x);
            if !start.is_exhausted {
                start.basis.row_mut(0).copy_from_slice(x);
            }
        }
    }

    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.starts.iter().all(|start| start.is_exhausted)
    }

    /// Whether another step is possible.
    pub(crate) fn may_go_on(&self) -> bool {
        self.steps < self.limit && !self.is_exhausted()
    }

    /// One product with `AᵀA` for every start.
    pub(crate) fn step(&mut self, operator: &dyn Operator<T>, work: &mut Workspace<T>) {
        operator.gram(self.x.view(), self.y.view_mut(), &mut self.squares, work);
        let isa = work.runtime().isa();
        let k = self.steps;
        self.steps += 1;
        for (i, start) in self.starts.iter_mut().enumerate().filter(|(_, start)| !start.is_exhausted) {
            let y = self.y.row_mut(i);
            let before = reduce::norm(isa, y);
            start.projection.d.push(self.squares[i]);
            let mut beyond = 0.0;
            // Squares that overflow end the start; so does a vector that is mapped to zero.
            if before > 0.0 && before.is_finite() && self.squares[i].is_finite() {
                // Twice is enough (Kahan and Parlett): the rest is orthogonal to working precision.
                for _ in 0..2 {
                    let along = &mut self.along[..=k];
                    for (b, along) in along.iter_mut().enumerate() {
                        *along = T::from_f64(reduce::dot(isa, start.basis.row(b), y));
                    }
                    let (rows, basis) = (MatRef::from_row_major_slice(along, 1, k + 1), start.basis.view().subrows(0, k + 1));
                    let out = Output::new(MatMut::from_row_major_slice_mut(y, 1, basis.ncols()));
                    let epilogue = Epilogue::Accumulate { out, scale: -T::ONE };
                    let blocking = Blocking::in_place::<T>(isa, 1);
                    let par = work.runtime().par();
                    product(isa, par, Rows::View(rows), Lanes::View(basis), epilogue, blocking, &mut self.scratch);
                }
                beyond = reduce::norm(isa, y);
            } else if !self.squares[i].is_finite() {
                start.projection.d.pop();
                start.is_exhausted = true;
                continue;
            }
            // Below this it is rounding.
            let is_new = beyond > 4.0 * T::UNIT_ROUNDOFF * before && k + 1 < y.len();
            start.projection.e.push(if is_new { beyond } else { 0.0 });
            if !is_new || !normalize(y) {
                start.is_exhausted = true;
                self.x.row_mut(i).fill(T::ZERO);
                continue;
            }
            self.x.row_mut(i).copy_from_slice(y);
            if k + 1 < self.limit {
                start.make_room(k + 2, self.limit);
                start.basis.row_mut(k + 1).copy_from_slice(y);
            }
        }
    }

    /// The best approximation so far; `None` if nothing was built.
    pub(crate) fn best(&mut self) -> Option<Ritz> {
        let largest = |start: &Start<T>| start.projection.eigenvalue(1);
        let values = self.starts.iter().map(largest).enumerate().filter(|&(i, _)| self.starts[i].projection.len() > 0);
        let (i, square) = values.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))?;
        let t = &self.starts[i].projection;
        t.eigenvector(square, &mut self.ritz, &mut self.pivots);
        let residual = t.e[t.len() - 1] * self.ritz[t.len() - 1].abs();
        // Kato and Temple, with the next Ritz value for the next eigenvalue.
        let next = t.eigenvalue(2);
        let apart = square - next;
        let error = if residual == 0.0 { 0.0 } else { residual * (residual / apart).min(1.0) / square };
        Some(Ritz { start: i, square, error: if error.is_nan() { f64::INFINITY } else { error }, next })
    }

    /// `out ←` the vector that belongs to `ritz`, which has to be the last that [`best`](Self::best) gave.
    pub(crate) fn vector(&self, ritz: Ritz, out: &mut [f64]) {
        out.fill(0.0);
        for (b, &weight) in self.ritz.iter().enumerate() {
            for (out, x) in out.iter_mut().zip(self.starts[ritz.start].basis.row(b)) {
                *out += weight * x.to_f64();
            }
        }
    }

    /// An upper bound of `‖A‖₂²` that fails for random starts with a chance of at most `delta`, but for rounding: `p(λ)|⟨b, v⟩| ≤ 1` for the
    /// polynomial of every start.
    pub(crate) fn probable_square(&self, delta: f64) -> f64 {
        let n = self.x.cols();
        let chance = ln(delta) / self.starts.len() as f64;
        // P(|⟨b, v⟩| ≤ t) ≤ t √(2(n−1)/π) for n ≥ 3; t for n = 2; 0 for n = 1.
        let level = match n {
            0 | 1 => 0.0,
            2 => -chance,
            _ => 0.5 * ln(2.0 * (n - 1) as f64 / core::f64::consts::PI) - chance,
        };
        let of_start = |start: &Start<T>| start.projection.root(start.projection.eigenvalue(1), level);
        self.starts.iter().map(of_start).fold(0.0, f64::max)
    }
}

/// Scales `x` to length 1; `false` if there is none.
fn normalize<T: Real>(x: &mut [T]) -> bool {
    let norm = reduce::norm(crate::Isa::best(), x);
    let sound = norm > 0.0 && norm.is_finite();
    if sound {
        x.iter_mut().for_each(|x| *x = T::from_f64(x.to_f64() / norm));
    }
    sound
}
