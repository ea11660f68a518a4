//! The Lipschitz constant of a network, from both sides.

use dualprop_kernels::vector::Real;
use faer::{Mat, MatRef};

use super::adversarial::{Pair, search as search_pair, steepest};
use super::chain::Chain;
use super::collatz::collatz;
use super::dense::Dense;
use super::eclipse::eclipse;
use super::enclose::enclose;
use super::enclosure::{Enclosure, Proof, Search, Seed, Status};
use super::local::{Kinks, local};
use super::rounding::up;
use crate::error::Error;
use crate::network::Network;
use crate::runtime::Runtime;

/// Everything that is known of the Lipschitz constant (2-norms) of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Global {
    /// The best of both sides; `products` is 0.
    pub enclosure: Enclosure,
    /// `‖W_k‖₂`.
    pub layers: Vec<Enclosure>,
    /// `Π ‖W_k‖₂ · Lip(φ)^(L−1)`, not below.
    pub product: f64,
    /// ECLipsE-Fast (Xu & Sivaranjani 2024) for slopes from 0 to `Lip(φ)`, with rounding.
    pub eclipse: f64,
    /// `‖ |W_{L−1}| ⋯ |W_0| ‖₂ · Lip(φ)^(L−1)` by Collatz, not below: good where signs agree.
    pub absolute: f64,
    /// `‖W_{L−1} ⋯ W_0‖₂`, the proxy of Høier & Zach (2024): no bound of the constant in either direction.
    pub proxy: Enclosure,
    /// The sample with the largest local constant, and the enclosure of that; `None` without samples. The pattern of active units is that of a forward
    /// pass in `T`: a lower bound of the constant but for units whose drive is lost in rounding, which [`pair`](Self::pair) does not suffer from.
    pub local: Option<(usize, Enclosure)>,
    /// The best pair that was found, from which `lower` is; `None` without samples.
    pub pair: Option<Pair>,
}

/// Samples with the largest local constants that a search for pairs starts from.
const STARTS: usize = 4;

/// Sweeps for the chain of absolute values.
const SWEEPS: u32 = 16;

/// Encloses the Lipschitz constant of `network`, with `samples` (any number of rows) to look for its lower bound at.
///
/// Above: the least of product, ECLipsE-Fast and absolute values. Below: the best pair of inputs from a search that starts at the samples with the largest local
/// constants, evaluated in f64 less all rounding; it can be replayed by [`stretch`](super::stretch). `search` is for the norms of the layers and the proxy.
///
/// # Errors
/// Those of [`enclose`], and [`Error::Shape`] and [`Error::NotFinite`] for samples and weights.
pub fn global<T: Real>(
    network: &Network<T>,
    samples: MatRef<'_, T>,
    search: &Search,
    runtime: &Runtime,
) -> Result<Global, Error> {
    network.check_finite()?;
    let weights: Vec<_> = (0..network.layers()).map(|k| network.weights(k)).collect();
    let slope = steepest(network.activation());
    let norm = |&weights: &MatRef<'_, T>| Ok(enclose(&Dense::new(weights), search, runtime)?.enclosure);
    let layers = weights.iter().map(norm).collect::<Result<Vec<_>, Error>>()?;
    let slopes = slope.powi(weights.len() as i32 - 1);
    let product = up(layers.iter().map(|layer| layer.upper).product::<f64>() * slopes, layers.len() + 1);
    let chain = Chain::new(&weights)?;
    let absolute = up(collatz(&chain, SWEEPS)?.upper * slopes, 2);
    let eclipse = eclipse(&weights, slope, runtime)?;
    let proxy = enclose(&chain, search, runtime)?.enclosure;

    // They serve to choose where to start: a coarse gap does.
    let constants = local(network, samples, Kinks::Smaller, search.gap.max(1e-2), runtime)?;
    let mut order: Vec<usize> = (0..constants.len()).collect();
    order.sort_by(|&a, &b| constants[b].lower.total_cmp(&constants[a].lower).then(a.cmp(&b)));
    order.truncate(STARTS);
    let starts = Mat::from_fn(order.len(), samples.ncols(), |i, j| samples[(order[i], j)]);
    let seed = if let Seed::Fixed(seed) = search.seed { seed } else { 0 };
    let pair = search_pair(network, starts.as_ref(), seed, runtime)?;

    let (mut upper, mut proof) = (product, Proof::Product);
    for (bound, by) in [(eclipse, Proof::Eclipse), (absolute, Proof::Collatz { sweeps: SWEEPS })] {
        if bound < upper {
            (upper, proof) = (bound, by);
        }
    }
    let lower = pair.as_ref().map_or(0.0, |pair| pair.lower);
    let mut enclosure = Enclosure { lower, upper, proof, status: Status::Budget, products: 0 };
    if enclosure.gap() <= search.gap {
        enclosure.status = Status::GapReached;
    }
    let local = order.first().map(|&sample| (sample, constants[sample]));
    Ok(Global { enclosure, layers, product, eclipse, absolute, proxy, local, pair })
}
