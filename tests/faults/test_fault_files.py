"""Every file of a checkpoint truncated, flipped, swapped, emptied or gone: an older whole one, or a clear refusal."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_runs import assert_same_tensors, new_trainer

from ltm_pyro.data import Data
from ltm_pyro.errors import LTMError
from ltm_pyro.training import Checkpoint, CheckpointStore, read_checkpoint

FILES = ("model.safetensors", "optimizer.safetensors", "posteriors.safetensors", "state.json")
Mutation = Callable[[Path, random.Random, list[Path]], None]


def truncate(path: Path, draw: random.Random, others: list[Path]) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def flip_a_bit(path: Path, draw: random.Random, others: list[Path]) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def blank_a_block(path: Path, draw: random.Random, others: list[Path]) -> None:
    """What a file system may leave of a block that never reached the disk."""
    content = bytearray(path.read_bytes())
    first = draw.randrange(len(content))
    content[first : first + 512] = bytes(len(content[first : first + 512]))
    path.write_bytes(content)


def grow(path: Path, draw: random.Random, others: list[Path]) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randint(1, 64)))


def swap_with_another_step(path: Path, draw: random.Random, others: list[Path]) -> None:
    other = draw.choice(others) / path.name
    path.write_bytes(other.read_bytes())


def swap_within_the_checkpoint(path: Path, draw: random.Random, others: list[Path]) -> None:
    other = path.with_name(draw.choice([name for name in FILES if name != path.name]))
    mine, its = path.read_bytes(), other.read_bytes()
    path.write_bytes(its)
    other.write_bytes(mine)


def remove(path: Path, draw: random.Random, others: list[Path]) -> None:
    path.unlink()


def swap_whole_checkpoints(path: Path, draw: random.Random, others: list[Path]) -> None:
    """All files at once: each folder is whole, and is not what its name says."""
    other = draw.choice(others)
    path.parent.rename(path.parent.with_name("aside"))
    shutil.copytree(other, path.parent)
    shutil.rmtree(path.parent.with_name("aside"))


MUTATIONS: tuple[Mutation, ...] = (
    truncate,
    flip_a_bit,
    blank_a_block,
    grow,
    swap_with_another_step,
    swap_within_the_checkpoint,
    remove,
    swap_whole_checkpoints,
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, data: Data) -> tuple[Path, dict[int, Checkpoint]]:
    """The checkpoints of steps 2, 4 and 6 of a run with warm starts, and what they hold."""
    folder = tmp_path_factory.mktemp("run") / "run"
    trainer = new_trainer(folder, data, {"inference.warm_start": True})
    trainer.fit()
    found = {int(path.name[5:]): read_checkpoint(path) for path in trainer.store.paths()}
    assert sorted(found) == [2, 4, 6]
    assert all(sorted(p.name for p in path.iterdir()) == sorted(FILES) for path in trainer.store.paths())
    return trainer.store.folder, found


def is_same(found: Checkpoint, expected: Checkpoint) -> bool:
    if (found.step, found.state) != (expected.step, expected.state):
        return False
    for name in ("model", "optimizer", "posteriors"):
        assert_same_tensors(getattr(found, name), getattr(expected, name))
    return True


def test_two_hundred_mutations(checkpoints: tuple[Path, dict[int, Checkpoint]], tmp_path: Path, tally):
    """Of the newest checkpoint, of the two newest, or of all three."""
    whole, expected = checkpoints
    counts = {"older": 0, "refused": 0, "unharmed": 0}
    for seed in range(200):
        draw = random.Random(seed)
        store = CheckpointStore(tmp_path / str(seed))
        shutil.copytree(whole, store.folder)
        steps = [6, 4, 2][: draw.choice([1, 1, 2, 3])]
        harmed = []
        for step in steps:
            mutate, name = draw.choice(MUTATIONS), draw.choice(FILES)
            path = store.folder / f"step-{step:08d}" / name
            before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
            mutate(path, draw, [whole / f"step-{other:08d}" for other in expected if other != step])
            after = {p.name: p.read_bytes() for p in path.parent.iterdir()}
            if after.keys() != before.keys() or any(not same(n, before[n], after[n]) for n in before):
                harmed.append(step)
        if harmed == [6, 4, 2]:
            with pytest.raises(LTMError, match=r"no whole checkpoint in .*step-00000006 is damaged: .*restore it, or"):
                store.latest()
            counts["refused"] += 1
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = store.latest()
        newest = max(set(expected).difference(harmed))
        assert is_same(found, expected[newest]), f"seed {seed} loaded something else"
        named = [str(w.message) for w in caught]
        assert len(named) == sum(step > newest for step in harmed)
        assert all("is damaged: " in text and f"going back to step {newest}" in text for text in named)
        counts["unharmed" if newest == 6 else "older"] += 1
        shutil.rmtree(store.folder)
    assert min(counts["older"], counts["refused"]) > 10
    assert (
        counts["unharmed"] <= 4
    )  # a flip that turns one kind of white space into another changes nothing that is read
    tally(
        "checkpoints truncated, flipped, blanked, swapped",
        injected=200,
        exact=200 - counts["refused"],
        refused=counts["refused"],
    )


def same(name: str, left: bytes, right: bytes) -> bool:
    """Whether two contents of a file are read as the same."""
    if left == right or name != "state.json":
        return left == right
    try:
        return json.loads(left) == json.loads(right)
    except ValueError:
        return False


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_checkpoint_that_holds_a_number_that_is_none(
    checkpoints: tuple[Path, dict[int, Checkpoint]], tmp_path: Path, value: float, part: str, tally, monkeypatch
):
    """With right digests: as another program, or a version without the check, would write it."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(checkpoints[0], folder)
    newest = read_checkpoint(folder / "step-00000006")
    tensors = {name: tensor.clone() for name, tensor in getattr(newest, part).items()}
    name = max(tensors, key=lambda n: tensors[n].numel())
    tensors[name].view(-1)[7] = value
    poisoned = Checkpoint(**{**vars(newest), part: tensors})
    with pytest.raises(LTMError, match=rf"{name} is not finite after step 6, so it is not saved"):
        CheckpointStore(folder).save(poisoned)
    with monkeypatch.context() as patch:
        patch.setattr("ltm_pyro.training.checkpoints.not_finite", lambda tensors: None)
        CheckpointStore(folder).save(poisoned)
    words = rf"step-00000006 is damaged: the tensor {name} in .* has entries that are not finite; going back to step 4"
    with pytest.warns(UserWarning, match=words):
        assert CheckpointStore(folder).latest().step == 4
    tally("NaN or infinity in a checkpoint's weights or moments", injected=1, refused=1)


def test_a_shard_with_a_token_that_is_in_no_vocabulary(data: Data, tmp_path: Path, tally):
    from dataclasses import asdict

    from ltm_pyro.data import Shard
    from ltm_pyro.data.corpora import file_digest

    shard = data.train.shard
    for seed in range(10):
        draw = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        tokens = torch.from_numpy(shard.tokens.astype("int64"))
        tokens[draw.randrange(len(tokens))] = draw.randint(shard.manifest.vocab_size, 2**16 - 1)
        tokens.numpy().astype(shard.manifest.dtype).tofile(folder / "tokens.bin")
        shard.offsets.astype("<i8").tofile(folder / "documents.bin")
        about = {k: v for k, v in asdict(shard.manifest).items() if v is not None and v != ()}
        about["tokens_sha256"] = file_digest(folder / "tokens.bin")  # so that only the number itself is wrong
        (folder / "manifest.json").write_text(json.dumps(about))
        with pytest.raises(LTMError, match=r"not a sound token shard .*the vocabulary ends at 299.*delete it and run"):
            Shard.open(folder)
    tally("a token outside the vocabulary in the data", injected=10, refused=10)
