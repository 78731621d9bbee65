"""Every prior under every guide trains on real text, is stored, comes back and writes, with nothing else changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from tiny_runs import assert_same_tensors, new_trainer, weights_of

from ltm_pyro.components import check_components
from ltm_pyro.config import Settings
from ltm_pyro.data import Data, build_data
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation import evaluate
from ltm_pyro.generate import generate
from ltm_pyro.guides import GUIDES
from ltm_pyro.infer.density import is_latent, site_log_prob, trace_model
from ltm_pyro.priors import PRIORS
from ltm_pyro.training import load_run

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"training.steps": 25, "training.eval_every": 25, "training.slow_lr": 0.008, "training.checkpoint_every": 25}
SMALL = {"decoder.layers": 2, "decoder.num_thoughts": 4, "decoder.thought_width": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "mixture, enumerated": {"prior.enumerated": True, "prior.components": 3},
    "hierarchical, not centred": {"prior.centred": False, "prior.topics": 3},
    "supervised, half of the labels": {"prior.classes": 4},
    "energy": {"prior.langevin_steps": 10, "prior.normalizer_draws": 128},
}
PRIORS_AND_FORMS = [*PRIORS, *(name for name in OPTIONS if name not in PRIORS)]


def prior_of(form: str) -> str:
    return form.partition(",")[0]


def refused(prior: str, guide: str) -> bool:
    """The one incompatibility there is: a vamp prior is made of an encoder's posteriors."""
    return prior == "vamp" and guide.startswith("local-")


PAIRS = [(form, guide) for form in PRIORS_AND_FORMS for guide in GUIDES]


@pytest.fixture(scope="session")
def real_text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Data]:
    """Stories, and news of four classes; where there are none beside the checkout, the project's own documentation."""
    folder, shared = tmp_path_factory.mktemp("real-text"), ROOT.parent / "shared" / "data"
    common: dict[str, Any] = {"cache_dir": folder, "vocab_size": 300, "sequence_length": 32, "documents": 120}
    if not shared.is_dir():
        return dict.fromkeys(("plain", "labelled"), build_data(source=str(ROOT / "docs"), **common))
    news = {"label_column": "label", "labelled_fraction": 0.5, "layout": "documents"}
    return {
        "plain": build_data(source=str(shared / "tinystories_valid.jsonl.gz"), layout="documents", **common),
        "labelled": build_data(source=str(shared / "ag_news_valid_sample.jsonl.gz"), **common, **news),
    }


@pytest.mark.parametrize(("form", "guide"), [pair for pair in PAIRS if not refused(*pair)])
def test_a_pair_trains_comes_back_from_its_checkpoint_and_writes_text(
    form: str, guide: str, tmp_path: Path, real_text: dict[str, Data]
):
    data = real_text["labelled" if "labels" in form else "plain"]
    chosen = {"prior.name": prior_of(form), "guide.name": guide} | OPTIONS.get(form, {})
    trainer = new_trainer(tmp_path / "run", data, chosen | SMALL | STEPS)
    before = weights_of(trainer)
    assert trainer.fit()
    bound = "elbo" if GUIDES[guide].has_density else "log_joint"
    rows = [row for row in trainer.metrics.rows() if row["split"] == "validation"]
    assert rows[-1][bound] < rows[0][bound] - 0.5
    # What the prior and the guide have to learn is learned, too.
    after = weights_of(trainer)
    slow = [n for n, _ in trainer.learner.model.named_parameters() if n.startswith("prior.")]
    slow += [f"guide.{n}" for n, _ in trainer.learner.guide.named_parameters()]
    assert all(not torch.equal(before[n], after[n]) for n in slow)
    assert bool(slow) == (form != "gaussian" or "amortized" in guide)

    run = load_run(tmp_path / "run", device="cpu")
    assert_same_tensors(dict(run.svi.model.state_dict()), dict(trainer.learner.model.state_dict()))
    assert_same_tensors(dict(run.svi.guide.state_dict()), dict(trainer.learner.guide.state_dict()))
    report = evaluate(run.svi, data.validation, range(4), samples=100, fast_lr=run.fast_lr)
    if GUIDES[guide].has_density:
        kl, error = report.mean("kl")
        assert kl >= -2 * error  # sampled where there is no closed form

    texts = generate(run.svi, start=data.tokenizer.end_of_text, num=3, max_tokens=12)
    assert [len(text) for text in texts] == [12, 12, 12]
    assert len({tuple(text) for text in texts}) == 3
    with torch.no_grad():
        trace = trace_model(lambda: pyro.plate("sequences", 20, dim=-1)(run.svi.model.prior)(20))
    sites = [site for site in trace.nodes.values() if is_latent(site)]
    assert sites
    assert all(site_log_prob(site).isfinite().all() for site in sites)


@pytest.mark.parametrize(("form", "guide"), [pair for pair in PAIRS if refused(*pair)])
def test_an_incompatible_pair_is_refused_before_any_work_with_the_reason_and_the_mend(form: str, guide: str):
    settings = Settings().updated({"prior.name": form, "guide.name": guide})
    with pytest.raises(LTMError, match=r"mixes an encoder's posteriors.* has no encoder: choose the guide amortized"):
        check_components(settings)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("form", "guide"), [pair for pair in PAIRS if not refused(*pair)])
def test_a_pair_trains_and_writes_on_cuda(
    form: str, guide: str, dtype: str, tmp_path: Path, real_text: dict[str, Data]
):
    data = real_text["labelled" if "labels" in form else "plain"]
    few = {"training.steps": 3, "training.eval_every": 3, "training.device": "cuda", "training.dtype": dtype}
    chosen = {"prior.name": prior_of(form), "guide.name": guide} | OPTIONS.get(form, {})
    trainer = new_trainer(tmp_path / "run", data, chosen | SMALL | STEPS | few | {"inference.warm_start": True})
    assert trainer.fit()
    run = load_run(tmp_path / "run", device="cuda")
    texts = generate(run.svi, start=data.tokenizer.end_of_text, prompt=[5, 6], num=2, max_tokens=4)
    assert [len(text) for text in texts] == [4, 4]
