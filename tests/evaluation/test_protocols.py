"""The protocols: batch size changes nothing, the seed settles everything, and the standard error is the ratio's."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_settings, write_corpus

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data import Data, Tokenizer, build_data
from ltm_pyro.data.fables import generate as generate_fables
from ltm_pyro.data.fables import log_prob
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation import PROTOCOLS, Protocol, Report, evaluate, generator_entropy, validation_data
from ltm_pyro.guides import LocalNormal
from ltm_pyro.infer import FastSlowSVI


def report_of(
    elbos: list[float], kls: list[float], counts: list[int], protocols: Sequence[Protocol] = ("elbo", "reconstruction")
) -> Report:
    elbo, kl = torch.tensor(elbos).double(), torch.tensor(kls).double()
    values = {"elbo": -elbo, "reconstruction": -elbo - kl, "kl": kl}
    return Report(values, torch.tensor(counts), samples=1, fast_steps=2, seed=3, protocols=protocols)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_batch_size_changes_nothing(svi: FastSlowSVI, data: Data, samples: int):
    indices = range(7)
    one = evaluate(svi, data.train, indices, samples=samples, batch_size=1)
    for size in (3, 100):
        many = evaluate(svi, data.train, indices, samples=samples, batch_size=size)
        torch.testing.assert_close(many.values, one.values, rtol=1e-5, atol=1e-4)
        assert torch.equal(many.num_scored, one.num_scored)


def test_the_order_of_the_sequences_changes_nothing(svi: FastSlowSVI, data: Data):
    forward = evaluate(svi, data.train, [0, 1, 2, 3], batch_size=2)
    backward = evaluate(svi, data.train, [3, 2, 1, 0], batch_size=2)
    torch.testing.assert_close(backward.values["elbo"].flip(0), forward.values["elbo"], rtol=1e-5, atol=1e-4)


def test_the_seed_settles_the_numbers_and_the_global_stream_does_not(svi: FastSlowSVI, data: Data):
    first = evaluate(svi, data.train, range(4), seed=5)
    torch.manual_seed(999)
    assert torch.equal(evaluate(svi, data.train, range(4), seed=5).values["elbo"], first.values["elbo"])
    assert not torch.equal(evaluate(svi, data.train, range(4), seed=6).values["elbo"], first.values["elbo"])


def test_evaluation_leaves_no_trace(svi: FastSlowSVI, data: Data):
    before = {name: value.clone() for name, value in svi.model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(svi, data.train, range(3), samples=2)
    assert all(torch.equal(before[name], value) for name, value in svi.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad and p.grad is None for p in svi.model.parameters())


def test_values_are_the_posteriors_own_terms_on_noise_after_the_fit(svi: FastSlowSVI, data: Data):
    report = evaluate(svi, data.train, [4, 9], samples=2, fast_steps=5, fast_lr=0.2, seed=8)
    posterior = svi.infer(data.train.batch([4, 9]), steps=5, lr=0.2, seed=8)
    terms = posterior.elbo_terms(2)
    torch.testing.assert_close(report.values["reconstruction"].float(), -terms.log_likelihood)
    torch.testing.assert_close(report.values["kl"].float(), terms.kl)
    tokens = int(data.train.lengths[[4, 9]].sum())
    row = report.to_dict()
    assert row["reconstruction"] == pytest.approx(-float(terms.log_likelihood.sum()) / tokens)
    assert row["elbo"] == pytest.approx(row["reconstruction"] + row["kl"])
    assert (row["tokens"], row["sequences"], row["samples"]) == (tokens, 2, 2)
    assert (row["fast_steps"], row["seed"]) == (5, 8)


def test_more_fast_steps_lower_the_bound(svi: FastSlowSVI, data: Data):
    narrow = FastSlowSVI(svi.model, LocalNormal(svi.model, init_log_var=-3.0))  # a start far from the prior
    bounds = [evaluate(narrow, data.train, range(6), fast_steps=t).mean("elbo")[0] for t in (0, 4, 16)]
    assert bounds[0] > bounds[1] + 0.1 > bounds[2] + 0.2


def test_the_mean_is_over_tokens_and_not_over_sequences():
    report = report_of([-30.0, -10.0], [3.0, 1.0], [10, 30])
    assert report.mean("elbo")[0] == pytest.approx(40 / 40)
    assert report.mean("kl")[0] == pytest.approx(4 / 40)
    assert report.mean("reconstruction")[0] == pytest.approx(36 / 40)


def slow_standard_error(values: list[float], counts: list[int]) -> float:
    """Of the ratio of sums (Cochran 1977, (6.13), an infinite population): s_d / (√n · mean count)."""
    n = len(values)
    ratio = sum(values) / sum(counts)
    squares = 0.0
    for value, count in zip(values, counts, strict=True):
        squares += (value - ratio * count) ** 2
    return math.sqrt(squares / (n - 1)) / (math.sqrt(n) * (sum(counts) / n))


def test_the_standard_error_is_that_of_a_ratio():
    draw = random.Random(0)
    counts = [draw.randint(5, 60) for _ in range(9)]
    elbos = [-2.0 * count + draw.gauss(0, 4) for count in counts]
    report = report_of(elbos, [1.0] * 9, counts)
    assert report.mean("elbo")[1] == pytest.approx(slow_standard_error([-e for e in elbos], counts))


def test_the_standard_error_is_the_spread_of_repeated_experiments():
    draw = random.Random(1)
    means, errors = [], []
    for _ in range(400):
        counts = [draw.randint(20, 60) for _ in range(40)]
        elbos = [-2.0 * count + draw.gauss(0, 8) for count in counts]
        mean, error = report_of(elbos, [0.0] * 40, counts).mean("elbo")
        means.append(mean)
        errors.append(error)
    spread = float(torch.tensor(means).std())
    # 400 repetitions know their spread to 1 / √800 = 3.5 %; four of these.
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.14)


def test_equal_values_per_token_have_no_error_and_one_sequence_has_none_to_give():
    assert report_of([-20.0, -60.0], [0.0, 0.0], [10, 30]).mean("elbo") == pytest.approx((2.0, 0.0), abs=1e-9)
    single = report_of([-20.0], [1.0], [10])
    assert math.isnan(single.mean("elbo")[1])
    assert single.to_dict()["elbo_se"] is None  # JSON has no NaN


def test_a_report_leaves_out_the_protocols_that_were_not_asked_for():
    report = report_of([-20.0, -30.0], [1.0, 2.0], [10, 12])
    assert set(report.to_dict()) >= {"elbo", "reconstruction", "kl", "elbo_se", "reconstruction_se", "kl_se"}
    assert "elbo" not in report_of([-20.0, -30.0], [1.0, 2.0], [10, 12], ["reconstruction"]).to_dict()
    assert PROTOCOLS == ("elbo", "reconstruction", "iwae", "prequential")
    with pytest.raises(LTMError, match="no 'iwae', only elbo and reconstruction and kl: name it in protocols"):
        report.mean("iwae")


def test_nothing_to_score_is_refused(svi: FastSlowSVI, data: Data):
    with pytest.raises(LTMError, match="no sequences to evaluate"):
        evaluate(svi, data.train, [])
    with pytest.raises(LTMError, match="samples must be 1 or more, got 0"):
        evaluate(svi, data.train, [0], samples=0)
    with pytest.raises(LTMError, match="block_size must be 1 or more, got 0"):
        evaluate(svi, data.train, [0], protocols=["prequential"], block_size=0)
    with pytest.raises(LTMError, match="protocols must be some of elbo, reconstruction, iwae, prequential, got none"):
        evaluate(svi, data.train, [0], protocols=[])


def test_the_validation_data_of_a_run_are_those_that_training_held_out(tmp_path: Path, data: Data):
    corpus = write_corpus(tmp_path / "corpus.txt")
    settings = tiny_settings({"data.source": str(corpus), "data.layout": "documents"})
    found = validation_data(settings, data.tokenizer)
    assert len(found) == len(data.validation)
    assert all(
        torch.equal(found.batch([i]).tokens, data.validation.batch([i]).tokens) for i in range(len(data.validation))
    )


def test_another_source_is_scored_whole(tmp_path: Path, data: Data):
    other = write_corpus(tmp_path / "other.txt", documents=5, seed=9)
    found = validation_data(tiny_settings({"data.layout": "documents"}), data.tokenizer, str(other))
    assert found.num_documents == 5
    tokens = found.batch(range(len(found))).tokens
    first = other.read_text().split("\n\n")[0]
    assert data.tokenizer.decode(tokens[0].tolist()).startswith(first[:20])


def test_the_column_of_another_source_can_be_named(tmp_path: Path, data: Data):
    (tmp_path / "other.jsonl").write_text('{"story": "the cat sat on a mat"}\n')
    source = str(tmp_path / "other.jsonl")
    assert validation_data(tiny_settings(), data.tokenizer, source, "story").num_documents == 1
    with pytest.raises(LTMError, match="no column 'text'; there is story"):
        validation_data(tiny_settings(), data.tokenizer, source)


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[Path, Data]:
    rows = [{"text": f"the {'cat' if i % 2 else 'dog'} sat on mat {i}", "animal": "dc"[i % 2]} for i in range(40)]
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"vocab_size": 300, "sequence_length": 32, "validation_fraction": 0.3, "label_column": "animal"}
    return path, build_data(source=str(path), **options)


def test_evaluation_never_sees_labels(svi: FastSlowSVI, labelled: tuple[Path, Data], inferred: list[TokenBatch]):
    data = labelled[1]
    evaluate(svi, data.validation, range(len(data.validation)), batch_size=4)
    assert data.validation.batch([0]).labels is not None
    assert sum(map(len, inferred)) == len(data.validation)
    assert all(batch.labels is None for batch in inferred)


def test_validation_data_number_the_classes_as_the_run_does(labelled: tuple[Path, Data], tmp_path: Path):
    path, data = labelled
    settings = tiny_settings({"data.source": str(path), "data.label_column": "animal", "data.validation_fraction": 0.3})
    every = range(len(data.validation))
    found = validation_data(settings, data.tokenizer, class_names=data.class_names)
    assert found.layout == "documents"
    assert torch.equal(found.batch(every).tokens, data.validation.batch(every).tokens)
    assert torch.equal(found.batch(every).labels, data.validation.batch(every).labels)
    assert validation_data(settings, data.tokenizer).batch(every).labels is None
    (tmp_path / "other.jsonl").write_text('{"text": "a", "y": "d"}\n{"text": "b", "y": "new"}\n')
    other = str(tmp_path / "other.jsonl")
    named = validation_data(settings, data.tokenizer, other, class_names=data.class_names, label_column="y")
    assert named.batch([0, 1]).labels.tolist() == [data.class_names.index("d"), -1]
    (tmp_path / "plain.txt").write_text("the cat")  # has no classes, and can be scored all the same
    plain = validation_data(settings, data.tokenizer, str(tmp_path / "plain.txt"), class_names=data.class_names)
    assert plain.batch([0]).labels.tolist() == [-1]


def test_the_generators_entropy_is_that_of_whole_fables_and_none_for_cut_ones():
    settings = {"data.source": "fables", "data.documents": 40}
    texts = [fable.text for fable in generate_fables(3, seed=0, split="validation")]
    tokenizer = Tokenizer.train(texts, 300)
    whole = validation_data(tiny_settings(settings | {"data.sequence_length": 4096}), tokenizer, "fables")
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in texts)  # the end-of-text token is scored, too
    nats = -sum(float(log_prob(text)) for text in texts)
    assert generator_entropy(whole, range(3), tokenizer) == pytest.approx(nats / tokens)
    cut = validation_data(tiny_settings(settings), tokenizer, "fables")
    assert generator_entropy(cut, range(3), tokenizer) is None
