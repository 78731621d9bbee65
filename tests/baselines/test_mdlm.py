"""Masked diffusion against brute force: every set of masked tokens, every order, every text of a tiny alphabet."""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from tiny_baselines import every_sequence, randomised, tiny_shape

from ltm_pyro.baselines import BASELINES, MaskedDiffusion
from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.errors import LTMError

V, N = 3, 4
SUBSETS = [m for k in range(1, N + 1) for m in combinations(range(N), k)]


def log_probs(model: MaskedDiffusion, batch: TokenBatch, masked: tuple[int, ...]) -> torch.Tensor:
    """(B, N, V) of the network with some tokens masked, by its embeddings and its blocks alone."""
    embedding = model.network.embedding.weight
    x = torch.cat([embedding[batch.start][:, None], embedding[batch.tokens]], 1)
    x[:, [1 + n for n in masked]] = model.mask_embedding
    return (model.network.hidden(x)[:, 1:] @ embedding.T).log_softmax(-1)


def masked_losses(model: MaskedDiffusion, batch: TokenBatch) -> dict[tuple[int, ...], torch.Tensor]:
    """(B,) -log p of the masked tokens, summed, for every set of them."""
    losses = {}
    for m in SUBSETS:
        of_targets = log_probs(model, batch, m).gather(-1, batch.tokens[..., None])[..., 0]
        losses[m] = -of_targets[:, list(m)].sum(-1)
    return losses


def exact_nelbo(model: MaskedDiffusion, batch: TokenBatch) -> torch.Tensor:
    """(B,) by all 2^N - 1 sets of masked tokens; a set of k has k N-ths of 1 / C(N, k), of weight N / k."""
    return sum(loss / (len(m) * math.comb(N, len(m))) for m, loss in masked_losses(model, batch).items())


def order_log_probs(model: MaskedDiffusion, batch: TokenBatch) -> torch.Tensor:
    """(N!, B) log p of predicting each text's tokens one by one, in every order."""
    table = {m: log_probs(model, batch, m).gather(-1, batch.tokens[..., None])[..., 0] for m in SUBSETS}
    rows = [sum(table[tuple(sorted(order[i:]))][:, order[i]] for i in range(N)) for order in permutations(range(N))]
    return torch.stack(rows)


@pytest.fixture
def model(float64: None) -> MaskedDiffusion:
    return randomised(MaskedDiffusion(tiny_shape()))


@pytest.fixture
def texts() -> TokenBatch:
    return every_sequence(V, N)


def test_monte_carlo_nelbo_is_that_of_all_sets_of_masked_tokens(model: MaskedDiffusion, texts: TokenBatch):
    exact = exact_nelbo(model, texts)
    draws = torch.stack([model.sequence_loss(texts, seed=seed, samples=3) for seed in range(150)])
    z = (draws.mean(0) - exact) / (draws.std(0) / math.sqrt(len(draws)))
    assert exact.std() > 0.5  # the network is far from uniform, or this would say little
    assert z.abs().max() < 4.5
    assert z.square().mean() == pytest.approx(1.0, abs=0.6)  # 81 independent streams: 1 ± 0.16


def test_sizes_of_masks_drawn_uniformly_are_the_continuous_time_integral(model: MaskedDiffusion, texts: TokenBatch):
    # The integrand is a polynomial of degree N - 1 in t, for which eight Gauss-Legendre nodes are exact.
    nodes, weights = np.polynomial.legendre.leggauss(8)
    integral = torch.zeros(len(texts))
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        for m, loss in masked_losses(model, texts).items():
            integral += weight / t * t ** len(m) * (1 - t) ** (N - len(m)) * loss
    torch.testing.assert_close(integral, exact_nelbo(model, texts), rtol=1e-12, atol=1e-12)


def test_nelbo_bounds_the_distribution_over_texts_that_orders_give(model: MaskedDiffusion, texts: TokenBatch):
    nelbo, by_order = exact_nelbo(model, texts), order_log_probs(model, texts)
    torch.testing.assert_close(nelbo, -by_order.mean(0), rtol=1e-12, atol=1e-12)
    probability = by_order.exp().mean(0)
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-12)
    assert (nelbo > -probability.log()).all()
    assert 0.5 < float((-nelbo).exp().sum()) < 1.0


def ignoring_its_input() -> MaskedDiffusion:
    """Blocks that write nothing: every masked token has the distribution that the mask's embedding gives."""
    model = randomised(MaskedDiffusion(tiny_shape()))
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
            parameter.zero_()
    return model


def test_nelbo_of_a_network_that_ignores_its_input_is_the_unigram_loss(float64: None, texts: TokenBatch):
    model = ignoring_its_input()
    network = model.network
    unigram = network.logits(network.norm(model.mask_embedding)).log_softmax(-1)
    torch.testing.assert_close(exact_nelbo(model, texts), -unigram[texts.tokens].sum(-1))
    # Any mask of a text of one repeated token gives its loss exactly: k of them, of weight N / k.
    repeated = TokenBatch.from_lists([[a] * N for a in range(V)], start=0)
    torch.testing.assert_close(model.sequence_loss(repeated), -N * unigram)


def test_samples_differ_in_size_as_much_as_they_can(texts: TokenBatch):
    model = MaskedDiffusion(tiny_shape())
    sizes = []
    model.masked_log_prob = lambda batch, masked: sizes.append(masked.sum(-1)) or masked * 1.0
    model.sequence_loss(texts, samples=2 * N)
    counts = torch.stack(sizes).sort(0).values
    assert counts.tolist() == [[1 + i // 2] * len(texts) for i in range(2 * N)]
    model.sequence_loss(texts, seed=3, samples=1)
    assert set(sizes[-1].tolist()) == {1, 2, 3, 4}


def test_nelbo_of_a_sequence_does_not_depend_on_its_batch_or_padding(model: MaskedDiffusion):
    lists = [[1, 2], [0, 1, 2, 1, 1, 0], [2], [1, 1, 1, 0]]
    together = model.sequence_loss(TokenBatch.from_lists(lists, 0, pad=2), seed=5, samples=3)
    alone = [model.sequence_loss(TokenBatch.from_lists([x], 0), seed=5, samples=3) for x in lists]
    torch.testing.assert_close(together, torch.cat(alone))
    assert not torch.equal(together, model.sequence_loss(TokenBatch.from_lists(lists, 0), seed=6, samples=3))


def test_unscored_tokens_are_visible_and_no_loss(model: MaskedDiffusion):
    tokens, scored = torch.tensor([[1, 2, 0, 2]]), torch.tensor([[False, False, False, True]])
    batch = TokenBatch(tokens, torch.tensor([4]), torch.tensor([0]), scored)
    expected = log_probs(model, batch, (3,))[0, 3, 2]
    torch.testing.assert_close(model.sequence_loss(batch), -expected[None])
    torch.testing.assert_close(model.predict(batch, samples=3).log_prob, expected[None])
    nothing = TokenBatch(tokens, torch.tensor([4]), torch.tensor([0]), scored & False)
    assert model.sequence_loss(nothing).tolist() == [0.0]
    assert model.predict(nothing).greedy.tolist() == [True]


def test_loss_reaches_the_mask_and_gradients_are_those_of_the_masked_tokens():
    model = MaskedDiffusion(tiny_shape())
    model.sequence_loss(every_sequence(V, N)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@cache
def trained() -> tuple[MaskedDiffusion, float]:
    """A network trained on binary texts that repeat their last token with probability 0.9; their entropy."""
    torch.manual_seed(0)
    model = MaskedDiffusion(tiny_shape(vocab_size=2, hidden=32, feed_forward=64))
    adam = torch.optim.Adam(model.parameters(), lr=4e-3)
    for step in range(250):
        for group in adam.param_groups:
            group["lr"] = 4e-3 * (1 - step / 250)
        loss = model.sequence_loss(TokenBatch(*markov_texts(256)), seed=step, samples=1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model, -0.9 * math.log(0.9) - 0.1 * math.log(0.1)


def markov_texts(rows: int, length: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    start = torch.randint(2, (rows,))
    tokens = (start[:, None] + (torch.rand(rows, length) < 0.1).cumsum(1)) % 2
    return tokens, torch.full((rows,), length), start


def test_training_brings_the_nelbo_of_a_markov_language_near_its_entropy():
    model, entropy = trained()
    # All 32 texts with their probabilities: no error of sampling texts; 5 · 40 masks of each.
    tokens = every_sequence(2, 5).tokens
    flips = (tokens != torch.cat([tokens.new_zeros(32, 1), tokens[:, :-1]], 1)).sum(-1)
    probability = 0.9 ** (5 - flips) * 0.1**flips
    with torch.no_grad():
        nelbo = model.sequence_loss(every_sequence(2, 5), samples=200)
    per_token = float((probability * nelbo).sum()) / 5
    # 0.325 nats; a unigram's would be 0.693. No model is below, but for the noise of the masks.
    assert entropy - 0.005 < per_token < entropy + 0.05
