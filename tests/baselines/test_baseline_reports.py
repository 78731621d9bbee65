"""What every baseline reports of a data set, under its own protocol."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_baselines import tiny_shape
from tiny_runs import tiny_data

from ltm_pyro.baselines import BASELINES, Baseline
from ltm_pyro.data import SequenceDataset
from ltm_pyro.errors import LTMError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SequenceDataset:
    return tiny_data(Path(tmp_path_factory.mktemp("corpus")), layout="documents").train


@pytest.fixture(params=BASELINES)
def model(request: pytest.FixtureRequest) -> Baseline:
    torch.manual_seed(0)
    return BASELINES[request.param](tiny_shape(vocab_size=300, max_length=32))


def test_report_is_the_loss_of_each_sequence_whatever_the_batch_size(model: Baseline, data: SequenceDataset):
    report = model.evaluate(data, range(7), samples=3, batch_size=3, seed=5)
    (name,) = model.protocols
    assert name == model.comparable
    with torch.no_grad():
        alone = [model.sequence_loss(data.batch([i]), seed=5, samples=3) for i in range(7)]
    torch.testing.assert_close(report.values[name], torch.cat(alone).double(), rtol=1e-5, atol=1e-5)
    assert report.num_scored.tolist() == data.lengths[:7].tolist()
    row = report.to_dict()
    assert row[name] == pytest.approx(float(torch.cat(alone).sum()) / data.lengths[:7].sum(), rel=1e-5)
    assert (row["samples"], row["seed"], row["fast_steps"]) == (3, 5, None)
    assert "kl" not in row


def test_nothing_to_score_is_refused(model: Baseline, data: SequenceDataset):
    with pytest.raises(LTMError, match="no sequences to evaluate"):
        model.evaluate(data, [])
    with pytest.raises(LTMError, match="samples must be 1 or more, got 0"):
        model.evaluate(data, [0], samples=0)
