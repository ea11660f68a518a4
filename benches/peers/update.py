"""Weight updates from (mean, difference), W of m x n: plain with decay in f32 and f64 (lines 1 and 2), with momentum and Adam (line 3).

    python benches/peers/update.py [--threads N] [LINE | LINE:MxNxB ...]        e.g. 1 3:256x784x32

Bound: the flops at the FMA peak of the same run, or one pass in place over W (and its moments) of the same run. BLAS peers of line 1
scale by beta = 0.999, which is a pass of their own, or by beta = 1, which leaves the decay out; ours always decays. PyTorch's Adam is the
fused kernel itself, without the Python of its optimizer class.
"""

from common import *

PLAIN = ["256x784x1", "256x784x32", "256x784x128", "1000x784x100", "1024x1024x1", "1024x1024x16", "1024x1024x64", "1024x1024x256"]
PLAIN += ["512x4608x2048", "4096x4096x1", "4096x4096x8", "4096x4096x64", "4096x4096x256"]
DOUBLE = ["256x784x32", "1000x784x100", "1024x1024x64", "4096x4096x8", "4096x4096x64"]
STATEFUL = ["256x784x32", "256x784x128", "1000x784x100", "1024x1024x16", "1024x1024x64", "1024x1024x256"]
STATEFUL += ["4096x4096x8", "4096x4096x64", "4096x4096x256"]

KEEP, RATE = 0.999, 1e-3  # of the plain update
LEARN, DECAY, STEP = 1e-3, 1e-2, 10  # of the others
BETA1, BETA2, EPSILON, MU = 0.9, 0.999, 1e-8, 0.9


class Problem:
    def __init__(self, m, n, batch, dtype):
        random = np.random.default_rng(0)
        self.shape, self.dtype = (m, n, batch), dtype
        self.diff, self.mean = normal(random, batch, m, dtype=dtype), normal(random, batch, n, dtype=dtype)
        self.start = [normal(random, m, n, dtype=dtype), normal(random, m, n, dtype=dtype), aligned(m, n, dtype=dtype)]
        self.start[2][...] = random.uniform(0.5, 1.5, (m, n))
        self.state = [aligned(m, n, dtype=dtype) for _ in range(3)]
        self.reset()
        self.rows = some(m)
        wide = lambda x: x.astype(np.float64)
        self.sums = wide(self.diff[:, self.rows]).T @ wide(self.mean)
        self.size = abs(wide(self.diff[:, self.rows])).T @ abs(wide(self.mean))
        self.wide = [wide(x[self.rows]) for x in self.start]
        self.u = np.finfo(dtype).eps / 2

    def reset(self):
        for state, start in zip(self.state, self.start):
            state[...] = start

    def plain(self, keep):
        w, (_, _, batch) = self.wide[0], self.shape
        # Sums in any order, and scales that were rounded once.
        return keep * w + RATE * self.sums, (batch + 6) * self.u * (abs(w) + RATE * self.size)

    def momentum(self):
        (w, m, _), (_, _, batch), u = self.wide, self.shape, self.u
        g, error = self.sums / batch, (batch + 4) * u * self.size / batch
        new = MU * m + g
        error += 4 * u * (abs(m) + abs(g))
        return (1 - LEARN * DECAY) * w - LEARN * new, LEARN * error + 6 * u * (abs(w) + LEARN * abs(new))

    def adam(self):
        (w, m, v), (_, _, batch), u = self.wide, self.shape, self.u
        g, error = self.sums / batch, (batch + 4) * u * self.size / batch
        first, second = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
        # The complements of beta^t are known to t roundings of beta^t; 1 - beta itself to one of beta.
        c1, c2 = 1 - BETA1**STEP, 1 - BETA2**STEP
        lost1, lost2 = 2 * STEP * u / c1, 2 * STEP * u / c2
        error1 = (1 - BETA1) * error + 4 * u * (abs(m) + abs(g))
        error2 = (1 - BETA2) * (2 * abs(g) * error + error**2) + 4 * u * (v + g * g)
        ratio = first / c1 / (np.sqrt(second / c2) + EPSILON)
        root = np.sqrt(second / c2)
        error = error1 / c1 / root + abs(ratio) * (error2 / second + lost1 + lost2 + 8 * u)  # twice the slope of the root: second order too
        return (1 - LEARN * DECAY) * w - LEARN * ratio, LEARN * error + 6 * u * (abs(w) + LEARN * abs(ratio))


def ours(library, problem, optimizer, decay, rate, scale):
    suffix = "f32" if problem.dtype == np.float32 else "f64"
    arguments = sizes(*problem.shape, optimizer), pointers(*problem.state), pointers(problem.diff, problem.mean)
    return library.task(f"update_{suffix}", *arguments, doubles(decay, rate, scale, STEP))


def plain(library, report, line, shape, dtype):
    m, n, batch = map(int, shape.split("x"))
    problem = Problem(m, n, batch, dtype)
    w, gradient = problem.state[0], aligned(m, n, dtype=dtype)
    kept = []
    runs = {"dualprop": (ours(library, problem, 0, (1 - KEEP) / RATE, RATE, -1.0), w, KEEP)}
    for name, gemm in blas("cblas_sgemm" if dtype == np.float32 else "cblas_dgemm"):
        for beta in (KEEP, 1.0):
            arguments = (112, 111, m, n, batch, m, n, n), (RATE, beta), problem.diff, problem.mean, w
            runs[f"{name}, beta {beta:g}"] = library.gemm(name, gemm, *arguments), w, beta
    if batch == 1 and dtype == np.float32:
        for name, ger in blas("cblas_sger"):
            arguments = ints(m, n), C.c_float(RATE), at(problem.diff), at(problem.mean), at(w)
            runs[f"{name} ger, beta 1"] = library.task("ger", ger, *arguments), w, 1.0

    def numpy():
        np.matmul(problem.diff.T, problem.mean, out=gradient)
        np.multiply(w, dtype(KEEP), out=w)
        np.multiply(gradient, dtype(RATE), out=gradient)
        np.add(w, gradient, out=w)

    runs[f"NumPy, beta {KEEP}"] = numpy, w, KEEP
    if (t := torch()) is not None:
        tw, td, ts = map(t.from_numpy, (w, problem.diff.T, problem.mean))
        for beta in (KEEP, 1.0):
            runs[f"PyTorch addmm_, beta {beta:g}"] = lambda beta=beta: tw.addmm_(td, ts, beta=beta, alpha=RATE), w, beta
    if (j := jax()) is not None and dtype == np.float32:
        step = j.jit(lambda w, d, s: KEEP * w + RATE * (d.T @ s), donate_argnums=0)
        state, d, s = [j.numpy.array(problem.start[0])], j.numpy.array(problem.diff), j.numpy.array(problem.mean)

        def run():
            state[0] = j.block_until_ready(step(state[0], d, s))

        runs[f"JAX jit, beta {KEEP}"] = run, lambda: np.asarray(state[0]), KEEP
    for name, (run, result, keep) in runs.items():
        problem.reset()
        run()
        got = result() if callable(result) else result
        check(name, got[problem.rows], *problem.plain(keep))
    other = aligned(m, n, dtype=dtype)
    other[...] = problem.start[0]
    kept.append(other)
    runs = {name: run for name, (run, *_) in runs.items()}
    report.lines(line, shape, runs, 2 * m * n * batch, library.pass_over(other), "dualprop", dtype)


def stateful(library, report, shape):
    m, n, batch = map(int, shape.split("x"))
    problem = Problem(m, n, batch, np.float32)
    w, first, second = problem.state
    keep, scale = 1 - LEARN * DECAY, 1 / batch
    t, j = torch(), jax()

    def momentum_numpy():
        np.matmul(problem.diff.T, problem.mean, out=gradient)
        np.multiply(gradient, np.float32(scale), out=gradient)
        np.multiply(first, np.float32(MU), out=first)
        np.add(first, gradient, out=first)
        np.multiply(w, np.float32(keep), out=w)
        np.multiply(first, np.float32(LEARN), out=gradient)
        np.subtract(w, gradient, out=w)

    def adam_numpy():
        c1, c2 = 1 - BETA1**STEP, 1 - BETA2**STEP
        np.matmul(problem.diff.T, problem.mean, out=gradient)
        np.multiply(gradient, np.float32(scale), out=gradient)
        np.multiply(first, np.float32(BETA1), out=first)
        np.multiply(gradient, np.float32(1 - BETA1), out=other)
        np.add(first, other, out=first)
        np.multiply(second, np.float32(BETA2), out=second)
        np.multiply(gradient, gradient, out=gradient)
        np.multiply(gradient, np.float32(1 - BETA2), out=gradient)
        np.add(second, gradient, out=second)
        np.multiply(second, np.float32(1 / c2), out=gradient)
        np.sqrt(gradient, out=gradient)
        np.add(gradient, np.float32(EPSILON), out=gradient)
        np.divide(first, gradient, out=gradient)
        np.multiply(gradient, np.float32(LEARN / c1), out=gradient)
        np.multiply(w, np.float32(keep), out=w)
        np.subtract(w, gradient, out=w)

    gradient, other = aligned(m, n), aligned(m, n)
    for name, code, expected in (("momentum", 1, problem.momentum()), ("Adam", 2, problem.adam())):
        runs = {"dualprop": (ours(library, problem, code, DECAY, LEARN, scale), w)}
        if m * n <= 1 << 20:
            runs["NumPy"] = (momentum_numpy if code == 1 else adam_numpy), w
        if t is not None:
            tw, t1, t2, tg, td, ts = map(t.from_numpy, (w, first, second, gradient, problem.diff.T, problem.mean))
            tick = t.tensor(float(STEP - 1))

            def product():
                t.addmm(tg, td, ts, beta=0, alpha=scale, out=tg)

            if code == 1:

                def eager():
                    product()
                    tw.mul_(keep)
                    options = dict(lr=LEARN, weight_decay=0.0, momentum=MU, dampening=0.0, nesterov=False)
                    t._fused_sgd_([tw], [tg], [t1], **options, maximize=False, is_first_step=False)

                def formula(w, m, v, d, s, t_):
                    m.mul_(MU).add_(d @ s, alpha=scale)
                    w.mul_(keep).sub_(m, alpha=LEARN)
            else:

                def eager():
                    product()
                    tick.add_(1)
                    options = dict(lr=LEARN, beta1=BETA1, beta2=BETA2, weight_decay=DECAY, eps=EPSILON, amsgrad=False)
                    t._fused_adamw_([tw], [tg], [t1], [t2], [], [tick], **options, maximize=False)

                def formula(w, m, v, d, s, t_):
                    t_.add_(1)
                    g = (d @ s) * scale
                    m.mul_(BETA1).add_(g, alpha=1 - BETA1)
                    v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
                    w.mul_(keep).sub_(LEARN * (m / (1 - BETA1**t_)) / ((v / (1 - BETA2**t_)).sqrt() + EPSILON))

            t._dynamo.reset()
            compiled = t.compile(formula, dynamic=False)
            tick2 = t.tensor(float(STEP - 1), dtype=t.float64)
            runs["PyTorch, product then fused"] = eager, w

            def run_compiled(compiled=compiled, tw=tw, t1=t1, t2=t2, tick2=tick2):
                compiled(tw, t1, t2, td, ts, tick2)

            # Compiles on a copy of the state, which `reset` restores.
            with t.no_grad():
                run_compiled()
            tick2.fill_(STEP - 1)
            runs["torch.compile"] = run_compiled, w
        if j is not None:
            jnp = j.numpy

            def jax_step(state, d, s):
                w, m, v, t_ = state
                g = (d.T @ s) * scale
                if code == 1:
                    m = MU * m + g
                    return keep * w - LEARN * m, m, v, t_
                t_ = t_ + 1
                m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
                return keep * w - LEARN * (m / (1 - BETA1**t_)) / (jnp.sqrt(v / (1 - BETA2**t_)) + EPSILON), m, v, t_

            step = j.jit(jax_step, donate_argnums=0)
            state = [tuple(map(jnp.array, problem.start)) + (jnp.float32(STEP - 1),)]
            d, s = jnp.array(problem.diff), jnp.array(problem.mean)

            def run_jax(step=step, state=state, d=d, s=s):
                state[0] = j.block_until_ready(step(state[0], d, s))

            runs["JAX jit"] = run_jax, lambda state=state: np.asarray(state[0][0])
        for row, (run, result) in runs.items():
            problem.reset()
            run()
            got = result() if callable(result) else result
            check(f"{name}, {row}", got[problem.rows], *expected)
        problem.reset()
        arrays = [aligned(m, n) for _ in range(1 + code)]
        for array, start in zip(arrays, problem.start):
            array[...] = start
        runs = {row: run for row, (run, _) in runs.items()}
        report.lines(3, f"{name} {shape}", runs, 2 * m * n * batch, library.pass_over(*arrays), "dualprop")


def main():
    library = Library()
    report = Report(library)
    every = [f"{line}:{shape}" for line, shapes in ((1, PLAIN), (2, DOUBLE), (3, STATEFUL)) for shape in shapes]
    wanted = SHAPES or ["1", "2", "3"]
    for case in [case for case in every if case[0] in wanted] + [case for case in wanted if ":" in case]:
        line, _, shape = case.partition(":")
        if line == "3":
            stateful(library, report, shape)
        else:
            plain(library, report, int(line), shape, np.float32 if line == "1" else np.float64)


main()
