"""Masked diffusion against brute force: every set of masked tokens, every order, every text of a tiny alphabet."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from tiny_baselines import every_sequence, randomised, tiny_shape

from ltm_pyro.baselines import MaskedDiffusion
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
    assert z.square().mean() == pytest.approx(1.0, abs=0.5)  # 81 independent streams: 1 ± 0.16


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


def test_training_brings_the_nelbo_of_a_markov_language_near_its_entropy():
    """Binary texts, each token of which differs from the one before with probability 0.1."""
    texts = every_sequence(2, N)
    flips = (texts.tokens != texts.inputs).sum(-1)
    probability = 0.9 ** (N - flips) * 0.1**flips
    model = MaskedDiffusion(tiny_shape(vocab_size=2, layers=1, hidden=32, feed_forward=64))
    steps, lr = 150, 0.01
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * (1 - step / steps)
        loss = (probability * model.sequence_loss(texts, seed=step, samples=N)).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    # All texts and all masks with their probabilities, so no noise: only what training has left to learn.
    with torch.no_grad():
        per_token = float((probability * exact_nelbo(model, texts)).sum()) / N
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)  # 0.325 nats; a unigram's loss would be above 0.5
    assert entropy < per_token < entropy + 0.03


def counts_of(texts: list[list[int]]) -> torch.Tensor:
    codes = torch.tensor(texts) @ torch.tensor([V ** (N - 1 - n) for n in range(N)])
    return torch.bincount(codes, minlength=V**N)


def chi_square(counts: torch.Tensor, probability: torch.Tensor) -> float:
    expected = probability * counts.sum()
    assert expected.min() > 1
    return float(((counts - expected).square() / expected).sum())


def test_tokens_filled_in_one_by_one_are_distributed_as_all_orders_say(texts: TokenBatch):
    model = mild(MaskedDiffusion(tiny_shape()))
    drawn = model.generate(start=0, num=20_000, max_tokens=N, seed=1)
    # 80 degrees of freedom: mean 80, standard deviation 12.6.
    assert chi_square(counts_of(drawn), order_log_probs(model, texts).exp().mean(0)) < 80 + 4 * 12.6


def test_tokens_filled_in_at_once_are_independent(texts: TokenBatch):
    model = mild(MaskedDiffusion(tiny_shape(), sampling_steps=1))
    drawn = model.generate(start=0, num=20_000, max_tokens=N, seed=1)
    each = log_probs(model, texts, tuple(range(N))).gather(-1, texts.tokens[..., None])[..., 0]
    assert chi_square(counts_of(drawn), each.sum(-1).exp()) < 80 + 4 * 12.6
    by_order = order_log_probs(model, texts).exp().mean(0)
    assert chi_square(counts_of(drawn), by_order) > 80 + 10 * 12.6  # the test can tell the two apart


def mild(model: MaskedDiffusion) -> MaskedDiffusion:
    """Weights under which every text is likely enough to be counted."""
    randomised(model)
    model.network.norm.weight.mul_(0.35)
    return model


@pytest.mark.parametrize(("steps", "expected"), [(None, 6), (6, 6), (4, 4), (100, 6)])
def test_sampling_steps_are_evaluations_of_the_network(steps: int | None, expected: int):
    model = randomised(MaskedDiffusion(tiny_shape(), sampling_steps=steps))
    calls = []
    hidden = model.network.hidden
    model.network.hidden = lambda *a: calls.append(1) or hidden(*a)  # type: ignore[method-assign]
    model.generate(start=0, num=2, max_tokens=6)
    assert len(calls) == expected


def test_texts_continue_the_prompt_and_end_at_the_stop_token():
    model = randomised(MaskedDiffusion(tiny_shape(max_length=6)))
    whole = model.generate(start=0, prompt=[2, 1], num=30, max_tokens=4, seed=3)
    assert {len(text) for text in whole} == {4}
    stopped = model.generate(start=0, prompt=[2, 1], num=30, max_tokens=4, seed=3, stop=1)
    assert stopped == [text[: text.index(1)] if 1 in text else text for text in whole]
    assert model.generate(start=0, prompt=[2, 1], num=30, max_tokens=4, seed=3) == whole
    assert model.generate(start=0, prompt=[2, 1], num=30, max_tokens=4, seed=4) != whole
    # Beyond the training length there is nothing that the network has seen.
    assert [len(text) for text in model.generate(start=0, prompt=[2, 1, 0], max_tokens=9)] == [3]


def test_prompt_conditions_what_is_filled_in(float64: None):
    model = mild(MaskedDiffusion(tiny_shape()))
    drawn = [text[0] for text in model.generate(start=1, prompt=[2, 0], num=4000, max_tokens=1)]
    batch = TokenBatch.from_lists([[2, 0, 0]], start=1)
    frequency = torch.bincount(torch.tensor(drawn), minlength=V) / 4000
    torch.testing.assert_close(frequency, log_probs(model, batch, (2,)).exp()[0, 2], rtol=0, atol=0.03)  # 4 errors


def test_top_k_of_one_and_temperature_zero_take_the_most_probable_token(model: MaskedDiffusion):
    batch = TokenBatch.from_lists([[2, 0, 0]], start=1)
    best = int(log_probs(model, batch, (2,))[0, 2].argmax())
    for sampling in (Sampling(top_k=1), Sampling(temperature=0), Sampling(top_p=1e-6)):
        assert model.generate(start=1, prompt=[2, 0], num=3, max_tokens=1, sampling=sampling) == [[best]] * 3


def test_greedy_prediction_is_the_text_of_temperature_zero(model: MaskedDiffusion, texts: TokenBatch):
    scored = torch.ones(len(texts), N, dtype=torch.bool)
    for context in (0, 2):
        scored[:, :context] = False
        prediction = model.predict(TokenBatch(texts.tokens, texts.lengths, texts.start, scored))
        for x, greedy in zip(texts.tokens.tolist(), prediction.greedy.tolist(), strict=True):
            (text,) = model.generate(
                start=0, prompt=x[:context], max_tokens=N - context, sampling=Sampling(temperature=0)
            )
            assert greedy == (text == x[context:])
        assert int(prediction.greedy.sum()) == V**context


def test_prediction_is_a_bound_on_the_probability_of_the_continuation(model: MaskedDiffusion, texts: TokenBatch):
    scored = torch.arange(N) >= 2
    batch = TokenBatch(texts.tokens, texts.lengths, texts.start, scored.expand(len(texts), N))
    # Two masked tokens: both orders of them.
    one, other, both = (
        log_probs(model, texts, m).gather(-1, texts.tokens[..., None])[..., 0] for m in ((2,), (3,), (2, 3))
    )
    orders = torch.stack([both[:, 2] + other[:, 3], both[:, 3] + one[:, 2]])
    predicted = torch.stack([model.predict(batch, samples=2, seed=seed).log_prob for seed in range(100)])
    z = (predicted.mean(0) - orders.mean(0)) / (predicted.std(0) / 10 + 1e-12)
    assert z.abs().max() < 4.5
    assert (orders.mean(0) < orders.exp().mean(0).log()).all()
    assert not MaskedDiffusion.exact


def test_products_in_bfloat16_leave_the_loss_in_float32_and_near():
    torch.manual_seed(0)
    model = MaskedDiffusion(tiny_shape())
    exact = model.sequence_loss(every_sequence(V, N), samples=2)
    model.autocast = torch.bfloat16
    rounded = model.sequence_loss(every_sequence(V, N), samples=2)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=1e-2, atol=1e-2)  # bfloat16 has eight bits


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MaskedDiffusion(tiny_shape(), sampling_steps=0), "sampling_steps must be 1 or more, got 0"),
        (lambda: tiny().generate(start=0, prompt=[0] * 8), "leaves none to fill"),
        (lambda: tiny().generate(start=0, prompt=[0] * 9), "at most 8"),
        (lambda: tiny().generate(start=0, label=1), "kind mdlm has no classes"),
        (lambda: tiny().generate(start=0, max_tokens=0), "must be 1 or more"),
        (lambda: tiny().predict(every_sequence(V, N), samples=0), "samples must be 1 or more, got 0"),
        (lambda: tiny().choose(["likelihood"]), "kind mdlm has no likelihood: it reports nelbo"),
    ],
)
def test_bad_values_are_named(call: Callable[[], object], message: str):
    with pytest.raises(LTMError, match=message):
        call()


def tiny() -> MaskedDiffusion:
    return MaskedDiffusion(tiny_shape())
