"""tanh, sigmoid, exp and softmax of rows in f32, small enough for the second cache and streaming (line 7), on one thread.

    python benches/peers/elementary.py [FUNCTION ...]

Bound: a copy of the same numbers in the same run. What a call costs apart from the numbers, the time for a single one, is taken out. In
brackets the largest error against f64, in units in the last place: over [-12, 12] and powers of two from 2^-40 to 2^3, for softmax over
the rows.
"""

from common import *
import scipy.special

FUNCTIONS = ["exp", "tanh", "sigmoid", "softmax"]
SIZES = {"exp": [(1, 16384), (1, 1 << 24)], "softmax": [(64, 256), (1000, 10), (16384, 1024)]}
ROUNDS_OF_A_CALL = 2000


def softmax_numpy(x, y):
    np.subtract(x, x.max(1, keepdims=True), out=y)
    np.exp(y, out=y)
    np.divide(y, y.sum(1, keepdims=True), out=y)


def sigmoid_numpy(x, y):
    np.negative(x, out=y)
    np.exp(y, out=y)
    np.add(y, np.float32(1), out=y)
    np.reciprocal(y, out=y)


def exact(name, x):
    x = x.astype(np.float64)
    return {"exp": np.exp, "tanh": np.tanh, "sigmoid": scipy.special.expit, "softmax": lambda x: scipy.special.softmax(x, 1)}[name](x)


def ulps(got, wanted):
    normal = abs(wanted) >= np.finfo(np.float32).tiny
    ulp = np.spacing(abs(wanted[normal]).astype(np.float32)).astype(np.float64)
    return float((abs(np.asarray(got)[normal] - wanted[normal]) / ulp).max())


def peers(library, name):
    """Functions of (x, y) that make functions without arguments; whether they are called from Python; where the result is if not in y."""
    if name in ("exp", "tanh"):
        yield "NumPy", lambda x, y: lambda: getattr(np, name)(x, out=y), True, None
    elif name == "sigmoid":
        yield "NumPy", lambda x, y: lambda: sigmoid_numpy(x, y), True, None
        yield "SciPy", lambda x, y: lambda: scipy.special.expit(x, out=y), True, None
    else:
        yield "NumPy", lambda x, y: lambda: softmax_numpy(x, y), True, None
    if (t := torch()) is not None:
        function = (lambda x, y: t.softmax(x, 1, out=y)) if name == "softmax" else (lambda x, y: getattr(t, name)(x, out=y))

        def make(x, y):
            tx, ty = t.from_numpy(x), t.from_numpy(y)
            return lambda: function(tx, ty)

        yield "PyTorch", make, True, None
    if (intel := mkl()) is not None and name in ("exp", "tanh"):
        for mode, code in (("HA", 2), ("LA", 1)):
            vms = getattr(intel, f"vms{name.capitalize()}")

            def make(x, y, code=code, vms=vms):
                return library.task("vector_function", vms, C.c_size_t(x.size), C.c_int64(code), at(x), at(y))

            yield f"MKL {mode}", make, False, None
    if (j := jax()) is not None:
        formula = {"exp": j.numpy.exp, "tanh": j.numpy.tanh, "sigmoid": j.nn.sigmoid, "softmax": j.nn.softmax}[name]
        compiled, last = j.jit(formula), [None]

        def make(x, y):
            jx = j.numpy.array(x)

            def run():
                last[0] = j.block_until_ready(compiled(jx))

            return run

        yield "JAX jit", make, True, lambda: np.asarray(last[0])


def without_call(run, tiny):
    """The time of a run beyond that of a call for one number."""
    tiny()
    times = []
    for _ in range(ROUNDS_OF_A_CALL):
        start = time.perf_counter()
        tiny()
        times.append(time.perf_counter() - start)
    overhead = np.median(times)

    def timed_run():
        start = time.perf_counter()
        run()
        return float(time.perf_counter() - start - overhead)

    return timed_run


def main():
    library = Library()
    report = Report(library)
    for name in SHAPES or FUNCTIONS:
        for rows, cols in SIZES.get(name, SIZES["exp"]):
            random = np.random.default_rng(0)
            x, y = normal(random, rows, cols, scale=2), aligned(rows, cols)
            if name == "softmax":
                test = x
            else:
                powers = 2.0 ** random.uniform(-40, 3, 1 << 18) * random.choice([-1, 1], 1 << 18)
                test = np.concatenate([np.linspace(-12, 12, 1 << 18), powers]).astype(np.float32).reshape(1, -1)
            wanted = exact(name, test)
            one, other, out = test[:1, :1].copy(), np.empty((1, 1), np.float32), aligned(*test.shape)

            mine = lambda x, y: library.task(
                "elementary", C.c_size_t(FUNCTIONS.index(name)), C.c_size_t(x.shape[0]), C.c_size_t(x.shape[1]), at(x), at(y)
            )
            runs, test_in = {}, aligned(*test.shape)
            test_in[...] = test
            for who, make, python, result in [("dualprop", mine, False, None), *peers(library, name)]:
                make(test_in, out)()
                error = ulps(result() if result else out, wanted)
                run = make(x, y)
                runs[f"{who} ({error:.2f} ulp)"] = without_call(run, make(one, other)) if python else run
            copy = library.task("copy", at(x), at(y), C.c_size_t(x.size))
            shape = f"{name} {rows}x{cols}" if name == "softmax" else f"{name} {cols}"
            report.lines(7, shape, runs, 0, [copy], next(iter(runs)))


main()
