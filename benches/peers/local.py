"""Local Lipschitz constants as PyTorch users compute them: a Jacobian for each sample, then its largest singular value.

    LOCAL=DIRECTORY cargo bench --bench lipschitz -- local      our figures; leaves weights, inputs, bounds and seconds in DIRECTORY/trained
    python benches/peers/local.py DIRECTORY/trained             these, for the same weights and inputs; needs torch. Also DIRECTORY/untrained

The network is 784-512-512-10 with ReLU, all is in f32 and on one thread. The bounds are compared with decompositions in f64; a drive next
to 0 may have another sign there, so a sample or two of a thousand may lie outside.
"""

import sys
import time

import torch
from torch.func import jacrev, vmap
from torch.nn.functional import linear

torch.set_num_threads(1)
WIDTHS = [784, 512, 512, 10]


def read(name, dtype, columns):
    with open(f"{sys.argv[1]}/{name}", "rb") as file:
        return torch.frombuffer(bytearray(file.read()), dtype=dtype).reshape(-1, columns)


weights = [read(f"w{k}", torch.float32, columns) for k, columns in enumerate(WIDTHS[:-1])]
biases = [read(f"b{k}", torch.float32, columns)[0] for k, columns in enumerate(WIDTHS[1:])]
x = read("x", torch.float32, WIDTHS[0])
lower, upper = read("bounds", torch.float64, 2).T
ours = read("seconds", torch.float32, 1)


def network(x):
    for w, b in zip(weights[:-1], biases):
        x = torch.relu(linear(x, w, b))
    return linear(x, weights[-1], biases[-1])


def local(x, chunk):
    jacobian = vmap(jacrev(network))
    return torch.cat([torch.linalg.matrix_norm(jacobian(part), ord=2) for part in x.split(chunk)])


with torch.no_grad():
    best = float("inf")
    for chunk in [100, 250, 1000]:
        local(x[:chunk], chunk)
        start = time.perf_counter()
        norms = local(x, chunk)
        seconds = time.perf_counter() - start
        best = min(best, seconds)
        print(f"torch {torch.__version__}, {len(x)} samples in chunks of {chunk}: {seconds:.3f} s", flush=True)
    print(f"dualprop: {ours.median():.4f} s ({ours.min():.4f} to {ours.max():.4f}); the best of these takes {best / ours.median():.1f} times that")
    print(f"gaps of the bounds at most {(upper / lower - 1).max():.1e}; constants from {norms.min():.4f} to {norms.max():.4f}")
    weights, biases = [w.double() for w in weights], [b.double() for b in biases]
    exact = torch.cat([torch.linalg.svdvals(vmap(jacrev(network))(part))[:, 0] for part in x[:1000].double().split(100)])
    slack = 1e-12 * exact
    within = (lower[:1000] <= exact + slack) & (exact <= upper[:1000] + slack)
    print(f"f64 between the bounds: {within.sum()} of {len(exact)} samples; f32 off by {((norms[:1000] - exact).abs() / exact).max():.1e} at most")
