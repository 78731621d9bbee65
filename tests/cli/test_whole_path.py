"""train, sample, eval and info, one after another, on local text and on the fables."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from cli_runs import SETTINGS, Result, Run
from ltm_pyro.cli.main import cli as group
from tiny_runs import write_corpus

from ltm_pyro.guides import GUIDES
from ltm_pyro.priors import PRIORS
from ltm_pyro.training import RunDirectory, load_run


def document(result: Result) -> dict[str, Any]:
    """The one JSON document on standard output."""
    assert result.code == 0, result.err
    assert result.err == ""
    return json.loads(result.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_training_prints_its_settings_its_progress_texts_and_the_next_command(trained: Path):
    printed = (trained / "printed.txt").read_text()
    assert "fast_steps=2" in printed
    assert "thought_width=8" in printed
    assert "train: 3" in printed
    assert f"run:   {trained}" in printed
    assert "step 6/6" in printed
    assert "validation at step 6: -ELBO" in printed
    assert "Texts of its own" in printed
    assert f"    ltm-pyro sample {trained} --num 3" in printed


def test_training_writes_a_whole_run(trained: Path):
    assert {"config.json", "tokenizer.json", "metrics.jsonl", "checkpoints"} <= set(os.listdir(trained))
    names = ["step-00000002", "step-00000004", "step-00000006"]
    assert sorted(os.listdir(trained / "checkpoints")) == names
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if row["split"] == "validation"] == [0, 3, 6]
    assert RunDirectory.open(trained).settings.decoder.thought_width == 8


def test_sample_prints_texts(cli: Run, trained: Path):
    result = cli("sample", trained, "--num", 3, "--max-tokens", 20)
    assert (result.code, result.err) == (0, "")
    assert [line.strip("─ ") for line in result.out.splitlines() if line.startswith("──")] == ["1", "2", "3"]


def test_sample_json_is_one_document_with_all_that_settles_it(cli: Run, trained: Path):
    options = ["--num", 2, "--max-tokens", 9, "--temperature", 0.7, "--top-k", 5, "--top-p", 0.9, "--seed", 3]
    found = document(cli("sample", trained, *options, "--fast-steps", 1, "--prompt", "the cat", "--json"))
    samples = found.pop("samples")
    assert found == {
        "run": str(trained),
        "step": 6,
        "prompt": "the cat",
        "seed": 3,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "label": None,
        "fast_steps": 1,
    }
    assert len(samples) == 2
    assert all(0 < sample["tokens"] <= 9 and isinstance(sample["text"], str) for sample in samples)


def test_the_seed_settles_the_texts(cli: Run, trained: Path):
    def texts(*options: Any) -> list[str]:
        found = document(cli("sample", trained, "--json", "--num", 2, "--max-tokens", 9, *options))
        return [sample["text"] for sample in found["samples"]]

    assert texts("--seed", 1) == texts("--seed", 1)
    assert texts("--seed", 1) != texts("--seed", 2)
    assert texts() == texts("--seed", 0)


def test_greedy_decoding_of_one_thought_is_deterministic_and_top_k_of_one_is_greedy(cli: Run, trained: Path):
    greedy = document(cli("sample", trained, "--json", "--temperature", 0, "--max-tokens", 12))
    single = document(cli("sample", trained, "--json", "--top-k", 1, "--max-tokens", 12))
    tiny_mass = document(cli("sample", trained, "--json", "--top-p", 1e-6, "--max-tokens", 12))
    assert greedy["samples"] == single["samples"] == tiny_mass["samples"]


def test_a_prompt_from_a_file_is_the_prompt(cli: Run, trained: Path, tmp_path: Path):
    (tmp_path / "prompt.txt").write_text("the cat sat on", encoding="utf-8")
    few = ["--json", "--max-tokens", 9]
    by_file = document(cli("sample", trained, "--prompt-file", tmp_path / "prompt.txt", *few))
    by_hand = document(cli("sample", trained, "--prompt", "the cat sat on", *few))
    assert by_file == by_hand
    without = document(cli("sample", trained, *few))
    assert without["prompt"] == ""
    assert without["samples"] != by_hand["samples"]


def test_texts_stand_after_their_prompt_and_are_not_wrapped_in_a_file(cli: Run, trained: Path):
    options = [trained, "--prompt", "the cat [sat] on :cat:", "--max-tokens", 60, "--seed", 1]
    text = document(cli("sample", *options, "--json"))["samples"][0]["text"]
    printed = cli("sample", *options).out
    assert printed.startswith("the cat [sat] on :cat:")  # brackets and colons are no markup
    if text.isprintable():
        assert printed == f"the cat [sat] on :cat:{text}\n"


def test_texts_go_on_past_the_training_length(cli: Run, trained: Path):
    found = document(cli("sample", trained, "--json", "--max-tokens", 90, "--num", 4))
    assert max(sample["tokens"] for sample in found["samples"]) > 32


def test_a_prompt_that_is_not_unicode_is_sampled_from_all_the_same(cli: Run, trained: Path):
    found = document(cli("sample", trained, "--prompt", "caf\udce9", "--max-tokens", 2, "--json"))
    assert found["prompt"] == "caf\ufffd"


def test_eval_scores_the_validation_text_under_both_protocols(cli: Run, trained: Path):
    found = document(cli("eval", trained, "--json"))
    assert found["elbo"] == pytest.approx(found["reconstruction"] + found["kl"])
    assert (found["run"], found["step"], found["samples"], found["fast_steps"]) == (str(trained), 6, 1, 2)
    assert found["seed"] == 0
    assert "generator_entropy" not in found
    counts = load_run(trained, device="cpu").settings.data
    assert found["data"] == counts.source
    table = cli("eval", trained).out
    assert "upper bound on -log p(x)" in table
    assert f"{found['elbo']:.4f}" in table
    assert f"{found['tokens']} tokens, S = 1, T_fast = 2, seed 0" in table


def test_eval_gives_bits_per_character_of_what_scores_the_text(cli: Run, trained: Path, tmp_path: Path):
    texts = ["the café sat on a mat", "日本語 saw one dog", "red"]
    (tmp_path / "other.txt").write_text("\n\n".join(texts), encoding="utf-8")
    options = ["--data", tmp_path / "other.txt", "--protocol", "elbo", "--protocol", "reconstruction"]
    found = document(cli("eval", trained, "--json", *options))
    assert found["characters"] == sum(map(len, texts))
    bits = found["elbo"] * found["tokens"] / math.log(2) / found["characters"]
    assert found["elbo_bits_per_character"] == pytest.approx(bits)
    assert not found.keys() & {"reconstruction_bits_per_character", "iwae_bits_per_character"}
    table = cli("eval", trained, *options).out
    assert f"bits per character, of {found['characters']}: elbo ≤ {bits:.4f}\n" in table


def test_eval_says_what_the_thoughts_know_if_asked(cli: Run, trained: Path):
    names = {"active_units", "units", "kl_per_layer", "mutual_information", "mutual_information_limit"}
    assert not names & document(cli("eval", trained, "--json")).keys()
    found = document(cli("eval", trained, "--json", "--information"))
    assert sum(found["kl_per_layer"]) == pytest.approx(found["kl"], rel=1e-4)
    assert found["mutual_information_limit"] == pytest.approx(math.log(found["sequences"]))
    table = cli("eval", trained, "--information").out
    assert f"I(x; z): {found['mutual_information']:.4f} nats per sequence" in table
    assert f"active units: {found['active_units']} of {found['units']}\n" in table
    assert "KL per layer, nats/token: " in table


def test_eval_options_change_what_they_say_and_the_batch_size_nothing(cli: Run, trained: Path):
    plain = document(cli("eval", trained, "--json"))
    batched = document(cli("eval", trained, "--json", "--batch-size", 1))
    assert batched["elbo"] == pytest.approx(plain["elbo"], rel=1e-5)
    options = ["--samples", 3, "--fast-steps", 4, "--seed", 2, "--max-sequences", 2]
    other = document(cli("eval", trained, "--json", *options))
    assert (other["samples"], other["fast_steps"], other["seed"], other["sequences"]) == (3, 4, 2, 2)
    single = document(cli("eval", trained, "--json", "--protocol", "reconstruction"))
    assert "elbo" not in single
    assert single["reconstruction"] == plain["reconstruction"]


def test_eval_by_the_two_protocols_of_the_evidence(cli: Run, trained: Path):
    options = ["--protocol", "iwae", "--protocol", "prequential", "--block-size", 8, "--samples", 21]
    found = document(cli("eval", trained, "--json", *options))
    assert found["iwae"] > 0
    assert found["prequential"] > 0
    assert 0 <= found["k_hat_above_0.7"] <= 1
    assert found["block_size"] == 8
    assert not found.keys() & {"elbo", "reconstruction", "kl"}
    table = cli("eval", trained, *options).out
    assert f"{found['prequential']:.4f}" in table
    assert "compares with an AR model's" in table
    assert "T_fast = 2, seed 0, blocks of 8" in table
    assert "iwae: Pareto k-hat" in table
    assert "too few draws" in cli("eval", trained, "--protocol", "iwae").out


def test_one_sequence_has_no_standard_error_and_json_none_of_its_nan(cli: Run, trained: Path):
    assert document(cli("eval", trained, "--json", "--max-sequences", 1))["elbo_se"] is None
    assert cli("eval", trained, "--max-sequences", 1).code == 0


def test_eval_of_other_data(cli: Run, trained: Path, tmp_path: Path):
    other = write_corpus(tmp_path / "other.txt", documents=6, seed=5)
    found = document(cli("eval", trained, "--json", "--data", other))
    assert found["data"] == str(other)
    assert found["tokens"] > 6 * 8
    (tmp_path / "other.jsonl").write_text('{"story": "the cat sat on a mat and saw a bird"}\n' * 4)
    named = document(cli("eval", trained, "--json", "--data", tmp_path / "other.jsonl", "--column", "story"))
    assert named["tokens"] > 4 * 6


def test_commands_take_a_checkpoint_inside_the_run(cli: Run, trained: Path):
    older = trained / "checkpoints" / "step-00000002"
    assert document(cli("sample", older, "--json", "--max-tokens", 2))["step"] == 2
    assert document(cli("eval", older, "--json", "--max-sequences", 2))["step"] == 2
    assert document(cli("info", older, "--json"))["checkpoints"] == ["step-00000006", "step-00000004", "step-00000002"]


def test_info_says_how_far_the_run_is_and_what_to_do_next(cli: Run, trained: Path):
    found = document(cli("info", trained, "--json"))
    assert (found["step"], found["steps"]) == (6, 6)
    assert found["settings"]["decoder"]["hidden"] == 16
    assert [row["step"] for row in found["validation"]] == [0, 3, 6]
    assert found["train"]["step"] == 6
    printed = cli("info", trained).out
    assert "steps: 6 of 6" in printed
    assert f"    ltm-pyro sample {trained} --num 3" in printed
    assert "--resume" not in printed


def test_the_fables_from_training_to_evaluation(cli: Run, tmp_path: Path):
    out = tmp_path / "fables run"
    few = ["--set", "data.documents=30", "--set", "data.sequence_length=2000", "--set", "decoder.window=16"]
    result = cli("train", *SETTINGS, *few, "--set", "data.vocab_size=500", "--steps", 1, "--out", out)
    assert (result.code, result.err) == (0, "")
    assert "source=fables" in result.out
    assert f"ltm-pyro sample '{out}'" in result.out  # quoted, as a shell needs it
    found = document(cli("eval", out, "--json", "--fast-steps", 0))
    assert found["data"] == "fables"
    assert 0 < found["generator_entropy"] < found["elbo"]
    assert "exact -log p(x) of the same texts" in cli("eval", out, "--fast-steps", 0).out
    assert f"'{out}'" in cli("info", out).out


def test_labelled_text_from_training_to_evaluation(train: Run, cli: Run, tmp_path: Path):
    texts = write_corpus(tmp_path / "corpus.txt").read_text().strip().split("\n\n")
    rows = [{"text": text, "topic": [10, 9, None][i % 3]} for i, text in enumerate(texts)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ["--set", "data.label_column=topic", "--set", "data.labelled_fraction=0.5"]
    result = train("--data", path, *options, "--out", tmp_path / "run", "--steps", 2)
    assert result.code == 0, result.err
    assert " labelled, 2 classes" in result.out
    assert RunDirectory.open(tmp_path / "run").class_names == ("9", "10")
    found = document(cli("eval", tmp_path / "run", "--json"))
    assert f" {found['sequences']} sequences, {found['tokens']} tokens, " in " ".join(result.out.split())
    other = document(cli("eval", tmp_path / "run", "--data", tmp_path / "corpus.txt", "--json"))
    assert other["sequences"] >= len(texts)  # text without classes is scored, too
    assert cli("train", "--resume", "--out", tmp_path / "run", "--steps", 3).code == 0
    assert RunDirectory.open(tmp_path / "run").class_names == ("9", "10")


def test_settings_come_from_preset_file_set_and_flags_in_this_order(cli: Run, corpus: Path, tmp_path: Path):
    (tmp_path / "my.toml").write_text(
        'preset = "tiny"\n[training]\nsteps = 9\nseed = 9\nbatch_size = 9\nwarmup_steps = 9\n', encoding="utf-8"
    )
    options = ["--config", tmp_path / "my.toml", *SETTINGS, "--set", "training.batch_size=2", "--set"]
    options += ["training.batch_size=3", "--set", "training.seed=3", "--steps", 1, "--seed", 1, "--fast-steps", 1]
    result = cli("train", "--data", corpus, *options, "--out", tmp_path / "run", "--dtype", "bfloat16")
    assert result.code == 0, result.err
    found = RunDirectory.open(tmp_path / "run").settings
    training = found.training
    assert (training.steps, training.seed, training.batch_size, training.dtype) == (1, 1, 3, "bfloat16")
    assert found.inference.fast_steps == 1
    assert training.slow_lr_final == 4e-4  # the preset's


def test_without_out_a_new_folder_is_taken_each_time(train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for expected in ("tiny-corpus", "tiny-corpus-2"):
        assert train("--steps", 1).code == 0
        assert (tmp_path / "runs" / expected / "config.json").exists()


def test_a_prior_of_the_users_own_in_the_working_directory_trains_with_the_default_guide(corpus: Path, tmp_path: Path):
    (tmp_path / "my_two_site_prior.py").write_text(
        """
import pyro
import pyro.distributions as dist
from ltm_pyro import Prior

class TwoSites(Prior):
    def __init__(self, shape, spread: float = 1.0):
        super().__init__(shape)
        self.spread = spread

    def forward(self, batch_size):
        scale = pyro.sample("scale", dist.LogNormal(0.0, self.spread).expand((batch_size,)))
        unit = pyro.sample("unit", dist.Normal(0.0, 1.0).expand((batch_size, *self.shape)).to_event(3))
        return scale[..., None, None, None] * unit
"""
    )
    # As the installed command does it: unlike python -m, a script does not put the working directory on the path.
    script = "import sys; sys.path = [p for p in sys.path if p]; from ltm_pyro.cli.main import main; main()"
    options = ["--prior", "my_two_site_prior:TwoSites", "--set", "prior.spread=0.5", "--steps", "2", "--out", "run"]
    command = [sys.executable, "-c", script, "train", "--data", str(corpus), *SETTINGS, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "spread=0.5" in done.stdout
    rows = RunDirectory.open(tmp_path / "run").metrics.rows()
    assert rows[-1]["kl"] > 0


def test_resume_on_the_command_line_goes_on_and_tells_so(train: Run, cli: Run, copy: Path):
    result = cli("train", "--resume", "--out", copy, "--steps", 8)
    assert result.code == 0, result.err
    assert "Going on after step 6." in result.out
    found = document(cli("info", copy, "--json"))
    assert (found["step"], found["steps"]) == (8, 8)


def test_resume_of_a_finished_run_does_nothing_and_says_what_is_next(cli: Run, copy: Path):
    before = (copy / "metrics.jsonl").read_bytes()
    result = cli("train", "--resume", "--out", copy)
    assert result.code == 0
    assert f"ltm-pyro sample {copy}" in result.out
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_a_damaged_newest_checkpoint_is_one_warning_on_standard_error(cli: Run, copy: Path):
    (copy / "checkpoints" / "step-00000006" / "optimizer.safetensors").write_bytes(b"")
    result = cli("sample", copy, "--json", "--max-tokens", 2)
    assert result.code == 0
    assert json.loads(result.out)["step"] == 4
    assert result.err.count("\n") == 1
    assert result.err.startswith("Warning: checkpoint ")
    assert "going back to step 4" in result.err


OPTIONS = {
    "train": "--preset --data --prior --guide --steps --fast-steps --out --resume --device --dtype --seed"
    " --config --set",
    "sample": "--prompt --prompt-file --num --max-tokens --temperature --top-k --top-p --fast-steps --seed --json",
    "eval": "--data --protocol --samples --block-size --information --fast-steps --json",
    "gsm8k": "--data --examples --shots --samples --k --max-tokens --temperature --max-problems --fast-steps --json",
    "info": "--json",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_help_names_every_option(cli: Run, name: str):
    result = cli(name, "--help")
    assert result.code == 0
    for option in OPTIONS[name].split():
        assert f"  {option}" in result.out
    context = click.Context(group)
    command = group.get_command(context, name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_help_of_training_names_every_prior_and_guide(cli: Run):
    printed = cli("train", "--help").out.replace("-\n", "-")
    words = set(printed.replace(",", " ").split())
    assert not {*PRIORS, *GUIDES} - words


def test_help_names_every_command(cli: Run):
    printed = cli("--help").out
    assert all(f"  {name}" in printed for name in OPTIONS)
    assert cli("--version").out.startswith("ltm-pyro ")


def test_help_does_not_wait_for_torch():
    script = """
import sys
from ltm_pyro.cli.main import cli
for arguments in (["--help"], *([name, "--help"] for name in ("train", "sample", "eval", "info"))):
    try:
        cli(arguments)
    except SystemExit as end:
        assert end.code == 0
slow = {"torch", "pyro", "numpy", "tokenizers", "rich", "datasets"} & set(sys.modules)
assert not slow, slow
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
