"""y = A'(A x): the kernel beside the matrix-vector pairs of NumPy, OpenBLAS and MKL, interleaved in one process on one thread.

    python -m venv V && V/bin/pip install numpy scipy mkl      (torch too, if it is to be timed: its pair is MKL's)
    V/bin/python benches/peers/gram.py [MxN ...]

Builds a small shared library around the kernels in a temporary folder (PEERS_TARGET keeps the build between runs). Each round times a
short slice of every candidate; printed are the median time of a call, and the medians over the rounds of one read of A and of the best
pair, divided by it. The results are compared with NumPy's in f64 first.
"""

from common import *

ROUNDS, SLICE = 9, 0.02  # seconds

LIBRARY = """
use dualprop_kernels::{gram::gram, isa::{Isa, Kernel}, product::Scratch, vector::Vector};
use faer::{MatMut, MatRef, Par};
use std::{cell::RefCell, slice};
thread_local! { static SCRATCH: RefCell<Scratch<f32>> = RefCell::new(Scratch::new()); }
/// # Safety
/// Row-major arrays of m x n, p x n, p x n and p numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ours(m: usize, n: usize, p: usize, a: *const f32, x: *const f32, y: *mut f32, squares: *mut f64) {
    let [a, x] = [(a, m), (x, p)].map(|(at, rows)| unsafe { MatRef::from_raw_parts(at, rows, n, n as isize, 1) });
    let y = unsafe { MatMut::from_raw_parts_mut(y, p, n, n as isize, 1) };
    let squares = unsafe { slice::from_raw_parts_mut(squares, p) };
    SCRATCH.with_borrow_mut(|scratch| gram(Isa::best(), Par::Seq, a, x, y, squares, scratch));
}
struct Read<'a>(&'a [f32]);
impl Kernel<f32> for Read<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Vector<f32>>(self, simd: S) -> f32 {
        let mut sums = [simd.splat(0.0); 8];
        for eight in S::as_vectors(self.0).0.as_chunks::<8>().0 {
            for k in 0..8 { sums[k] = simd.add(sums[k], eight[k]); }
        }
        let mut lanes = [0.0; 16];
        S::as_vectors_mut(&mut lanes).0[0] = sums.into_iter().fold(simd.splat(0.0), |a, b| simd.add(a, b));
        lanes.iter().sum()
    }
}
/// # Safety
/// An array of len numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(len: usize, a: *const f32) -> f32 {
    Isa::best().run::<f32, _>(Read(unsafe { slice::from_raw_parts(a, len) }))
}
"""


def candidates(lib, a, x):
    (m, n), size, number, real = a.shape, C.c_size_t, C.c_int, C.c_float
    y, t, squares = aligned(8, n), aligned(m), np.zeros(8)
    runs = {"one read of A": lambda: lib.read(size(m * n), at(a))}
    for p in (1, 4, 8):
        arguments = (size(m), size(n), size(p), at(a), at(x), at(y), at(squares))
        runs[f"dualprop p={p}"] = lambda arguments=arguments: lib.ours(*arguments)
    runs["dualprop p=8"]()
    wide = a.astype(np.float64)
    wanted = (x.astype(np.float64) @ wide.T) @ wide
    sizes = (abs(x) @ abs(a).T) @ abs(a)
    assert (abs(y - wanted) <= (m + n) * 2.0**-24 * sizes).all(), "our result"
    for name, gemv in blas("cblas_sgemv"):
        up = (number(101), number(111), number(m), number(n), real(1), at(a), number(n), at(x), number(1), real(0), at(t), number(1))
        down = (number(101), number(112), number(m), number(n), real(1), at(a), number(n), at(t), number(1), real(0), at(y), number(1))
        runs[f"pair, {name}"] = lambda gemv=gemv, up=up, down=down: (gemv(*up), gemv(*down))
    one = x[0]
    runs["pair, NumPy"] = lambda: np.matmul(a.T, np.matmul(a, one))
    if "torch" in sys.modules:
        library = sys.modules["torch"]
        ta, tx = library.from_numpy(a), library.from_numpy(one)
        runs["pair, PyTorch"] = lambda: library.mv(ta.t(), library.mv(ta, tx))
    return runs, (y, t, squares)


def main():
    torch()
    lib = build("gram", LIBRARY)
    random = np.random.default_rng(0)
    for shape in SHAPES or ["1000x784", "1024x1024", "4096x4096", "10000x8192"]:
        m, n = map(int, shape.split("x"))
        a, x = aligned(m, n), aligned(8, n)
        random.standard_normal(out=a, dtype=np.float32)
        random.standard_normal(out=x, dtype=np.float32)
        runs, _outputs = candidates(lib, a, x)  # the runs have addresses alone
        times = timed(runs, ROUNDS, SLICE)
        read = times["one read of A"]
        best = np.min([rounds for name, rounds in times.items() if name.startswith("pair")], axis=0)
        print(f"{shape}: one read of A at {4e-9 * m * n / np.median(read):.0f} GB/s")
        for name, rounds in times.items():
            vectors = int(name.partition("p=")[2] or 1)
            print(
                f"  {name:16s} {1e6 * np.median(rounds):10.1f} us   read/this {np.median(read / rounds):5.2f}"
                f"   best pair/this, per vector {np.median(vectors * best / rounds):5.2f}"
            )


main()
