"""``python -m benchmarks.reproduce NAME``: runs one recipe and writes its JSON, table and plot."""

from __future__ import annotations

import importlib
import sys

NAMES = {
    "fables": "LTM, AR and MDLM beside the fables' exact entropy, at equal tokens and at equal FLOPs",
    "tokens": "sample efficiency: the fables' comparison by training tokens",
    "flops": "compute efficiency: the fables' comparison by training FLOPs",
    "corpora": "the same comparison on real text, which you name",
    "zero-shot": "perplexity of corpora that were not trained on, and LAMBADA's last word",
    "gsm8k": "pass@k of grade-school problems after finetuning, beside what guessing has",
    "generation": "how close generated fables are to real ones, and how many the grammar knows",
}


def main() -> None:
    """Runs the recipe that the first argument names, with the others as its options."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print("Usage: just reproduce NAME [--smoke] [OPTIONS]\n")
        for name, about in NAMES.items():
            print(f"  {name:14} {about}")
        sys.exit(0 if len(sys.argv) < 2 or not sys.argv[1] else 2)
    module = importlib.import_module(f"benchmarks.reproduce.{sys.argv[1].replace('-', '_')}")
    module.main(sys.argv[2:])


main()
