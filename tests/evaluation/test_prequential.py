"""``prequential`` against the exact sequential predictive, the autoregressive limit, and whatever could leak."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import ExactNormal, SequentialModel
from tiny_models import ragged_batch, random_thoughts, tiny_model
from torch import Tensor
from torch.distributions import Normal

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data import Data, build_data
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation import block_log_probs, evaluate
from ltm_pyro.guides import Amortized, LocalDelta, LocalFlow, LocalLowRank, LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.priors import EnergyPrior, GaussianPrior, MixturePrior, Prior


def svi_of(model: LatentThoughtModel, guide: Any = LocalNormal, **options: Any) -> FastSlowSVI:
    return FastSlowSVI(model, guide(model, **options), fast=FastConfig(steps=3))


def over_seeds(svi: FastSlowSVI, batch: TokenBatch, **options: Any) -> tuple[Tensor, Tensor]:
    """Mean of every block over ten seeds, and its standard error."""
    found = torch.stack([block_log_probs(svi, batch, seed=seed, **options) for seed in range(10)])
    return found.mean(0), found.std(0) / math.sqrt(10)


@pytest.mark.parametrize("block_size", [1, 3, 4, 7])
def test_every_block_has_the_exact_predictive_probability(block_size: int):
    model, batch = SequentialModel(), ragged_batch(7, 3, 6)
    svi = FastSlowSVI(model, ExactNormal(model))
    found, error = over_seeds(svi, batch, samples=2000, block_size=block_size, chunk_size=2000)
    ends = [model.log_evidence(batch.prefix(end)) for end in range(0, 7 + block_size, block_size)]
    exact = torch.stack([after - before for before, after in itertools.pairwise(ends)], 1).double()
    assert found.shape == exact.shape == (3, math.ceil(7 / block_size))
    assert ((found - exact).abs() < 5 * error + 1e-3).all()
    assert error.max() < 0.02
    assert (found[1, math.ceil(3 / block_size) :] == 0).all()  # it has ended
    total = found.sum(1)
    assert ((total - model.log_evidence(batch)).abs() < 5 * error.sum(1) + 1e-3).all()


def test_the_fast_loop_finds_it_too():
    model, batch = SequentialModel(), ragged_batch(8, 8)
    guide = LocalNormal(model, init_log_var=-1.0)
    svi = FastSlowSVI(model, guide, fast=FastConfig(steps=150, lr=0.1, lr_decay=0.02))
    found, error = over_seeds(svi, batch, samples=500, block_size=4, chunk_size=500)
    assert ((found.sum(1) - model.log_evidence(batch)).abs() < 5 * error.sum(1) + 0.02).all()


def autoregressive(model: LatentThoughtModel, batch: TokenBatch) -> Tensor:
    """(B, N) log-probabilities of tokens under a decoder that its thoughts do not reach."""
    decoder = model.decoder
    hidden = decoder(decoder.stem(batch.inputs), random_thoughts(decoder, len(batch), seed=5))
    log_probs = (hidden @ decoder.embedding.weight.T).log_softmax(-1)
    return torch.where(batch.real, log_probs.gather(-1, batch.tokens[..., None])[..., 0], 0)


@pytest.mark.parametrize(("block_size", "samples"), [(1, 1), (5, 3), (32, 2), (1000, 1)])
def test_without_cross_attention_it_is_the_autoregressive_likelihood_and_the_elbo_that_less_the_kl(
    data: Data, block_size: int, samples: int
):
    model = tiny_model(vocab_size=300, max_length=32)
    with torch.no_grad():
        for block in model.decoder.blocks:
            block.cross_attention.out.weight.zero_()
        exact = autoregressive(model, data.train.batch(range(5))).double().sum(-1)
    options: dict[str, Any] = {"block_size": block_size, "samples": samples, "protocols": ("elbo", "prequential")}
    values = evaluate(svi_of(model), data.train, range(5), **options).values
    torch.testing.assert_close(values["prequential"], -exact, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(values["elbo"], -exact + values["kl"], rtol=1e-6, atol=1e-4)
    assert (values["kl"] > 0).all()


@pytest.mark.parametrize("guide", [LocalNormal, LocalLowRank, LocalFlow, LocalDelta, Amortized])
def test_later_tokens_do_not_reach_earlier_blocks(guide: Any):
    batch = ragged_batch(11, 9, 11)
    other = batch.tokens.clone()
    other[:, 7:] = (other[:, 7:] + 1) % 11  # within the third block of three
    changed = TokenBatch(other, batch.lengths, batch.start)
    options = {"samples": 2, "block_size": 3}
    svi = svi_of(tiny_model(), guide)
    one, two = block_log_probs(svi, batch, **options), block_log_probs(svi, changed, **options)
    torch.testing.assert_close(one[:, :2], two[:, :2], rtol=0, atol=1e-6)
    assert ((one[:, 2] - two[:, 2]).abs() > 1e-3).all()
    cut = block_log_probs(svi, batch.prefix(6), **options)
    torch.testing.assert_close(cut, one[:, :2], rtol=0, atol=1e-6)
    early = batch.tokens.clone()
    early[:, 0] = (early[:, 0] + 1) % 11  # out of the decoder's window: the thoughts alone carry it
    moved = block_log_probs(svi, TokenBatch(early, batch.lengths, batch.start), samples=2, block_size=3)
    assert ((moved[:, 2] - one[:, 2]).abs() > 1e-6).all()


@pytest.mark.parametrize("block_size", [1, 2])
@pytest.mark.parametrize("guide", [LocalNormal, LocalDelta, Amortized])
def test_all_continuations_of_a_prefix_have_probabilities_that_sum_to_one(guide: Any, block_size: int):
    """What is scored is one distribution, for any number of draws and steps: a block that helped to score itself would
    have more."""
    svi = svi_of(tiny_model(vocab_size=5), guide)
    pairs = [[3, 1, a, b] for a in range(5) for b in range(5)]
    found = block_log_probs(svi, TokenBatch.from_lists(pairs, start=2), samples=3, block_size=block_size)
    before = 2 // block_size
    assert found[:, before:].sum(1).exp().sum() == pytest.approx(1, abs=1e-5)
    assert (found[:, :before] - found[0, :before]).abs().max() < 1e-5


def test_probabilities_are_averaged_and_not_their_logs():
    model = tiny_model()
    svi, batch = svi_of(model), ragged_batch(6, 6)
    found = block_log_probs(svi, batch, samples=4, block_size=4, seed=3)
    thoughts = svi.infer(batch.prefix(4), seed=3).sample(4)
    with torch.no_grad():
        tokens = torch.stack([model.likelihood(z, batch, None).token_log_prob(batch.tokens) for z in thoughts])
    expected = tokens[..., 4:].sum(-1).double().exp().mean(0).log()
    torch.testing.assert_close(found[:, 1], expected, rtol=1e-5, atol=1e-5)


def test_a_point_predicts_by_its_point():
    model = tiny_model()
    svi, batch = svi_of(model, LocalDelta), ragged_batch(6, 6)
    one, many = (block_log_probs(svi, batch, samples=s, block_size=4) for s in (1, 5))
    torch.testing.assert_close(one[:, 1], many[:, 1])  # every draw of it is the same; the first block's are not
    point = svi.infer(batch.prefix(4), seed=0).mean
    with torch.no_grad():
        tokens = model.likelihood(point, batch, None).token_log_prob(batch.tokens)
    torch.testing.assert_close(one[:, 1].float(), tokens[:, 4:].sum(-1), rtol=1e-5, atol=1e-5)


def test_a_point_has_a_prequential_row(svi: FastSlowSVI, data: Data):
    point = FastSlowSVI(svi.model, LocalDelta(svi.model), fast=svi.fast)
    row = evaluate(point, data.train, range(3), protocols=["prequential"], block_size=8).to_dict()
    assert row["prequential"] > 0
    assert row["prequential_se"] > 0
    assert row["block_size"] == 8
    assert not row.keys() & {"elbo", "kl"}


class KindPrior(Prior):
    """The thoughts are one of three places, by an enumerated kind; a continuous site has no effect."""

    def __init__(self):
        super().__init__((1, 1, 2))
        self.weights = torch.tensor([0.5, 0.3, 0.2])
        self.places = 3 * torch.randn(3, 1, 1, 2, generator=torch.Generator().manual_seed(4))

    def forward(self, batch_size):
        kinds = dist.Categorical(self.weights).expand((batch_size,))
        kind = pyro.sample("kind", kinds, infer={"enumerate": "parallel"})
        idle = pyro.sample("idle", dist.Normal(torch.zeros(batch_size, 1, 1, 2), 1.0).to_event(3))
        return self.places[kind] + 0 * idle


def test_an_enumerated_kind_is_inferred_from_the_prefix():
    model, batch = SequentialModel(prior=KindPrior()), ragged_batch(6, 5)
    found, error = over_seeds(svi_of(model), batch, samples=2000, block_size=2, chunk_size=2000)
    # log Σ_k p(k) p(y_<n | k), by hand.
    means = torch.einsum("nij,kj->kni", model.weight[:6], model.prior.places.flatten(1))
    entries = Normal(means[:, None], model.scale).log_prob(model.table[batch.tokens]).sum(-1) * batch.real
    joint = model.prior.weights.log()[:, None, None] + entries.cumsum(-1)
    ends = torch.cat([torch.zeros(2, 1), joint.logsumexp(0)[:, 1::2]], 1)
    assert ((found - ends.diff(dim=1)).abs() < 5 * error + 1e-3).all()
    assert error.max() < 0.02


@pytest.mark.parametrize("prior", [
    lambda shape: MixturePrior(shape, components=3),
    lambda shape: MixturePrior(shape, components=3, enumerated=True),
    EnergyPrior,
])  # fmt: skip
def test_priors_that_draw_from_the_global_stream_depend_neither_on_the_batch_nor_on_its_state(prior: Any):
    decoder = tiny_model().decoder
    svi, batch = svi_of(LatentThoughtModel(decoder, prior(decoder.thought_shape))), ragged_batch(6, 4, 5)
    one = block_log_probs(svi, batch, samples=2, block_size=3)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    alone = block_log_probs(svi, batch[[1]].prefix(4), samples=2, block_size=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(alone[0], one[1], rtol=1e-5, atol=1e-4)


def test_neither_the_batch_size_nor_the_order_changes_a_number_and_the_seed_does(svi: FastSlowSVI, data: Data):
    def of(indices: list[int], **options: int) -> Tensor:
        options = {"samples": 3, "block_size": 8} | options
        return evaluate(svi, data.train, indices, protocols=["prequential"], **options).values["prequential"]

    one = of([0, 1, 2, 3, 4], batch_size=1)
    for size in (2, 100):
        torch.testing.assert_close(of([0, 1, 2, 3, 4], batch_size=size), one, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(of([4, 3, 2, 1, 0], batch_size=100).flip(0), one, rtol=1e-5, atol=1e-3)
    torch.manual_seed(999)
    assert torch.equal(of([0, 1, 2, 3, 4], batch_size=1), one)
    assert not torch.equal(of([0, 1, 2, 3, 4], batch_size=1, seed=1), one)
    assert not torch.allclose(of([0, 1, 2, 3, 4], block_size=4), one, rtol=1e-6, atol=1e-6)


def test_tokens_that_are_not_scored_condition_and_count_for_nothing():
    model, batch = SequentialModel(), ragged_batch(6, 6)
    scored = torch.ones(2, 6, dtype=torch.bool)
    scored[0, 4:] = False
    partial = TokenBatch(batch.tokens, batch.lengths, batch.start, scored)
    svi = FastSlowSVI(model, ExactNormal(model))
    whole, part = (block_log_probs(svi, b, samples=5, block_size=2) for b in (batch, partial))
    assert part[0, 2] == 0
    torch.testing.assert_close(part[:, :2], whole[:, :2])
    torch.testing.assert_close(part[1], whole[1])


def test_labels_stay_unseen(svi: FastSlowSVI, tmp_path: Any, inferred: list[TokenBatch]):
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(f'{{"text": "the cat sat on mat {i}", "animal": "{"dc"[i % 2]}"}}\n' for i in range(20)))
    options: dict[str, Any] = {"vocab_size": 300, "sequence_length": 32, "validation_fraction": 0.3}
    labelled = build_data(source=str(path), label_column="animal", **options).validation
    assert labelled.batch([0]).labels is not None
    block_log_probs(svi, labelled.batch([0, 1]), block_size=4)
    evaluate(svi, labelled, [0, 1], protocols=["prequential"], block_size=4)
    assert inferred
    assert all(batch.labels is None for batch in inferred)


@pytest.mark.parametrize("name", ["samples", "block_size", "chunk_size"])
def test_numbers_below_one_are_refused(name: str):
    model = SequentialModel(prior=GaussianPrior((1, 1, 2)))
    with pytest.raises(LTMError, match=f"{name} must be 1 or more, got 0"):
        block_log_probs(svi_of(model), ragged_batch(3), **{name: 0})
