"""What ranks tell each other: shares, sums, gradients, plain values; who they are; and what a lost one leaves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from many_ranks import run_ranks

from ltm_pyro import ranks as module
from ltm_pyro.errors import LTMError
from ltm_pyro.ranks import RankLost, Ranks, joined_ranks, present_ranks


@given(st.integers(1, 9), st.integers(0, 40))
def test_shares_are_contiguous_nearly_equal_and_leave_nothing_out(size: int, count: int):
    shares = [Ranks(rank, size).share(range(count)) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_alone_is_rank_0_of_1_and_every_sum_is_its_own(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    with joined_ranks() as ranks:
        assert ranks == present_ranks() == Ranks(0, 1, 0)
        value = torch.arange(3.0)
        assert torch.equal(ranks.sum(value), value)
        assert ranks.gather("x") == ["x"]
        assert ranks.same(2) == 2
        assert ranks.main_first(lambda: 3) == 3
        assert ranks.any(True)
        assert not ranks.any(False)
        assert ranks.first_to_say("anything")


def tell(ranks: Ranks, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"present": present_ranks() == ranks}
    value = torch.arange(3.0) + ranks.rank
    found["sum"], found["left as it is"] = ranks.sum(value), value
    found["any"] = [ranks.any(ranks.rank == 1), ranks.any(False)]
    found["gather"], found["same"] = ranks.gather((ranks.rank, torch.ones(ranks.rank))), ranks.same(f"of {ranks.rank}")
    # The first weight has a gradient everywhere, the second on rank 1 alone, the third nowhere.
    weights = [torch.zeros(2, 3, requires_grad=True), torch.zeros(4, requires_grad=True), torch.zeros(1)]
    weights[0].grad = torch.full((2, 3), 1.0 + ranks.rank).T.contiguous().T  # not in the order of memory
    if ranks.rank == 1:
        weights[1].grad = torch.arange(4.0)
    ranks.sum_gradients(weights)
    found["gradients"] = [weight.grad for weight in weights]
    network = torch.nn.Linear(2, 2)
    ranks.align(network)
    found["aligned"] = network.state_dict()
    path = folder / "made"
    found["main first"] = ranks.main_first(lambda: path.exists() or (bool(path.write_text("x")) and False))
    found["said"] = ranks.first_to_say("the same")
    with pytest.raises(RankLost if ranks.rank else ZeroDivisionError) as failure:
        ranks.main_first(lambda: 1 / ranks.rank)
    found["not prepared"] = str(failure.value)
    if ranks.rank == 0:  # rank 1 goes, and leaves it alone
        with pytest.raises(RankLost) as failure:
            ranks.sum(torch.ones(1))
        found["alone"] = str(failure.value)
    return found


def test_ranks_tell_each_other_sums_gradients_values_and_that_one_is_lost(tmp_path: Path):
    # One pair of processes for all of it: to start them takes longer than what they do.
    first, second = run_ranks(2, tell, tmp_path)
    assert first["present"]
    assert second["present"]
    assert first["sum"].tolist() == second["sum"].tolist() == [1.0, 3.0, 5.0]
    assert second["left as it is"].tolist() == [1.0, 2.0, 3.0]
    assert first["any"] == second["any"] == [True, False]
    assert [(rank, len(ones)) for rank, ones in first["gather"]] == [(0, 0), (1, 1)]
    assert first["same"] == second["same"] == "of 0"
    for rank in (first, second):
        every, one, none = rank["gradients"]
        assert torch.equal(every, torch.full((2, 3), 3.0))
        assert torch.equal(one, torch.arange(4.0))
        assert none is None
    for name, value in first["aligned"].items():
        assert torch.equal(value, second["aligned"][name])
    assert (first["main first"], second["main first"]) == (False, True)
    assert sorted([first["said"], second["said"]]) == [False, True]
    assert second["not prepared"] == "rank 0 could not prepare what this one needs"
    assert first["alone"].startswith("another rank ended, or has not answered (")
    assert first["alone"].endswith("); its own message says why")
    assert "\n" not in first["alone"]
    assert "/" not in first["alone"]


def test_gradients_are_summed_in_messages_of_bounded_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_BUCKET_BYTES", 40)
    tensors = [torch.zeros(n) for n in (3, 4, 50, 2)] + [torch.zeros(2, dtype=torch.float64)]
    assert [[len(t) for t in bucket] for bucket in module._buckets(tensors)] == [[3, 4], [50], [2], [2]]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Ranks(3, 8, 1)),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, Ranks(2, 4, 0)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None),  # the shell of an allocation
        ({}, None),
    ],
)
def test_torchrun_and_srun_say_who_a_process_is(
    environment: dict[str, str], expected: Ranks | None, monkeypatch: pytest.MonkeyPatch
):
    for name in [name for name in os.environ if name.startswith("SLURM") or "RANK" in name or name == "WORLD_SIZE"]:
        monkeypatch.delenv(name)
    for name, value in (environment | {"MASTER_ADDR": "first", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    assert module._launched() == expected


def test_under_slurm_ranks_meet_at_the_steps_first_machine(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    slurm = {"STEP_NUM_TASKS": "4", "PROCID": "2", "LOCALID": "0", "STEP_NODELIST": "gpu7,gpu9", "JOB_ID": "123456"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    module._launched()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu7", "23456")


def test_an_environment_without_numbers_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "one")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LTMError, match="RANK, WORLD_SIZE"), joined_ranks():
        pass
