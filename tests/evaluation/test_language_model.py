"""What every kind of model answers alike: predictions given a context, greedy or not, batch by batch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import ragged_batch, tiny_decoder, tiny_model

from ltm_pyro.baselines import Autoregressive, TransformerShape
from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation import block_log_probs
from ltm_pyro.guides import LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI
from ltm_pyro.language_model import ThoughtLanguageModel, context_lengths


@pytest.fixture(scope="module")
def ltm() -> ThoughtLanguageModel:
    model = tiny_model()
    return ThoughtLanguageModel(FastSlowSVI(model, LocalNormal(model, init_log_var=0.0), fast=FastConfig(steps=4)))


def after(batch: TokenBatch, *lengths: int) -> TokenBatch:
    """The batch with so many tokens of each sequence as context, and the others scored."""
    positions = torch.arange(batch.tokens.shape[1])
    return replace(batch, scored=batch.real & (positions >= torch.tensor(lengths)[:, None]))


def test_a_prediction_is_the_block_that_prequential_scores(ltm: ThoughtLanguageModel):
    batch = ragged_batch(12, 9, 7)
    found = ltm.predict(after(batch, 8, 8, 8)[:2], samples=5).log_prob
    blocks = block_log_probs(ltm.svi, batch[:2], samples=5, block_size=8)
    torch.testing.assert_close(found, blocks[:, 1], rtol=1e-5, atol=1e-5)
    first = ltm.predict(after(batch, 0, 0, 0)[2:], samples=5).log_prob  # no context: the prior
    torch.testing.assert_close(first, block_log_probs(ltm.svi, batch[2:], samples=5, block_size=8)[:, 0])


def test_a_prediction_depends_on_no_other_sequence(ltm: ThoughtLanguageModel):
    batch = after(ragged_batch(12, 9, 7, 3), 8, 4, 0, 3)
    together = ltm.predict(batch, samples=3)
    for row in range(4):
        alone = ltm.predict(batch[[row]], samples=3)
        torch.testing.assert_close(alone.log_prob, together.log_prob[[row]], rtol=1e-5, atol=1e-5)
        assert bool(alone.greedy) == bool(together.greedy[row])
    assert float(together.log_prob[3]) == 0  # nothing is scored
    assert bool(together.greedy[3])


def test_equal_contexts_are_inferred_once(ltm: ThoughtLanguageModel, inferred: list[TokenBatch]):
    choices = TokenBatch.from_lists([[3, 1, 4, 5], [2, 7, 1, 8, 2], [3, 1, 4, 9], [3, 1, 4, 6, 6]], 0)
    batch = after(choices, 3, 3, 3, 3)
    together = ltm.predict(batch, samples=3)
    assert sorted(inferred[0].tokens.tolist()) == [[2, 7, 1], [3, 1, 4]]
    for row in range(4):
        alone = ltm.predict(batch[[row]], samples=3)
        torch.testing.assert_close(alone.log_prob, together.log_prob[[row]], rtol=1e-5, atol=1e-5)


def test_probabilities_of_all_continuations_add_up_to_one(ltm: ThoughtLanguageModel):
    context, vocab = [3, 1, 4], 11
    pairs = [[*context, a, b] for a in range(vocab) for b in range(vocab)]
    batch = after(TokenBatch.from_lists(pairs, 0), *[3] * len(pairs))
    found = ltm.predict(batch, samples=4)
    assert math.isclose(float(found.log_prob.exp().sum()), 1.0, rel_tol=1e-5)


def test_greedy_is_the_argmax_of_the_mixture_step_by_step(ltm: ThoughtLanguageModel):
    context, vocab = [3, 1, 4], 11

    def log_probs(continuations: list[list[int]]) -> torch.Tensor:
        batch = after(TokenBatch.from_lists([[*context, *c] for c in continuations], 0), *[3] * len(continuations))
        return ltm.predict(batch, samples=4).log_prob

    text: list[int] = []
    for _ in range(3):
        text.append(int(log_probs([[*text, token] for token in range(vocab)]).argmax()))
    wrong = [*text[:-1], (text[-1] + 1) % vocab]
    early = [(text[0] + 1) % vocab, *text[1:]]
    batch = after(TokenBatch.from_lists([[*context, *c] for c in (text, wrong, early)], 0), 3, 3, 3)
    assert ltm.predict(batch, samples=4).greedy.tolist() == [True, False, False]


def test_without_cross_attention_the_ltm_predicts_what_the_autoregressive_model_does():
    decoder = tiny_decoder()
    with torch.no_grad():
        for block in decoder.blocks:
            block.cross_attention.out.weight.zero_()
    model = tiny_model()
    model.decoder = decoder
    ltm = ThoughtLanguageModel(FastSlowSVI(model, LocalNormal(model), fast=FastConfig(steps=2)))
    shape = TransformerShape(
        vocab_size=11,
        layers=2,
        hidden=8,
        heads=2,
        feed_forward=decoder.blocks[0].feed_forward.down.in_features,
        window=4,
        max_length=12,
    )
    ar = Autoregressive(shape)
    ar.network.load_state_dict({k: v for k, v in decoder.state_dict().items() if "cross" not in k})
    batch = after(ragged_batch(12, 9, 7), 8, 4, 0)
    left, right = ltm.predict(batch, samples=3), ar.predict(batch)
    torch.testing.assert_close(left.log_prob, right.log_prob, rtol=1e-5, atol=1e-5)
    assert left.greedy.tolist() == right.greedy.tolist()
    greedy = {"start": 0, "prompt": [3, 1, 4], "max_tokens": 6, "num": 1, "sampling": _greedy()}
    text = ar.generate(**greedy)
    assert text == ltm.generate(**greedy)
    told = after(TokenBatch.from_lists([[3, 1, 4, *text[0]]], 0), 3)
    assert ar.predict(told).greedy.tolist() == ltm.predict(told).greedy.tolist() == [True]


def _greedy():
    from ltm_pyro.decoder import Sampling

    return Sampling(temperature=0)


def test_context_behind_what_is_scored_is_refused(ltm: ThoughtLanguageModel):
    batch = ragged_batch(4)
    scored = torch.tensor([[False, True, False, True]])
    with pytest.raises(LTMError, match="must be the last ones"):
        ltm.predict(replace(batch, scored=scored))
    assert context_lengths(after(ragged_batch(5, 3), 2, 3)).tolist() == [2, 3]


def test_no_draw_is_refused(ltm: ThoughtLanguageModel):
    with pytest.raises(LTMError, match="samples must be 1 or more, got 0"):
        ltm.predict(ragged_batch(4), samples=0)
