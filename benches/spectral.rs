//! Spectral norms of Gaussian matrices on one thread, dense and sparse, beside NumPy, SciPy and PyTorch in turn with them.
//!
//! ```text
//! DUALPROP_PYTHON=python3 cargo bench --bench spectral         without the variable: ours alone
//! cargo bench --bench spectral -- 1024x1024                    one shape
//! cargo bench --bench spectral -- 4096x4096@5%                 one density
//! ```
//!
//! * `lower`: steps until the gap is estimated (and afterwards proven) to be at most 10⁻⁶, against `svds(k=1, tol=1e-6)`, which proves nothing.
//! * `enclosure`: the search with its certificate, gap 10⁻⁶, against `numpy.linalg.norm(W, 2)` and `torch.linalg.matrix_norm(W, 2)`.
//!
//! A proof takes `n³ + n³/3` flops for an `n × n` matrix: in f32 if the two largest singular values are far enough apart, else in f64, as the
//! certificate does that is timed beside it. Of sparse matrices (CSR) the lower bound alone is timed, with the fewest steps that come
//! within 10⁻⁶ of what the most steps reach.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use dualprop::lipschitz::{Dense, MAX_STEPS, Search, certify, enclose, lower_bound};
use dualprop::random::Counter;
use dualprop::sparse::Sparse;
use dualprop::{Isa, MatRef, Par, Runtime};

const ROUNDS: usize = 7;
const SHAPES: [(usize, usize); 3] = [(1000, 784), (1024, 1024), (4096, 4096)];
const SPARSE: [(usize, f64); 3] = [(4096, 0.01), (4096, 0.05), (4096, 0.1)];

struct Python(Child, BufReader<std::process::ChildStdout>);

impl Python {
    fn new(rows: usize, cols: usize, kind: &str, data: &[f32]) -> Option<Self> {
        let path = std::env::temp_dir().join(format!("dualprop-spectral-{}.f32", std::process::id()));
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_ne_bytes()).collect();
        std::fs::write(&path, bytes).ok()?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/spectral.py");
        let mut child = Command::new(std::env::var_os("DUALPROP_PYTHON")?)
            .args([script, &rows.to_string(), &cols.to_string(), kind])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let answers = BufReader::new(child.stdout.take()?);
        Some(Self(child, answers))
    }

    /// Seconds and result of one call.
    fn ask(&mut self, peer: &str) -> Option<(f64, f64)> {
        writeln!(self.0.stdin.as_mut()?, "{peer}").ok()?;
        let mut answer = String::new();
        self.1.read_line(&mut answer).ok()?;
        let (seconds, norm) = answer.trim().split_once(' ')?;
        Some((seconds.parse().ok()?, norm.parse().ok()?))
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() {
    let is_test = std::env::args().any(|argument| argument == "--test");
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let runtime = Runtime::new(Isa::best(), Par::Seq);
    for (m, n) in SHAPES {
        let name = format!("{m}x{n}");
        if !wanted.is_empty() && !wanted.contains(&name) || is_test && m > 1024 {
            continue;
        }
        let mut random = Counter::new(1, 0);
        let data: Vec<f32> = (0..m * n).map(|_| random.normal() as f32).collect();
        let matrix = MatRef::from_row_major_slice(&data, m, n);
        let mut python = Python::new(m, n, "dense", &data);
        let found = enclose(&Dense::new(matrix), &Search::new(), &runtime).expect("finite").enclosure;
        let steps = found.products as usize;
        assert!(found.gap() <= 1e-6, "{found:?}");
        let mut times = [const { vec![] }; 6];
        let rounds = if is_test {
            1
        } else if m > 1024 {
            3
        } else {
            ROUNDS
        };
        for _ in 0..rounds {
            let mut time = |row: usize, run: &mut dyn FnMut()| {
                let start = Instant::now();
                run();
                times[row].push(start.elapsed().as_secs_f64());
            };
            time(0, &mut || drop(lower_bound(&Dense::new(matrix), steps, 1, &runtime)));
            time(1, &mut || drop(enclose(&Dense::new(matrix), &Search::new(), &runtime)));
            time(2, &mut || drop(certify(&Dense::new(matrix), found.upper, &runtime)));
            for (row, peer) in [(3, "scipy"), (4, "numpy"), (5, "torch")] {
                if let Some((seconds, norm)) = python.as_mut().and_then(|python| python.ask(peer)) {
                    assert!((norm / found.lower - 1.0).abs() < 1e-4, "{peer} has {norm} for {found:?}");
                    times[row].push(seconds);
                }
            }
        }
        let [lower, enclosure, certificate, scipy, numpy, torch] = times.map(median);
        let flops = (m * n * m.min(n)) as f64 + (m.min(n) as f64).powi(3) / 3.0;
        println!("{name}: {steps} products, gap {:.1e}, {:.1} GF/s in the certificate", found.gap(), flops / certificate / 1e9);
        println!(
            "  ours:  lower {:.3} ms, enclosure {:.3} ms, certificate {:.3} ms",
            lower * 1e3,
            enclosure * 1e3,
            certificate * 1e3
        );
        println!("  svds   {:.3} ms = {:.1} × lower", scipy * 1e3, scipy / lower);
        println!("  numpy  {:.3} ms = {:.1} × enclosure", numpy * 1e3, numpy / enclosure);
        println!("  torch  {:.3} ms = {:.1} × enclosure", torch * 1e3, torch / enclosure);
    }
    for (n, density) in SPARSE {
        let name = format!("{n}x{n}@{}%", 100.0 * density);
        if is_test || !wanted.is_empty() && !wanted.contains(&name) {
            continue;
        }
        let mut random = Counter::new(1, 0);
        let data: Vec<f32> = (0..n * n).map(|_| if random.uniform() < density { random.normal() as f32 } else { 0.0 }).collect();
        let matrix = MatRef::from_row_major_slice(&data, n, n);
        let sparse = Sparse::from_dense(matrix, |i, j| matrix[(i, j)] != 0.0).expect("finite");
        let mut python = Python::new(n, n, "sparse", &data);
        let bound = |steps| lower_bound(&sparse, steps, 1, &runtime).expect("finite");
        let best = bound(MAX_STEPS);
        let steps = (1..MAX_STEPS).find(|&steps| bound(steps) >= best * (1.0 - 1e-6)).unwrap_or(MAX_STEPS);
        let (mut ours, mut theirs) = (vec![], vec![]);
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let lower = bound(steps);
            ours.push(start.elapsed().as_secs_f64());
            if let Some((seconds, norm)) = python.as_mut().and_then(|python| python.ask("scipy")) {
                assert!((norm / lower - 1.0).abs() < 1e-5, "scipy has {norm} for {lower}");
                theirs.push(seconds);
            }
        }
        let (ours, theirs) = (median(ours), median(theirs));
        println!("{name}: {steps} products, lower {:.3} ms", ours * 1e3);
        println!("  svds   {:.3} ms = {:.1} × lower", theirs * 1e3, theirs / ours);
    }
}
