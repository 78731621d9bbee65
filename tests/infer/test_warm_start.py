"""The table of fitted parameters: what it remembers, what it refuses, and fast loops that go on where they ended."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import ragged_batch, tiny_model

from ltm_pyro.errors import LTMError
from ltm_pyro.guides import Amortized, LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI
from ltm_pyro.infer.warm_start import PosteriorTable


def local_of(*values: float) -> dict[str, torch.Tensor]:
    """Parameters of as many sequences, every entry the sequence's own value, in two shapes; names out of order."""
    column = torch.tensor(values)
    return {"z.mu": column[:, None, None].expand(-1, 2, 3).clone(), "width": 10 * column, "z.log_var": -column[:, None]}


def keys_of(*keys: int) -> torch.Tensor:
    return torch.tensor(keys, dtype=torch.int64)


def assert_starts(table: PosteriorTable, keys: list[int], *values: float) -> None:
    """The table starts those sequences there; 9 is where it has nothing."""
    found = table.start(keys_of(*keys), local_of(*[9.0] * len(keys)))
    for name, value in local_of(*values).items():
        assert torch.equal(found[name], value), name


def test_stored_values_take_the_place_of_starts_and_others_stay(tmp_path):
    table = PosteriorTable(tmp_path / "table")
    start = local_of(9.0)
    assert table.start(keys_of(5), start) is start
    table.store(keys_of(5, -7), local_of(1.0, 2.0))
    assert_starts(table, [-7, 3, 5], 2.0, 9.0, 1.0)
    assert (len(table), 5 in table, 3 in table) == (2, True, False)
    table.store(keys_of(3, 5), local_of(3.0, 4.0))  # replaced, and one more
    assert_starts(table, [-7, 3, 5], 2.0, 3.0, 4.0)
    assert len(table) == 3


def test_ranks_that_begin_a_table_at_once_do_not_take_each_others_file_away(tmp_path, monkeypatch):
    first, second = PosteriorTable(tmp_path / "table"), PosteriorTable(tmp_path / "table")
    replace, waiting = Path.replace, [first]

    def late(self, target):
        """The other rank writes its layout between this one's file and its place."""
        if waiting:
            waiting.pop().store(keys_of(1), local_of(1.0))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", late)
    second.store(keys_of(1), local_of(1.0))
    assert not waiting
    assert [path.name for path in (tmp_path / "table").iterdir()] == ["layout.json"]


def test_the_starts_that_are_given_are_not_written_to(tmp_path):
    table, start = PosteriorTable(tmp_path / "table"), local_of(9.0, 9.0)
    table.store(keys_of(1), local_of(1.0))
    table.start(keys_of(1, 2), start)
    assert all((value == local_of(9.0, 9.0)[name]).all() for name, value in start.items())


def test_values_survive_a_flush_and_another_process(tmp_path):
    table = PosteriorTable(tmp_path / "table")
    table.store(keys_of(1, 2), local_of(1.0, 2.0))
    assert (tmp_path / "table" / "rows.bin").exists() is False
    table.flush()
    table.store(keys_of(2, 3), local_of(5.0, 3.0))
    assert_starts(table, [1, 2, 3, 4], 1.0, 5.0, 3.0, 9.0)  # from the files and from memory at once
    other = PosteriorTable(tmp_path / "table")
    assert_starts(other, [1, 2, 3], 1.0, 2.0, 9.0)  # it has not been told of the rest
    table.flush()
    table.flush()
    assert_starts(table, [3, 2, 1], 3.0, 5.0, 1.0)
    other = PosteriorTable(tmp_path / "table")
    assert len(other) == 3
    assert_starts(other, [1, 2, 3, 4], 1.0, 5.0, 3.0, 9.0)
    assert (tmp_path / "table" / "rows.bin").stat().st_size == 3 * 8 * 4  # a row for each, once


def test_the_last_of_a_sequence_that_stands_twice_in_a_batch_is_kept_and_both_start_there(tmp_path):
    table = PosteriorTable(tmp_path / "table")
    table.store(keys_of(1, 2, 1), local_of(1.0, 2.0, 3.0))
    for _ in range(2):
        assert len(table) == 2
        assert_starts(table, [1, 2, 1], 3.0, 2.0, 3.0)
        table.flush()


def test_many_flushes_hold_what_a_dictionary_would(tmp_path):
    draw = np.random.default_rng(0)
    table, expected = PosteriorTable(tmp_path / "table"), {}
    for i in range(60):
        keys = draw.integers(-40, 40, 7).tolist()
        values = draw.normal(size=7).astype(np.float32).tolist()
        table.store(keys_of(*keys), local_of(*values))
        expected |= dict(zip(keys, values, strict=True))
        if i % 3 == 0:
            table.flush()
        if i % 7 == 0:
            table.flush()
            table = PosteriorTable(tmp_path / "table")
    assert len(table) == len(expected)
    keys = list(range(-40, 40))
    assert_starts(table, keys, *(expected.get(key, 9.0) for key in keys))


def test_what_is_not_written_can_be_taken_back_into_an_older_table_or_none(tmp_path):
    table = PosteriorTable(tmp_path / "table")
    assert table.unwritten() == {}
    table.store(keys_of(1, 2), local_of(1.0, 2.0))
    table.flush()
    assert table.unwritten() == {}
    table.store(keys_of(2, 3), local_of(5.0, 3.0))
    # Files of tensors come back in an order of their own.
    saved = {name: value.clone() for name, value in sorted(table.unwritten().items())}
    table.store(keys_of(1, 4), local_of(7.0, 8.0))
    for place in (table, PosteriorTable(tmp_path / "table")):
        place.load_unwritten(saved)
        assert_starts(place, [1, 2, 3, 4], 1.0, 5.0, 3.0, 9.0)
    elsewhere = PosteriorTable(tmp_path / "none")
    elsewhere.load_unwritten(saved)
    elsewhere.flush()
    assert_starts(PosteriorTable(tmp_path / "none"), [1, 2, 3], 9.0, 5.0, 3.0)
    table.load_unwritten({})
    assert_starts(table, [1, 2, 3], 1.0, 2.0, 9.0)


def test_a_cleared_table_takes_another_guides_parameters(tmp_path):
    table = PosteriorTable(tmp_path / "table")
    table.store(keys_of(1), local_of(1.0))
    table.flush()
    table.clear()
    assert len(table) == 0
    assert len(PosteriorTable(tmp_path / "table")) == 0
    table.store(keys_of(1), {"z.point": torch.ones(1, 2)})
    table.flush()
    assert len(PosteriorTable(tmp_path / "table")) == 1


def test_another_guides_parameters_are_refused_and_change_nothing(tmp_path):
    table = PosteriorTable(tmp_path / "table")
    table.store(keys_of(1), local_of(1.0))
    table.flush()
    other = {"z.mu": torch.ones(1, 2, 4)}
    words = "holds posteriors of another guide or prior .*: use another folder, or delete it"
    for place in (table, PosteriorTable(tmp_path / "table")):
        for use in (place.store, place.start):
            with pytest.raises(LTMError, match=words):
                use(keys_of(1), other)
        with pytest.raises(LTMError, match=words):
            place.load_unwritten({"keys": keys_of(1), "local.z.mu": other["z.mu"]})
        assert_starts(place, [1], 1.0)


def test_a_guide_without_local_parameters_stores_nothing(tmp_path):
    table = PosteriorTable(tmp_path / "table")
    table.store(keys_of(1), {})
    table.flush()
    assert len(table) == 0


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 1}', '{"format": 1, "local": [2]}',
                                     '{"format": 9, "local": {}}'])  # fmt: skip
def test_a_folder_that_holds_something_else_is_refused_with_the_mend(tmp_path, content):
    table = PosteriorTable(tmp_path / "table")
    table.store(keys_of(1), local_of(1.0))
    table.flush()
    (tmp_path / "table" / "layout.json").write_text(content)
    with pytest.raises(LTMError, match=r"table is no table of posteriors \(.*\): delete it and run again"):
        PosteriorTable(tmp_path / "table")


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LTMError, match=r"cannot write .*file: File exists"):
        PosteriorTable(tmp_path / "file")


def test_rows_that_are_gone_are_refused(tmp_path):
    table = PosteriorTable(tmp_path / "table")
    table.store(keys_of(1), local_of(1.0))
    table.flush()
    (tmp_path / "table" / "rows.bin").unlink()
    with pytest.raises(LTMError, match="is no table of posteriors"):
        PosteriorTable(tmp_path / "table")


@pytest.mark.parametrize(("name", "cut"), [("rows.bin", 20), ("keys.bin", 3), ("keys.bin", 8), ("rows.bin", 40)])
def test_files_that_a_kill_cut_short_keep_whole_rows_alone_and_grow_again(tmp_path, name, cut):
    table = PosteriorTable(tmp_path / "table")
    table.store(keys_of(1, 2, 3), local_of(1.0, 2.0, 3.0))
    table.flush()
    path = tmp_path / "table" / name
    path.write_bytes(path.read_bytes()[:-cut])
    kept = 1 if cut == 40 else 2
    table = PosteriorTable(tmp_path / "table")
    assert len(table) == kept
    assert_starts(table, [1, 2, 3], 1.0, 2.0 if kept == 2 else 9.0, 9.0)
    table.store(keys_of(4, 3), local_of(4.0, 5.0))
    table.flush()
    other = PosteriorTable(tmp_path / "table")
    assert_starts(other, [1, 2, 3, 4], 1.0, 2.0 if kept == 2 else 9.0, 5.0, 4.0)


def test_a_full_disk_is_one_error_and_the_values_are_still_there(tmp_path, monkeypatch):
    table = PosteriorTable(tmp_path / "table")
    table.store(keys_of(1), local_of(1.0))
    table.flush()
    table.store(keys_of(1, 2), local_of(4.0, 2.0))

    def full(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ltm_pyro.infer.warm_start._opened", full)
        with pytest.raises(LTMError, match="No space left on device; free some space, and resume"):
            table.flush()
    assert_starts(table, [1, 2], 4.0, 2.0)
    table.flush()
    assert_starts(PosteriorTable(tmp_path / "table"), [1, 2], 4.0, 2.0)


def test_the_layout_is_plain_json(tmp_path):
    PosteriorTable(tmp_path / "table").store(keys_of(1), local_of(1.0))
    about = json.loads((tmp_path / "table" / "layout.json").read_text())
    assert about == {"format": 1, "local": {"z.mu": [2, 3], "width": [], "z.log_var": [1]}}
    assert [path.name for path in (tmp_path / "table").iterdir()] == ["layout.json"]


def engine(table: PosteriorTable | None, guide=LocalNormal, **fast) -> FastSlowSVI:
    model = tiny_model()
    guide = guide(model, init_log_var=-3.0)
    slow = torch.optim.SGD(model.parameters(), lr=0.0)
    return FastSlowSVI(model, guide, fast=FastConfig(**{"steps": 4, "lr": 0.1, **fast}), slow=slow, starts=table)


def test_a_second_visit_goes_on_where_the_first_ended_and_comes_further(tmp_path):
    svi, batch = engine(PosteriorTable(tmp_path / "table")), ragged_batch(6, 3, 5)
    (first,) = svi.step(batch, seed=0).posteriors
    svi.starts.flush()
    # With no fast steps the starts themselves are seen, in another batch.
    svi.fast = FastConfig(steps=0)
    (start,) = svi.step(batch[[2, 0]], seed=1).posteriors
    for name, value in first.local.items():
        assert torch.equal(start.local[name], value[[2, 0]])
    svi.fast = FastConfig(steps=4, lr=0.1)
    visits = [first, *(svi.step(batch, seed=seed).posteriors[0] for seed in (2, 3))]
    bounds = [posterior.elbo_terms(500).elbo for posterior in visits]
    assert (bounds[1] > bounds[0] + 1).all()
    assert (bounds[2] > bounds[1]).all()


def test_inference_neither_reads_nor_fills_the_table(tmp_path):
    svi, plain = engine(PosteriorTable(tmp_path / "table")), engine(None)
    batch = ragged_batch(6, 3, 5)
    svi.infer(batch, seed=0)
    assert len(svi.starts) == 0
    svi.step(batch, seed=0)
    assert len(svi.starts) == 3
    found, expected = svi.infer(batch, seed=0), plain.infer(batch, seed=0)
    for name, value in expected.local.items():
        assert torch.equal(found.local[name], value)


@pytest.mark.parametrize("slow_gradient", ["final", "trajectory"])
def test_parts_of_a_batch_start_as_the_whole_does_even_where_a_text_stands_twice(tmp_path, slow_gradient):
    batch = ragged_batch(6, 3, 5)[[0, 1, 2, 0]]
    found = []
    for size in (None, 2):
        svi = engine(PosteriorTable(tmp_path / str(size)), slow_gradient=slow_gradient)
        svi.step(batch, seed=0, micro_batch_size=size)
        svi.step(batch, seed=1, micro_batch_size=size)
        found.append(svi.starts.unwritten())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=0)


def test_a_guide_whose_parameters_are_computed_fills_no_table(tmp_path):
    svi = engine(PosteriorTable(tmp_path / "table"), lambda model, init_log_var: Amortized(model, width=16, heads=2))
    svi.step(ragged_batch(3), seed=0)
    assert len(svi.starts) == 0
