"""Products of few samples with the weights of a layer, up and down (line 5), and the online step (line 6).

    python benches/peers/products.py [--threads N] [LINE | LINE:MxN ...]        e.g. 5 6:512x512

W is m x n. Up: W x, ours in place with a bias; down: W'd, ours in place as the relaxation of linear units, which reads a drive and writes mean
and difference; ours also with weights that are packed beforehand, as a trainer packs weights that it uses again. The online step updates W with one sample and multiplies it with the next: W <- keep W + rate d s', y = W x. Bound: one read of
W, or one pass in place, or the flops, all of the same run. BLAS peers take gemv for B = 1; ger (which does not decay) or gemm (with beta)
and then gemv for the online step.
"""

from common import *

LAYERS = ["256x784", "512x512", "1024x1024", "4096x4096"]
BATCHES = [1, 2, 4, 8, 16]
KEEP, RATE = 0.999, 1e-3


def products(library, report, shape):
    m, n = map(int, shape.split("x"))
    random = np.random.default_rng(0)
    w, bias, zero = normal(random, m, n, scale=n**-0.5), normal(random, m), aligned(m)
    wide = w.astype(np.float64)
    t, j = torch(), jax()
    gemvs, gemms = list(blas("cblas_sgemv")), list(blas("cblas_sgemm"))
    for up in (True, False):
        for batch in BATCHES:
            x = normal(random, batch, n if up else m)
            out, drive, mean = aligned(batch, m if up else n), aligned(batch, n), aligned(batch, n)
            depth = n if up else m
            matrix = w.T if up else w
            shift = bias if up else 0
            wanted = x.astype(np.float64) @ wide.T if up else x.astype(np.float64) @ wide
            size = abs(x.astype(np.float64)) @ abs(wide.T if up else wide)
            if up:
                mine = library.task("drive", sizes(m, n, batch), at(w), at(bias), at(x), at(out))
                mine()
                check("dualprop, up", out, wanted + bias, (depth + 2) * U * (size + abs(bias)))
            else:
                mine = library.task("feed_back", sizes(m, n, batch), at(w), at(x), at(drive), at(mean), at(out))
                mine()
                check("dualprop, down", out, wanted, (depth + 4) * U * size)
            out[...] = 0
            packed = library.task("packed", sizes(m, n, batch, int(up)), at(w), at(x), at(out))
            packed()
            check("dualprop, packed", out, wanted, depth * U * size)
            theirs = {}
            if batch == 1:
                for name, gemv in gemvs:
                    theirs[f"{name} gemv"] = library.task("gemv", gemv, ints(111 if up else 112, m, n), at(w), at(x), at(out)), out
            for name, gemm in gemms:
                sides = (111, 112, batch, m, n, n, n, m) if up else (111, 111, batch, n, m, m, n, n)
                theirs[f"{name} gemm"] = library.gemm(name, gemm, sides, (1, 0), x, w, out), out
            theirs["NumPy"] = lambda: np.matmul(x, matrix, out=out), out
            if t is not None:
                tx, tm, to = map(t.from_numpy, (x, matrix, out))
                if batch == 1:
                    theirs["PyTorch mv"] = lambda: t.mv(tm.t(), tx[0], out=to[0]), out
                theirs["PyTorch mm"] = lambda: t.mm(tx, tm, out=to), out
            if j is not None:
                product = j.jit((lambda x, w: x @ w.T) if up else (lambda x, w: x @ w))
                jw, jx, last = j.numpy.array(w), j.numpy.array(x), [None]

                def run():
                    last[0] = j.block_until_ready(product(jx, jw))

                theirs["JAX jit"] = run, lambda: np.asarray(last[0])
            for name, (run, result) in theirs.items():
                out[...] = 0
                run()
                check(name, result() if callable(result) else result, wanted, (depth + 2) * U * size)
            runs = {"dualprop, packed": packed, "dualprop, in place": mine} | {name: run for name, (run, _) in theirs.items()}
            what = f"{'up' if up else 'down'} {shape} B={batch}"
            report.lines(5, what, runs, 2 * m * n * batch, library.read_of(w), "dualprop, packed")


def online(library, report, shape):
    m, n = map(int, shape.split("x"))
    random = np.random.default_rng(0)
    start, w = normal(random, m, n, scale=n**-0.5), aligned(m, n)
    d, s, x, y = normal(random, 1, m), normal(random, 1, n), normal(random, 1, n), aligned(1, m)
    gradient = aligned(m, n)
    numbers = (doubles((1 - KEEP) / RATE, RATE, -1.0, 1), at(x), at(y))
    runs = {"dualprop": (library.task("online", sizes(m, n), at(w), pointers(d, s), *numbers), KEEP)}
    for (name, gemv), (_, ger), (_, gemm) in zip(blas("cblas_sgemv"), blas("cblas_sger"), blas("cblas_sgemm")):
        forward = library.task("gemv", gemv, ints(111, m, n), at(w), at(x), at(y))
        rank = library.task("ger", ger, ints(m, n), C.c_float(RATE), at(d), at(s), at(w))
        runs[f"{name} ger, gemv (no decay)"] = library.task("sequence", rank.task, forward.task, C.c_void_p()), 1.0
        rank = library.gemm(name, gemm, (112, 111, m, n, 1, m, n, n), (RATE, KEEP), d, s, w)
        runs[f"{name} gemm, gemv"] = library.task("sequence", rank.task, forward.task, C.c_void_p()), KEEP

    def numpy():
        np.multiply(d.T, s, out=gradient)
        np.multiply(gradient, np.float32(RATE), out=gradient)
        np.multiply(w, np.float32(KEEP), out=w)
        np.add(w, gradient, out=w)
        np.matmul(w, x[0], out=y[0])

    runs["NumPy"] = numpy, KEEP
    if (t := torch()) is not None:
        tw, td, ts, tx, ty = map(t.from_numpy, (w, d, s, x, y))

        def eager():
            tw.addmm_(td.t(), ts, beta=KEEP, alpha=RATE)
            t.mv(tw, tx[0], out=ty[0])

        runs["PyTorch addmm_, mv"] = eager, KEEP
        t._dynamo.reset()

        def step(w, d, s, x, y):
            w.mul_(KEEP).add_(d[:, None] * s, alpha=RATE)
            y.copy_((w * x).sum(1))

        compiled = t.compile(step, dynamic=False)
        runs["torch.compile"] = lambda: compiled(tw, td[0], ts[0], tx[0], ty[0]), KEEP
    results = {}
    if (j := jax()) is not None:

        def one(w, d, s, x):
            w = KEEP * w + RATE * d[:, None] * s
            return w, w @ x

        one = j.jit(one, donate_argnums=0)
        state, arguments = [j.numpy.array(start), None], [j.numpy.array(a[0]) for a in (d, s, x)]

        def run():
            state[:] = j.block_until_ready(one(state[0], *arguments))

        runs["JAX jit"] = run, KEEP
        results["JAX jit"] = lambda: (np.asarray(state[0]), np.asarray(state[1])[None])
    wide = lambda a: a.astype(np.float64)
    for name, (run, keep) in runs.items():
        w[...] = start
        run()
        got, out = results[name]() if name in results else (w, y)
        wanted, size = keep * wide(start) + RATE * wide(d.T) * wide(s), abs(wide(start)) + RATE * abs(wide(d.T)) * abs(wide(s))
        check(f"{name}, weights", got, wanted, 6 * U * size)
        check(f"{name}, product", out, wide(x) @ wanted.T, (n + 10) * U * (abs(wide(x)) @ size.T))
    other = aligned(m, n)
    other[...] = start
    report.lines(6, shape, {name: run for name, (run, _) in runs.items()}, 4 * m * n, library.pass_over(other), "dualprop")


def main():
    library = Library()
    report = Report(library)
    wanted = SHAPES or ["5", "6"]
    every = [f"{line}:{shape}" for line in (5, 6) for shape in LAYERS]
    for case in [case for case in every if case[0] in wanted] + [case for case in wanted if ":" in case]:
        line, _, shape = case.partition(":")
        (products if line == "5" else online)(library, report, shape)


main()
