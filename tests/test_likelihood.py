"""TokenSequence as a Pyro distribution: normalised, sampled as it is scored, and broadcast like any other."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, TraceEnum_ELBO
from tiny_models import ragged_batch, random_thoughts, tiny_decoder

from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder import Sampling, decode
from ltm_pyro.guides import LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI
from ltm_pyro.likelihood import TokenSequence
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator, sequence_noise
from ltm_pyro.priors import Prior


def all_sequences(vocab: int, length: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(vocab), repeat=length)))


def blank(lengths: list[int], width: int) -> TokenBatch:
    """Sequences whose tokens are not known yet."""
    return TokenBatch(
        torch.zeros(len(lengths), width, dtype=torch.int64), torch.tensor(lengths), torch.arange(len(lengths))
    )


@pytest.mark.parametrize("window", [1, 2, 8])
def test_probabilities_of_all_sequences_sum_to_one(window):
    decoder = tiny_decoder(vocab_size=3, window=window)
    likelihood = TokenSequence(decoder, random_thoughts(decoder, 2), blank([3, 3], 3))
    every = all_sequences(3, 3)[:, None].expand(-1, 2, -1)
    total = likelihood.log_prob(every).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(2), atol=1e-5, rtol=0)  # 27 float32 terms
    assert (likelihood.log_prob(every)[:, 0] - likelihood.log_prob(every)[:, 1]).abs().max() > 0.1


def test_sample_frequencies_match_the_probabilities():
    decoder = tiny_decoder(vocab_size=3)
    likelihood = TokenSequence(decoder, random_thoughts(decoder, 2), blank([2, 1], 2))
    draws = likelihood.sample((4000,))
    assert draws.shape == (4000, 2, 2)
    assert (draws[:, 1, 1] == 0).all()  # beyond the length
    for b, length in enumerate([2, 1]):
        every = all_sequences(3, length)
        value = torch.zeros(len(every), 2, 2, dtype=torch.int64)
        value[:, b, :length] = every
        expected = 4000 * likelihood.log_prob(value)[:, b].detach().exp()
        counts = (draws[:, b, None, :length] == every).all(-1).sum(0)
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        # Chi-square with 8 and 2 degrees of freedom: exceeded with probability 1e-4.
        assert chi_square < (31.8 if length == 2 else 18.4)


def test_an_empty_sequence_has_log_probability_zero():
    decoder = tiny_decoder()
    batch = ragged_batch(0, 3)
    log_prob = TokenSequence(decoder, random_thoughts(decoder, 2), batch).log_prob(batch.tokens)
    assert log_prob[0] == 0
    assert log_prob[1] < 0
    alone = ragged_batch(0)
    assert TokenSequence(decoder, random_thoughts(decoder, 1), alone).log_prob(alone.tokens).tolist() == [0.0]


def test_padding_never_matters():
    decoder = tiny_decoder()
    batch, thoughts = ragged_batch(5, 2, 3), random_thoughts(decoder, 3)
    expected = TokenSequence(decoder, thoughts, batch).log_prob(batch.tokens)
    for width, pad in ((5, 9), (8, 3)):
        tokens = torch.full((3, width), pad)
        tokens[:, :5] = torch.where(batch.real, batch.tokens, pad)
        padded = TokenBatch(tokens, batch.lengths, batch.start)
        actual = TokenSequence(decoder, thoughts, padded).log_prob(tokens)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-6)  # float32 sums of other widths


def test_a_token_that_is_not_scored_still_conditions_the_next():
    decoder = tiny_decoder()
    batch, thoughts = ragged_batch(4), random_thoughts(decoder, 1)
    scored = torch.tensor([[False, False, True, True]])
    chosen = TokenBatch(batch.tokens, batch.lengths, batch.start, scored)
    whole = TokenSequence(decoder, thoughts, batch).token_log_prob(batch.tokens)
    part = TokenSequence(decoder, thoughts, chosen).token_log_prob(batch.tokens)
    torch.testing.assert_close(part, torch.where(scored, whole, 0.0))
    other = batch.tokens.clone()
    other[0, 1] = (other[0, 1] + 1) % 11
    assert (TokenSequence(decoder, thoughts, chosen).token_log_prob(other) - part)[0, 2:].abs().min() > 1e-4


def rows_one_by_one(decoder, thoughts: torch.Tensor, batch: TokenBatch, value: torch.Tensor) -> torch.Tensor:
    """Log-probabilities with thoughts (…, B, L, n, H) and values (…, B, N), each row scored alone."""
    shape = torch.broadcast_shapes(thoughts.shape[:-3], value.shape[:-1])
    thoughts, value = thoughts.expand(*shape, *thoughts.shape[-3:]), value.expand(*shape, value.shape[-1])
    result = torch.empty(shape)
    for index in itertools.product(*map(range, shape)):
        row = batch[[index[-1]]]
        result[index] = TokenSequence(decoder, thoughts[index][None], row).log_prob(value[index][None])
    return result


@pytest.mark.parametrize(
    ("thoughts", "values"),
    [
        ((2,), (2,)),
        ((3, 2), (2,)),
        ((4, 3, 2), (2,)),
        ((2,), (3, 2)),
        ((3, 2), (3, 2)),
        ((3, 2), (4, 1, 2)),
        ((4, 1, 2), (3, 2)),
        ((1, 2), (3, 2)),
        ((2,), (3, 1)),
        ((2,), ()),
    ],
)
@pytest.mark.parametrize("with_stem", [True, False])
def test_log_prob_broadcasts_row_by_row(thoughts, values, with_stem):
    decoder = tiny_decoder()
    batch = ragged_batch(4, 2)
    z = random_thoughts(decoder, *thoughts)
    value = batch.tokens if values == (2,) else torch.randint(11, (*values, 4))
    stem = decoder.stem(batch.inputs) if with_stem else None
    actual = TokenSequence(decoder, z, batch, stem=stem).log_prob(value)
    expected = rows_one_by_one(decoder, z, batch, value)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)  # float32 products of other sizes


def test_expanding_repeats_the_likelihood():
    decoder = tiny_decoder()
    batch, z = ragged_batch(4, 2), random_thoughts(decoder, 2)
    one = TokenSequence(decoder, z, batch, stem=decoder.stem(batch.inputs))
    many = one.expand((3, 2))
    assert many.batch_shape == (3, 2)
    assert many.event_shape == (4,)
    torch.testing.assert_close(many.log_prob(batch.tokens), one.log_prob(batch.tokens).expand(3, 2))
    assert many.sample((5,)).shape == (5, 3, 2, 4)


def test_samples_lie_in_the_support_and_their_shape_is_sample_batch_event():
    decoder = tiny_decoder()
    likelihood = TokenSequence(decoder, random_thoughts(decoder, 3, 2), blank([4, 0], 4))
    draws = likelihood.sample((5, 2))
    assert draws.shape == (5, 2, 3, 2, 4)
    assert likelihood.support.check(draws).all()
    assert (draws[..., 1, :] == 0).all()
    assert len(draws[..., 0, :].unique()) > 5


def certain_model(**settings) -> LatentThoughtModel:
    """A program whose likelihood is so peaked that sampling is greedy decoding."""
    decoder = tiny_decoder(**settings)
    with torch.no_grad():
        decoder.norm.weight.mul_(1e4)
    return LatentThoughtModel(decoder, ScaledNormal(decoder.thought_shape))


class ScaledNormal(Prior):
    """Thoughts spread widely, so that they change the most probable tokens."""

    def forward(self, batch_size):
        return pyro.sample("z", dist.Normal(0.0, 3.0).expand((batch_size, *self.shape)).to_event(3))


@pytest.mark.parametrize("parallel", [True, False])
def test_predictive_samples_each_drawn_thought_with_its_own_sequence(parallel):
    model = certain_model()
    batch = blank([5, 3], 5)
    drawn = Predictive(model, num_samples=6, return_sites=("z", "tokens"), parallel=parallel)(batch, observed=False)
    assert drawn["tokens"].shape == (6, 2, 5)
    start, ones = batch.start[:, None], torch.ones(2, dtype=torch.int64)
    for z, tokens in zip(drawn["z"].reshape(6, 2, *model.decoder.thought_shape), drawn["tokens"], strict=True):
        greedy = decode(model.decoder, z, start, ones, 5, sampling=Sampling(temperature=0.0)).tokens
        assert torch.equal(tokens, torch.where(batch.real, greedy, 0))
    assert len(drawn["tokens"].reshape(12, 5).unique(dim=0)) > 3


class ShiftedComponents(Prior):
    """A component k of three per sequence; thoughts are normal around its mean and shifted by it once more."""

    def __init__(self, shape):
        super().__init__(shape)
        generator = torch.Generator().manual_seed(4)
        self.probs = torch.tensor([0.5, 0.2, 0.3])
        self.mean = torch.randn(3, *shape, generator=generator)
        self.shift = torch.randn(3, *shape, generator=generator)

    def forward(self, batch_size):
        components = dist.Categorical(self.probs).expand((batch_size,))
        k = pyro.sample("component", components, infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(self.mean[k], 1.0).to_event(3))
        return z + self.shift[k]


def test_an_enumerated_component_is_summed_out_exactly():
    decoder = tiny_decoder()
    model = LatentThoughtModel(decoder, ShiftedComponents(decoder.thought_shape))
    guide = LocalNormal(model)
    assert [site.name for site in guide.sites] == ["z"]
    batch = ragged_batch(5, 3, 1)
    local = guide.init_local(batch, SequenceGenerator(batch.keys, 0))
    with sequence_noise(SequenceGenerator(batch.keys, 1)):
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
            lambda: model(batch), lambda: guide(batch, local)
        )

    noise = SequenceGenerator(batch.keys, 1).normal(decoder.thought_shape)
    mu, sigma = local["z.mu"], (0.5 * local["z.log_var"]).exp()
    z = mu + sigma * noise
    log_q = torch.distributions.Normal(mu, sigma).log_prob(z).sum((-1, -2, -3))
    joint = []
    for k, p in enumerate(model.prior.probs):
        log_prior = torch.distributions.Normal(model.prior.mean[k], 1.0).log_prob(z).sum((-1, -2, -3))
        log_likelihood = TokenSequence(decoder, z + model.prior.shift[k], batch).log_prob(batch.tokens)
        joint.append(p.log() + log_prior + log_likelihood)
    expected = -(torch.stack(joint).logsumexp(0) - log_q).sum()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)  # a float32 sum of about 60 terms
    # Components differ enough for a wrong weight to show.
    assert (torch.stack(joint).softmax(0).amax(0) < 0.99).any()
    # The gradient flows through both.
    for name in ("z.mu", "z.log_var"):
        a, b = (torch.autograd.grad(value, local[name], retain_graph=True)[0] for value in (loss, expected))
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_a_program_with_an_enumerated_component_is_trained_by_its_pyro_elbo():
    decoder = tiny_decoder()
    model = LatentThoughtModel(decoder, ShiftedComponents(decoder.thought_shape))
    svi = FastSlowSVI(
        model,
        LocalNormal(model),
        fast=FastConfig(steps=2),
        slow=torch.optim.AdamW(model.parameters(), lr=3e-2),
        elbo=TraceEnum_ELBO(max_plate_nesting=1),
    )
    batch = ragged_batch(5, 3, 1)
    steps = [svi.step(batch, seed=i) for i in range(8)]
    assert sum(s.loss for s in steps[-3:]) < sum(s.loss for s in steps[:3])
    assert all(s.terms is None for s in steps)
