"""``python -m benchmarks NAME``: runs one benchmark and writes its JSON."""

from __future__ import annotations

import importlib
import sys

NAMES = {
    "attention": "windowed self-attention per token against the length, beside a dense mask and no window",
    "data": "tokenising by several processes, its memory, a kill in the middle, and the loader beside ltm-s",
    "elbo-time": "the ELBO against time: fewer tokens per fast step, early stop, better starts",
    "fables-labels": "labels that a mixture prior finds in the fables, against the plans that wrote them",
    "fast-loop": "one slow step beside a hand-written loop, the released arithmetic and the machine's floor",
    "floor": "operations and bytes per second that this machine reaches at best",
    "generation": "tokens per second with the cache, without it, and at the limit of memory bandwidth",
    "loss": "the token loss and its gradients against the vocabulary, beside full logits and torch's own",
    "memory": "peak memory of a slow step: counted from sizes, and measured",
    "priors-guides": "every prior under every guide: seconds per step, and the ELBO after equal time",
    "pyro-overhead": "one fast-slow step through Pyro against the same arithmetic in plain torch",
    "ranks": "a slow step of two ranks on a core each, beside one with half of the batch",
    "record-run": "a training run as JSON, loss curve and texts",
    "scaling": "seconds per token of a slow step against N, N_z, T_fast, B and V",
}


def main() -> None:
    """Runs the benchmark that the first argument names, with the others as its options."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print("Usage: just bench NAME [OPTIONS]\n")
        for name, about in NAMES.items():
            print(f"  {name:16} {about}")
        sys.exit(0 if len(sys.argv) < 2 or not sys.argv[1] else 2)
    module = importlib.import_module(f"benchmarks.{sys.argv[1].replace('-', '_')}")
    module.main(sys.argv[2:])


main()
