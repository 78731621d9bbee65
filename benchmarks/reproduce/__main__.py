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
    "langevin-vae": "local VB, VAEs with cures for collapse, and Langevin dynamics train the same decoder",
    "probe": "which layer's thoughts hold the text: reconstruction by layers, swaps, interpolation",
    "steps": "quality against T_fast at training and at evaluation, and which number falls with more of them",
    "latents": "quality against the number of thoughts",
    "honest-likelihood": "thoughts that earn their KL: bounds and prediction beside the same window without thoughts",
    "size": "decoders of three sizes, with thoughts and without",
}


def main() -> None:
    """Runs the recipe that the first argument names, or all of them, with the other arguments as options."""
    if len(sys.argv) < 2 or sys.argv[1] not in (*NAMES, "all"):
        print("Usage: just reproduce NAME [--smoke] [OPTIONS]\n")
        for name, about in (NAMES | {"all": "every one of these in turn"}).items():
            print(f"  {name:14} {about}")
        sys.exit(0 if len(sys.argv) < 2 or not sys.argv[1] else 2)
    for name in NAMES if sys.argv[1] == "all" else sys.argv[1:2]:
        module = importlib.import_module(f"benchmarks.reproduce.{name.replace('-', '_')}")
        module.main(sys.argv[2:])


main()
