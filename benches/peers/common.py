"""What the scripts of this folder share: the library around our kernels, aligned arrays, interleaved timing, and the table.

Import it before NumPy: the number of threads (`--threads N`, 1 or 2, 1 by default) is set for every library here. The process is pinned to as
many cores, so that no peer takes another one. Linux only.
"""

import argparse
import csv
import ctypes as C
import glob
import os
import pathlib
import subprocess
import sys
import tempfile
import time

_parser = argparse.ArgumentParser()
_parser.add_argument("--threads", type=int, default=1, choices=(1, 2))
_parser.add_argument("--rounds", type=int, default=7)
_parser.add_argument("shapes", nargs="*")
_arguments = _parser.parse_args()
THREADS, ROUNDS, SHAPES = _arguments.threads, _arguments.rounds, _arguments.shapes
SLICE = 0.012  # seconds of a candidate in a round
PAUSE = 0.0 if THREADS == 1 else 0.02  # until the threads of the last candidate sleep

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[_variable] = str(THREADS)
os.environ["MKL_THREADING_LAYER"], os.environ["MKL_INTERFACE_LAYER"] = "SEQUENTIAL" if THREADS == 1 else "INTEL", "LP64"
os.environ["KMP_BLOCKTIME"], os.environ["OPENBLAS_THREAD_TIMEOUT"] = "5", "18"  # helpers that wait for the next call soon sleep
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={'false' if THREADS == 1 else 'true'} intra_op_parallelism_threads={THREADS}"
for _variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(_variable, None)  # it shall take its best kernel
CPUS = sorted(os.sched_getaffinity(0))[-THREADS:]
os.sched_setaffinity(0, CPUS)
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
U = 2.0**-24  # rounding of f32

MANIFEST = """[package]
name = "peers_{name}"
version = "0.0.0"
edition = "2024"
[workspace]
[lib]
crate-type = ["cdylib"]
[dependencies]
dualprop = {{ path = "{root}" }}
dualprop-kernels = {{ path = "{root}/kernels" }}
faer = {{ version = "0.24.4", default-features = false, features = ["std", "rayon"] }}
rayon = "1.10"
"""


def build(name, source, root=ROOT):
    """A library of that source around the crates of a tree. PEERS_TARGET keeps the build between runs."""
    with tempfile.TemporaryDirectory() as folder:
        crate = pathlib.Path(folder)
        (crate / "src").mkdir()
        (crate / "Cargo.toml").write_text(MANIFEST.format(root=root, name=name))
        (crate / "src/lib.rs").write_text(source)
        (crate / "Cargo.lock").write_bytes((root / "Cargo.lock").read_bytes())
        target = pathlib.Path(os.environ.get("PEERS_TARGET", crate / "target"))
        subprocess.run(["cargo", "build", "--release", "--quiet", "--target-dir", target], cwd=crate, check=True)
        return C.CDLL(str(target / f"release/libpeers_{name}.so"))  # stays mapped when the folder goes


def at(array):
    return C.c_void_p(array.ctypes.data)


def aligned(*shape, dtype=np.float32):
    """Zeros at the beginning of a huge page, or of a line if small."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    boundary = 2 << 20 if size >= 1 << 18 else 64
    room = -(-size // boundary) * boundary
    raw = np.empty(room + boundary, np.uint8)
    raw = raw[-raw.ctypes.data % boundary :][:room]
    if boundary > 64:
        C.CDLL(None).madvise(at(raw), C.c_size_t(room), 14)  # MADV_HUGEPAGE
    array = raw[:size].view(dtype).reshape(shape)
    array[...] = 0
    return array


def normal(random, *shape, dtype=np.float32, scale=1.0):
    array = aligned(*shape, dtype=dtype)
    array[...] = random.standard_normal(shape, dtype=dtype)
    array *= dtype(scale)
    return array


# Libraries.


def mkl():
    found = glob.glob(os.path.join(sys.prefix, "lib", "libmkl_rt.so*"))
    return C.CDLL(found[0]) if found else None


def onednn():
    found = glob.glob(os.path.join(sys.prefix, "lib", "libdnnl.so*"))
    return C.CDLL(found[0]) if found else None


def openblas():
    import scipy

    found = glob.glob(os.path.join(os.path.dirname(scipy.__file__), "..", "scipy.libs", "libscipy_openblas*"))
    return C.CDLL(found[0]) if found else None


def blas(function):
    """Name of each library that has a CBLAS function, and the function; oneDNN has sgemm, in its own form."""
    for name, library, prefix in (("MKL", mkl(), ""), ("OpenBLAS", openblas(), "scipy_"), ("oneDNN", onednn(), "dnnl_")):
        found = getattr(library, prefix + (function if name != "oneDNN" else function.removeprefix("cblas_")), None) if library else None
        if found is not None:
            yield name, found


def torch():
    try:
        import torch
    except (ImportError, OSError):
        print("without PyTorch", file=sys.stderr)
        return None
    torch.set_num_threads(THREADS)
    torch._dynamo.config.cache_size_limit = 1000
    return torch


def jax():
    try:
        import jax
    except ImportError:
        print("without JAX", file=sys.stderr)
        return None
    return jax


def versions():
    import importlib.metadata

    found = []
    for package in ("numpy", "scipy", "mkl", "onednn-cpu-gomp", "torch", "jax"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            pass
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout.split()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return "; ".join([f"dualprop {commit}", f"rustc {rustc[1] if len(rustc) > 1 else '?'}"] + found)


class Library:
    """`library.rs`: constructors of tasks, and the yardsticks."""

    YARDSTICKS = ("flop_f32", "flop_f64", "flop_tile", "pass")
    ORDERS = ((1, 0), (1, 256), (2, 0), (4, 0), (4, 256))  # streams of an array, and how far ahead it is fetched

    def __init__(self, root=ROOT, name="lines"):
        self.library = build(name, (root / "benches/peers/library.rs").read_text(), root)
        known = threads_of_process()
        self.library.start(C.c_size_t(THREADS))
        if THREADS > 1:
            for cpu, thread in zip(CPUS[1:], threads_of_process() - known):
                os.sched_setaffinity(thread, [cpu])
                PLACED.add(thread)
        self.library.time.restype = C.c_double
        self.library.time.argtypes = [C.c_void_p]
        self.library.training_loss.restype = C.c_double
        for name in (*self.YARDSTICKS, "round_trip"):
            getattr(self.library, name).restype = C.c_double
        NEIGHBOURS.append(Neighbours(self))

    def task(self, constructor, *arguments):
        """A function that runs the task once and returns the seconds that it took, the call from Python taken out."""
        function = getattr(self.library, constructor)
        function.restype = C.c_void_p
        made = C.c_void_p(function(*arguments))
        timer = self.library.time
        run = lambda: timer(made)
        run.task = made
        run.kept = arguments
        return run

    def gemm(self, name, function, sides, scales, a, b, c):
        """`c <- alpha op(a) op(b) + beta c`; `sides`: transpositions (111 no, 112 yes), m, n, k, leading dimensions; `scales`: alpha, beta."""
        constructor = "gemm_onednn" if name == "oneDNN" else "gemm_f32" if c.dtype == np.float32 else "gemm_f64"
        real = C.c_double if c.dtype == np.float64 else C.c_float
        return self.task(constructor, function, ints(*sides), (real * 2)(*scales), at(a), at(b), at(c))

    def flop(self, dtype=np.float32):
        """Seconds for a flop."""
        return self.library.flop_f32 if dtype == np.float32 else self.library.flop_f64

    def tile(self):
        return self.library.flop_tile

    def pass_over(self, *arrays, write=True):
        """Seconds for a pass over arrays, in place or reading alone, in several orders: the fastest is the bound.

        The arrays should hold numbers: zeros in memory are up to a third faster on some machines.
        """
        words = arrays[0].size * arrays[0].itemsize // 4
        addresses, function = pointers(*arrays, *[arrays[0]] * (3 - len(arrays))), getattr(self.library, "pass")
        what = C.c_size_t(len(arrays)), addresses, C.c_size_t(words), C.c_bool(write)
        return [lambda order=sizes(*order): function(*what, C.c_size_t(order[0]), C.c_size_t(order[1])) for order in self.ORDERS]

    def read_of(self, *arrays):
        """Seconds for reading arrays one after the other."""
        runs = zip(*(self.pass_over(array, write=False) for array in arrays))
        return [lambda run=run: sum(each() for each in run) for run in runs]


def pointers(*arrays):
    return (C.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def sizes(*numbers):
    return (C.c_size_t * len(numbers))(*numbers)


def ints(*numbers):
    return (C.c_int * len(numbers))(*numbers)


def doubles(*numbers):
    return (C.c_double * len(numbers))(*numbers)


# Timing.


def threads_of_process():
    return {int(thread) for thread in os.listdir("/proc/self/task")}


def place():
    """With several threads: the process on the first core, the helpers of each OpenMP or BLAS library, two threads in all, on the second.

    Left alone, the kernel now and then runs both on one core for the whole slice. Pools with names of their own (of JAX, of autograd) are
    left to it.
    """
    if THREADS == 2:
        main = os.getpid()
        own = pathlib.Path(f"/proc/self/task/{main}/comm").read_text()
        for thread in threads_of_process() - PLACED - {main}:
            named = pathlib.Path(f"/proc/self/task/{thread}/comm").read_text() != own
            os.sched_setaffinity(thread, CPUS if named else CPUS[1:])
            PLACED.add(thread)
        os.sched_setaffinity(main, CPUS[:1])


PLACED = set()


class Neighbours:
    """Others on the machine, whom one does not see: a virtual machine shares cores with them, and may be moved.

    Someone on the other thread of a core takes up to a third of its first-level cache's bandwidth and a seventh of what a product reaches, for
    seconds, and leaves chains of multiply-adds alone. And two cores may be ten times as far apart for a minute as they mostly are.
    """

    BUSY, FAR, PATIENCE = 1.15, 150e-9, 5.0

    def __init__(self, library):
        self.array = aligned(4096)
        self.near, self.round_trip = library.pass_over(self.array)[0], library.library.round_trip
        self.best = min(self.near() for _ in range(300))

    def disturb(self):
        seconds = min(self.near() for _ in range(3))
        self.best = min(self.best, seconds)
        return seconds > self.BUSY * self.best or (THREADS == 2 and self.round_trip() > self.FAR)

    def wait(self):
        begin = time.perf_counter()
        while self.disturb() and time.perf_counter() - begin < self.PATIENCE:
            time.sleep(0.02)


NEIGHBOURS = []


def timed(runs, rounds=None, slice=SLICE, pause=PAUSE):
    """For each the median time of a call in every round. A run may return the seconds that count.

    A slice begins when the neighbours are quiet, and is taken again, twice at most, if they are not when it ends.
    """
    for run in runs.values():
        run()
    place()
    times = {name: [] for name in runs}
    for _ in range(rounds or ROUNDS):
        for name, run in runs.items():
            for _ in range(3):
                for neighbours in NEIGHBOURS:
                    neighbours.wait()
                if pause:
                    time.sleep(pause)
                run()
                calls, begin = [], time.perf_counter()
                while len(calls) < 3 or time.perf_counter() - begin < slice:
                    start = time.perf_counter()
                    seconds = run()
                    end = time.perf_counter()
                    calls.append(seconds if isinstance(seconds, float) else end - start)
                if not any(neighbours.disturb() for neighbours in NEIGHBOURS):
                    break
            times[name].append(np.median(calls))
    return {name: np.array(rounds) for name, rounds in times.items()}


class Report:
    """Times the rows of a shape between the yardsticks, prints them, and appends them to the file that DUALPROP_RECORD names."""

    COLUMNS = (
        "line,shape,dtype,threads,row,median_us,bound_us,limited_by,share_of_bound,arithmetic_us,memory_us,"
        "over_ours,over_ours_low,over_ours_high,versions"
    ).split(",")

    def __init__(self, library):
        self.library = library
        self.versions = versions()

    def lines(self, line, shape, rows, flops, memory, ours, dtype=np.float32, floor=0.95):
        """`rows`: functions by name; `memory`: yardsticks of the bytes; `ours`: the row that others are divided by."""
        flop, tile = self.library.flop(dtype), self.library.tile()
        yardsticks = {"flop": flop, "tile": tile} | {f"memory {k}": run for k, run in enumerate(memory)}
        times = timed(yardsticks | rows)
        # A round in which the loop of a tile, which lives in the first cache, is slow against its usual rate was disturbed.
        steady = times["flop"] / times["tile"] if dtype == np.float32 else np.ones(len(times["flop"]))
        good = steady >= floor * np.median(steady)
        times = {name: rounds[good] for name, rounds in times.items()}
        arithmetic = flops * times["flop"]
        passes = [times[f"memory {k}"] for k in range(len(memory))]
        bytes_ = min(passes, key=np.median) if passes else np.zeros_like(arithmetic)
        bound = np.maximum(arithmetic, bytes_)
        limit = "memory" if np.median(bytes_) > np.median(arithmetic) else "arithmetic"
        name = np.dtype(dtype).name.replace("float", "f")
        print(
            f"\nline {line}  {shape}  {name}, {THREADS} thread(s): bound {1e6 * np.median(bound):.1f} us ({limit}), "
            f"peak {1e-9 / np.median(times['flop']):.0f} GFLOP/s, tile {100 * np.median(steady):.0f} % of it, "
            f"{np.count_nonzero(good)} of {len(good)} rounds"
        )
        records = []
        for row in rows:
            ratio = times[row] / times[ours]
            middle, low, high = np.median(ratio), np.min(ratio), np.max(ratio)
            median, share = np.median(times[row]), np.median(bound / times[row])
            print(f"  {row:44s} {1e6 * median:11.1f} us  {100 * share:5.1f} %   /ours {middle:5.2f} ({low:.2f}-{high:.2f})", flush=True)
            records.append(
                [line, shape, name, THREADS, row, f"{1e6 * median:.2f}", f"{1e6 * np.median(bound):.2f}", limit, f"{share:.3f}"]
                + [f"{1e6 * np.median(x):.3f}" for x in (arithmetic, bytes_)]
                + [f"{x:.3f}" for x in (middle, low, high)]
                + [self.versions]
            )
        path = os.environ.get("DUALPROP_RECORD")
        if path:
            with open(path, "a", newline="") as file:
                writer = csv.writer(file)
                if file.tell() == 0:
                    writer.writerow(self.COLUMNS)
                writer.writerows(records)


def check(what, got, wanted, bound):
    """Compares with a result in f64."""
    excess = abs(np.asarray(got, np.float64) - wanted) - bound
    assert (excess <= 0).all(), f"{what}: off by {excess.max():.2e} more than its bound"


def some(rows, count=48):
    """Rows to be checked."""
    return np.unique(np.linspace(0, rows - 1, min(rows, count)).astype(int))
