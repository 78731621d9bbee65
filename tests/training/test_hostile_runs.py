"""A run from anybody: its digests fit, and its sizes, numbers, names and links are still not believed."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from tiny_runs import assert_same_tensors, new_trainer, reopened, tiny_settings

import ltm_pyro
from ltm_pyro.components import build_baseline, build_guide, build_model, check_components
from ltm_pyro.config import Settings
from ltm_pyro.data import Data
from ltm_pyro.errors import LTMError
from ltm_pyro.guides import GUIDES
from ltm_pyro.infer.warm_start import PosteriorTable
from ltm_pyro.priors import PRIORS
from ltm_pyro.training import CheckpointStore, RunDirectory, load_run
from ltm_pyro.training.checkpoints import write_durably
from ltm_pyro.training.guarded_build import guarded
from ltm_pyro.training.metrics import MetricsLog
from ltm_pyro.training.sinks import TensorBoardSink

STEP = "checkpoints/step-00000002"


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Path:
    """A run of two steps, not to be changed."""
    path = tmp_path_factory.mktemp("hostile") / "run"
    new_trainer(path, data, {"training.steps": 2, "inference.warm_start": True}).fit()
    return path


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "run")
    return tmp_path / "run"


def sealed(run: Path, change: Callable[[dict[str, Any]], object] = lambda state: None) -> None:
    """Makes every digest of the checkpoint fit again, after a change of its state.json."""
    path = run / STEP / "state.json"
    state = json.loads(path.read_text())
    del state["digest"]
    state["sha256"] = {n: hashlib.sha256((run / STEP / n).read_bytes()).hexdigest() for n in state["sha256"]}
    change(state)
    state["digest"] = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(state))


def reset(run: Path, section: str, **values: Any) -> None:
    """Changes config.json."""
    about = json.loads((run / "config.json").read_text())
    about["settings"][section] |= values
    (run / "config.json").write_text(json.dumps(about))


def change_tensors(run: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Changes a file of tensors and makes the digests fit."""
    tensors = load((run / STEP / name).read_bytes())
    change(tensors)
    (run / STEP / name).write_bytes(save(tensors))
    sealed(run)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("decoder", {"hidden": 10**9, "heads": 1}),
        ("decoder", {"hidden": 1 << 20, "heads": 1}),
        ("decoder", {"layers": 10**9, "num_thoughts": 10**9}),
        ("decoder", {"layers": 1 << 20, "num_thoughts": 1 << 20}),
        ("decoder", {"num_thoughts": 10**12}),
        ("decoder", {"thought_width": 1 << 20}),
        ("decoder", {"hidden": 10**400}),
        ("prior", {"name": "mixture", "components": 10**9}),
        ("prior", {"name": "mixture", "components": 2**63}),
        pytest.param("prior", {"name": "flow", "layers": 10**9}, marks=pytest.mark.slow),
        ("prior", {"name": "energy", "normalizer_draws": 10**9}),
        pytest.param("prior", {"name": "energy", "langevin_steps": 10**9}, marks=pytest.mark.slow),
        ("prior", {"name": "hierarchical", "topics": 10**9}),
        ("guide", {"name": "amortized", "layers": 10**9}),
        ("guide", {"name": "semi-amortized", "width": 2**62}),
        ("model", {"name": "ar", "same_parameters": False}),
        ("inference", {"fast_steps": 10**12}),
        ("data", {"sequence_length": 10**15}),
    ],
    ids=str,
)
def test_sizes_that_no_checkpoint_bears_out_are_refused_before_they_are_allocated(
    run: Path, section: str, values: dict[str, Any]
):
    reset(run, section, **values)
    began = time.process_time()
    with pytest.raises(LTMError):
        load_run(run, device="cpu")
    assert time.process_time() - began < 20
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    assert peak < 4 << 20, f"{peak} kB"  # of the whole test process


def test_a_vocabulary_that_no_checkpoint_bears_out_is_refused(run: Path):
    path = run / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["extra"] = (1 << 20) - 1
    path.write_text(json.dumps(content))
    with pytest.raises(LTMError, match=r"do not fit the run's settings: size mismatch for model\.decoder\.embedding"):
        load_run(run, device="cpu")


PAIRS = [(prior, "local-normal") for prior in PRIORS] + [("gaussian", guide) for guide in GUIDES]
PAIRS += [("vamp", "amortized"), ("flow", "semi-amortized"), ("energy", "local-flow"), ("markov", "local-lowrank")]


@pytest.mark.parametrize(("prior", "guide"), PAIRS, ids=str)
def test_a_guarded_build_is_the_same_as_one_that_is_not(prior: str, guide: str):
    settings = tiny_settings({"prior.name": prior, "guide.name": guide})
    try:
        check_components(settings)
    except LTMError:
        pytest.skip("this prior refuses this guide")

    def build() -> torch.nn.ModuleDict:
        torch.manual_seed(0)
        model = build_model(settings, 300)
        return torch.nn.ModuleDict({"model": model, "guide": build_guide(settings, model)})

    free = build().state_dict()
    assert_same_tensors(guarded(build, settings, free).state_dict(), free)


@pytest.mark.parametrize("model", ["ar", "mdlm"])
def test_a_guarded_build_of_a_baseline_is_the_same(model: str):
    settings = tiny_settings({"model.name": model})

    def build() -> torch.nn.Module:
        torch.manual_seed(0)
        return build_baseline(settings, 300)

    free = build().state_dict()
    assert_same_tensors(guarded(build, settings, free).state_dict(), free)


def test_a_model_that_memory_cannot_hold_is_refused_when_it_is_made():
    settings = Settings().updated({"decoder.hidden": 1 << 20, "decoder.layers": 24})
    for build in (build_model, build_baseline):
        with pytest.raises(LTMError, match=r"section decoder of the settings describes takes .* GiB, this machine has"):
            build(settings, 300)


@pytest.mark.parametrize(("kind", "width"), [("guide", 2**63), ("guide", 2**40)])
def test_sizes_that_torch_refuses_are_one_line(kind: str, width: int):
    settings = tiny_settings({"guide.name": "semi-amortized", "guide.width": width})
    with pytest.raises(LTMError, match="guide 'semi-amortized' cannot be made of its options"):
        build_guide(settings, build_model(settings, 300))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "posteriors.safetensors"])
def test_what_is_no_number_is_refused_with_the_tensors_name(run: Path, name: str, value: float):
    chosen = []

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        chosen.append(next(key for key, tensor in tensors.items() if tensor.is_floating_point()))
        tensors[chosen[0]].view(-1)[-1] = value

    change_tensors(run, name, spoil)
    with pytest.raises(LTMError, match=r"the tensor .* has entries that are not finite") as caught:
        load_run(run / STEP, device="cpu")
    assert f"the tensor {chosen[0]} in {name}" in str(caught.value)


def test_weights_of_other_names_or_shapes_are_refused_with_the_name(run: Path):
    change_tensors(run, "model.safetensors", lambda t: t.update({"model.extra": torch.zeros(2)}))
    with pytest.raises(LTMError, match=r"model.extra: the model has no such weight"):
        load_run(run, device="cpu")
    change_tensors(run, "model.safetensors", lambda t: [t.pop("model.extra"), t.pop("model.decoder.norm.weight")])
    with pytest.raises(LTMError, match=r"model.decoder.norm.weight: missing in the checkpoint"):
        load_run(run, device="cpu")
    change_tensors(run, "model.safetensors", lambda t: t.update({"model.decoder.norm.weight": torch.ones(7)}))
    with pytest.raises(
        LTMError, match=r"size mismatch for model.decoder.norm.weight: \(7,\) in the checkpoint, \(16,\)"
    ):
        load_run(run, device="cpu")


def deep(state: dict[str, Any]) -> None:
    for _ in range(500):
        state["state"] = {"a": state["state"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("step"), "has the step 'None'"),
        (lambda s: s.update(step="2"), "has the step '2'"),
        (lambda s: s.update(step=-1), "has the step '-1'"),
        (lambda s: s.update(step=2.5), "has the step '2.5'"),
        (lambda s: s.update(step=True), "has the step 'True'"),
        (lambda s: s.pop("state"), "no table of the training's state"),
        (lambda s: s.update(state=[]), "no table of the training's state"),
        (lambda s: s["state"].update(sampler=3), "where the sampler stands"),
        (lambda s: s["state"].pop("sampler"), "where the sampler stands"),
        (lambda s: s["state"]["sampler"].update(epoch="0"), "where the sampler stands"),
        (lambda s: s["state"].update(sums={"loss": "x"}), "sums that are no numbers"),
        (lambda s: s["state"].update(sums={"loss": float("nan")}), "sums that are no numbers"),
        (lambda s: s["state"].pop("sums"), "sums that are no numbers"),
        (lambda s: s["state"].update(tokens="many"), "tokens that are no count"),
        (lambda s: s["state"].update(flops=-1), "flops that are no count"),
        (lambda s: s.pop("sha256"), "no table of SHA-256 digests"),
        (lambda s: s.update(sha256=[]), "no table of SHA-256 digests"),
        (lambda s: s["sha256"].update({"model.safetensors": 7}), "no table of SHA-256 digests"),
        (lambda s: s["sha256"].update({"model.safetensors": "zz" * 32}), "no table of SHA-256 digests"),
        (lambda s: s["sha256"].update({"../../../etc/passwd": "0" * 64}), "names the file '../../../etc/passwd'"),
        (lambda s: s["sha256"].update({"/dev/zero": "0" * 64}), "names the file '/dev/zero'"),
        (deep, "state.json is truncated or changed"),
    ],
)
def test_a_state_of_another_form_is_refused_though_its_digest_fits(
    run: Path, change: Callable[[dict[str, Any]], object], words: str
):
    sealed(run, change)
    with pytest.raises(LTMError) as caught:
        load_run(run / STEP, device="cpu")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", f"{STEP}/state.json", f"{STEP}/model.safetensors"])
def test_files_without_an_end_are_refused(run: Path, name: str):
    (run / name).unlink()
    (run / name).symlink_to("/dev/zero")
    with pytest.raises(LTMError):
        load_run(run / STEP, device="cpu")
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(LTMError):
        load_run(run / STEP, device="cpu")


def test_weights_that_fill_a_sparse_file_are_refused_unread(run: Path):
    with (run / STEP / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 43)
    with pytest.raises(LTMError, match="8192 GiB, this machine has"):
        load_run(run / STEP, device="cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({"model.decoder.norm.weight.exp_avg": torch.zeros(3)}), "norm.weight.exp_avg is none of"),
        (lambda t: t.update({"model.nothing.exp_avg": torch.zeros(3)}), "model.nothing.exp_avg is none of"),
        (lambda t: t.update({"model.decoder.norm.weight.code": torch.zeros(16)}), "norm.weight.code is none of"),
        (lambda t: t.update({"model.decoder.norm.weight.step": torch.tensor(-1.0)}), "norm.weight.step is none of"),
        (lambda t: t.pop("model.decoder.norm.weight.exp_avg_sq"), "lacks moments of the weight model.decoder.norm"),
    ],
)
def test_moments_of_another_optimiser_are_refused(run: Path, data: Data, change: Callable[[Any], object], words: str):
    change_tensors(run, "optimizer.safetensors", change)
    with pytest.raises(LTMError, match=words):
        reopened(run, data)


@pytest.mark.parametrize("name", ["checkpoints", "posteriors", "metrics.jsonl", "posteriors/rows.bin", "tensorboard"])
def test_nothing_is_written_through_a_link_out_of_the_run(run: Path, tmp_path: Path, name: str):
    outside = tmp_path / "outside"
    (run / name).rename(outside) if (run / name).exists() else outside.mkdir()
    (run / name).symlink_to(outside)
    before = {p: p.read_bytes() for p in (outside, *outside.rglob("*")) if p.is_file()}
    with pytest.raises(LTMError, match="is a symbolic link, and nothing is written through one"):
        RunDirectory.open(run).refuse_links()
    if name == "checkpoints":
        store = CheckpointStore(run / name)
        with pytest.raises(LTMError, match="is a symbolic link"):
            store.save(store.latest())
        assert load_run(run, device="cpu").step == 2  # to read is no harm
    elif name == "metrics.jsonl":
        with pytest.raises(LTMError, match="is a symbolic link"):
            MetricsLog(run / name).append({"step": 1})
    elif name == "tensorboard":
        with pytest.raises(LTMError, match="is a symbolic link"):
            TensorBoardSink(run / name)
    else:
        with pytest.raises(LTMError, match="is a symbolic link"):
            PosteriorTable(run / "posteriors")
    assert {p: p.read_bytes() for p in (outside, *outside.rglob("*")) if p.is_file()} == before


def test_a_link_where_a_file_is_prepared_is_not_followed(tmp_path: Path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / f".config.json.{os.getpid()}.tmp").symlink_to(tmp_path / "mine")
    write_durably(tmp_path / "config.json", b"{}")
    assert (tmp_path / "mine").read_text() == "precious"
    assert not (tmp_path / "config.json").is_symlink()
    assert (tmp_path / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    "local",
    [{}, {"z": [0]}, {"z": [-1]}, {"z": [1 << 40]}, {"z": ["2"]}, {"z": [1 << 20, 1 << 20]}, {"z": 2}, {"z": [True]}],
    ids=str,
)
def test_a_table_of_posteriors_with_impossible_sizes_is_refused(run: Path, local: Any):
    (run / "posteriors" / "layout.json").write_text(json.dumps({"format": 1, "local": local}))
    with pytest.raises(LTMError, match=r"posteriors is no table of posteriors \(.*\): delete it"):
        PosteriorTable(run / "posteriors")


def test_a_table_of_posteriors_with_a_key_twice_is_refused(run: Path):
    keys = (run / "posteriors" / "keys.bin").read_bytes()
    (run / "posteriors" / "keys.bin").write_bytes(keys[:8] * (len(keys) // 8))
    with pytest.raises(LTMError, match=r"a key stands in it twice"):
        PosteriorTable(run / "posteriors")


ROWS = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"[" * 100_000,
    b'{"step": 1}',
    b'{"step": "1", "split": "train"}',
    b'{"step": true, "split": "train"}',
    b'{"step": -1, "split": "train"}',
    b'{"step": 1, "split": "test"}',
    b'{"step": 1, "split": "train", "loss": 1' + b"0" * 400 + b"}",
    b'{"step": 1, "split": "train", "loss": ' + b"9" * 5000 + b"}",
    b'{"step": 1, "split": "train", "x": "' + b"y" * (1 << 20) + b'"}',
    b'{"step": 1, "split"',
]


def test_what_is_no_row_of_metrics_is_left_out(tmp_path: Path):
    whole = b'{"step": 1, "split": "train", "loss": 2.0}'
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*ROWS, whole, *ROWS]))
    assert MetricsLog(tmp_path / "metrics.jsonl").rows() == [{"step": 1, "split": "train", "loss": 2.0}]


def test_no_source_file_trusts_remote_code():
    root = Path(ltm_pyro.__file__).parents[1]
    for path in [
        *(root / "ltm_pyro").rglob("*.py"),
        *(root / "cli").rglob("*.py"),
    ]:
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code" not in text, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), f"{path}: {node.func.id}"
            if isinstance(node, ast.Attribute) and node.attr == "import_module":
                # A name of the library's own, of an optional package, or after consent.
                assert path.name in ("__init__.py", "files.py", "main.py", "components.py"), path
