"""The autoregressive baseline: what it sees, what it counts to, and the decoder that it is without cross-attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny_baselines import every_sequence, randomised, tiny_shape
from tiny_models import ragged_batch, random_thoughts, tiny_decoder

from ltm_pyro.baselines import BASELINES, Autoregressive, Baseline, MaskedDiffusion, PlainTransformer, TransformerShape
from ltm_pyro.batch import TokenBatch
from ltm_pyro.components import build_model
from ltm_pyro.config import DecoderSettings
from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.errors import LTMError
from ltm_pyro.presets import PRESETS, preset

V = 4


def bigrams(model: Autoregressive) -> torch.Tensor:
    """(V, V) p(next | previous), each previous token being a start token."""
    pairs = TokenBatch.from_lists([[b] for _ in range(V) for b in range(V)], [a for a in range(V) for _ in range(V)])
    with torch.no_grad():
        return model.token_log_prob(pairs).view(V, V).exp()


def set_by_hand(table: torch.Tensor) -> Autoregressive:
    """A network whose p(next | previous) is the table, whatever the rest of the context.

    Embeddings are one-hot, attention writes nothing, one SwiGLU unit answers to each token and takes the residual
    stream from the token's one-hot to its row of log-probabilities. One more entry, which no embedding reads, gives
    all rows the same norm.
    """
    model = Autoregressive(tiny_shape(vocab_size=V, layers=1, hidden=8, feed_forward=V))
    network = model.network.requires_grad_(False)
    block = network.blocks[0]
    one_hot = torch.eye(V, 8)
    network.embedding.weight.copy_(one_hot)
    block.self_attention.out.weight.zero_()
    block.feed_forward.gate_up.weight.copy_(torch.cat([one_hot, one_hot]))
    normed = block.feed_forward_norm(one_hot)[0, 0]
    answer = torch.nn.functional.silu(normed) * normed  # of its own unit to every token; the other units' is 0
    rows = torch.cat([table.log(), torch.zeros(V, 8 - V)], 1)
    square_norm = rows.square().sum(-1)
    total = square_norm.max() + 1
    rows[:, V] = (total - square_norm).sqrt()
    block.feed_forward.down.weight.copy_(((rows - one_hot) / answer).T)
    network.norm.weight.fill_((total / 8 + network.norm.eps).sqrt())
    return model


def test_network_set_by_hand_is_a_bigram_model(float64: None):
    table = torch.distributions.Dirichlet(torch.ones(V, V)).sample()
    model = set_by_hand(table)
    torch.testing.assert_close(bigrams(model), table, rtol=1e-9, atol=1e-9)
    batch = ragged_batch(7, 1, 0, 5, vocab_size=V)
    expected = torch.where(batch.mask, table[batch.inputs, batch.tokens].log(), 0.0)
    torch.testing.assert_close(model.token_log_prob(batch), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.sequence_loss(batch), -expected.sum(-1), rtol=1e-9, atol=1e-9)


def test_texts_of_a_bigram_network_have_its_frequencies(float64: None):
    table = torch.distributions.Dirichlet(torch.ones(V, V)).sample()
    texts = torch.tensor(set_by_hand(table).generate(start=2, num=4000, max_tokens=6))
    inputs = torch.cat([torch.full((4000, 1), 2), texts[:, :-1]], 1)
    counts = torch.bincount((V * inputs + texts).flatten(), minlength=V * V).view(V, V)
    # At least 1000 of each previous token: four standard errors.
    assert counts.sum(-1).min() > 1000
    torch.testing.assert_close(counts / counts.sum(-1, keepdim=True), table, rtol=0, atol=0.06)


def test_training_with_a_window_of_one_token_counts_bigrams(float64: None):
    batch = ragged_batch(40, 25, 60, vocab_size=V)
    places = (V * batch.inputs + batch.tokens)[batch.mask]
    counts = torch.bincount(places, minlength=V * V).view(V, V)
    assert counts.min() > 0  # or the optimum would lie at infinity
    model = Autoregressive(tiny_shape(vocab_size=V, layers=1, window=1, hidden=16, feed_forward=32))
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=300, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = model.sequence_loss(batch).sum() / batch.num_scored.sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(bigrams(model), counts / counts.sum(-1, keepdim=True), rtol=0, atol=1e-3)


@pytest.mark.parametrize("window", [1, 3, 8, 100])
def test_token_sees_the_window_before_it_and_nothing_after(float64: None, window: int):
    model = randomised(Autoregressive(tiny_shape(layers=1, window=window)))
    tokens = torch.randint(3, (1, 12))
    before = model.network(tokens)
    for n in range(12):
        changed = tokens.clone()
        changed[0, n] = (tokens[0, n] + 1) % 3
        moved = (model.network(changed) - before).abs().amax(-1)[0] > 1e-13
        assert moved.tolist() == [n <= i < n + window for i in range(12)]


def test_probabilities_of_all_texts_sum_to_one(float64: None):
    model = randomised(Autoregressive(tiny_shape(window=2)))
    assert float((-model.sequence_loss(every_sequence(3, 4))).exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_loss_does_not_depend_on_the_batch_or_the_seed(float64: None):
    model = randomised(Autoregressive(tiny_shape(vocab_size=11)))
    batch = ragged_batch(9, 0, 3, 12)
    together = model.sequence_loss(batch)
    assert torch.equal(together, model.sequence_loss(batch, seed=7, samples=5))
    for b, length in enumerate(batch.lengths.tolist()):
        torch.testing.assert_close(model.sequence_loss(batch[[b]].prefix(max(length, 1))), together[[b]])


@pytest.mark.parametrize("window", [1, 3, 64])
def test_cached_hidden_states_equal_recomputed_ones(float64: None, window: int):
    network = randomised(PlainTransformer(tiny_shape(vocab_size=11, window=window)))
    inputs, lengths = torch.randint(11, (3, 14)), torch.tensor([1, 4, 8])
    whole = network(inputs)
    hidden, cache = network.prefill(inputs[:, :8], lengths)
    rows = torch.arange(3)
    for step in range(6):
        torch.testing.assert_close(hidden, whole[rows, lengths + step - 1])
        hidden = network.step(inputs[rows, lengths + step], cache)


def test_greedy_prediction_is_the_text_of_temperature_zero(float64: None):
    model = randomised(Autoregressive(tiny_shape(window=3)))
    texts = every_sequence(3, 4, start=1)
    scored = (torch.arange(4) >= 1).expand(81, 4)
    prediction = model.predict(TokenBatch(texts.tokens, texts.lengths, texts.start, scored))
    for x, greedy in zip(texts.tokens.tolist(), prediction.greedy.tolist(), strict=True):
        (text,) = model.generate(start=1, prompt=x[:1], max_tokens=3, sampling=Sampling(temperature=0))
        assert greedy == (text == x[1:])
    torch.testing.assert_close(prediction.log_prob, model.token_log_prob(texts)[:, 1:].sum(-1))


def test_context_that_does_not_stand_before_is_refused():
    batch = TokenBatch(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([3]), torch.tensor([0]))
    for kind in BASELINES.values():
        with pytest.raises(LTMError, match="the scored tokens must be the last ones"):
            kind(tiny_shape()).predict(replace(batch, scored=torch.tensor([[True, False, True]])))


def test_decoder_without_cross_attention_is_the_baseline_with_its_weights(float64: None):
    decoder = tiny_decoder(layers=3, window=4).requires_grad_(False)
    settings = DecoderSettings(layers=3, hidden=8, heads=2, num_thoughts=6, window=4)
    shape = TransformerShape.matching(settings, decoder.vocab_size, decoder.max_length, same_parameters=False)
    model = Autoregressive(shape).requires_grad_(False)
    left = model.network.load_state_dict(decoder.state_dict(), strict=False)
    assert not left.missing_keys
    assert all("cross" in key for key in left.unexpected_keys)
    for block in decoder.blocks:
        block.cross_attention.out.weight.zero_()
    batch = ragged_batch(12, 5, 9)
    hidden = decoder(decoder.stem(batch.inputs), random_thoughts(decoder, 3)).flatten(0, 1)[batch.scored_index]
    expected = decoder.token_log_prob(hidden, batch.tokens.flatten()[batch.scored_index])
    torch.testing.assert_close(model.token_log_prob(batch).flatten()[batch.scored_index], expected, rtol=0, atol=1e-12)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("addresses", [False, True])
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", BASELINES.values())
def test_baselines_have_as_many_parameters_as_the_decoder(kind: type[Baseline], name: str, addresses: bool):
    settings = preset(name).updated({"decoder.thought_addresses": addresses})
    with torch.device("meta"):  # sizes alone
        decoder = build_model(settings, 50_257).decoder
        length, shape = settings.data.sequence_length, settings.decoder
        model = kind(TransformerShape.matching(shape, 50_257, length))
        plain = kind(TransformerShape.matching(shape, 50_257, length, same_parameters=False))
    mask = shape.hidden if kind is MaskedDiffusion else 0
    assert abs(parameters(model) - mask - parameters(decoder)) <= 1.5 * shape.hidden * shape.layers
    cross = sum(p.numel() for n, p in decoder.named_parameters() if "cross" in n)
    assert parameters(plain) - mask == parameters(decoder) - cross


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate(start=0, prompt=[0] * 9), "9 tokens but the model was trained on at most 8"),
        (lambda m: m.generate(start=0, num=0), "must be 1 or more, got 0 and 256"),
        (lambda m: m.generate(start=0, label=1), "kind ar has no classes"),
        (lambda m: m.choose(["elbo"]), "kind ar has no elbo: it reports likelihood"),
    ],
)
def test_bad_values_are_named(call: Callable[[Autoregressive], object], message: str):
    with pytest.raises(LTMError, match=message):
        call(Autoregressive(tiny_shape()))


def test_products_in_bfloat16_leave_the_most_probable_token_one():
    model = randomised(Autoregressive(tiny_shape(), autocast=torch.bfloat16))
    weight = model.network.embedding.weight
    weight[1] = -weight[0]
    weight[2] = 1.0005 * weight[0]  # its logit, where it is the largest, rounds to that of the first
    batch = every_sequence(3, 2)
    scored = torch.tensor([False, True]).expand(len(batch), 2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        hidden = model.network(batch.inputs)[:, 1].float()
    best = (hidden.double() @ weight.double().T).argmax(-1)
    assert (best == 2).any()
    torch.testing.assert_close(model.predict(replace(batch, scored=scored)).greedy, best == batch.tokens[:, 1])
