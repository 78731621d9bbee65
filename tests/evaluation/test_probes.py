"""Probes of the thoughts, against `evaluate`, decoders that hear some layers alone, and the documents' own numbers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny_models import random_thoughts, tiny_decoder
from torch import nn

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data import Data, SequenceDataset
from ltm_pyro.data.fables import fable
from ltm_pyro.decoder.decoding import decode
from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation import evaluate
from ltm_pyro.evaluation.probes import (
    FittedThoughts,
    agreement,
    fit_thoughts,
    interpolate,
    mixed_texts,
    probe_layers,
    swap_thoughts,
)
from ltm_pyro.evaluation.probes.facts import SPOKEN, facts_of, mentions, read_fable
from ltm_pyro.evaluation.probes.interpolation import linear, spherical
from ltm_pyro.evaluation.probes.swaps import MixedText
from ltm_pyro.guides import LocalDelta, LocalNormal, SemiAmortized
from ltm_pyro.infer import FastSlowSVI
from ltm_pyro.likelihood import TokenSequence
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.priors import PRIORS, GaussianPrior, MarkovPrior, Prior, VampPrior

LAYERS = 3


@pytest.fixture(scope="module")
def short(data: Data) -> SequenceDataset:
    """Pieces of documents, of 12 tokens at most: decoding token by token takes most of the time here."""
    return SequenceDataset(data.train.shard, "documents", 12)


def model_of(data: Data, *, hears: tuple[int, ...] = (1, 2, 3), prior: type[Prior] = GaussianPrior) -> FastSlowSVI:
    """A decoder of three layers and large random weights; layers that do not hear give their thoughts no output."""
    decoder = tiny_decoder(
        vocab_size=data.tokenizer.vocab_size, layers=LAYERS, thoughts_per_layer=2, thought_width=4, max_length=32
    )
    for layer in range(LAYERS):
        if layer + 1 not in hears:
            nn.init.zeros_(decoder.blocks[layer].cross_attention.out.weight)
    model = LatentThoughtModel(decoder, prior(decoder.thought_shape))
    if prior is VampPrior:  # refuses guides without an encoder
        return FastSlowSVI(model, SemiAmortized(model))
    return FastSlowSVI(model, LocalNormal(model, init_log_var=-2.0))


def fitted_to(svi: FastSlowSVI, data: SequenceDataset, count: int = 4, **options) -> FittedThoughts:
    return fit_thoughts(svi, data, range(count), **({"fast_steps": 3, "seed": 7} | options))


@pytest.mark.parametrize("samples", [1, 3])
def test_all_layers_kept_reconstruct_as_the_protocol_says(data: Data, short: SequenceDataset, samples: int):
    svi = model_of(data)
    report = evaluate(svi, short, range(4), samples=samples, fast_steps=3, seed=7)
    fitted = fitted_to(svi, short, samples=samples)
    probe, swap = probe_layers(fitted, free_running=False), swap_thoughts(fitted)
    torch.testing.assert_close(probe.nats[LAYERS], report.values["reconstruction"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(swap.nats.diagonal(), report.values["reconstruction"], rtol=1e-5, atol=1e-4)
    value, error = report.mean("reconstruction")
    row = probe.to_dict()["first"][LAYERS]
    assert (row["nats"], row["nats_se"]) == pytest.approx((value, error), rel=1e-5)
    assert (swap.to_dict()["own"], swap.to_dict()["own_se"]) == pytest.approx((value, error), rel=1e-5)


def test_a_point_estimate_in_half_precision_is_scored_as_the_protocol_does(data: Data, short: SequenceDataset):
    model = model_of(data).model
    svi = FastSlowSVI(model, LocalDelta(model), autocast=torch.bfloat16)
    report = evaluate(svi, short, range(3), fast_steps=2, seed=7)
    probe = probe_layers(fitted_to(svi, short, 3, fast_steps=2), free_running=False)
    # bfloat16 has eight bits, and sums of tokens may be taken in another order.
    torch.testing.assert_close(probe.nats[LAYERS], report.values["reconstruction"], rtol=2e-2, atol=0)


def test_rows_keep_the_first_layers_then_one_alone(data: Data, short: SequenceDataset):
    probe = probe_layers(fitted_to(model_of(data), short, 2))
    row = probe.to_dict()
    assert [values["kept"] for values in row["first"]] == [[], [1], [1, 2], [1, 2, 3]]
    assert [values["kept"] for values in row["single"]] == [[1], [2], [3]]
    assert row["first"][1] == row["single"][0]
    assert (row["sequences"], row["tokens"]) == (2, int(short.lengths[:2].sum()))
    json.dumps(row, allow_nan=False)


def test_a_decoder_that_hears_no_thoughts_reconstructs_alike_from_any(data: Data, short: SequenceDataset):
    fitted = fitted_to(model_of(data, hears=()), short)
    probe = probe_layers(fitted)
    for values in (probe.nats, probe.right, probe.reproduced):
        assert torch.equal(values, values[:1].expand_as(values))
    swap = swap_thoughts(fitted)
    torch.testing.assert_close(swap.nats, swap.nats[:1].expand_as(swap.nats))
    assert swap.to_dict()["gap"] == pytest.approx(0.0, abs=1e-5)


def written_by(svi: FastSlowSVI, count: int = 6, length: int = 12) -> FittedThoughts:
    """Documents that are the greedy texts of thoughts that are known, 0 before each."""
    thoughts = random_thoughts(svi.model.decoder, 1, count)
    start, ones = torch.zeros(count, 1, dtype=torch.int64), torch.ones(count, dtype=torch.int64)
    tokens = decode(svi.model.decoder, thoughts[0], start, ones, length, sampling=Sampling(temperature=0)).tokens
    return FittedThoughts(svi, TokenBatch(tokens, ones * length, start[:, 0]), thoughts, thoughts[0], 0, 0, 7)


def test_texts_that_the_thoughts_wrote_are_all_right(data: Data, short: SequenceDataset):
    fitted = written_by(model_of(data))
    probe = probe_layers(fitted)
    assert probe.right[LAYERS].tolist() == probe.reproduced[LAYERS].tolist() == [12.0] * 6
    assert float(probe.right[0].mean()) < 6


@pytest.mark.parametrize("heard", [1, 2, 3])
def test_the_layer_that_alone_determines_the_tokens_is_where_reconstruction_jumps(
    data: Data, short: SequenceDataset, heard: int
):
    probe = probe_layers(written_by(model_of(data, hears=(heard,))))
    has = probe.kept[:, heard - 1]
    assert has.tolist() == [layer >= heard for layer in range(4)] + [layer == heard for layer in (1, 2, 3)]
    for values in (probe.nats, probe.right, probe.reproduced):
        for rows in (values[has], values[~has]):
            assert torch.equal(rows, rows[:1].expand_as(rows))
    rows = probe.to_dict()["first"]
    assert [row["accuracy"] == row["free_accuracy"] == 1.0 for row in rows] == [layer >= heard for layer in range(4)]
    assert rows[heard - 1]["accuracy"] < 0.9
    assert rows[heard - 1]["nats"] > rows[heard]["nats"] + 0.1


def test_right_tokens_are_those_of_the_full_logits(data: Data, short: SequenceDataset):
    svi = model_of(data)
    fitted = fitted_to(svi, short, 3)
    probe = probe_layers(fitted)
    decoder = svi.model.decoder
    for i in range(3):
        batch = short.batch([i])
        with torch.no_grad():
            logits = decoder.logits(decoder(decoder.stem(batch.inputs), fitted.draws[0, i : i + 1]))
        assert probe.right[LAYERS, i] == int((logits.argmax(-1) == batch.tokens).sum())
        nats = -torch.log_softmax(logits, -1).gather(-1, batch.tokens[..., None]).sum()
        assert float(probe.nats[LAYERS, i]) == pytest.approx(float(nats), rel=1e-5)


def test_free_running_counts_the_tokens_that_greedy_decoding_puts_in_place(data: Data, short: SequenceDataset):
    svi = model_of(data)
    fitted = fitted_to(svi, short, 3, fast_steps=20)
    probe = probe_layers(fitted)
    one = torch.ones(1, dtype=torch.int64)
    for i in range(3):
        batch = short.batch([i])
        start, length = batch.start[:, None], batch.tokens.shape[1]
        thoughts = fitted.draws[0, i : i + 1]
        own = decode(svi.model.decoder, thoughts, start, one, length, sampling=Sampling(temperature=0)).tokens
        assert probe.reproduced[LAYERS, i] == int((own == batch.tokens).sum())


def test_layers_that_are_not_kept_get_draws_of_the_prior(data: Data, short: SequenceDataset):
    svi = model_of(data, prior=MarkovPrior)
    fitted = fitted_to(svi, short, 4, samples=500, fast_steps=0)
    drawn = fitted.prior_draws.flatten(0, 1)
    assert not torch.equal(fitted.prior_draws[:, 0], fitted.prior_draws[:, 1])
    # Every entry is N(0, 1) and neighbours are tied by A = I / 2; 2000 draws know a moment to 1 / √2000 = 0.022.
    assert float(drawn.mean((0, 2, 3)).abs().max()) < 0.05
    assert float((drawn.std((0, 2, 3)) - 1).abs().max()) < 0.05
    tied = (drawn[:, :-1] * drawn[:, 1:]).mean((0, 2, 3))
    assert float((tied - 0.5).abs().max()) < 0.05


@pytest.mark.parametrize("name", PRIORS)
def test_every_prior_is_probed(data: Data, short: SequenceDataset, name: str):
    fitted = fitted_to(model_of(data, prior=PRIORS[name]), short, 2, samples=2, fast_steps=1)
    probe = probe_layers(fitted, free_running=False)
    report = evaluate(fitted.svi, short, range(2), samples=2, fast_steps=1, seed=7)
    torch.testing.assert_close(probe.nats[LAYERS], report.values["reconstruction"], rtol=1e-5, atol=1e-4)
    alone = fit_thoughts(fitted.svi, short, [1], samples=2, fast_steps=1, seed=7)
    torch.testing.assert_close(alone.prior_draws[:, 0], fitted.prior_draws[:, 1])


def test_the_batch_size_and_the_other_sequences_change_nothing(data: Data, short: SequenceDataset):
    svi = model_of(data)
    one, many = (fitted_to(svi, short, 3, samples=2, batch_size=size) for size in (2, 9))
    alone = fit_thoughts(svi, short, [2], samples=2, fast_steps=3, seed=7)
    left, right, single = probe_layers(one), probe_layers(many), probe_layers(alone)
    torch.testing.assert_close(left.nats, right.nats, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(single.nats[:, 0], right.nats[:, 2], rtol=1e-5, atol=1e-4)
    assert torch.equal(left.right, right.right)
    assert torch.equal(left.reproduced, right.reproduced)
    torch.testing.assert_close(swap_thoughts(one).nats, swap_thoughts(many).nats, rtol=1e-5, atol=1e-4)
    assert mixed_texts(one, max_tokens=5) == mixed_texts(many, max_tokens=5)
    paths = [interpolate(fitted, path="spherical", steps=3, max_tokens=4) for fitted in (one, many)]
    torch.testing.assert_close(paths[0].nats, paths[1].nats, rtol=1e-5, atol=1e-4)
    assert paths[0].texts == paths[1].texts


def test_the_seed_settles_the_numbers_and_the_global_stream_goes_on_as_if_nothing_was_drawn(
    data: Data, short: SequenceDataset
):
    svi = model_of(data)

    def nats(seed: int) -> torch.Tensor:
        return probe_layers(fitted_to(svi, short, 3, seed=seed)).nats

    state = torch.get_rng_state()
    first = nats(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(999)
    assert torch.equal(nats(5), first)
    other = nats(6)
    assert bool((other != first).all())
    assert all(p.requires_grad and p.grad is None for p in svi.model.parameters())


def test_the_swap_matrix_is_the_likelihood_of_each_text_under_each_posteriors_draws(data: Data, short: SequenceDataset):
    svi = model_of(data)
    fitted = fitted_to(svi, short, 3, samples=2)
    swap = swap_thoughts(fitted)
    for a in range(3):
        for b in range(3):
            batch = short.batch([b])
            likelihood = TokenSequence(svi.model.decoder, fitted.draws[:, a : a + 1], batch)
            with torch.no_grad():
                expected = -float(likelihood.log_prob(batch.tokens).mean())
            assert float(swap.nats[a, b]) == pytest.approx(expected, rel=1e-5)
    off = [swap.nats[a, b] for b in range(3) for a in range(3) if a != b]
    row = swap.to_dict()
    assert row["swapped"] == pytest.approx(float(sum(off)) / 2 / int(swap.num_scored.sum()))
    assert row["gap"] == pytest.approx(row["swapped"] - row["own"])


def test_mixed_texts_of_all_or_no_layers_are_the_documents_own(data: Data, short: SequenceDataset):
    fitted = fitted_to(model_of(data), short, 3)
    own = fitted.write(fitted.draws[0], 8)
    texts = mixed_texts(fitted, max_tokens=8)
    assert [(text.a, text.b, text.layers) for text in texts[:4]] == [(0, 1, 0), (1, 2, 0), (2, 0, 0), (0, 1, 1)]
    for text in texts:
        if text.layers in (0, LAYERS):
            assert text.tokens == own[text.a if text.layers else text.b]


def test_mixed_texts_change_where_the_heard_layer_changes_hands(data: Data, short: SequenceDataset):
    texts = mixed_texts(fitted_to(model_of(data, hears=(2,)), short, 3), max_tokens=8)
    by_layers = [[text.tokens for text in texts if text.layers == layers] for layers in range(LAYERS + 1)]
    assert by_layers[0] == by_layers[1] != by_layers[2] == by_layers[3]


def test_agreement_counts_the_facts_of_each_document():
    a, b, c = ({"place": p, "animal": k, "tense": "past"} for p, k in (("hill", "fox"), ("sea", "hen"), ("sea", "cat")))
    said = {1: a, 2: {"place": "hill", "animal": "hen", "tense": "past"}, 3: None}
    texts = [MixedText(0, 1, 2, [1]), MixedText(0, 1, 2, [2]), MixedText(0, 1, 2, [3]), MixedText(0, 1, 0, [3])]
    found = agreement(texts, [a, b, c], decode=lambda tokens: tokens[0], read=said.__getitem__)
    assert found["chance"] == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)
    none, row = found["layers"]
    assert (none["layers"], none["texts"], none["read"]) == (0, 1, 0)
    assert none["a"] is none["others"] is none["a_apart"] is none["said"] is None
    assert (row["layers"], row["texts"], row["read"], row["said"]) == (2, 3, 2, 3)
    assert row["a"] == pytest.approx((1 + 2 / 3) / 2)
    assert row["b"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert row["others"] == pytest.approx(1 / 3)  # of c, both say the tense alone
    assert (row["a_apart"], row["b_apart"]) == (3 / 4, 1 / 4)
    assert row["facts"] == {"animal": {"a": 0.5, "b": 0.5, "texts": 2}, "place": {"a": 1.0, "b": 0.0, "texts": 2}}


def test_a_fable_says_its_plan_and_another_text_nothing():
    one = fable(3)
    assert read_fable(one.text) == one.plan
    assert read_fable(one.text[:-1]) is None


def test_what_a_fable_mentions_is_in_its_plan_and_most_of_it_is_mentioned():
    told = dict.fromkeys(SPOKEN, 0)
    for number in range(30):
        one = fable(number)
        found = mentions(one.text)
        assert found == {name: one.plan[name] for name in found}
        for name in found:
            told[name] += 1
    assert {name for name, count in told.items() if count < 30} <= {"name", "friend", "weather"}
    assert min(told.values()) > 15


def test_a_text_mentions_what_it_says_just_once_or_again_and_no_part_of_a_word():
    assert mentions("In Foxley green a fox, a FOX, and foxes; a Silver bell.") == {
        "place": "Foxley Green",
        "kind": "fox",
        "treasure": "silver bell",
    }
    assert mentions("a fox and a hare") == {}  # of which one is the hero cannot be told
    assert mentions("") == {}


def test_documents_that_are_no_whole_fables_say_nothing(data: Data, short: SequenceDataset):
    assert facts_of(fitted_to(model_of(data), short, 2), data.tokenizer.decode) is None


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_the_ends_of_a_path_are_the_documents_own_means(data: Data, short: SequenceDataset, path: str):
    svi = model_of(data)
    fitted = fitted_to(svi, short, 3)
    found = interpolate(fitted, path=path, steps=3, max_tokens=7)
    posterior = svi.infer(short.batch([0, 1, 2]), steps=3, seed=7)
    with torch.no_grad():
        own = -TokenSequence(svi.model.decoder, posterior.mean, posterior.batch).log_prob(posterior.batch.tokens)
    assert found.pairs.tolist() == [[0, 1], [1, 2], [2, 0]]
    for end, side in ((0, 0), (-1, 1)):
        expected = own[found.pairs[:, side]].double()
        torch.testing.assert_close(found.nats[end, :, side], expected, rtol=1e-5, atol=1e-4)
    texts = fitted.write(fitted.mean, 7)
    assert found.texts[0] == texts
    assert found.texts[-1] == [texts[1], texts[2], texts[0]]
    row = found.to_dict()
    assert [point["t"] for point in row["points"]] == [0.0, 0.5, 1.0]
    assert row["points"][0]["a"] == pytest.approx(float(own.sum()) / int(found.num_scored[:, 0].sum()), rel=1e-5)


def test_the_arc_keeps_a_common_norm_and_turns_evenly():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 2, 3, generator=generator) for _ in range(2))
    a, b = (x / x.flatten(1).norm(dim=-1)[:, None, None] for x in (a, b))
    angle = (a * b).sum((1, 2)).acos()
    for t in (0.0, 0.25, 0.6, 1.0):
        z = spherical(a, b, t)
        torch.testing.assert_close(z.flatten(1).norm(dim=-1), torch.ones(4))
        turned = (z * a).sum((1, 2)).double().clamp(-1, 1).acos().float()
        torch.testing.assert_close(turned, t * angle, atol=1e-3, rtol=0)


def test_the_arc_between_vectors_that_have_none_is_straight():
    a = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    b = torch.tensor([[2.0, 4.0], [1.0, 1.0], [-1.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(spherical(a, b, 0.3), linear(a, b, 0.3))


def test_bad_requests_are_refused(data: Data, short: SequenceDataset):
    svi = model_of(data)
    with pytest.raises(LTMError, match="no sequences to probe"):
        fit_thoughts(svi, short, [])
    with pytest.raises(LTMError, match="samples and batch_size must be 1 or more, got 0 and 8"):
        fit_thoughts(svi, short, [0], samples=0)
    alone, two = fitted_to(svi, short, 1), fitted_to(svi, short, 2)
    for probe in (swap_thoughts, lambda fitted: mixed_texts(fitted, max_tokens=3)):
        with pytest.raises(LTMError, match="two documents or more, got 1"):
            probe(alone)
    with pytest.raises(LTMError, match="got 1 documents, 5 points"):
        interpolate(alone)
    with pytest.raises(LTMError, match="got 2 documents, 1 points"):
        interpolate(two, steps=1)
    with pytest.raises(LTMError, match="pairs must be 1 or more, got 0"):
        interpolate(two, pairs=0)
    with pytest.raises(LTMError, match="no path 'straight': use linear or spherical"):
        interpolate(two, path="straight")
    with pytest.raises(LTMError, match="max_tokens must be 1 or more, got 0"):
        two.write(two.mean, 0)


def test_one_sequence_has_no_standard_error(data: Data, short: SequenceDataset):
    row = probe_layers(fitted_to(model_of(data), short, 1)).to_dict()["first"][0]
    assert row["nats_se"] is row["accuracy_se"] is row["free_accuracy_se"] is None
    assert math.isfinite(row["nats"])
