"""Spectral norms by NumPy, SciPy and PyTorch on one thread, on request.

Started by `cargo bench --bench spectral` with rows, columns, `dense` or `sparse` (CSR) and a file of float32; answers each line on standard input that names a peer with
the seconds that one call took and its result, and a peer that is not installed with `missing`.
"""

import os
import sys
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np


def peers(weights):
    is_dense = isinstance(weights, np.ndarray)
    if is_dense:
        yield "numpy", lambda: np.linalg.norm(weights, 2)
    try:
        from scipy.sparse.linalg import svds

        generator = np.random.default_rng(0)
        yield "scipy", lambda: svds(weights, k=1, tol=1e-6, return_singular_vectors=False, rng=generator)[0]
    except ImportError:
        pass
    if not is_dense:
        return
    try:
        import torch

        torch.set_num_threads(1)
        tensor = torch.from_numpy(weights)
        yield "torch", lambda: torch.linalg.matrix_norm(tensor, 2).item()
    except ImportError:
        pass


def main():
    rows, cols, kind, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    weights = np.fromfile(path, dtype=np.float32).reshape(rows, cols)
    if kind == "sparse":
        from scipy.sparse import csr_array

        weights = csr_array(weights)
    known = dict(peers(weights))
    for line in sys.stdin:
        run = known.get(line.strip())
        if run is None:
            print("missing", flush=True)
            continue
        start = time.perf_counter()
        norm = run()
        print(time.perf_counter() - start, float(norm), flush=True)


main()
