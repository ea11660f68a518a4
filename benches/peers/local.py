"""Local Lipschitz constants as PyTorch users compute them: a Jacobian for each sample, then its singular values.

    cargo bench --bench lipschitz -- local          our figures
    python benches/peers/local.py [samples]         these; needs torch

The network is 784-512-512-10 with ReLU, LeCun-normal weights and standard normal inputs, all in f32, on one thread. The values are
compared with those of a decomposition in f64 on the first samples.
"""

import sys
import time

import torch
from torch.func import jacrev, vmap

torch.set_num_threads(1)
torch.manual_seed(1)
SAMPLES = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
WIDTHS = [784, 512, 512, 10]
weights = [torch.randn(n_out, n_in) / n_in**0.5 for n_in, n_out in zip(WIDTHS, WIDTHS[1:])]
x = torch.randn(SAMPLES, WIDTHS[0])


def network(x):
    for w in weights[:-1]:
        x = torch.relu(w @ x)
    return weights[-1] @ x


def local(x, chunk):
    jacobian = vmap(jacrev(network))
    return torch.cat([torch.linalg.matrix_norm(jacobian(part), ord=2) for part in x.split(chunk)])


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


with torch.no_grad():
    for chunk in [100, 250, 1000]:
        local(x[:chunk], chunk)
        jacobians = seconds(lambda: [vmap(jacrev(network))(part) for part in x.split(chunk)])
        whole = seconds(lambda: local(x, chunk))
        print(f"torch {torch.__version__}, {SAMPLES} samples in chunks of {chunk}: {whole:.3f} s, of which Jacobians {jacobians:.3f} s")
    norms = local(x[:100], 100).double()
    exact = torch.linalg.svdvals(vmap(jacrev(network))(x[:100]).double())[:, 0]
    print(f"largest relative error {((norms - exact).abs() / exact).max():.1e}; constants from {norms.min():.4f} to {norms.max():.4f}")
