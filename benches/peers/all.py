"""All lines, ours and the peers interleaved: the scripts update, relax, products, elementary and step, one after the other.

    python -m venv V && V/bin/pip install numpy scipy mkl onednn-cpu-gomp torch jax
    V/bin/python benches/peers/all.py --record benches/record/<cpu>-<date>-peers.csv [--threads 1 2]

With two threads lines 1, 3, 4 and 8 alone. Nothing else should run on the machine.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

LINES = {
    1: [("update.py",), ("relax.py",), ("products.py",), ("elementary.py",), ("step.py",)],
    2: [("update.py", "1", "3"), ("relax.py",), ("step.py",)],
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", required=True)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    arguments = parser.parse_args()
    folder = pathlib.Path(__file__).parent
    os.environ["DUALPROP_RECORD"] = str(pathlib.Path(arguments.record).resolve())
    for threads in arguments.threads:
        for script, *lines in LINES[threads]:
            start = time.perf_counter()
            subprocess.run([sys.executable, folder / script, "--threads", str(threads), *lines], check=True)
            print(f"# {script}, {threads} thread(s): {time.perf_counter() - start:.0f} s", flush=True)


main()
