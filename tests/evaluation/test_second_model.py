"""Second models: what a run and a transformers model say of a text, against their own libraries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_models import FakeModel

from ltm_pyro.baselines import Autoregressive, TransformerShape
from ltm_pyro.batch import TokenBatch
from ltm_pyro.data import Data, Tokenizer
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.generation.huggingface import HuggingFaceModel, is_huggingface
from ltm_pyro.evaluation.generation.second_model import RunModel
from ltm_pyro.evaluation.prequential import block_log_probs
from ltm_pyro.infer import FastSlowSVI
from ltm_pyro.language_model import ThoughtLanguageModel

TEXTS = ["the cat sat on a mat", "one dog ran", "a blue bird"]


@pytest.fixture
def run(svi: FastSlowSVI, data: Data) -> RunModel:
    return RunModel(ThoughtLanguageModel(svi), data.tokenizer, "run", samples=2, block_size=4, seed=3)


def test_a_run_scores_by_prequential_prediction(run: RunModel, svi: FastSlowSVI, data: Data):
    report = run.score(TEXTS, [""] * 3, [True, False, True])
    end = data.tokenizer.end_of_text
    encoded = [data.tokenizer.encode(text) for text in TEXTS]
    for i, ids in enumerate(encoded):
        batch = TokenBatch.from_lists([[*ids, end] if i != 1 else ids], end)
        expected = -block_log_probs(svi, batch, samples=2, block_size=4, seed=3).sum()
        assert float(report.values["prequential"][i]) == pytest.approx(float(expected), rel=1e-5)
    assert report.num_scored.tolist() == [len(encoded[0]) + 1, len(encoded[1]), len(encoded[2]) + 1]
    assert (run.protocol, run.exact) == ("prequential", True)


def test_a_prompt_is_read_and_not_scored(run: RunModel, data: Data):
    whole = run.score(["the cat sat on a mat"], [""], [False])
    rest = run.score([" on a mat"], ["the cat sat"], [False])
    count = len(data.tokenizer.encode(" on a mat"))
    assert rest.num_scored.tolist() == [count]
    assert float(rest.values["prequential"]) < float(whole.values["prequential"])


def test_what_a_run_does_not_reach_is_left_out():
    tokenizer = Tokenizer.train(["plain words"], 257)
    short = RunModel(FakeModel(max_length=5), tokenizer, "short")
    report = short.score(["abcdefgh", "ab"], ["", "x"], [True, True])
    # A place is kept for the end-of-text token, which is scored for the second text alone: the first is cut before it.
    assert report.num_scored.tolist() == [4, 3]
    assert float(report.values["likelihood"][0]) == pytest.approx(sum(tokenizer.encode("abcd")) / 10)
    with pytest.raises(LTMError, match="short reads 5 tokens at most"):
        short.score(["abc"], ["a long prompt"], [False])


def test_features_of_a_run_are_of_the_whole_text_in_any_batch(run: RunModel, svi: FastSlowSVI, data: Data):
    features = run.features([*TEXTS, ""])
    assert features.shape == (4, 16)
    assert np.isfinite(features).all()
    for text, row in zip(TEXTS, features, strict=False):
        np.testing.assert_allclose(run.features([text])[0], row, rtol=1e-3, atol=1e-4)
    # The last hidden state: what the decoder would predict the next token from.
    ids = data.tokenizer.encode(TEXTS[0])
    posterior = svi.infer(TokenBatch.from_lists([ids], data.tokenizer.end_of_text), seed=3)
    longer = TokenBatch.from_lists([[*ids, 5]], data.tokenizer.end_of_text)
    with torch.no_grad():
        hidden = svi.model.decoder(svi.model.decoder.stem(longer.inputs), posterior.mean)[0, -1]
    np.testing.assert_allclose(features[0], hidden.numpy(), rtol=1e-3, atol=1e-4)
    assert not np.allclose(features[0], run.features([TEXTS[0][:-1] + "p"])[0], atol=1e-3)


def test_features_of_an_autoregressive_model_are_of_the_whole_text():
    torch.manual_seed(0)
    model = Autoregressive(
        TransformerShape(vocab_size=270, layers=1, hidden=8, heads=2, feed_forward=8, window=16, max_length=16)
    )
    tokenizer = Tokenizer.train(["a"], 257)
    features = RunModel(model, tokenizer, "ar").features(["abc", "", "abcdef"])
    batch = TokenBatch.from_lists([[*tokenizer.encode("abc"), 9]], tokenizer.end_of_text)
    with torch.no_grad():
        hidden = model.network(batch.inputs)[0, -1]
    np.testing.assert_allclose(features[0], hidden.numpy(), rtol=1e-4, atol=1e-6)
    assert features.shape == (3, 8)


def test_a_kind_of_model_without_features_says_so():
    model = RunModel(FakeModel(), Tokenizer.train(["a"], 257), "fake")
    with pytest.raises(LTMError, match="kind fake has no features"):
        model.features(["a"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 of random weights with a byte-level tokenizer, as ``save_pretrained`` leaves it."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    path = tmp_path_factory.mktemp("huggingface")
    Tokenizer.train(TEXTS, 280).save(path / "tokenizer.json")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=280,
        n_positions=24,
        n_embd=8,
        n_layer=1,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    return path


def test_a_transformers_model_scores_as_its_library_does(folder: Path, capfd: pytest.CaptureFixture[str]):
    model = HuggingFaceModel(folder)
    assert capfd.readouterr() == ("", "")
    report = model.score([" on a mat", "one dog"], ["the cat", ""], [True, False])
    for i, (text, prompt, end) in enumerate([(" on a mat", "the cat", True), ("one dog", "", False)]):
        context, scored = model.tokenizer.encode(prompt) if prompt else [], model.tokenizer.encode(text) + [0] * end
        ids = torch.tensor([[0, *context, *scored]])
        labels = ids.clone()
        labels[0, : 1 + len(context)] = -100
        with torch.no_grad():
            loss = float(model.model(input_ids=ids, labels=labels).loss)
        assert int(report.num_scored[i]) == len(scored)
        assert float(report.values["likelihood"][i]) == pytest.approx(loss * len(scored), rel=1e-5)
    assert report.mean("likelihood")[0] == pytest.approx(
        float(report.values["likelihood"].sum()) / int(report.num_scored.sum())
    )


def test_a_transformers_model_has_its_last_hidden_state_as_features(folder: Path):
    model = HuggingFaceModel(folder)
    found = model.features(["the cat", "", "the cat sat on a mat and " * 9])
    assert found.shape == (3, 8)
    with torch.no_grad():
        hidden = model.model.transformer(torch.tensor([[0, *model.tokenizer.encode("the cat")]])).last_hidden_state
    np.testing.assert_allclose(found[0], hidden[0, -1].numpy(), rtol=1e-5, atol=1e-6)


def test_what_a_transformers_model_does_not_reach_is_left_out(folder: Path):
    model = HuggingFaceModel(folder)
    assert model.max_length == 23
    assert model.score(["z" * 90], [""], [True]).num_scored.tolist() == [23]
    with pytest.raises(LTMError, match="reads 23 tokens at most"):
        model.score(["a"], ["z" * 90], [True])


def test_folders_are_told_apart_by_their_config(folder: Path, tmp_path: Path):
    assert is_huggingface(folder)
    (tmp_path / "config.json").write_text('{"format": 1, "settings": {}}')
    assert not is_huggingface(tmp_path)
    assert not is_huggingface(tmp_path / "missing")


def test_a_folder_without_weights_is_one_line(folder: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(LTMError, match="not a sound causal language model with its tokenizer"):
        HuggingFaceModel(tmp_path)
