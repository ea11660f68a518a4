"""Sparse y = A'(A x) for 1, 8 and 16 vectors beside MKL's optimised pairs, interleaved in one process on one thread.

    python -m venv V && V/bin/pip install numpy mkl
    V/bin/python benches/peers/sparse.py [NxPERCENT ...]        default 4096x1 4096x5 4096x10 32768x1 32768x5 (10 GB)

Builds a small shared library around the kernels in a temporary folder (PEERS_TARGET keeps the build between runs). MKL gets a handle for
each number of vectors, with hints for both operations, and mkl_sparse_optimize before it is timed. Each round times a short slice of every
candidate; printed are nanoseconds for each stored element and the medians over the rounds of MKL's time divided by ours, for the same
number of vectors and for its single vector. The clock is the thread's processor time, so that neighbours on the machine disturb less.
Results are compared first: both are bounded by the same Gamma of |A|'|A||x|.
"""

from common import *

ROUNDS, SLICE = 9, 0.02  # seconds

LIBRARY = """
use dualprop_kernels::{isa::Isa, product::Scratch, sparse::{Matrix, Pattern, gram}};
use faer::{MatMut, MatRef, Par};
use std::{cell::RefCell, slice};
thread_local! { static SCRATCH: RefCell<Scratch<f32>> = RefCell::new(Scratch::new()); }
/// # Safety
/// n + 1 pointers, as many indices and values as the last one says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn new(n: usize, start: *const i32, indices: *const i32, values: *const f32) -> *mut Matrix<f32> {
    let start = unsafe { slice::from_raw_parts(start, n + 1) };
    let stored = start[n] as usize;
    let (indices, values) = unsafe { (slice::from_raw_parts(indices, stored), slice::from_raw_parts(values, stored)) };
    Box::into_raw(Box::new(Matrix::new(Pattern::new(n, n, start, indices).expect("a sound pattern"), values.to_vec())))
}
/// # Safety
/// A matrix from `new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(a: *mut Matrix<f32>) {
    drop(unsafe { Box::from_raw(a) });
}
/// # Safety
/// A matrix from `new`; interleaved arrays of n x p numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ours(a: *const Matrix<f32>, n: usize, p: usize, x: *const f32, y: *mut f32) {
    let (x, mut squares) = (unsafe { MatRef::from_raw_parts(x, p, n, 1, p as isize) }, [0.0; 16]);
    let y = unsafe { MatMut::from_raw_parts_mut(y, p, n, 1, p as isize) };
    SCRATCH.with_borrow_mut(|scratch| gram(Isa::best(), Par::Seq, unsafe { &*a }, x, y, &mut squares[..p], scratch));
}
"""


class Description(C.Structure):
    _fields_ = [("type", C.c_int), ("mode", C.c_int), ("diagonal", C.c_int)]


GENERAL, PLAIN, TRANSPOSED, ROW_MAJOR = Description(20, 0, 0), 10, 11, 101


def handle(mkl, p, n, start, indices, values):
    """A matrix that MKL has optimised for pairs with p vectors."""
    made = C.c_void_p()
    arrays = (at(start), C.c_void_p(start.ctypes.data + 4), at(indices), at(values))
    failed = mkl.mkl_sparse_s_create_csr(C.byref(made), 0, n, n, *arrays)
    for operation in (PLAIN, TRANSPOSED):
        if p == 1:
            failed |= mkl.mkl_sparse_set_mv_hint(made, operation, GENERAL, 1000)
        else:
            failed |= mkl.mkl_sparse_set_mm_hint(made, operation, GENERAL, ROW_MAJOR, p, 1000)
    assert failed | mkl.mkl_sparse_optimize(made) == 0
    return made


def pair(mkl, made, p, x, t, y):
    one, zero = C.c_float(1), C.c_float(0)
    steps = ((PLAIN, at(x), at(t)), (TRANSPOSED, at(t), at(y)))
    if p == 1:
        calls = [(mkl.mkl_sparse_s_mv, (op, one, made, GENERAL, u, zero, v)) for op, u, v in steps]
    else:
        calls = [(mkl.mkl_sparse_s_mm, (op, one, made, GENERAL, ROW_MAJOR, u, p, p, zero, v, p)) for op, u, v in steps]
    return lambda: [function(*arguments) for function, arguments in calls]


def matrix(n, density):
    random = np.random.default_rng(1)
    columns = [np.flatnonzero(random.random(n, dtype=np.float32) < density).astype(np.int32) for _ in range(n)]
    start = np.concatenate(([0], np.cumsum([len(row) for row in columns]))).astype(np.int32)
    indices = np.concatenate(columns)
    return start, indices, random.standard_normal(len(indices), dtype=np.float32), random


def main():
    lib = build("sparse", LIBRARY)
    lib.new.restype = C.c_void_p
    intel = mkl()
    for case in SHAPES or ["4096x1", "4096x5", "4096x10", "32768x1", "32768x5"]:
        n, percent = case.split("x")
        n = int(n)
        start, indices, values, random = matrix(n, float(percent) / 100)
        ours = C.c_void_p(lib.new(C.c_size_t(n), at(start), at(indices), at(values)))
        absolute = abs(values)
        sizes_of = C.c_void_p(lib.new(C.c_size_t(n), at(start), at(indices), at(absolute)))
        longest = 2 * n
        runs, kept = {}, []
        for p in (1, 8, 16):
            x = random.standard_normal((n, p), dtype=np.float32)
            t, y, z, size = (np.zeros((n, p), np.float32) for _ in range(4))
            made = handle(intel, p, n, start, indices, values)
            kept.append((made, x, t, y, z))
            runs["MKL", p] = pair(intel, made, p, x, t, y)
            arguments = (ours, C.c_size_t(n), C.c_size_t(p), at(x), at(z))
            runs["dualprop", p] = lambda arguments=arguments: lib.ours(*arguments)
            runs["MKL", p]()
            runs["dualprop", p]()
            positive = abs(x)
            lib.ours(sizes_of, C.c_size_t(n), C.c_size_t(p), at(positive), at(size))
            # Both are off by at most gamma of their sizes, which are computed as roughly.
            assert (abs(y - z) <= 3 * longest * 2.0**-24 * size).all(), "results"
        lib.free(sizes_of)
        times = {key: [] for key in runs}
        for _ in range(ROUNDS):
            for key, run in runs.items():
                run()
                calls, begin = 0, time.thread_time()
                while calls < 2 or time.thread_time() - begin < SLICE:
                    run()
                    calls += 1
                times[key].append((time.thread_time() - begin) / calls)
        times = {key: np.array(rounds) for key, rounds in times.items()}
        print(f"{n} x {n}, {percent} %: {len(values)} elements")
        for p in (1, 8, 16):
            mine, other, single = times["dualprop", p], times["MKL", p], times["MKL", 1]
            print(
                f"  p={p:2d}  dualprop {1e9 * np.median(mine) / len(values):6.3f} ns   MKL {1e9 * np.median(other) / len(values):6.3f} ns"
                f"   MKL/this {np.median(other / mine):5.2f}   MKL's single vector/this, per vector {np.median(p * single / mine):5.2f}",
                flush=True,
            )
        for made, *_ in kept:
            intel.mkl_sparse_destroy(made)
        lib.free(ours)


main()
