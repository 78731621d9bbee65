"""A run as a model of lm-evaluation-harness: its answers against independent ones, and its numbers against eval's."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import new_trainer, tiny_data

from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation import block_log_probs
from ltm_pyro.evaluation.harness.options import cut, read_generation
from ltm_pyro.training import LoadedRun, load_run

lm_eval = pytest.importorskip("lm_eval", reason="the harness is an extra: pip install 'ltm-pyro[lm-eval]'")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import CachingLM  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.evaluator import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from ltm_pyro.evaluation.harness import HarnessModel, command_line, documents  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
OPTIONS: dict[str, Any] = {"samples": 3, "fast_steps": 2, "block_size": 8, "device": "cpu"}
LENGTH = 32  # of the sequences that the tiny run was trained on
DRAWS = {"samples": 3, "block_size": 8, "steps": 2}
"""`OPTIONS` as `block_log_probs` calls them."""

CONTEXT = "the cat sat on a mat and saw"
TEXTS = [
    "the cat sat on a mat",
    " ".join(["one dog run to red hill while a blue bird sang its old song"] * 4),  # several pieces
    "",
    "a café — ¡olé!\n\n  two lines, with  spaces at the end \n",
    "song",
    "  \n ",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A finished run of a kind of model, whose sequences are documents; not to be changed."""
    folder = tmp_path_factory.mktemp("harness")
    data = tiny_data(folder, layout="documents")

    @cache
    def train(kind: str) -> Path:
        changes = {"training.steps": 12, "training.slow_lr": 0.05, "data.layout": "documents", "model.name": kind}
        new_trainer(folder / kind, data, changes).fit()
        return folder / kind

    return train


@pytest.fixture(scope="module")
def path(trained: Callable[[str], Path]) -> Path:
    return trained("ltm")


@pytest.fixture(scope="module")
def run(path: Path) -> LoadedRun:
    return load_run(path, device="cpu")


@pytest.fixture
def model(path: Path) -> HarnessModel:
    return HarnessModel(str(path), batch_size=4, **OPTIONS)


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, arguments=a, idx=i) for i, a in enumerate(arguments)]


def likelihoods(model: HarnessModel, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    return model.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)


def rolling(model: HarnessModel, texts: Sequence[str]) -> list[float]:
    return model.loglikelihood_rolling(asked("loglikelihood_rolling", *((t,) for t in texts)), disable_tqdm=True)


def written(model: HarnessModel, *requests: tuple[str, dict[str, Any]]) -> list[str]:
    return model.generate_until(asked("generate_until", *requests), disable_tqdm=True)


def test_tokens_are_those_of_the_run_and_give_the_text_back(model: HarnessModel, run: LoadedRun):
    for text in TEXTS:
        assert model.tok_encode(text) == run.tokenizer.encode(text)
        assert model.tok_decode(model.tok_encode(text)) == text
    assert model.eot_token_id == model.prefix_token_id == run.tokenizer.end_of_text
    assert model.max_length == LENGTH


def test_the_harness_default_device_is_the_cpu_where_there_is_no_other(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(HarnessModel(str(path), device="cuda:0")._device) == "cpu"  # lm_eval without --device
    with pytest.raises(LTMError, match="cuda:1"):
        HarnessModel(str(path), device="cuda:1")


def test_continuation_is_scored_as_a_block_after_its_context(model: HarnessModel, run: LoadedRun):
    told = run.tokenizer.encode(CONTEXT)
    continuations = [" one dog", " song", " a blue bird sang"]
    answers = likelihoods(model, *((CONTEXT, c) for c in continuations))
    for (found, _), continuation in zip(answers, continuations, strict=True):
        said = run.tokenizer.encode(continuation)
        batch = TokenBatch.from_lists([told + said], run.tokenizer.end_of_text)
        blocks = block_log_probs(run.svi, batch, lr=run.fast_lr, **DRAWS | {"block_size": len(told)})
        assert len(said) <= len(told)
        assert found == pytest.approx(float(blocks[0, 1]), rel=1e-5)


def test_without_a_context_the_thoughts_are_the_priors(model: HarnessModel, run: LoadedRun):
    text = "a blue bird sang its old song"
    batch = TokenBatch.from_lists([run.tokenizer.encode(text)], run.tokenizer.end_of_text)
    expected = float(block_log_probs(run.svi, batch, lr=run.fast_lr, **DRAWS | {"block_size": LENGTH}).sum())
    assert likelihoods(model, ("", text))[0][0] == pytest.approx(expected, rel=1e-5)
    model.block_size = LENGTH
    assert rolling(model, [text])[0] == pytest.approx(expected, rel=1e-5)


def test_spaces_at_the_contexts_end_belong_to_the_continuation(model: HarnessModel):
    apart, joined, blank = likelihoods(model, ("the cat", " sat"), ("the cat ", "sat"), ("  ", "sat"))
    assert apart == joined
    assert blank[0] == pytest.approx(likelihoods(model, ("", "  sat"))[0][0], rel=1e-5)


def test_a_continuation_that_joins_the_contexts_last_token_is_scored_by_itself(model: HarnessModel):
    context, continuation = "the ca", "t"
    assert (
        len(model.tok_encode(context + continuation))
        == len(model.tok_encode("the")) + 1
        < len(model.tok_encode(context))
    ), "this tokenizer does not join them: choose other words"
    assert likelihoods(model, (context, continuation))[0][0] < 0


def test_a_long_context_loses_its_first_tokens(model: HarnessModel, run: LoadedRun):
    context = " ".join(["one dog run to red hill while a blue bird"] * 5)
    whole = run.tokenizer.encode(context + " sang")
    count = len(run.tokenizer.encode(" sang"))
    assert len(whole) > LENGTH + 1
    batch = TokenBatch.from_lists([whole[-LENGTH:]], whole[-LENGTH - 1])
    scored = torch.arange(LENGTH)[None] >= LENGTH - count
    batch = TokenBatch(batch.tokens, batch.lengths, batch.start, scored)
    expected = run.language_model.predict(batch, samples=3, fast_steps=2)
    found = likelihoods(model, (context, " sang"), ("song " + context, " sang"))
    assert found[0] == (pytest.approx(float(expected.log_prob), rel=1e-6), bool(expected.greedy))
    assert found[0] == found[1]


def test_a_continuation_that_does_not_fit_is_refused(model: HarnessModel):
    with pytest.raises(LTMError, match=r"'the cat' has \d+ tokens but .* at most 32"):
        likelihoods(model, ("the cat", TEXTS[1]))


def test_probabilities_of_the_next_token_add_up_and_one_is_greedy(model: HarnessModel):
    model.batch_size = 64
    told = model.tok_encode("the cat sat")
    requests = [(("the cat sat", str(v)), told, [v]) for v in range(model._model.vocab_size)]
    found = model._loglikelihood_tokens(requests, disable_tqdm=True)
    log_probs = torch.tensor([log_prob for log_prob, _ in found], dtype=torch.float64)
    assert float(log_probs.logsumexp(0)) == pytest.approx(0, abs=1e-5)
    assert [v for v, (_, greedy) in enumerate(found) if greedy] == [int(log_probs.argmax())]


def test_rolling_scores_the_pieces_of_each_text_without_its_end(model: HarnessModel, run: LoadedRun):
    for text, found in zip(TEXTS, rolling(model, TEXTS), strict=True):
        ids, start, expected = run.tokenizer.encode(text), run.tokenizer.end_of_text, 0.0
        for first in range(0, len(ids), LENGTH):
            piece = TokenBatch.from_lists([ids[first : first + LENGTH]], ids[first - 1] if first else start)
            expected += float(block_log_probs(run.svi, piece, lr=run.fast_lr, **DRAWS).sum())
        assert found == pytest.approx(expected, rel=1e-5)
    assert rolling(model, [""]) == [0.0]
    assert rolling(model, []) == []


def test_answers_do_not_depend_on_the_batch(path: Path):
    pairs = [(CONTEXT, " one dog"), ("", "song"), ("a mat", " and saw one dog"), ("red", " hill"), (CONTEXT, " a")]
    alone, together = (HarnessModel(str(path), batch_size=size, **OPTIONS) for size in (1, "auto"))
    assert together.batch_size == 8
    one, all_ = likelihoods(alone, *pairs), likelihoods(together, *pairs)
    assert [greedy for _, greedy in one] == [greedy for _, greedy in all_]
    assert [p for p, _ in one] == pytest.approx([p for p, _ in all_], rel=1e-5)
    assert likelihoods(alone, *reversed(pairs)) == list(reversed(one))
    assert rolling(alone, TEXTS) == pytest.approx(rolling(together, TEXTS), rel=1e-5)
    assert rolling(together, TEXTS) == rolling(together, TEXTS)


def test_the_seed_is_that_of_the_draws(path: Path):
    first, same, other = (HarnessModel(str(path), seed=seed, **OPTIONS) for seed in (1, 1, 2))
    assert likelihoods(first, (CONTEXT, " one")) == likelihoods(same, (CONTEXT, " one"))
    assert likelihoods(first, (CONTEXT, " one")) != likelihoods(other, (CONTEXT, " one"))


def test_an_autoregressive_model_answers_by_the_chain_rule(trained: Callable[[str], Path]):
    model = HarnessModel(str(trained("ar")), **OPTIONS)
    whole, told = rolling(model, [CONTEXT + " one dog run", CONTEXT])
    assert likelihoods(model, (CONTEXT, " one dog run"))[0][0] == pytest.approx(whole - told, rel=1e-4)


def test_a_text_is_the_models_own_up_to_the_first_stop_string(model: HarnessModel, run: LoadedRun):
    options = {"start": run.tokenizer.end_of_text, "stop": run.tokenizer.end_of_text, "max_tokens": 20}
    prompt = run.tokenizer.encode(CONTEXT)
    greedy = run.language_model.generate(
        **options, prompt=prompt, sampling=Sampling(temperature=0), fast_steps=2, seed=0
    )
    full = run.tokenizer.decode(greedy[0])
    assert len(full) > 8
    until = [full[6:8], full[4:6]]
    found = written(
        model, (CONTEXT, {"max_gen_toks": 20}), (CONTEXT, {"until": until, "max_gen_toks": 20, "do_sample": False})
    )
    assert found[0] == full
    assert found[1] == min((full.split(stop)[0] for stop in until), key=len)


def test_a_text_is_no_longer_written_once_it_has_its_stop_string(model: HarnessModel, monkeypatch: pytest.MonkeyPatch):
    drawn: list[int] = []
    generate_batch = type(model._model).generate_batch

    def spy(self, prompts, **options):
        texts = generate_batch(self, prompts, **options)
        drawn.extend(len(text) for own in texts for text in own)
        return texts

    monkeypatch.setattr(type(model._model), "generate_batch", spy)
    (whole,) = written(model, (CONTEXT, {"max_gen_toks": 40}))
    (short,) = written(model, (CONTEXT, {"max_gen_toks": 40, "until": [whole[2:4]]}))
    assert short == whole.partition(whole[2:4])[0]
    assert drawn == [40, 16]


def test_equal_requests_have_texts_of_their_own_and_the_seed_gives_them_back(model: HarnessModel):
    draw = (CONTEXT, {"max_gen_toks": 12, "do_sample": True, "temperature": 1.0, "top_p": 0.95})
    texts = written(model, draw, draw, ("red", draw[1]), draw)
    assert len({texts[0], texts[1], texts[3]}) == 3
    assert written(model, draw, draw, ("red", draw[1]), draw) == texts


@pytest.mark.parametrize("kind", ["ltm", "ar", "mdlm"])
def test_a_long_or_empty_prompt_is_continued(trained: Callable[[str], Path], kind: str):
    model = HarnessModel(str(trained(kind)), **OPTIONS)
    few, many = {"max_gen_toks": 4, "temperature": 1.0}, {"max_gen_toks": 2 * LENGTH, "temperature": 1.0}
    long, same, beyond, empty = written(
        model, ("song " * 5 + TEXTS[1], few), (TEXTS[1], few), (TEXTS[1], many), ("", few)
    )
    assert long == same  # what was cut off changes nothing
    assert long
    assert beyond
    assert empty


def test_a_prompt_leaves_room_for_the_text_but_keeps_half(model: HarnessModel, monkeypatch: pytest.MonkeyPatch):
    kept: list[list[int]] = []

    def generate_batch(self, prompts, **options):
        kept.extend(prompts)
        return [[[0]] for _ in prompts]

    monkeypatch.setattr(type(model._model), "generate_batch", generate_batch)
    whole = model.tok_encode(TEXTS[1])
    written(model, *((TEXTS[1], {"max_gen_toks": most}) for most in (1, 10, LENGTH)), ("song", {"max_gen_toks": 256}))
    assert kept == [whole[-LENGTH + 1 :], whole[-LENGTH + 10 :], whole[-LENGTH // 2 :], model.tok_encode("song")]


def test_generation_options_are_read_as_the_harness_means_them():
    assert read_generation({}) == ([], 256, Sampling(temperature=0))
    assert read_generation({"until": "\n", "max_new_tokens": 3}) == (["\n"], 3, Sampling(temperature=0))
    assert read_generation({"do_sample": True})[2] == Sampling(temperature=1)
    assert read_generation({"temperature": 0.5, "top_k": 0, "top_p": 0.9})[2] == Sampling(temperature=0.5, top_p=0.9)
    assert read_generation({"temperature": 0.5, "do_sample": False})[2] == Sampling(temperature=0)
    with pytest.raises(LTMError, match=r"no generation option 'max_gen_tokens': did you mean 'max_gen_toks'"):
        read_generation({"max_gen_tokens": 3})
    with pytest.raises(LTMError, match="num_beams must be 1, got 4"):
        read_generation({"num_beams": 4})


def test_a_text_is_cut_at_whichever_stop_string_comes_first():
    assert cut("one. two\nthree", ["\n", "."]) == "one"
    assert cut("one", ["", "two"]) == "one"
    assert cut("one", []) == "one"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs a run: --model_args pretrained=RUN"),
        ({"pretrained": "nowhere"}, "no run at nowhere"),
        ({"pretrained": "nowhere", "sample": 3}, "no argument 'sample': did you mean 'samples'"),
        ({"pretrained": "nowhere", "samples": 0}, "samples must be 1 or more, got 0"),
        ({"pretrained": "nowhere", "batch_size": "many"}, "batch_size must be a whole number, got 'many'"),
        ({"pretrained": "nowhere", "seed": -1}, "seed must lie in 0"),
        ({"pretrained": "nowhere", "fast_steps": -1}, "fast_steps must be 0 or more, got -1"),
    ],
    ids=str,
)
def test_bad_arguments_are_told(arguments: dict[str, Any], message: str):
    with pytest.raises(LTMError, match=re.escape(message)):
        get_model("ltm-pyro").create_from_arg_obj(arguments, {"batch_size": None, "device": "cpu"})


def test_a_missing_harness_is_told(monkeypatch: pytest.MonkeyPatch):
    for name in ("harness", "harness.model"):
        monkeypatch.delitem(sys.modules, f"ltm_pyro.evaluation.{name}")
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)
    with pytest.raises(LTMError, match=r"pip install 'ltm-pyro\[lm-eval\]'"):
        importlib.import_module("ltm_pyro.evaluation.harness")


def test_the_harness_keeps_its_own_models():
    assert get_model("dummy").__name__ == "DummyLM"
    assert get_model("ltm-pyro") is HarnessModel


def test_the_entry_point_that_later_harnesses_read_is_the_class():
    declared = re.search(
        r'^\[project\.entry-points\."lm_eval\.models"\].*\nltm-pyro = "(.+):(.+)"$',
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    assert getattr(importlib.import_module(declared[1]), declared[2]) is HarnessModel


def test_the_harness_can_keep_the_answers(model: HarnessModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    requests = asked("loglikelihood", (CONTEXT, " one"), ("", "song")), asked("loglikelihood_rolling", ("song",))
    kept = CachingLM(model, str(tmp_path / "answers.db"))
    first = kept.loglikelihood(requests[0]), kept.loglikelihood_rolling(requests[1])
    monkeypatch.setattr(model, "_model", None)  # nothing is asked of it any more
    assert [tuple(answer) for answer in kept.loglikelihood(requests[0])] == first[0]
    assert kept.loglikelihood_rolling(requests[1]) == first[1]


# The harness's own machinery, on local tasks.


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def documented_tasks() -> dict[str, str]:
    """The task files that docs/lm-eval.md shows, by the names that it gives them."""
    text = (ROOT / "docs" / "lm-eval.md").read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- file: (\S+\.yaml) -->\n```yaml\n(.+?)```", text, flags=re.DOTALL))


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in with the documented task files and data for them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for name, text in documented_tasks().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    write_rows(tmp_path / "held-out.jsonl", [{"text": text} for text in TEXTS])
    write_rows(
        tmp_path / "choices.jsonl",
        [{"context": CONTEXT, "choices": ["one dog", "blue", "song"], "answer": answer} for answer in (0, 1)],
    )
    write_rows(tmp_path / "questions.jsonl", [{"question": "the cat sat", "answer": " on a mat"}] * 2)
    return tmp_path


def harness(path: Path, folder: Path, names: Sequence[str], **arguments: Any) -> dict[str, Any]:
    found = simple_evaluate(
        model="ltm-pyro",
        model_args={"pretrained": str(path), **{k: v for k, v in (OPTIONS | arguments).items() if k != "device"}},
        device="cpu",
        batch_size=8,
        tasks=list(names),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    assert found is not None
    return found


def eval_row(
    path: Path, data: Path, capsys: pytest.CaptureFixture[str], protocol: str = "prequential"
) -> dict[str, Any]:
    """What `ltm-pyro eval` says of a text under `OPTIONS`."""
    from ltm_pyro.cli.main import main

    options = ["--protocol", protocol, "--samples", "3", "--fast-steps", "2", "--block-size", "8"]
    with pytest.raises(SystemExit) as end:
        main(["eval", str(path), "--data", str(data), *options, "--device", "cpu", "--json"])
    assert end.value.code in (0, None)
    return json.loads(capsys.readouterr().out)


def assert_metrics_are_the_nats(result: dict[str, Any], nats: float, rel: float = 1e-12) -> None:
    """The harness's three perplexities, from the nats of the whole of the texts that are not blank."""
    texts = [text for text in TEXTS if text.strip()]
    size, words = sum(len(t.encode()) for t in texts), sum(len(re.split(r"\s+", t)) for t in texts)
    assert result["bits_per_byte,none"] == pytest.approx(nats / size / math.log(2), rel=rel)
    assert result["byte_perplexity,none"] == pytest.approx(math.exp(nats / size), rel=10 * rel)
    assert result["word_perplexity,none"] == pytest.approx(math.exp(nats / words), rel=100 * rel)


@pytest.mark.parametrize(
    ("kind", "protocol", "exact"), [("ltm", "prequential", True), ("ar", "likelihood", True), ("mdlm", "nelbo", False)]
)
def test_rolling_numbers_equal_those_of_eval(
    kind: str,
    protocol: str,
    exact: bool,
    trained: Callable[[str], Path],
    tasks: Path,
    capsys: pytest.CaptureFixture[str],
):
    path = trained(kind)
    row = eval_row(path, tasks / "held-out.jsonl", capsys, protocol)
    assert row["sequences"] > 4  # some texts are cut
    found = harness(path, tasks, ["held_out_text"], end_of_text=True)
    assert_metrics_are_the_nats(found["results"]["held_out_text"], row[protocol] * row["tokens"])
    assert found["config"]["ltm_pyro"] == {
        "run": str(path),
        "step": 12,
        "kind": kind,
        "rolling": protocol,
        "exact": exact,
        "samples": 3,
        "fast_steps": 2,
        "block_size": 8,
        "seed": 0,
        "end_of_text": True,
    }


def test_one_document_has_the_number_of_eval_in_a_packed_run_too(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    packed = shutil.copytree(path, tmp_path / "packed")
    about = json.loads((packed / "config.json").read_text(encoding="utf-8"))
    about["settings"]["data"]["layout"] = "packed"
    (packed / "config.json").write_text(json.dumps(about), encoding="utf-8")
    row = eval_row(packed, write_rows(tmp_path / "one.jsonl", [{"text": TEXTS[1]}]), capsys)
    assert row["sequences"] > 1
    model = HarnessModel(str(packed), batch_size=8, end_of_text=True, **OPTIONS)
    assert rolling(model, [TEXTS[1]])[0] == pytest.approx(-row["prequential"] * row["tokens"], rel=1e-12)


def test_rows_without_text_are_told():
    from datasets import Dataset

    with pytest.raises(LTMError, match="no field 'text', only body"):
        documents(Dataset.from_dict({"body": ["one"]}))


def test_every_kind_of_task_runs(path: Path, tasks: Path, model: HarnessModel):
    found = harness(path, tasks, ["held_out_text", "held_out_choices", "held_out_answers"])
    texts = [text for text in TEXTS if text.strip()]
    assert_metrics_are_the_nats(found["results"]["held_out_text"], -sum(rolling(model, texts)), rel=1e-6)

    choices = [p for p, _ in likelihoods(model, *((CONTEXT, f" {c}") for c in ("one dog", "blue", "song")))]
    assert found["results"]["held_out_choices"]["acc,none"] == (choices.index(max(choices)) in (0, 1)) / 2
    logged = [response[0] for response in found["samples"]["held_out_choices"][0]["resps"]]
    assert [float(p) for p, _ in logged] == pytest.approx(choices, rel=1e-5)

    text = written(model, ("the cat sat", {"until": ["\n", "."], "max_gen_toks": 16}))[0]
    assert found["samples"]["held_out_answers"][0]["resps"] == [[text]]


def test_the_command_of_this_library_runs_the_harness(
    path: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    seen = []
    monkeypatch.setattr("lm_eval.__main__.HarnessCLI.execute", lambda self, args: seen.append(args))
    before = list(sys.argv)
    command_line(["--model", "ltm-pyro", "--tasks", "held_out_text", "--include_path", str(tasks)])
    assert seen[0].model == "ltm-pyro"
    assert seen[0].tasks == ["held_out_text"]
    assert sys.argv == before


@pytest.mark.slow  # a process that imports torch and the harness anew, and indexes all of the harness's tasks
def test_the_harnesss_own_command_finds_the_model(path: Path, tasks: Path, capsys: pytest.CaptureFixture[str]):
    row = eval_row(path, tasks / "held-out.jsonl", capsys)
    arguments = f"pretrained={path},samples=3,fast_steps=2,block_size=8,seed=0,end_of_text=true"
    command = [sys.executable, "-m", "lm_eval", "--model", "ltm-pyro", "--model_args", arguments, "--device", "cpu"]
    # One task by the file that names it, one by its name beside the file that only makes the model known.
    chosen = ["--tasks", "held-out-text.yaml,held_out_choices,ltm-pyro.yaml", "--include_path", "."]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--batch_size", "8", *chosen, "--output_path", "results"],
        env={**os.environ, **offline, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(next((tasks / "results").rglob("*.json")).read_text(encoding="utf-8"))["results"]
    assert_metrics_are_the_nats(found["held_out_text"], row["prequential"] * row["tokens"])
    assert 0 <= found["held_out_choices"]["acc,none"] <= 1
