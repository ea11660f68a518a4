"""This tree against a commit, call by call in one process: what a change has made of the times.

    python benches/peers/commits.py [--threads N] [--rounds N] COMMIT WHAT:SHAPE ...        e.g. HEAD~1 adam:256x784x32 softmax:64x256

    update, update-f64, momentum, adam    MxNxB    W <- keep W + rate D'S, with an optimizer
    online                                MxN      update and product with the next sample
    up, down                              MxNxB    products with packed weights
    drive, feedback                       MxNxB    products with weights in place
    relax                                 NxMxQxB  one layer of M units between N and Q, packed weights
    step, back-propagation                N-..-QxB[xR]    training step with Adam; DP-transpose of R rounds (0)
    predict                               N-..-QxB        inference
    exp, tanh, sigmoid, softmax           RxC

Ratios are times of this tree over those of the commit, the median of the rounds and its quartiles. Where the two differ by less than the same tree
against itself (COMMIT = HEAD, nothing changed), they do not differ.
"""

import tarfile

from common import *

UPDATES = {"update": 0, "update-f64": 0, "momentum": 1, "adam": 2}
FUNCTIONS = ("exp", "tanh", "sigmoid", "softmax")


def weights(random, m, n):
    return normal(random, m, n, scale=n**-0.5)


def operands(what, shape):
    """The constructor in `library.rs` and its arguments; arrays are the same for both trees."""
    random = np.random.default_rng(0)
    widths, _, rest = shape.partition("x") if "-" in shape else ("", "", shape)
    n = [int(number) for number in rest.split("x")]
    if what in UPDATES:
        m, k, batch = n
        dtype = np.float64 if what == "update-f64" else np.float32
        state = [normal(random, m, k, dtype=dtype) for _ in range(1 + UPDATES[what])] + [aligned(1, dtype=dtype)] * (2 - UPDATES[what])
        np.abs(state[2], out=state[2])
        factors = normal(random, batch, m, dtype=dtype), normal(random, batch, k, dtype=dtype)
        # Rates so small that weights stay what they are over any number of calls.
        arguments = sizes(m, k, batch, UPDATES[what]), pointers(*state), pointers(*factors), doubles(1e-3, 1e-6, -1.0 / batch, 10)
        return f"update_{'f64' if what == 'update-f64' else 'f32'}", arguments, (state, factors)
    if what == "online":
        m, k = n
        arrays = weights(random, m, k), normal(random, m), normal(random, k), normal(random, k), aligned(m)
        w, d, s, x, y = arrays
        return "online", (sizes(m, k), at(w), pointers(d, s), doubles(1e-3, 1e-6, -1.0, 10), at(x), at(y)), arrays
    if what in ("up", "down"):
        m, k, batch = n
        up = int(what == "up")
        arrays = weights(random, m, k), normal(random, batch, k if up else m), aligned(batch, m if up else k)
        return "packed", (sizes(m, k, batch, up), *map(at, arrays)), arrays
    if what == "drive":
        m, k, batch = n
        arrays = weights(random, m, k), normal(random, m), normal(random, batch, k), aligned(batch, m)
        return "drive", (sizes(m, k, batch), *map(at, arrays)), arrays
    if what == "feedback":
        m, k, batch = n
        arrays = weights(random, m, k), normal(random, batch, m), normal(random, batch, k), aligned(batch, k), aligned(batch, k)
        return "feed_back", (sizes(m, k, batch), *map(at, arrays)), arrays
    if what == "relax":
        below, m, above, batch = n
        given = weights(random, m, below), weights(random, above, m), normal(random, m), normal(random, batch, below), normal(random, batch, above)
        made = [aligned(batch, m) for _ in range(3)]
        return "relax_layer", (sizes(below, m, above, batch, 1), pointers(*given), pointers(*made)), (given, made)
    if what in FUNCTIONS:
        rows, columns = n
        arrays = normal(random, rows, columns), aligned(rows, columns)
        function = C.c_size_t(FUNCTIONS.index(what))
        return "elementary", (function, C.c_size_t(rows), C.c_size_t(columns), *map(at, arrays)), arrays
    if what in ("step", "back-propagation", "predict"):
        widths = [int(width) for width in widths.split("-")]
        batch, rounds = n[0], -1 if what == "back-propagation" else (n + [0])[1]
        arrays = [weights(random, b, a) for a, b in zip(widths, widths[1:])]
        x, out = normal(random, batch, widths[0], scale=0.3), aligned(batch, widths[-1])
        labels = random.integers(0, widths[-1], batch).astype(np.uint32)
        beta = C.c_double(1.0 if rounds > 1 else 0.1)
        layers = C.c_size_t(len(arrays)), sizes(*widths), pointers(*arrays), C.c_size_t(batch), C.c_int(rounds), beta
        return what, (*layers, at(x), at(labels)), (arrays, x, labels, out)
    raise SystemExit(f"{what}: not one of those above\n{__doc__}")


def task(library, constructor, arguments, arrays):
    if constructor in ("step", "back-propagation", "predict"):
        library.library.training.restype = C.c_void_p
        training = C.c_void_p(library.library.training(*arguments))
        if constructor != "predict":
            return library.task("training_step", training, C.c_double(1e-4))
        _, x, _, out = arrays
        return library.task("prediction", training, C.c_size_t(len(x)), at(x), at(out))
    return library.task(constructor, *arguments)


def main():
    if len(SHAPES) < 2:
        raise SystemExit(__doc__)
    commit, *wanted = SHAPES
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.Popen(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE)
        with tarfile.open(fileobj=archive.stdout, mode="r|") as tree:
            tree.extractall(folder, filter="data")
        if archive.wait():
            raise SystemExit(f"no commit {commit}")
        libraries = {commit: Library(pathlib.Path(folder), "then"), "this tree": Library(name="now")}
        for each in wanted:
            what, _, shape = each.partition(":")
            constructor, arguments, arrays = operands(what, shape)
            runs = {name: task(library, constructor, arguments, arrays) for name, library in libraries.items()}
            times = timed(runs)
            ratio = times["this tree"] / times[commit]
            low, middle, high = np.quantile(ratio, (0.25, 0.5, 0.75))
            print(f"{each:36s} {1e6 * np.median(times[commit]):11.2f} us   x {middle:.3f} ({low:.3f}-{high:.3f})", flush=True)


main()
