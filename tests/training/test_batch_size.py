"""The largest batch that fits: the search, what it is held against, and that it leaves training as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_settings

from ltm_pyro.data import Data
from ltm_pyro.errors import LTMError
from ltm_pyro.memory_meter import measured_peak
from ltm_pyro.training import batch_size
from ltm_pyro.training.batch_size import available_memory, fit_batch_size, formula_bytes

KIB, GIB = 2**10, 2**30


@pytest.mark.parametrize("most", [1, 2, 7, 8, 9, 100])
@pytest.mark.parametrize("capacity", [0, 1, 2, 3, 7, 8, 9, 64, 99, 100, 1000])
def test_search_finds_the_largest_size_that_fits(capacity: int, most: int):
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= capacity

    assert batch_size._largest(fits, most) == min(capacity, most)
    assert all(1 <= size <= most for size in asked)
    assert len(asked) == len(set(asked)) <= 15


def peak_of(settings, data: Data, size: int) -> int:
    learner = batch_size._throwaway(settings, data, torch.device("cpu"))
    batch = batch_size._longest(data.train, size)
    batch_size._take_steps(learner, batch)
    moments = [value for state in learner.optimizer.state.values() for value in state.values()]
    return measured_peak(lambda: learner.step(batch, at=2, seed=2), [*learner.modules.parameters(), *moments])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training.dtype": "bfloat16", "decoder.layers": 2},
        {"decoder.checkpointing": True, "decoder.layers": 2},
        {"prior.name": "mixture"},
        {"model.name": "ar"},
        {"model.name": "mdlm"},
    ],
    ids=str,
)
def test_formula_of_the_settings_is_what_a_step_on_the_longest_sequences_takes(data: Data, changes):
    settings = tiny_settings(changes)
    # Masked diffusion scores the tokens that it masks: the formula takes all, and this step takes 71 of 192.
    slack = 1.35 if settings.model.name == "mdlm" else 1.0
    assert 0.9 < formula_bytes(settings, data, 6) / peak_of(settings, data, 6) < 1.1 * slack


@pytest.mark.parametrize("changes", [{}, {"guide.name": "semi-amortized"}, {"prior.name": "energy"}], ids=str)
def test_batch_that_is_found_is_the_largest_within_the_memory(data: Data, monkeypatch, changes):
    settings = tiny_settings(changes)
    budget = peak_of(settings, data, 12)
    monkeypatch.setattr(batch_size, "available_memory", lambda: int(budget / batch_size.MARGIN))
    found = fit_batch_size(settings, data)
    assert peak_of(settings, data, found.size) < 1.05 * budget
    assert found.size >= (11 if not changes else 6)  # what is extrapolated is on the safe side
    assert ("by formula" if not changes else "from steps on few") in found.how


def test_micro_batch_is_no_larger_than_the_batch_and_a_batch_than_the_data(data: Data):
    settings = tiny_settings()
    assert fit_batch_size(settings, data, most=3).size == 3
    found = fit_batch_size(settings, data)
    assert found.size == len(data.train)
    assert "all of the data" in found.how


def test_sequence_that_does_not_fit_is_refused_with_the_mend(data: Data, monkeypatch):
    monkeypatch.setattr(batch_size, "available_memory", lambda: 10 * KIB)
    with pytest.raises(LTMError, match=r"one sequence of 3\d tokens does not fit .* decoder\.checkpointing=true"):
        fit_batch_size(tiny_settings(), data)


def test_search_leaves_the_global_streams_as_they_were(data: Data):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fit_batch_size(tiny_settings({"guide.name": "amortized"}), data)
    assert torch.equal(torch.rand(4), expected)


def test_trial_takes_running_out_of_memory_for_an_answer(data: Data, monkeypatch):
    cleared = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: cleared.append(True))
    monkeypatch.setattr(batch_size.gc, "collect", lambda: 0)  # which takes seconds in a process as large as this one
    steps = batch_size._take_steps

    def limited(learner, batch) -> None:
        if len(batch) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        steps(learner, batch)

    monkeypatch.setattr(batch_size, "_take_steps", limited)
    fits = batch_size._on_trial(tiny_settings(), data, torch.device("cpu"), GIB)
    assert batch_size._largest(fits, 20) == 5
    assert len(cleared) == 6  # 1, 2, 4, 8, 6, 5
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: GIB + 1)
    assert not fits(1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_batch_found_on_a_gpu_steps_within_its_budget(data: Data):
    settings = tiny_settings({"training.device": "cuda"})
    assert fit_batch_size(settings, data, most=4).size == 4


def system(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:       4194304 kB\nMemAvailable:   2097152 kB\n"}
V2, V1 = "sys/fs/cgroup/a/b", "sys/fs/cgroup/memory/a"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 2 * GIB),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                f"{V2}/memory.max": f"{GIB}\n",
                f"{V2}/memory.current": f"{GIB // 2}\n",
                f"{V2}/memory.stat": f"anon 5\ninactive_file {GIB // 4}\n",
            },
            GIB * 3 // 4,
        ),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                f"{V2}/memory.max": "max\n",
                f"{V2}/memory.current": "5\n",
                f"{V2}/memory.stat": "anon 5\n",
            },
            2 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "8:pids:/\n4:memory:/a\n0::/\n",
                f"{V1}/memory.limit_in_bytes": f"{GIB}",
                f"{V1}/memory.usage_in_bytes": f"{GIB // 2}",
                f"{V1}/memory.stat": "total_inactive_file 0\n",
            },
            GIB // 2,
        ),
        (  # inside a container the path is the host's
            {
                "proc/self/cgroup": "0::/docker/x\n",
                "sys/fs/cgroup/memory.max": f"{GIB}",
                "sys/fs/cgroup/memory.current": "0",
                "sys/fs/cgroup/memory.stat": "anon 0\n",
            },
            GIB,
        ),
    ],
    ids=["no group", "version 2", "no limit", "version 1", "container"],
)
def test_available_memory_is_the_systems_within_the_control_groups_limit(tmp_path: Path, files, expected: int):
    assert available_memory(system(tmp_path, MEMINFO | files)) == expected


def test_half_of_the_memory_counts_where_the_system_does_not_say_what_is_available(tmp_path: Path, monkeypatch):
    sizes = {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(batch_size.os, "sysconf", sizes.__getitem__)
    assert available_memory(tmp_path) == 50 * 4096
    monkeypatch.delattr(batch_size.os, "sysconf")
    with pytest.raises(LTMError, match="give --batch-size a number"):
        available_memory(tmp_path)
