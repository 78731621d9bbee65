"""Labels that a mixture prior finds in the fables by itself, held against the plan variables that wrote them."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.measure import write_result
from ltm_pyro.config import Settings
from ltm_pyro.data import Data, build_data
from ltm_pyro.data.fables import PLAN_VARIABLES, Fable, generate
from ltm_pyro.errors import LTMError
from ltm_pyro.infer import Posterior
from ltm_pyro.presets import preset
from ltm_pyro.training import RunDirectory, Trainer

__all__ = ["SETTINGS", "agreement", "infer_labels", "label_probabilities", "main", "told", "train"]

RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parents[1] / "docs" / "images"

# A window of eight tokens in one layer sees few facts of the document, so that they are worth their KL. log σ² starts
# low: the decoder hears the thoughts through little noise from the first step on, and learns to listen to them. With
# scales of their own, one component would shrink onto the early thoughts, of one cluster yet, and take all documents.
SETTINGS: dict[str, Any] = {
    "data.validation_fraction": 0.1,
    "decoder.layers": 1,
    "decoder.hidden": 64,
    "decoder.num_thoughts": 2,
    "decoder.thought_width": 8,
    "decoder.window": 8,
    "prior.name": "mixture",
    "prior.enumerated": True,
    "prior.components": 4,
    "prior.scale": 0.5,
    "prior.learned_scale": False,
    "inference.init_log_var": -5.0,
    "inference.fast_lr": 0.5,
    "inference.fast_lr_final": 0.5,
    "training.steps": 600,
    "training.slow_lr": 8e-3,
    "training.slow_lr_final": 5e-3,
    "training.eval_every": 100,
}
"""What differs from the preset ``tiny``."""

SMOKE: dict[str, Any] = {
    "data.documents": 40,
    "data.validation_fraction": 0.5,
    "data.vocab_size": 600,
    "data.sequence_length": 1024,  # a smaller vocabulary makes longer sequences, and none may be cut
    "decoder.hidden": 16,
    "training.steps": 2,
    "training.batch_size": 2,
    "training.eval_sequences": 2,
}
"""What ``--smoke`` changes besides: seconds, and labels that mean nothing."""


def main(arguments: list[str]) -> None:
    """Trains once per seed; writes benchmarks/results/NAME.{json,md} and the picture in the docs."""
    parser = argparse.ArgumentParser(prog="just bench fables-labels", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="trainings, with seeds 0, 1, …")
    parser.add_argument("--samples", type=int, default=32, help="draws of the thoughts behind a document's label")
    parser.add_argument("--shuffles", type=int, default=200, help="permutations of the labels behind the null")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it works")
    parser.add_argument("--name", default="fables-labels", help="name of the files")
    parser.add_argument("--out", type=Path, help="folder of all files (default: benchmarks/results, docs/images)")
    options = parser.parse_args(arguments)

    changes = dict(change.split("=", 1) for change in options.set)
    settings = preset("tiny").updated(SETTINGS | (SMOKE if options.smoke else {}) | changes)
    runs = []
    for seed in range(options.seeds):
        began = time.process_time()
        run = _one_seed(settings.updated({"training.seed": seed}), options.samples, options.shuffles)
        runs.append(run | {"cpu_seconds": time.process_time() - began})
        print(f"seed {seed}: " + ", ".join(f"{name} {run['agreement'][name]['ami']:.2f}" for name in _best(run)[:3]))
    kept = options.out is None and not options.smoke
    folder = RESULTS if kept else options.out or Path("runs") / "fables-labels-smoke"
    folder.mkdir(parents=True, exist_ok=True)
    result = {"preset": "tiny", "settings": settings.to_dict(), "samples": options.samples, "runs": runs}
    path = write_result(options.name, result | {"shuffles": options.shuffles}, folder)
    written = json.loads(path.read_text())
    picture = (PICTURES if kept else folder) / f"{options.name}.png"
    picture.parent.mkdir(exist_ok=True)
    _plot(picture, written)
    (folder / f"{options.name}.md").write_text(_markdown(options.name, written))
    print(f"written to {path}, .md and {picture}")


def train(settings: Settings, data: Data, folder: Path) -> Trainer:
    """A trained run in ``folder``, through the same classes as ``ltm-pyro train``."""
    trainer = Trainer(settings, data, RunDirectory.create(folder, settings, data.tokenizer))
    trainer.fit()
    trainer.model.eval()
    return trainer


def told(settings: Settings, data: Data) -> list[Fable]:
    """The validation fables with their plans, one for each validation sequence, in order.

    Raises:
        LTMError: the sequences are not the generator's whole fables.
    """
    count = len(data.validation)
    fables = list(generate(count, seed=settings.training.seed, split="validation"))
    batch = data.validation.batch(list(range(count)))
    for fable, tokens, length in zip(fables, batch.tokens.tolist(), batch.lengths.tolist(), strict=True):
        if data.tokenizer.decode(tokens[: length - 1]) != fable.text:
            raise LTMError("a validation sequence is no whole fable: raise data.sequence_length")
    return fables


def label_probabilities(posterior: Posterior, num: int) -> Float[Tensor, "batch component"]:
    """E_q[p(k | z)], every document's probabilities of the mixture's components, over ``num`` draws of z."""
    return posterior.discrete(num)["kind"]


def infer_labels(
    trainer: Trainer, samples: int, batch_size: int = 50
) -> tuple[Float[Tensor, "document component"], float]:
    """Label probabilities of all validation documents, and their mean KL(q ‖ p) in nats per document."""
    data, probabilities, kl = trainer.data.validation, [], []
    for start in range(0, len(data), batch_size):
        batch = data.batch(list(range(start, min(start + batch_size, len(data))))).to(trainer.device)
        posterior = trainer.svi.infer(batch, seed=0)
        probabilities.append(label_probabilities(posterior, samples).cpu())
        kl.append(posterior.kl.cpu())
    return torch.cat(probabilities), float(torch.cat(kl).mean())


def agreement(labels: Sequence[int], values: Sequence[str], shuffles: int, seed: int = 0) -> dict[str, float]:
    """Adjusted mutual information of labels and a plan variable, and what shuffled labels reach by chance.

    1 is the same partition under other names; 0 is what independent labels reach on average.

    References: Vinh et al. (2010), Information Theoretic Measures for Clusterings Comparison.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    draw = np.random.default_rng(seed)
    null = [adjusted_mutual_info_score(values, draw.permutation(labels)) for _ in range(shuffles)]
    ami = float(adjusted_mutual_info_score(values, labels))
    return {"ami": ami, "null_mean": float(np.mean(null)), "null_max": float(np.max(null))}


def _one_seed(settings: Settings, samples: int, shuffles: int) -> dict[str, Any]:
    data = build_data(**asdict(settings.data), seed=settings.training.seed)
    fables = told(settings, data)
    with tempfile.TemporaryDirectory() as folder:
        trainer = train(settings, data, Path(folder) / "run")
        validation = [row for row in trainer.run.metrics.rows() if row["split"] == "validation"]
    probabilities, kl = infer_labels(trainer, samples)
    labels = probabilities.argmax(-1).tolist()
    plans = {name: [fable.plan[name] for fable in fables] for name in PLAN_VARIABLES}
    return {
        "seed": settings.training.seed,
        "documents": len(fables),
        "agreement": {name: agreement(labels, values, shuffles) for name, values in plans.items()},
        "components": [labels.count(k) for k in range(probabilities.shape[1])],
        "confidence": float(probabilities.max(-1).values.mean()),
        "kl_per_document": kl,
        "validation": validation,
        "tables": {name: _counts(labels, values, probabilities.shape[1]) for name, values in plans.items()},
    }


def _counts(labels: Sequence[int], values: Sequence[str], components: int) -> dict[str, list[int]]:
    """Documents by value of a plan variable and label."""
    pairs = list(zip(values, labels, strict=True))
    return {value: [pairs.count((value, k)) for k in range(components)] for value in sorted(set(values))}


def _best(run: dict[str, Any]) -> list[str]:
    return sorted(run["agreement"], key=lambda name: -run["agreement"][name]["ami"])


def _by_mean(result: dict[str, Any]) -> list[str]:
    """Plan variables, those that agree best over all seeds first."""
    return sorted(PLAN_VARIABLES, key=lambda name: -_column(result, name, "ami").mean())


def _column(result: dict[str, Any], variable: str, key: str) -> np.ndarray[Any, Any]:
    return np.array([run["agreement"][variable][key] for run in result["runs"]])


def _markdown(name: str, result: dict[str, Any]) -> str:
    runs = result["runs"]
    seeds = [f"seed {run['seed']}" for run in runs]
    lines = [f"# {name}", "", "```bash", result["command"], "```", ""]
    lines += [
        f"Adjusted mutual information of the labels of {runs[0]['documents']} validation fables with each plan "
        f"variable. Chance: the same labels shuffled {result['shuffles']} times, mean and greatest over all seeds.",
        "",
        "| variable | values | " + " | ".join(seeds) + " | mean | chance, mean | chance, greatest |",
        "| --- " * (len(seeds) + 5) + "|",
    ]
    for variable in _by_mean(result):
        ami = _column(result, variable, "ami")
        cells = [*ami, ami.mean(), _column(result, variable, "null_mean").mean()]
        cells.append(_column(result, variable, "null_max").max())
        row = " | ".join(f"{cell:.3f}".replace("-0.000", "0.000") for cell in cells)
        lines.append(f"| {variable} | {PLAN_VARIABLES[variable]} | {row} |")
    lines += ["", "The runs:", ""]
    lines += [
        "| seed | documents by label | mean probability of the label | KL, nats per document | negative ELBO, nats per "
        "token | reconstruction (KL left out) | CPU seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        last = run["validation"][-1]
        counts = ", ".join(map(str, run["components"]))
        row = f"{run['confidence']:.2f} | {run['kl_per_document']:.1f} | {last['elbo']:.3f} | "
        row += f"{last['reconstruction']:.3f} | {run['cpu_seconds']:.0f}"
        lines.append(f"| {run['seed']} | {counts} | {row} |")
    about = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return "\n".join([*lines, "", f"Machine: {about}.", ""])


def _plot(path: Path, result: dict[str, Any]) -> None:
    """Left, each variable's AMI beside chance; right, labels against the values of the variable that agrees best."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    order, runs = _by_mean(result), result["runs"]
    figure, (bars, *maps) = plt.subplots(
        1, 1 + len(runs), figsize=(5.5 + 1.9 * len(runs), 5), width_ratios=[2.6] + [1] * len(runs), layout="constrained"
    )
    place = np.arange(len(order))[::-1]
    means = [_column(result, name, "ami").mean() for name in order]
    bars.barh(place, means, color="#4c72b0", height=0.7, label=f"labels, mean of {len(runs)} seeds")
    for run in runs:
        dots = [run["agreement"][name]["ami"] for name in order]
        bars.plot(dots, place, "o", color="black", ms=3, label="labels, each seed" if run is runs[0] else None)
    chance = [_column(result, name, "null_max").max() for name in order]
    bars.plot(
        chance, place, "|", color="#c44e52", ms=9, mew=2, label=f"shuffled labels, greatest of {result['shuffles']}"
    )
    bars.set_yticks(place, [f"{name} ({PLAN_VARIABLES[name]})" for name in order])
    bars.set(xlabel="adjusted mutual information", title="plan variables (values)", xlim=(min(0, *means) - 0.02, 1.02))
    bars.legend(frameon=False, loc="lower right", fontsize=8)
    bars.spines[["top", "right"]].set_visible(False)
    best = order[0]
    for axes, run in zip(maps, runs, strict=True):
        table = run["tables"][best]
        counts = np.array(list(table.values()))
        shares = counts / counts.sum(1, keepdims=True)
        axes.imshow(shares.T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (value, label), count in np.ndenumerate(counts):
            color = "white" if shares[value, label] > 0.5 else "black"
            axes.text(value, label, str(count), ha="center", va="center", color=color, fontsize=9)
        axes.set_xticks(range(len(table)), list(table), rotation=0 if len(table) < 4 else 90)
        axes.set_yticks(range(counts.shape[1]))
        axes.set(title=f"{best}, seed {run['seed']}")
    maps[0].set_ylabel("label (documents in each cell)")
    figure.savefig(path, dpi=110)
    plt.close(figure)
