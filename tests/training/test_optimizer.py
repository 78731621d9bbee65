"""What the slow optimiser may touch, and the seeds of each slow step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_decoder, tiny_model
from tiny_runs import new_trainer
from torch import nn

from ltm_pyro.config import TrainingSettings
from ltm_pyro.data import Data
from ltm_pyro.errors import LTMError
from ltm_pyro.guides import GUIDES, Amortized, LocalNormal
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.priors import PRIORS
from ltm_pyro.training import build_optimizer
from ltm_pyro.training.trainer import _global_seed


@pytest.mark.parametrize("name", PRIORS)
def test_decay_reaches_every_matrix_of_the_decoder_and_nothing_of_a_prior(name: str):
    decoder = tiny_decoder()
    model = LatentThoughtModel(decoder, PRIORS[name](decoder.thought_shape))
    groups = build_optimizer(model, TrainingSettings(weight_decay=0.2)).param_groups
    decayed = {p for group in groups if group["weight_decay"] == 0.2 for p in group["params"]}
    spared = {p for group in groups if group["weight_decay"] == 0.0 for p in group["params"]}
    assert decayed == {p for p in decoder.parameters() if p.dim() == 2}
    assert spared == {p for p in model.parameters() if p not in decayed}


def test_decay_reaches_every_map_of_an_encoder_and_none_of_its_queries():
    guide = Amortized(tiny_model(), width=16, heads=2)
    groups = build_optimizer(guide, TrainingSettings(weight_decay=0.2)).param_groups
    decayed = {p for group in groups if group["weight_decay"] == 0.2 for p in group["params"]}
    queries = set(guide.encoder.queries)
    assert decayed == {p for p in guide.parameters() if p.dim() == 2} - queries


class HoldingGuide(LocalNormal):
    """A guide that keeps its model as a module of its own."""

    def __init__(self, model: LatentThoughtModel):
        super().__init__(model)
        self.held: nn.Module = model


def test_a_guide_that_holds_its_model_is_refused_before_anything_is_trained(tmp_path: Path, data: Data, monkeypatch):
    monkeypatch.setitem(GUIDES, "holding", HoldingGuide)
    with pytest.raises(LTMError, match=r"model\.decoder\.embedding\.weight is also guide\.held"):
        new_trainer(tmp_path / "run", data, {"guide.name": "holding"})


def test_every_seed_and_step_has_a_global_seed_of_its_own():
    seeds = [_global_seed(seed, step) for seed in range(20) for step in range(50)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)
    # Consecutive steps give seeds that are spread over the whole range.
    spread = torch.tensor(seeds, dtype=torch.float64) / 2**32
    assert abs(float(spread.mean()) - 0.5) < 0.05
