"""Every prior under every guide that serves it trains, is stored, comes back and writes text, nothing else changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import assert_same_tensors, new_trainer, weights_of

from ltm_pyro.data import Data
from ltm_pyro.evaluation import evaluate
from ltm_pyro.generate import generate
from ltm_pyro.guides import GUIDES
from ltm_pyro.priors import PRIORS
from ltm_pyro.training import load_run

STEPS = {"training.steps": 25, "training.eval_every": 25, "training.slow_lr": 0.03}
ENCODER = {"guide.width": 16, "guide.heads": 2}
PAIRS = [(name, guide) for name in PRIORS for guide in GUIDES if PRIORS[name].refusal(GUIDES[guide]) is None]


@pytest.mark.parametrize(("name", "guide"), PAIRS)
def test_a_pair_trains_comes_back_from_its_checkpoint_and_writes_text(
    name: str, guide: str, tmp_path: Path, data: Data
):
    trainer = new_trainer(
        tmp_path / "run",
        data,
        {"prior.name": name, "guide.name": guide, "decoder.layers": 2, "decoder.num_thoughts": 4}
        | STEPS
        | (ENCODER if guide.endswith("amortized") else {}),
    )
    before = weights_of(trainer)
    assert trainer.fit()
    rows = [row for row in trainer.metrics.rows() if row["split"] == "validation"]
    bound = "elbo" if GUIDES[guide].has_density else "log_joint"
    assert rows[-1][bound] < rows[0][bound] - 0.5
    after = weights_of(trainer)
    slow = [n for n in after if n.startswith("prior.")]
    assert all(not torch.equal(before[n], after[n]) for n in slow)  # the prior's parameters learn, too
    assert bool(slow) == (name != "gaussian")

    run = load_run(tmp_path / "run", device="cpu")
    assert_same_tensors(dict(run.svi.model.state_dict()), dict(trainer.model.state_dict()))
    report = evaluate(run.svi, data.validation, range(4), samples=50, fast_lr=run.fast_lr)
    if report.bound:
        assert report.mean("kl")[0] > 0
    texts = generate(run.svi, start=data.tokenizer.end_of_text, num=3, max_tokens=12)
    assert [len(text) for text in texts] == [12, 12, 12]
    assert len({tuple(text) for text in texts}) == 3
