"""Checkpoints under damage, kills and full disks: what was whole stays whole, what is not is never loaded."""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
import random
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_runs import assert_same_tensors, new_trainer, reopened, weights_of

import ltm_pyro
from ltm_pyro.data import Data
from ltm_pyro.errors import LTMError
from ltm_pyro.training import Checkpoint, CheckpointStore, load_run, read_checkpoint

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def checkpoint(step: int) -> Checkpoint:
    """Weights, moments and state that say which step they are of."""
    generator = torch.Generator().manual_seed(step)
    weights = {"a": torch.randn(3, 4, generator=generator), "b.c": torch.randn(5, generator=generator)}
    moments = {"a.step": torch.tensor(float(step)), "a.exp_avg": torch.randn(3, 4, generator=generator)}
    return Checkpoint(step, weights, moments, {"sampler": {"epoch": step, "position": 7}, "sums": {"loss": 0.1 * step}})


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert (found.step, found.state) == (expected.step, expected.state)
    assert_same_tensors(found.model, expected.model)
    assert_same_tensors(found.optimizer, expected.optimizer)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Checkpoints of steps 2 and 4."""
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (2, 4):
        store.save(checkpoint(step))
    return store


def truncate(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def flip_a_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def replace_by_other_json(path: Path, draw: random.Random) -> None:
    path.write_text(draw.choice(["[]", "{}", "null", "7", '"x"', "[" * 10_000]))


def test_what_is_saved_is_what_is_loaded(store: CheckpointStore):
    assert [path.name for path in store.paths()] == ["step-00000004", "step-00000002"]
    assert_same(store.latest(), checkpoint(4))
    assert_same(read_checkpoint(store.paths()[1]), checkpoint(2))
    assert sorted(os.listdir(store.paths()[0])) == sorted(FILES)


def test_a_whole_checkpoint_is_read_without_a_warning(store: CheckpointStore):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.latest()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    store: CheckpointStore, name: str, damage: Callable[[Path, random.Random], None]
):
    path = store.paths()[0] / name
    whole = path.read_bytes()
    for seed in range(12):
        damage(path, random.Random(seed))
        if name == "state.json" and damage is flip_a_bit and _same_json(path.read_bytes(), whole):
            continue  # a flip that turns one kind of white space into another changes nothing that is read
        with pytest.warns(UserWarning, match=f"step-00000004 is damaged: .*{name}.*step 2"):
            assert_same(store.latest(), checkpoint(2))
        path.write_bytes(whole)
    assert_same(store.latest(), checkpoint(4))


def _same_json(left: bytes, right: bytes) -> bool:
    try:
        return json.loads(left) == json.loads(right)
    except ValueError:
        return False


def test_every_byte_of_the_weights_is_checked(store: CheckpointStore):
    path = store.paths()[0] / "model.safetensors"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(LTMError, match=r"model\.safetensors is truncated or changed"):
            read_checkpoint(path.parent)


@pytest.mark.parametrize("seed", range(6))
def test_a_state_that_is_other_json_counts_as_damaged(store: CheckpointStore, seed: int):
    replace_by_other_json(store.paths()[0] / "state.json", random.Random(seed))
    with pytest.warns(UserWarning, match=r"state\.json is truncated or changed"):
        assert_same(store.latest(), checkpoint(2))


def test_swapped_files_are_noticed(store: CheckpointStore):
    newest, older = store.paths()
    shutil.copy(older / "model.safetensors", newest / "model.safetensors")
    with pytest.warns(UserWarning, match=r"model.safetensors"):
        assert_same(store.latest(), checkpoint(2))


def test_where_all_are_damaged_one_error_says_so_and_no_warning_does(store: CheckpointStore):
    for path in store.paths():
        truncate(path / "model.safetensors", random.Random(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LTMError, match=r"no whole checkpoint in .*step-00000004 is damaged.*train the run again"):
            store.latest()


def test_without_any_checkpoint_the_error_says_so(tmp_path: Path):
    with pytest.raises(LTMError, match=r"no checkpoint in .* yet"):
        CheckpointStore(tmp_path / "nothing").latest()


def test_another_format_version_is_named(store: CheckpointStore):
    for path in store.paths():
        about = json.loads((path / "state.json").read_bytes())
        del about["digest"]
        about["format"] = 99
        about["digest"] = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        (path / "state.json").write_text(json.dumps(about))
    with pytest.raises(LTMError, match="has format 99, this version of ltm-pyro reads format 1: use the version that"):
        read_checkpoint(store.paths()[0])
    with pytest.raises(LTMError, match="has format 99"):
        store.latest()


def test_leftovers_of_a_killed_save_are_no_checkpoints_and_the_next_save_clears_them(store: CheckpointStore):
    aside = store.folder / ".step-00000006.123.tmp"
    shutil.copytree(store.paths()[0], aside)
    (aside / "state.json").unlink()
    assert_same(store.latest(), checkpoint(4))
    store.save(checkpoint(6))
    assert sorted(os.listdir(store.folder)) == ["step-00000002", "step-00000004", "step-00000006"]


def test_a_checkpoint_set_aside_by_a_killed_replacement_does_no_harm(store: CheckpointStore):
    # A kill between the two renames: the damaged one stands aside, its heir is not there yet.
    store.paths()[0].rename(store.folder / ".step-00000004.123.old")
    assert_same(store.latest(), checkpoint(2))
    store.save(checkpoint(3))
    assert_same(store.latest(), checkpoint(3))
    assert not list(store.folder.glob(".*"))


def test_a_checkpoint_made_again_replaces_the_damaged_one(store: CheckpointStore):
    truncate(store.paths()[0] / "model.safetensors", random.Random(0))
    store.save(checkpoint(4))
    assert_same(store.latest(), checkpoint(4))
    assert sorted(os.listdir(store.folder)) == ["step-00000002", "step-00000004"]


def test_the_newest_checkpoints_are_kept(tmp_path: Path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3, 10):
        store.save(checkpoint(step))
    assert [path.name for path in store.paths()] == ["step-00000010", "step-00000003"]


def test_damaged_checkpoints_of_later_steps_never_crowd_out_whole_ones(store: CheckpointStore):
    store.keep = 1
    truncate(store.paths()[0] / "state.json", random.Random(0))
    store.save(checkpoint(3))
    assert_same(store.latest(), checkpoint(3))
    assert [path.name for path in store.paths()] == ["step-00000003"]


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
def test_a_full_disk_is_one_error_and_earlier_checkpoints_stay(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, call: str
):
    for nth in range(1, 12):
        with monkeypatch.context() as patch:
            calls = _fail(patch, call, nth)
            if nth > 1 and not _can_fail(store, calls, nth):
                assert nth > {"write": 3, "fsync": 7, "rename": 4, "mkdir": 1}[call]
                return
    raise AssertionError("the failure never ceased")


def _can_fail(store: CheckpointStore, calls: list[int], nth: int) -> bool:
    """Saves step 6; whether that failed, in which case nothing may be lost, left over, or half there."""
    try:
        store.save(checkpoint(6))
    except LTMError as error:
        reason = str(error)
    else:
        assert_same(store.latest(), checkpoint(6))
        return len(calls) >= nth
    assert re.search("cannot write the checkpoint .*step-00000006: No space left on device", reason)
    assert {"step-00000002", "step-00000004"} <= set(os.listdir(store.folder))
    found = store.latest()
    assert_same(found, checkpoint(found.step))
    return True


def _fail(patch: pytest.MonkeyPatch, call: str, nth: int) -> list[int]:
    """Makes the nth call of a kind fail for want of space; returns the list that counts the calls."""
    calls: list[int] = []

    def failing(real):
        def wrapped(*arguments, **options):
            calls.append(1)
            if len(calls) == nth:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        return wrapped

    if call == "fsync":
        patch.setattr(os, "fsync", failing(os.fsync))
    elif call == "rename":
        patch.setattr(Path, "rename", failing(Path.rename))
        patch.setattr(Path, "replace", lambda path, target: path.rename(target))
    elif call == "mkdir":
        patch.setattr(Path, "mkdir", failing(Path.mkdir))
    else:
        real_open = Path.open

        def opened(path: Path, mode: str = "r", **options):
            file = real_open(path, mode, **options)
            return _Writer(file, failing(file.write)) if "w" in mode else file

        patch.setattr(Path, "open", opened)
    return calls


class _Writer:
    """A file whose writes go through a function."""

    def __init__(self, file, write):
        self.file, self.write = file, write

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def test_a_full_disk_in_training_keeps_the_last_checkpoint_and_the_run_can_go_on(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch
):
    whole = new_trainer(tmp_path / "whole", data)
    whole.fit()
    trainer = new_trainer(tmp_path / "run", data)
    real = os.fsync

    def full(descriptor: int) -> None:
        if trainer.step == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LTMError, match=r"cannot write the checkpoint .*step-00000004.*No space left on device"):
        trainer.fit()
    monkeypatch.setattr(os, "fsync", real)
    second = reopened(tmp_path / "run", data)
    assert second.step == 2
    second.fit()
    assert_same_tensors(weights_of(second), weights_of(whole))


def test_metrics_on_a_full_disk_are_one_error(tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch):
    trainer = new_trainer(tmp_path / "run", data, {"training.steps": 2})
    trainer.fit()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before = trainer.metrics.path.read_bytes()
    with pytest.raises(LTMError, match=r"cannot write .*metrics.jsonl: No space left on device"):
        reopened(tmp_path / "run", data)
    assert trainer.metrics.path.read_bytes() == before


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one_to_the_same_end(tmp_path: Path, data: Data):
    whole = new_trainer(tmp_path / "run", data)
    whole.fit()
    end = (tmp_path / "run" / "checkpoints" / "step-00000006" / "model.safetensors").read_bytes()
    for step in (4, 6):
        truncate(tmp_path / "run" / "checkpoints" / f"step-0000000{step}" / "optimizer.safetensors", random.Random(1))
    with pytest.warns(UserWarning, match="is damaged") as caught:
        second = reopened(tmp_path / "run", data)
    assert len([w for w in caught if "is damaged" in str(w.message)]) == 2
    assert second.step == 2
    second.fit()
    assert (tmp_path / "run" / "checkpoints" / "step-00000006" / "model.safetensors").read_bytes() == end


def test_a_run_is_loaded_by_its_folder_and_by_a_checkpoint_inside_it(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch
):
    trainer = new_trainer(tmp_path / "run", data)
    trainer.fit()
    newest = load_run(tmp_path / "run", device="cpu")
    assert newest.step == 6
    assert_same_tensors(newest.svi.model.state_dict(), trainer.learner.model.state_dict())
    assert newest.fast_lr == pytest.approx(0.34)
    older = load_run(tmp_path / "run" / "checkpoints" / "step-00000002", device="cpu")
    assert older.step == 2
    monkeypatch.chdir(tmp_path / "run" / "checkpoints")
    assert load_run("step-00000004", device="cpu").step == 4


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "settings": []}', "\xff\xfe"])
def test_a_damaged_config_is_one_error(tmp_path: Path, data: Data, content: str):
    new_trainer(tmp_path / "run", data)
    (tmp_path / "run" / "config.json").write_text(content, encoding="latin1")
    with pytest.raises(LTMError, match=r"config.json is damaged or no run's settings"):
        load_run(tmp_path / "run", device="cpu")


def test_a_config_of_another_version_is_named(tmp_path: Path, data: Data):
    new_trainer(tmp_path / "run", data)
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(LTMError, match="has format 2, this version of ltm-pyro reads 1"):
        load_run(tmp_path / "run", device="cpu")


def test_weights_of_another_model_are_refused(tmp_path: Path, data: Data):
    new_trainer(tmp_path / "run", data, {"training.steps": 2}).fit()
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"hidden": 16', '"hidden": 32'))
    with pytest.raises(LTMError, match="do not fit the run's settings: size mismatch"):
        load_run(tmp_path / "run", device="cpu")


def _sources() -> list[Path]:
    root = Path(ltm_pyro.__file__).parents[1]
    return [*(root / "ltm_pyro").rglob("*.py"), *(root / "cli").rglob("*.py")]


@pytest.mark.parametrize("path", _sources(), ids=lambda path: path.name)
def test_no_source_file_reads_or_writes_pickle(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            assert node.attr not in ("load", "save"), f"{path}: torch.{node.attr} is pickle"
        banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
        assert not banned & {name.split(".")[0] for name in names}, f"{path} imports {names}"
