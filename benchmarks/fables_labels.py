"""Labels that a mixture prior finds in the fables by itself, held against the plan variables that wrote them."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from benchmarks.measure import write_result
from benchmarks.plain import plain_preset
from ltm_pyro.config import Settings
from ltm_pyro.data import Data, SequenceDataset, build_data
from ltm_pyro.data.fables import PLAN_VARIABLES, Fable, generate
from ltm_pyro.errors import LTMError
from ltm_pyro.infer import ELBOTerms, Posterior
from ltm_pyro.priors import MixturePrior
from ltm_pyro.training import RunDirectory, Trainer
from ltm_pyro.training.learners import ThoughtLearner

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
    "prior.spread": 0.3,
    "prior.learned_scale": False,
    "inference.init_log_var": -5.0,
    "inference.fast_lr": 0.5,
    "inference.fast_lr_final": 0.5,
    "training.steps": 400,
    "training.slow_lr": 8e-3,
    "training.slow_lr_final": 2e-3,
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
    parser.add_argument("--refit", type=int, default=300, help="training documents behind the prior's last fit")
    parser.add_argument("--shuffles", type=int, default=200, help="permutations of the labels behind the null")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it works")
    parser.add_argument("--name", default="fables-labels", help="name of the files")
    parser.add_argument("--out", type=Path, help="folder of all files (default: benchmarks/results, docs/images)")
    options = parser.parse_args(arguments)

    changes = dict(change.split("=", 1) for change in options.set)
    settings = plain_preset("tiny").updated(SETTINGS | (SMOKE if options.smoke else {}) | changes)
    runs = []
    for seed in range(options.seeds):
        began = time.process_time()
        run = _one_seed(settings.updated({"training.seed": seed}), options)
        runs.append(run | {"cpu_seconds": time.process_time() - began})
        print(f"seed {seed}: " + ", ".join(f"{name} {run['agreement'][name]['ami']:.2f}" for name in _best(run)[:3]))
    kept = options.out is None and not options.smoke
    folder = RESULTS if kept else options.out or Path("runs") / "fables-labels-smoke"
    folder.mkdir(parents=True, exist_ok=True)
    about = {"samples": options.samples, "refit": options.refit, "shuffles": options.shuffles}
    result = {"preset": "tiny", "settings": settings.to_dict(), **about, "runs": runs}
    path = write_result(options.name, result, folder)
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
    trainer.learner.modules.eval()
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


def posteriors(trainer: Trainer, data: SequenceDataset, count: int, batch_size: int = 50) -> Iterator[Posterior]:
    """The posteriors of a data set's first ``count`` sequences, some at a time."""
    for batch in data.batches(range(count), batch_size):
        yield _learner(trainer).svi.infer(batch.to(trainer.device), seed=0)


def _learner(trainer: Trainer) -> ThoughtLearner:
    return cast(ThoughtLearner, trainer.learner)


def infer_labels(trainer: Trainer, samples: int) -> tuple[Float[Tensor, "document component"], ELBOTerms]:
    """Label probabilities and ELBO terms of all validation documents."""
    data = trainer.data.validation
    found = list(posteriors(trainer, data, len(data)))
    probabilities = torch.cat([label_probabilities(posterior, samples) for posterior in found])
    return probabilities.cpu(), ELBOTerms.cat([posterior.terms for posterior in found])


def refit_prior(trainer: Trainer, count: int, draws: int = 4, rounds: int = 100) -> None:
    r"""Weights and means of the mixture at the optimum of the bound for q and the decoder as they are, by EM.

    .. math:: \max_{\pi, m} \sum_b E_{q_b}[\log \textstyle\sum_k \pi_k N(z; m_k, \operatorname{diag} s_k^2)]

    over ``draws`` draws of each of the first ``count`` training documents, from the centres that k-means finds. No plan
    and no validation document takes part.
    """
    from sklearn.cluster import KMeans

    prior = cast(MixturePrior, _learner(trainer).model.prior)
    thoughts = [posterior.sample(draws).flatten(0, 1) for posterior in posteriors(trainer, trainer.data.train, count)]
    z = torch.cat(thoughts)
    centres = KMeans(len(prior.logits), n_init=10, random_state=0).fit(z.flatten(1).cpu().numpy()).cluster_centers_
    with torch.no_grad():
        prior.mu.copy_(torch.as_tensor(centres).view_as(prior.mu))
        prior.logits.zero_()
        for _ in range(rounds):
            shares = prior.responsibilities(z)
            total = shares.sum(0).clamp(min=1e-6)
            prior.mu.copy_(einsum(shares, z, "d k, d l n h -> k l n h") / rearrange(total, "k -> k 1 1 1"))
            prior.logits.copy_(total.log())


def agreement(labels: Sequence[int], values: Sequence[str], shuffles: int, seed: int = 0) -> dict[str, float]:
    """Adjusted mutual information of labels and a plan variable, and what shuffled labels reach by chance.

    1 is the same partition under other names; 0 is what independent labels reach on average.

    References: Vinh et al. (2010), Information Theoretic Measures for Clusterings Comparison.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    draw = np.random.default_rng(seed)
    null = [adjusted_mutual_info_score(values, draw.permutation(labels)) for _ in range(shuffles)]
    ami = {"ami": float(adjusted_mutual_info_score(values, labels))}
    return ami | ({"null_mean": float(np.mean(null)), "null_max": float(np.max(null))} if null else {})


def _one_seed(settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    data = build_data(**asdict(settings.data), seed=settings.training.seed)
    fables = told(settings, data)
    plans = {name: [fable.plan[name] for fable in fables] for name in PLAN_VARIABLES}
    with tempfile.TemporaryDirectory() as folder:
        trainer = train(settings, data, Path(folder) / "run")
        validation = [row for row in trainer.run.metrics.rows() if row["split"] == "validation"]
    before = _labelled(trainer, plans, options.samples, 0)
    del before["tables"]
    refit_prior(trainer, min(options.refit, len(data.train)))
    after = _labelled(trainer, plans, options.samples, options.shuffles)
    about = {"seed": settings.training.seed, "documents": len(fables), "validation": validation}
    return about | after | {"before_refit": before}


def _labelled(trainer: Trainer, plans: Mapping[str, Sequence[str]], samples: int, shuffles: int) -> dict[str, Any]:
    """What the labels of the validation documents show under the present prior."""
    probabilities, terms = infer_labels(trainer, samples)
    labels = probabilities.argmax(-1).tolist()
    return {
        "components": [labels.count(k) for k in range(probabilities.shape[1])],
        "confidence": float(probabilities.max(-1).values.mean()),
        "kl_per_document": float(terms.kl.mean()),
        "elbo_per_document": float(terms.elbo.mean()),
        "agreement": {name: agreement(labels, values, shuffles) for name, values in plans.items()},
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
    best = _by_mean(result)[0]
    lines += [
        "",
        "The runs, after training and after the prior's refit:",
        "",
        f"| seed | | AMI with {best} | documents by label | mean probability of the label | "
        "negative ELBO, nats per document | KL, nats per document | CPU seconds in all |",
        "| --- " * 8 + "|",
    ]
    for run in runs:
        for stage, row, seconds in (("trained", run["before_refit"], ""), ("refit", run, f"{run['cpu_seconds']:.0f}")):
            counts, numbers = ", ".join(map(str, row["components"])), f"{row['confidence']:.2f}"
            numbers += f" | {-row['elbo_per_document']:.1f} | {row['kl_per_document']:.1f} | {seconds}"
            lines.append(f"| {run['seed']} | {stage} | {row['agreement'][best]['ami']:.3f} | {counts} | {numbers} |")
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
        chance,
        place,
        "|",
        color="#c44e52",
        ms=9,
        mew=2,
        label=f"shuffled labels, greatest of {len(runs)} × {result['shuffles']}",
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
