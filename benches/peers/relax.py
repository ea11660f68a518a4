"""Relaxation of a layer of ReLU units by DP-transpose, alpha = 1/2: both drives, mean and difference (line 4).

    python benches/peers/relax.py [--threads N] [BELOW-HERE-ABOVE-BATCH ...]

Bound: the flops at the FMA peak of the same run, or one read of the weights. Ours has its weights packed beforehand, as a trainer packs
them once for all sweeps between two updates; so has "MKL packed", whose products are followed by one autovectorised pass.
"""

from common import *

SIZES = ["1000-1000-10-100", "3072-4096-4096-128", "4096-4096-10-128", "512-512-10-32", "784-1000-1000-100", "784-512-512-32"]


def peers(library, w, wn, bias, s, d):
    (n, k), (q, _), batch = w.shape, wn.shape, len(s)
    drive, back, mean, diff, other = (aligned(batch, n) for _ in range(5))
    runs, kept = {}, [drive, back, mean, diff, other]

    def products():
        np.matmul(s, w.T, out=drive)
        np.matmul(d, wn, out=back)

    def whole():
        products()
        np.add(drive, bias, out=drive)
        np.multiply(back, np.float32(0.5), out=back)
        np.add(drive, back, out=mean)
        np.maximum(mean, 0, out=mean)
        np.subtract(drive, back, out=other)
        np.maximum(other, 0, out=other)
        np.subtract(mean, other, out=diff)
        np.add(mean, other, out=mean)
        np.multiply(mean, np.float32(0.5), out=mean)

    runs["NumPy"] = whole, lambda: (mean, diff)

    dyads = library.task("dyads", sizes(batch, n), pointers(drive, back, bias), at(mean), at(diff))
    for name, gemm in blas("cblas_sgemm"):
        up = library.gemm(name, gemm, (111, 112, batch, n, k, k, k, n), (1, 0), s, w, drive)
        down = library.gemm(name, gemm, (111, 111, batch, n, q, q, n, n), (1, 0), d, wn, back)
        if THREADS == 1:
            runs[name + ", then a pass"] = library.task("sequence", up.task, down.task, dyads.task), lambda: (mean, diff)
    if (intel := mkl()) is not None and THREADS == 1:

        def packed(matrix, depth, trans):
            intel.cblas_sgemm_pack_get_size.restype = C.c_size_t
            size = intel.cblas_sgemm_pack_get_size(162, batch, n, depth)
            to = aligned(size // 4 + 64)
            intel.cblas_sgemm_pack(101, 162, trans, batch, n, depth, C.c_float(1), at(matrix), matrix.shape[1], at(to))
            kept.append(to)
            return to

        compute = intel.cblas_sgemm_compute
        up = library.task("gemm_packed", compute, ints(batch, n, k), at(s), at(packed(w, k, 112)), at(drive))
        down = library.task("gemm_packed", compute, ints(batch, n, q), at(d), at(packed(wn, q, 111)), at(back))
        runs["MKL packed, then a pass"] = library.task("sequence", up.task, down.task, dyads.task), lambda: (mean, diff)

    if (t := torch()) is not None:
        tw, twn, tb, ts, td = map(t.from_numpy, (w, wn, bias, s, d))

        def layer(ts, td, tw, twn, tb):
            a, v = t.addmm(tb, ts, tw.t()), 0.5 * t.mm(td, twn)
            up, down = t.relu(a + v), t.relu(a - v)
            return 0.5 * (up + down), up - down

        out = [None]

        def keep(function):
            def run():
                with t.inference_mode():
                    out[0] = function(ts, td, tw, twn, tb)

            return run

        t._dynamo.reset()
        got = lambda: [x.numpy() for x in out[0]]
        runs["PyTorch eager"] = keep(layer), got
        runs["torch.compile"] = keep(t.compile(layer, dynamic=False)), got

    if (j := jax()) is not None:
        jnp = j.numpy

        @j.jit
        def layer(s, d, w, wn, bias):
            a, v = s @ w.T + bias, 0.5 * (d @ wn)
            up, down = jnp.maximum(a + v, 0), jnp.maximum(a - v, 0)
            return 0.5 * (up + down), up - down

        arguments = [jnp.array(x) for x in (s, d, w, wn, bias)]
        last = [None]

        def run():
            last[0] = j.block_until_ready(layer(*arguments))

        runs["JAX jit"] = run, lambda: last[0]
    return runs, kept


def main():
    library = Library()
    report = Report(library)
    for shape in SHAPES or SIZES:
        k, n, q, batch = map(int, shape.split("-"))
        random = np.random.default_rng(0)
        w, wn = normal(random, n, k, scale=k**-0.5), normal(random, q, n, scale=q**-0.5)
        bias, s, d = normal(random, n), normal(random, batch, k), normal(random, batch, q)
        outputs = [aligned(batch, n) for _ in range(3)]
        candidates, kept = {}, [outputs]
        for name, packed in (("dualprop, packed", 1), ("dualprop, in place", 0)):
            arguments = sizes(k, n, q, batch, packed), pointers(w, wn, bias, s, d), pointers(*outputs)
            candidates[name] = library.task("relax_layer", *arguments), lambda: outputs[1:]
        theirs, more = peers(library, w, wn, bias, s, d)
        candidates |= theirs

        rows = some(batch)
        wide = lambda x: x.astype(np.float64)
        a, v = wide(s[rows]) @ wide(w.T) + bias, 0.5 * (wide(d[rows]) @ wide(wn))
        up, down = np.maximum(a + v, 0), np.maximum(a - v, 0)
        # Sums of k + 1 and q numbers in any order; two more operations for a compartment, two for the mean.
        size_a, size_v = abs(wide(s[rows])) @ abs(wide(w.T)) + abs(bias), 0.5 * (abs(wide(d[rows])) @ abs(wide(wn)))
        error = U * ((k + 5) * size_a + (q + 5) * size_v)
        for name, (run, result) in candidates.items():
            run()
            mean, diff = result()
            check(f"{name}, mean", np.asarray(mean)[rows], 0.5 * (up + down), error)
            check(f"{name}, difference", np.asarray(diff)[rows], up - down, 2 * error)
        runs = {name: run for name, (run, _) in candidates.items()}
        report.lines(4, shape, runs, 2 * batch * n * (k + q), library.read_of(w, wn), "dualprop, packed")


main()
