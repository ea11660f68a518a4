"""Whole training steps with Adam (line 8), and inference of 10,000 samples (line 10).

    python benches/peers/step.py [--threads N] [WIDTHS,BATCH ...]

Ours is DP-transpose, alpha = 1/2, by the trainer as users call it: one sweep up and one down, against the peers' back-propagation, and
R = 5 rounds against the same schedule in JAX. All have ReLU, biases, squared error, and the same weights and batch. Bound: the flops of the
products at the FMA peak of the same run, or one pass in place over weights and moments.
"""

from common import *

NETS = ["784-128-128-10,50", "784-512-512-10,50", "784-1000-1000-1000-1000-10,100"]
RATE, BETA1, BETA2, EPSILON, NUDGE = 1e-4, 0.9, 0.999, 1e-8, 0.1
SAMPLES = 10_000


def forward(xp, weights, biases, x):
    drives = []
    for k, (w, b) in enumerate(zip(weights, biases)):
        drives.append((xp.maximum(drives[-1], 0) if k else x) @ w.T + b)
    return drives


def dual(xp, weights, biases, x, y, rounds, beta):
    """Gradients by DP-transpose, alpha = 1/2, of the mean loss: output; R x [down, up]; down."""
    relu, last = lambda a: xp.maximum(a, 0), len(weights)
    drives = forward(xp, weights, biases, x)
    mean = [x] + [relu(a) for a in drives[:-1]] + [None]
    diff = [None] * (last + 1)

    def output():
        a = mean[last - 1] @ weights[last - 1].T + biases[last - 1]
        mean[last], diff[last] = a, beta * (y - a)

    def hidden(k):
        a, v = mean[k - 1] @ weights[k - 1].T + biases[k - 1], 0.5 * (diff[k + 1] @ weights[k])
        up, down = relu(a + v), relu(a - v)
        mean[k], diff[k] = 0.5 * (up + down), up - down

    output()
    for _ in range(rounds):
        for k in range(last - 1, 0, -1):
            hidden(k)
        for k in range(2, last):
            hidden(k)
        output()
    for k in range(last - 1, 0, -1):
        hidden(k)
    scale = -1 / (beta * len(x))
    return [scale * (diff[k + 1].T @ mean[k]) for k in range(last)], [scale * diff[k + 1].sum(0) for k in range(last)]


class Net:
    def __init__(self, widths, batch):
        random = np.random.default_rng(0)
        self.widths, self.batch = widths, batch
        self.weights = [normal(random, m, n, scale=n**-0.5) for n, m in zip(widths, widths[1:])]
        self.biases = [aligned(m) for m in widths[1:]]
        self.x, self.many = normal(random, batch, widths[0]), normal(random, SAMPLES, widths[0])
        self.labels = random.integers(0, widths[-1], batch).astype(np.uint32)
        self.y = np.eye(widths[-1], dtype=np.float32)[self.labels]

    def products(self, first):
        """Multiply-adds of a sample in the layers from `first` on."""
        return sum(m * n for n, m in list(zip(self.widths, self.widths[1:]))[first:])

    def exact(self):
        wide = lambda arrays: [x.astype(np.float64) for x in arrays]
        return wide(self.weights), wide(self.biases)

    def check_gradients(self, what, got, rounds=0, beta=1e-6):
        """Compares gradients of the weights by their angle with those in f64; by a nudge that small they are those of back-propagation."""
        wanted = dual(np, *self.exact(), self.x.astype(np.float64), self.y.astype(np.float64), rounds, beta)[0]
        for k, (mine, exact) in enumerate(zip(got, wanted)):
            mine = np.asarray(mine, np.float64)
            cosine = (mine * exact).sum() / np.sqrt((mine**2).sum() * (exact**2).sum())
            assert cosine > 0.9999, f"{what}, gradient {k}: cosine {cosine}"

    def prediction(self, rows):
        """In f64, and what f32 may be off: each layer adds its roundings to the errors of its inputs."""
        weights, biases = self.exact()
        state, error = self.many[rows].astype(np.float64), 0.0
        for w, b in zip(weights, biases):
            drive = state @ w.T + b
            error = (w.shape[1] + 2) * U * ((abs(state) + error) @ abs(w.T) + abs(b)) + (error @ abs(w.T) if np.ndim(error) else 0.0)
            state = np.maximum(drive, 0)
        return drive, error


def ours(library, net):
    widths, weights = sizes(*net.widths), pointers(*net.weights)
    out = aligned(SAMPLES, net.widths[-1])
    runs, kept = {}, [widths, weights, out]
    lib = library.library
    lib.training.restype = C.c_void_p
    layers = len(net.weights)
    for name, rounds in (("dualprop DPt", 0), ("dualprop DPt, R = 5", 5), ("dualprop back-propagation", -1)):
        plan = lambda: C.c_void_p(
            lib.training(C.c_size_t(layers), widths, weights, C.c_size_t(net.batch), rounds, C.c_double(NUDGE), at(net.x), at(net.labels))
        )
        made, gradients = plan(), [aligned(*w.shape) for w in net.weights]
        for k, gradient in enumerate(gradients):
            lib.training_gradient(made, C.c_size_t(k), at(gradient))
        lib.drop_training(made)
        net.check_gradients(name, gradients, *((rounds, NUDGE) if rounds >= 0 else ()))
        runs[name] = library.task("training_step", plan(), C.c_double(RATE))
    made = plan()
    return runs, library.task("prediction", made, C.c_size_t(SAMPLES), at(net.many), at(out)), lambda: out, kept


def with_torch(t, net):
    x, y, many = map(t.from_numpy, (net.x, net.y, net.many))
    t._dynamo.reset()

    def make():
        layers = []
        for w, b in zip(net.weights, net.biases):
            layers += [t.nn.Linear(w.shape[1], w.shape[0]), t.nn.ReLU()]
            with t.no_grad():
                layers[-2].weight.copy_(t.from_numpy(w))
                layers[-2].bias.copy_(t.from_numpy(b))
        model = t.nn.Sequential(*layers[:-1])
        return model, t.optim.Adam(model.parameters(), lr=RATE, betas=(BETA1, BETA2), eps=EPSILON, fused=True)

    def loss_of(model):
        return 0.5 * ((model(x) - y) ** 2).sum() / net.batch

    model, optimizer = make()

    def eager():
        optimizer.zero_grad(set_to_none=True)
        loss_of(model).backward()
        optimizer.step()

    compiled_model, compiled_optimizer = make()

    @t.compile(dynamic=False)
    def gradients():
        loss_of(compiled_model).backward()

    def compiled():
        compiled_optimizer.zero_grad(set_to_none=True)
        gradients()
        compiled_optimizer.step()

    for name, step, trained in (("PyTorch eager", eager, model), ("torch.compile", compiled, compiled_model)):
        step()
        net.check_gradients(name, [layer.weight.grad.numpy() for layer in trained if hasattr(layer, "weight")])
    runs = {"PyTorch eager, fused Adam": eager, "torch.compile, fused Adam": compiled}
    frozen = make()[0].eval()
    out = [None, None]

    def infer():
        with t.inference_mode():
            out[0] = frozen(many)

    # Weights as constants, packed for oneDNN.
    import torch._inductor.config as inductor

    inductor.freezing = True
    packed = t.compile(make()[0].eval(), dynamic=False)

    def infer_packed():
        with t.no_grad():
            out[1] = packed(many)

    infer_packed()
    inductor.freezing = False
    return runs, {"PyTorch": (infer, lambda: out[0].numpy()), "torch.compile, frozen": (infer_packed, lambda: out[1].numpy())}


def with_jax(j, net):
    jnp = j.numpy
    weights, biases = [jnp.array(w) for w in net.weights], [jnp.array(b) for b in net.biases]
    x, y, many = map(jnp.array, (net.x, net.y, net.many))

    def adam(state, gradient):
        p, m, v, step = state
        step = step + 1
        m = j.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, gradient)
        v = j.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, gradient)
        c1, c2 = 1 - BETA1**step, 1 - BETA2**step
        return j.tree.map(lambda p, m, v: p - RATE * (m / c1) / (jnp.sqrt(v / c2) + EPSILON), p, m, v), m, v, step

    def back_propagation(p, x, y):
        return j.grad(lambda p: 0.5 * ((forward(jnp, *p, x)[-1] - y) ** 2).sum() / len(x))(p)

    def rounds(count):
        return lambda p, x, y: dual(jnp, *p, x, y, count, NUDGE)

    runs = {}
    methods = (("JAX jit", back_propagation, ()), ("JAX jit DPt", rounds(0), (0, NUDGE)), ("JAX jit DPt, R = 5", rounds(5), (5, NUDGE)))
    for name, gradients, reference in methods:
        p = (list(weights), list(biases))
        net.check_gradients(name, j.jit(gradients)(p, x, y)[0], *reference)
        step = j.jit(lambda state, x, y, gradients=gradients: adam(state, gradients(state[0], x, y)), donate_argnums=0)
        state = [j.tree.map(lambda a: a.copy(), (p, j.tree.map(jnp.zeros_like, p), j.tree.map(jnp.zeros_like, p), jnp.float32(0)))]

        def run(step=step, state=state):
            state[0] = j.block_until_ready(step(state[0], x, y))

        runs[name] = run
    infer = j.jit(lambda w, b, x: forward(jnp, w, b, x)[-1])
    out = [None]

    def inference():
        out[0] = j.block_until_ready(infer(weights, biases, many))

    return runs, {"JAX jit": (inference, lambda: np.asarray(out[0]))}


def main():
    library = Library()
    report = Report(library)
    t, j = torch(), jax()
    for case in SHAPES or NETS:
        widths, batch = case.split(",")
        net = Net([int(n) for n in widths.split("-")], int(batch))
        steps, prediction, got, _kept = ours(library, net)
        inference = {"dualprop": (prediction, got)}
        for runs, infer in ([with_torch(t, net)] if t else []) + ([with_jax(j, net)] if j else []):
            steps |= runs
            inference |= infer
        rows = some(SAMPLES)
        for name, (run, got) in inference.items():
            run()
            wanted, error = net.prediction(rows)
            check(f"inference, {name}", got()[rows], wanted, error)
        moments = [normal(np.random.default_rng(0), net.products(0)) for _ in range(3)]
        memory = library.pass_over(*moments)
        every, back = (2 * net.batch * net.products(first) for first in (0, 1))
        shape = f"{widths} B={batch}"
        fives = [name for name in steps if "R = 5" in name]
        once = {name: run for name, run in steps.items() if name not in fives}
        report.lines(8, shape, once, 2 * every + back, memory, "dualprop DPt")
        # In a round all layers but the first go down and up; on the way up the feedback is that of the way down.
        five = 2 * every + 11 * back
        report.lines(8, f"{shape} R=5", {name: steps[name] for name in fives}, five, memory, "dualprop DPt, R = 5")
        runs = {name: run for name, (run, _) in inference.items()}
        report.lines(10, f"{widths} 10000 samples", runs, 2 * SAMPLES * net.products(0), [], "dualprop")


main()
