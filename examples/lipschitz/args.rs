//! The command line.

use std::path::PathBuf;

use clap::Parser;
use dualprop::Activation;

/// Encloses the spectral norms of matrices, and the Lipschitz constants of networks.
///
/// Every answer is an interval with the proof behind its upper end. With --matrix that of one matrix; with --weights those of each layer,
/// of the product of the layers (the proxy of Høier & Zach 2024), and of the network: local constants at data samples, the
/// whole network from both sides, and a witness of the lower bound. The table goes to the terminal; pictures and the witness go
/// to the directory `report`.
#[derive(Clone, Debug, Parser)]
#[command(name = "lipschitz", version, verbatim_doc_comment)]
pub(crate) struct Args {
    /// Weights of a network (safetensors: w0, b0, w1, …), as the example `train` writes them
    #[arg(long, value_name = "FILE", required_unless_present = "matrix")]
    pub(crate) weights: Option<PathBuf>,
    /// A matrix: Matrix Market (.mtx), NumPy (.npy) or a sparse matrix of SciPy (.npz)
    #[arg(long, value_name = "FILE", conflicts_with = "weights")]
    pub(crate) matrix: Option<PathBuf>,
    /// Activation of the hidden layers; the file of weights does not say
    #[arg(long, default_value = "relu", value_parser = crate::activation())]
    pub(crate) activation: Activation,
    /// Where local constants are taken: `digits`, `fashion-mnist`, a directory with IDX files, or an NPZ file
    /// [default: the embedded digits if they fit, or Fashion-MNIST if it fits and is installed]
    #[arg(long)]
    pub(crate) data: Option<String>,
    /// Test samples at which local constants are taken, 0 for none
    #[arg(long, default_value_t = 1_000)]
    pub(crate) samples: usize,
    /// Relative gap between the bounds of a matrix at which the search ends
    #[arg(long, default_value_t = 1e-6)]
    pub(crate) gap: f64,
    /// Be content with upper bounds that fail with this chance; for matrices that are too large for a deterministic proof
    #[arg(long)]
    pub(crate) delta: Option<f64>,
    /// Seed of random start vectors
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Threads, 0 for one on each core; no result depends on it [default: DUALPROP_NUM_THREADS, or 0]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Directory for pictures and the witness
    #[arg(long, value_name = "DIR", default_value = "report")]
    pub(crate) report: PathBuf,
    /// Write every number here
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}
