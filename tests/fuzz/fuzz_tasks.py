"""What the worker does with a case: each task reads hostile files as the library or the command line would."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from ltm_pyro.cli.main import main as command_line
from tiny_runs import TINY, new_trainer, tiny_data

from ltm_pyro.components import build_guide, build_model, check_components
from ltm_pyro.config import Settings, read_toml
from ltm_pyro.data import SequenceDataset, shard_of
from ltm_pyro.data.corpora import FileCorpus
from ltm_pyro.data.patterns import check_pattern
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError
from ltm_pyro.infer.warm_start import PosteriorTable
from ltm_pyro.training import load_run

RUN = Path("run")
"""The sound run, of which a case changes a copy."""

_folder = Path()


def prepare(folder: Path) -> None:
    """Makes the run, once, and whatever is imported at first use."""
    global _folder
    _folder = folder
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not (folder / RUN / "ready").exists():
        shutil.rmtree(folder / RUN, ignore_errors=True)
        changes = {"training.steps": 4, "data.source": str(folder / "corpus.txt"), "inference.warm_start": True}
        new_trainer(folder / RUN, tiny_data(folder), changes).fit()
        (folder / RUN / "ready").touch()
    load_run(folder / RUN, device="cpu")
    _command("info", folder / RUN)
    _command("plot", folder / RUN, "--out", folder / "curves.svg")


def answer(case: dict[str, Any]) -> tuple[str, str]:
    """The outcome of one case."""
    place = Path(tempfile.mkdtemp(prefix="case-", dir=_folder))  # a process that died has left its own
    try:
        for name, content in case["files"].items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(base64.b64decode(content))
        TASKS[case["task"]](place, **case["arguments"])
    except LTMError as error:
        text = str(error)
        return ("refused", text) if len(text) < 3000 else ("failed", f"a message of {len(text)} characters")
    except BaseException:
        return "failed", traceback.format_exc()
    else:
        return "done", ""
    finally:
        shutil.rmtree(place, ignore_errors=True)


def corpus(place: Path, name: str, unit: str, label_column: str | None) -> None:
    """Documents of a file, encoded and decoded, laid out as sequences."""
    found = FileCorpus(place / name, "text", unit, label_column)  # type: ignore[arg-type]
    tokenizer = load_tokenizer()
    for document in found.documents():
        text = str(document.text)
        if len(text) < 100_000:
            assert tokenizer.decode(tokenizer.encode(text)) == text, "the text did not survive"
    dataset = SequenceDataset(shard_of(found, tokenizer, place / "cache"), "documents", 32)
    batch = dataset.batch(range(min(len(dataset), 4)))
    assert int(batch.tokens.max()) < tokenizer.vocab_size
    assert sum(1 for _ in found.documents()) == dataset.num_documents


def load_tokenizer() -> Tokenizer:
    """The run's."""
    return Tokenizer.load(_folder / RUN / "tokenizer.json")


def settings(place: Path, assignments: list[str]) -> None:
    """Settings from a TOML file and assignments, their classes looked up, written and read again."""
    values = Settings.from_dict(read_toml(place / "my.toml"))
    values = values.updated(dict(text.partition("=")[::2] for text in assignments))
    check_components(values)
    json.dumps(values.to_dict(), default=str)


def build(place: Path, assignments: list[str]) -> None:
    """A fresh model, prior and guide of a settings' sizes and options."""
    values = Settings().updated(TINY | dict(text.partition("=")[::2] for text in assignments))
    check_components(values)
    build_guide(values, build_model(values, 300))


def train(place: Path, assignments: list[str]) -> None:
    """The command line, which ends in a refusal whatever the settings: the text is missing."""
    options = [f"--set={text}" for text in assignments]
    _command("train", "--config", place / "my.toml", *options, "--data", place / "missing.txt", "--out", place / "out")


def checkpoint(place: Path, links: list[list[str]]) -> None:
    """Loads the run in a case's folder, and writes two tokens where it is one."""
    shutil.copytree(_folder / RUN, place / "copy", dirs_exist_ok=True, copy_function=_keep)
    for name, target in links:
        (place / "copy" / name).unlink(missing_ok=True)
        (place / "copy" / name).symlink_to(target)
    loaded = load_run(place / "copy", device="cpu")
    model = loaded.language_model
    model.generate(start=0, prompt=[], num=1, max_tokens=2, sampling=None, stop=0, fast_steps=1, label=None, seed=0)


def resume(place: Path) -> None:
    """Goes on with the run in a case's folder for a step."""
    shutil.copytree(_folder / RUN, place / "copy", dirs_exist_ok=True, copy_function=_keep)
    _command("train", "--resume", "--out", place / "copy", "--steps", 5)


def tokenizer(place: Path) -> None:
    """Loads a tokenizer and encodes and decodes a few texts."""
    found = Tokenizer.load(place / "tokenizer.json")
    for text in ("the cat sat", "", "\0 é\U0001f469 שלום", "a" * 200, " \n\r\t" * 20):
        ids = found.encode(text)
        assert [ids] == found.encode_batch([text])
        found.decode(ids)
    assert found.pieces is None or len(found.pieces) == found.vocab_size
    assert found.digest


def pattern(place: Path, pattern: str, texts: list[str]) -> None:
    """A tokenizer that splits by a pattern that `check_pattern` lets pass is quick on texts made to annoy it."""
    check_pattern(pattern)
    content = json.loads((_folder / RUN / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}
    (place / "tokenizer.json").write_text(json.dumps(content))
    found = Tokenizer.load(place / "tokenizer.json")
    for text in texts:
        found.encode(text)


def metrics(place: Path) -> None:
    """Shows and draws a run whose metrics.jsonl is the case's."""
    shutil.copytree(_folder / RUN, place / "copy", dirs_exist_ok=True, copy_function=_keep)
    for arguments in (["info"], ["info", "--json"]):
        assert _command(*arguments[:1], place / "copy", *arguments[1:]) == 0
    _command("plot", place / "copy", "--out", place / "curves.svg")


def posteriors(place: Path) -> None:
    """Opens a table of posteriors and starts from it."""
    table = PosteriorTable(place / "posteriors")
    keys = torch.tensor([1, 2, 3, *list(table._rows_of)[:3]])
    layout = table._layout or {"z": [2]}
    table.start(keys, {name: torch.zeros(len(keys), *shape) for name, shape in layout.items()})


def hang(place: Path) -> None:
    """Never ends."""
    while True:
        pass


def hoard(place: Path) -> None:
    """Takes more memory than there is for it."""
    bytearray(1 << 40)


def crash(place: Path) -> None:
    """Ends the process."""
    os.abort()


def _keep(source: str, target: str) -> str:
    """Copies a file unless the case has one of its own there."""
    return target if Path(target).exists() else shutil.copy(source, target)


def _command(*arguments: Any) -> int:
    """Runs the command line in this process; returns its exit code, 0 or 2, the latter with one line."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            command_line([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    lines = [line for line in err.getvalue().splitlines() if not line.startswith("Warning: ")]
    assert "Traceback" not in err.getvalue()
    assert (code == 0 and not lines) or (code == 2 and len(lines) == 1 and lines[0].startswith("Error: ")), (
        code,
        lines,
    )
    return code


TASKS: dict[str, Callable[..., None]] = {
    task.__name__: task
    for task in (
        corpus,
        settings,
        build,
        train,
        checkpoint,
        resume,
        tokenizer,
        pattern,
        metrics,
        posteriors,
        hang,
        hoard,
        crash,
    )
}
