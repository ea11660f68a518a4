//! Products of matrices with diagonals between them: the Jacobian of a network.

use dualprop_kernels::epilogue::Epilogue;
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};
use dualprop_kernels::reduce;
use dualprop_kernels::strided::{Input, Output};
use dualprop_kernels::vector::Real;
use faer::prelude::ReborrowMut;
use faer::{Mat, MatMut, MatRef};

use super::dense::Dense;
use super::enclosure::{Bracket, Proof};
use super::operator::Operator;
use super::rounding::{exponent_of, gamma, scaled, up};
use crate::check;
use crate::error::Error;
use crate::workspace::Workspace;
use crate::{Isa, Par};

/// `W_L D_{L−1} W_{L−1} ⋯ D_1 W_1` with diagonal `D`: the Jacobian of a network at the activations' slopes.
///
/// Nothing is multiplied out: a product with a vector is a product with every factor, the slopes in its epilogue. Without slopes the
/// diagonals are identities; then [`abs_gram`](Operator::abs_gram) multiplies with `|W_L|⋯|W_1|`, and what is bounded with it is
/// bounded for all slopes in [−1, 1]: `|W_L D_{L−1} ⋯ W_1| ≤ |W_L|⋯|W_1|`, element by element.
///
/// Every element of the factors must be finite, also in rows that a slope of 0 hides: the transposed product meets them.
#[derive(Clone, Debug)]
pub struct Chain<'a, T> {
    factors: Vec<Dense<'a, T>>,
    bounds: Vec<Bracket>,
    /// Behind every factor but the last.
    slopes: Vec<Option<Vec<T>>>,
}

impl<'a, T: Real> Chain<'a, T> {
    /// The product of `W_1, …, W_L`, in the order of application: `W_{l+1}` has as many columns as `W_l` has rows.
    ///
    /// Costs two passes over the elements.
    ///
    /// # Errors
    /// [`Error::Length`] for no factor, [`Error::Shape`] for factors that do not fit, [`Error::NotFinite`] for NaN or infinity.
    pub fn new(factors: &[MatRef<'a, T>]) -> Result<Self, Error> {
        let Some(first) = factors.first() else {
            return Err(Error::Length { argument: "factors", found: 0, expected: 1 });
        };
        let mut width = first.ncols();
        for &factor in factors {
            check::shape("factors", factor, (factor.nrows(), width))?;
            check::finite("factors", factor)?;
            width = factor.nrows();
        }
        let factors: Vec<_> = factors.iter().map(|&factor| Dense::new(factor)).collect();
        let bounds = factors.iter().map(|factor| factor.bracket()).collect::<Result<_, _>>()?;
        Ok(Self { slopes: vec![None; factors.len() - 1], factors, bounds })
    }

    /// The same with `D_layer`, `1 ≤ layer < L`, in place of what was there.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a layer that there is not and for a slope that is not finite, [`Error::Length`] unless `slopes` has one
    /// element for each row of `W_layer`.
    pub fn with_slopes(mut self, layer: usize, slopes: &[T]) -> Result<Self, Error> {
        let rows = self.rows_of("layer", layer)?;
        check::length("slopes", slopes.len(), rows)?;
        for slope in slopes {
            check::parameter("slopes", slope.to_f64(), "finite", slope.is_finite())?;
        }
        self.slopes[layer - 1] = Some(slopes.to_vec());
        Ok(self)
    }

    /// The same with a `D_layer` of zeros and ones: bit `j mod 64` of word `j/64` is element `j`. Bits behind the last do not matter.
    ///
    /// # Errors
    /// As for [`with_slopes`](Self::with_slopes), with a word for every 64 rows, the last of them begun.
    pub fn with_mask(self, layer: usize, mask: &[u64]) -> Result<Self, Error> {
        let rows = self.rows_of("layer", layer)?;
        check::length("mask", mask.len(), rows.div_ceil(64))?;
        let slopes: Vec<T> = (0..rows).map(|j| if mask[j / 64] >> (j % 64) & 1 == 1 { T::ONE } else { T::ZERO }).collect();
        self.with_slopes(layer, &slopes)
    }

    fn rows_of(&self, argument: &'static str, layer: usize) -> Result<usize, Error> {
        let layers = self.factors.len();
        check::parameter(argument, layer as f64, "from 1 to the number of factors less 1", (1..layers).contains(&layer))?;
        Ok(self.factor(layer - 1).nrows())
    }

    fn factor(&self, l: usize) -> MatRef<'_, T> {
        self.factors[l].matrix()
    }

    /// Slope of unit `j` behind factor `l`, from 0.
    fn slope(&self, l: usize, j: usize) -> f64 {
        self.slopes.get(l).and_then(Option::as_ref).map_or(1.0, |slopes| slopes[j].to_f64())
    }

    /// `‖D‖₂` behind factor `l`, from 0.
    fn steepest(&self, l: usize) -> f64 {
        match self.slopes.get(l) {
            Some(Some(slopes)) => slopes.iter().fold(0.0, |most, slope| f64::max(most, slope.abs().to_f64())),
            _ => 1.0,
        }
    }
}

impl<T: Real> Operator<T> for Chain<'_, T> {
    fn shape(&self) -> (usize, usize) {
        (self.factor(self.factors.len() - 1).nrows(), self.factor(0).ncols())
    }

    fn apply(&self, x: MatRef<'_, T>, y: MatMut<'_, T>, work: &mut Workspace<T>) {
        let samples = x.nrows();
        let slopes = |l: usize| self.slopes[l].as_deref().map(|slopes| Input::repeated(slopes, samples));
        push(self.factors.len(), |l| self.factor(l), slopes, x, y, work);
    }

    fn apply_transposed(&self, y: MatRef<'_, T>, x: MatMut<'_, T>, work: &mut Workspace<T>) {
        let samples = y.nrows();
        let slopes = |l: usize| self.slopes[l].as_deref().map(|slopes| Input::repeated(slopes, samples));
        pull(self.factors.len(), |l| self.factor(l), slopes, y, x, work);
    }

    fn stored(&self) -> usize {
        self.factors.iter().map(Operator::stored).sum()
    }

    /// The product of the factors' norms, one of them in turn in the Frobenius norm.
    fn bracket(&self) -> Result<Bracket, Error> {
        let steepest = (0..self.slopes.len()).map(|l| self.steepest(l));
        let product = |norm: &dyn Fn(usize) -> f64| product_above((0..self.factors.len()).map(norm).chain(steepest.clone()));
        let upper = product(&|l| self.bounds[l].upper);
        if (0..self.factors.len()).any(|l| self.bounds[l].upper == 0.0 || self.steepest(l) == 0.0) {
            return Ok(Bracket { largest: 0.0, lower: 0.0, upper: 0.0, frobenius: 0.0, proof: Proof::Zero });
        }
        let frobenius = (0..self.factors.len())
            .map(|f| product(&|l| if l == f { self.bounds[l].frobenius } else { self.bounds[l].upper }))
            .fold(f64::INFINITY, f64::min);
        if self.factors.len() == 1 {
            return Ok(self.bounds[0]);
        }
        Ok(Bracket { largest: f64::INFINITY, lower: 0.0, upper, frobenius, proof: Proof::Product })
    }

    /// Each factor adds its own error and that of the slopes to the error that came in, which grows by `‖D‖‖W‖`.
    fn image(&self, x: &[f64], y: &mut [f64]) -> f64 {
        let (mut state, mut error) = (x.to_vec(), 0.0);
        for (l, factor) in self.factors.iter().enumerate() {
            let mut image = vec![0.0; factor.shape().0];
            error = error * self.bounds[l].upper + factor.image(&state, &mut image);
            let sizes = reduce::norm(Isa::best(), &image);
            for (i, x) in image.iter_mut().enumerate() {
                *x = if self.slope(l, i) == 0.0 { 0.0 } else { self.slope(l, i) * *x };
            }
            let rounding = f64::UNIT_ROUNDOFF * sizes * self.steepest(l) + underflow(image.len());
            error = up(error * self.steepest(l) + rounding, image.len() + 12);
            state = image;
        }
        y.copy_from_slice(&state);
        if error.is_finite() { error } else { f64::INFINITY }
    }

    /// Multiplies with `|W_L||D_{L−1}|⋯|W_1|` and its transpose, which bounds `|A|` from above; `y` is not below that product.
    fn abs_gram(&self, x: &[f64], y: &mut [f64]) -> bool {
        let (mut state, mut exponent) = (x.to_vec(), 0);
        let last = self.factors.len() - 1;
        for l in 0..=last {
            exponent += abs_step(self.factor(l), &mut state, |i| if l < last { self.slope(l, i).abs() } else { 1.0 });
        }
        for l in (0..=last).rev() {
            exponent +=
                abs_step(self.factor(l).transpose(), &mut state, |j| if l > 0 { self.slope(l - 1, j).abs() } else { 1.0 });
        }
        for (y, x) in y.iter_mut().zip(&state) {
            *y = if *x == 0.0 { 0.0 } else { scaled(*x, exponent).next_up() };
        }
        true
    }

    /// Multiplied out from the side with fewer vectors. Each factor adds `γ_{n+1}‖P‖_F‖DW‖_F` to the error of the product `P` so far,
    /// which grows by `‖D‖‖W‖`.
    fn block(&self, row: usize, col: usize, mut out: MatMut<'_, f64>) -> Option<f64> {
        let (rows, cols) = (out.nrows(), out.ncols());
        let last = self.factors.len() - 1;
        let part = |l: usize| {
            let factor = self.factor(l);
            let factor = if l == last { factor.subrows(row, rows) } else { factor };
            if l == 0 { factor.subcols(col, cols) } else { factor }
        };
        let from_left = rows <= cols;
        // The order of multiplication: factors, and the diagonals in front of them.
        let order: Vec<usize> = if from_left { (0..=last).rev().collect() } else { (0..=last).collect() };
        let oriented = |l: usize| if from_left { part(l) } else { part(l).transpose() };
        let first = oriented(order[0]);
        let mut built = Mat::from_fn(first.nrows(), first.ncols(), |i, j| first[(i, j)].to_f64());
        let mut error = 0.0;
        for &l in &order[1..] {
            let (factor, diagonal) = (oriented(l), if from_left { l } else { l - 1 });
            let (depth, n) = (factor.nrows(), factor.ncols());
            let factor = Mat::from_fn(depth, n, |p, j| self.slope(diagonal, p) * factor[(p, j)].to_f64());
            let mut next = Mat::zeros(built.nrows(), n);
            let store = Epilogue::Store { out: Output::new(next.as_mut()), scale: 1.0 };
            let (rows, lanes) = (Rows::View(built.as_ref()), Lanes::View(factor.as_ref()));
            product(Isa::best(), Par::Seq, rows, lanes, store, Blocking::on_the_fly(built.nrows()), &mut Scratch::new());
            let carried = error * self.bounds[l].upper * self.steepest(diagonal);
            let own = gamma(depth + 1) * frobenius(built.as_ref()) * frobenius(factor.as_ref());
            let size = next.nrows() * n * depth;
            error = up(carried + own + underflow(size) * (1.0 + frobenius(built.as_ref())), built.nrows() + 2 * depth + n + 16);
            built = next;
        }
        out.copy_from(if from_left { built.as_ref() } else { built.transpose() });
        error.is_finite().then_some(error)
    }
}

/// `yᵢ ← W_L D_{L−1,i} W_{L−1} ⋯ D_{1,i} W_1 xᵢ`: forward mode through the Jacobians of a batch, each sample with its own slopes.
///
/// `x` is `p × n_0`, `y` `p × n_L`; `factor(l)` is `W_{l+1}`, `slopes(l)` is `p × n_{l+1}` and belongs behind it, `None` for identity; it is not asked
/// for behind the last. A product for each factor with the slopes in its epilogue: every sum is one chain in ascending order whatever `p`, so that a sample has the same bits in
/// every batch. Where a slope is 0 the state is 0, whatever the sum.
pub(crate) fn push<'w, 's, T: Real>(
    factors: usize,
    factor: impl Fn(usize) -> MatRef<'w, T>,
    slopes: impl Fn(usize) -> Option<Input<'s, T>>,
    x: MatRef<'_, T>,
    y: MatMut<'_, T>,
    work: &mut Workspace<T>,
) {
    let multiply = |l: usize, from: MatRef<'_, T>, epilogue: Epilogue<'_, T>, work: &mut Workspace<T>| {
        work.forward(factor(l), from, epilogue);
    };
    through(0..factors, |l| factor(l).nrows(), slopes, multiply, x, y, work);
}

/// `xᵢ ← W_1ᵀ D_{1,i} ⋯ D_{L−1,i} W_Lᵀ yᵢ`: the transpose of [`push`], reverse mode.
pub(crate) fn pull<'w, 's, T: Real>(
    factors: usize,
    factor: impl Fn(usize) -> MatRef<'w, T>,
    slopes: impl Fn(usize) -> Option<Input<'s, T>>,
    y: MatRef<'_, T>,
    x: MatMut<'_, T>,
    work: &mut Workspace<T>,
) {
    let multiply = |l: usize, from: MatRef<'_, T>, epilogue: Epilogue<'_, T>, work: &mut Workspace<T>| {
        work.top_down(factor(l), from, epilogue);
    };
    // Behind `W_lᵀ` come the slopes of the layer below.
    through((0..factors).rev(), |l| factor(l).ncols(), |l| slopes(l - 1), multiply, y, x, work);
}

/// A product with each factor of `order`, with slopes behind all but the last, and a state of that width.
fn through<'s, T: Real>(
    order: impl ExactSizeIterator<Item = usize>,
    width: impl Fn(usize) -> usize,
    slopes: impl Fn(usize) -> Option<Input<'s, T>>,
    multiply: impl Fn(usize, MatRef<'_, T>, Epilogue<'_, T>, &mut Workspace<T>),
    x: MatRef<'_, T>,
    mut y: MatMut<'_, T>,
    work: &mut Workspace<T>,
) {
    let samples = x.nrows();
    let [mut from, mut to] = [0, 1].map(|i| core::mem::take(&mut work.spare[i]));
    let (last, mut from_width) = (order.len() - 1, 0);
    for (step, l) in order.enumerate() {
        let state = if step == 0 { x } else { MatRef::from_row_major_slice(&from, samples, from_width) };
        if step == last {
            multiply(l, state, Epilogue::Store { out: Output::new(y.rb_mut()), scale: T::ONE }, work);
        } else {
            from_width = width(l);
            to.resize(samples * from_width, T::ZERO);
            let out = Output::new(MatMut::from_row_major_slice_mut(&mut to, samples, from_width));
            let epilogue = match slopes(l) {
                Some(slope) => Epilogue::Masked { slope, out },
                None => Epilogue::Store { out, scale: T::ONE },
            };
            multiply(l, state, epilogue, work);
            core::mem::swap(&mut from, &mut to);
        }
    }
    [work.spare[0], work.spare[1]] = [from, to];
}

/// `v ← |D||W|v·2^−e`, rounded up, with the largest element from 1 to 2. Returns `e`.
fn abs_step<T: Real>(factor: MatRef<'_, T>, state: &mut Vec<f64>, slope: impl Fn(usize) -> f64) -> i32 {
    let (m, n) = (factor.nrows(), factor.ncols());
    let mut image = vec![0.0; m];
    if factor.col_stride().unsigned_abs() <= factor.row_stride().unsigned_abs() {
        for (i, sum) in image.iter_mut().enumerate() {
            *sum = factor.row(i).iter().zip(&*state).map(|(w, v)| w.abs().to_f64() * v).sum();
        }
    } else {
        for (j, &v) in state.iter().enumerate() {
            for (w, sum) in factor.col(j).iter().zip(&mut image) {
                *sum += w.abs().to_f64() * v;
            }
        }
    }
    for (i, sum) in image.iter_mut().enumerate() {
        let slope = slope(i);
        // A sum of nothing but zeros is exact, and so is what a slope of 0 hides.
        let is_empty =
            slope == 0.0 || (*sum == 0.0 && factor.row(i).iter().zip(&*state).all(|(w, v)| *w == T::ZERO || *v == 0.0));
        *sum = if is_empty { 0.0 } else { up((*sum + underflow(n)) * slope, n + 3) };
    }
    let exponent = exponent_of(image.iter().copied().fold(0.0, f64::max));
    for x in image.iter_mut().filter(|x| **x != 0.0) {
        // Scaling is exact but where it underflows.
        *x = scaled(*x, -exponent).max(f64::MIN_POSITIVE);
    }
    *state = image;
    exponent
}

/// Not below the product of numbers that are not negative, however small or large it is on the way.
fn product_above(sizes: impl Iterator<Item = f64>) -> f64 {
    let (mut product, mut exponent, mut roundings) = (1.0, 0, 0);
    for size in sizes {
        let of_size = exponent_of(size);
        product *= scaled(size, -of_size);
        let of_product = exponent_of(product);
        (product, exponent, roundings) = (scaled(product, -of_product), exponent + of_size + of_product, roundings + 1);
    }
    up(scaled(product, exponent), roundings)
}

/// `‖A‖_F` within `γ_{m+n}`.
fn frobenius(matrix: MatRef<'_, f64>) -> f64 {
    let norms: Vec<f64> = (0..matrix.ncols())
        .map(|j| {
            let col: Vec<f64> = matrix.col(j).iter().copied().collect();
            reduce::norm(Isa::best(), &col)
        })
        .collect();
    reduce::norm(Isa::best(), &norms)
}

/// What underflow adds to a number in so many operations.
pub(super) fn underflow(operations: usize) -> f64 {
    operations as f64 * f64::TINY
}
