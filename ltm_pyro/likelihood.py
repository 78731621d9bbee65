"""TokenSequence: the neural likelihood p_β(x | z) as a Pyro distribution over whole token sequences."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder.decoding import decode
from ltm_pyro.decoder.transformer import Stem, ThoughtDecoder

__all__ = ["TokenSequence"]


class TokenSequence(TorchDistribution):
    r"""Token sequences given thoughts, with batch shape (…, B) and event shape (N,).

    .. math:: \log p_\beta(x \mid z) = \sum_{n \in \text{scored}} \log p_\beta(x_n \mid z, x_{<n})

    Args:
        decoder: network of the likelihood.
        thoughts: (…, B, L, n, width); leading dimensions are particles or enumerated values.
        batch: lengths, start tokens and scored positions of the B sequences. Its tokens are not read, so the same batch
            conditions a likelihood that is scored and one that is sampled.
        stem: the decoder's z-independent part for the value that will be scored, where the caller has it already
            (`ThoughtDecoder.stem`); None computes it from the value.

    ``sample`` draws from torch's global stream; positions at and after a sequence's length are 0.

    References: Kong et al. (2025), Scalable Language Models with Posterior Inference of Latent Thought Vectors.
    """

    has_rsample = False
    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - the name and type are torch's

    def __init__(
        self,
        decoder: ThoughtDecoder,
        thoughts: Float[Tensor, "*particles batch layer slot width"],
        batch: TokenBatch,
        *,
        stem: Stem | None = None,
    ):
        self.decoder = decoder
        self.thoughts = thoughts
        self.batch = batch
        self._stem = stem
        shape = torch.broadcast_shapes(thoughts.shape[:-3], (len(batch),))
        super().__init__(shape, torch.Size([batch.tokens.shape[1]]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Sequences of token ids in 0 … V - 1."""
        return constraints.independent(constraints.integer_interval(0, self.decoder.vocab_size - 1), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TokenSequence:
        """The same likelihood with more leading dimensions."""
        shape = torch.Size(batch_shape)
        thoughts = self.thoughts.expand(*shape, *self.thoughts.shape[-3:])
        return TokenSequence(self.decoder, thoughts, self.batch, stem=self._stem)

    def token_log_prob(self, value: Int[Tensor, "*shape token"]) -> Float[Tensor, "*broadcast token"]:
        """(…, B, N) log p(x_n | z, x_<n) at the scored tokens and 0 elsewhere."""
        batch, events = len(self.batch), value.shape[-1]
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        rows = leading.numel() // batch
        thoughts = self.thoughts.expand(*leading, *self.thoughts.shape[-3:]).flatten(0, len(leading) - 1)
        stem, targets = self._stem, value.expand(*leading, events).reshape(rows, batch * events)
        if stem is None or value.dim() != 2:
            if value.shape[:-1] != leading[1 - value.dim() :]:  # a tiled stem would meet other rows' thoughts
                value = value.expand(*leading, events)
            start = self.batch.start.expand(value.shape[:-1])[..., None]
            inputs = torch.cat([start, value[..., :-1]], dim=-1)
            stem = self.decoder.stem(inputs.reshape(-1, events))
        stem = stem.expand(rows * batch // stem.residual.shape[0])
        hidden = self.decoder(stem, thoughts).reshape(rows, batch * events, -1)
        # Padding is left out of the product with the vocabulary, the most expensive one of all.
        scored = self.batch.scored_index
        log_prob = self.decoder.token_log_prob(hidden[:, scored].flatten(0, 1), targets[:, scored].flatten())
        result = log_prob.new_zeros(rows, batch * events).index_copy(1, scored, log_prob.view(rows, -1))
        return result.view(*leading, events)

    def log_prob(self, value: Int[Tensor, "*shape token"]) -> Float[Tensor, "*broadcast"]:
        """(…, B) log-probability of the scored tokens, in nats."""
        return self.token_log_prob(value).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Int[Tensor, "*shape token"]:
        r"""Token sequences by cached decoding: (\*sample_shape, …, B, N)."""
        shape = torch.Size(sample_shape) + self.batch_shape
        thoughts = self.thoughts.expand(*shape, *self.thoughts.shape[-3:]).flatten(0, len(shape) - 1)
        start = self.batch.start.expand(shape).reshape(-1, 1)
        ones = torch.ones(len(start), dtype=torch.int64, device=start.device)
        drawn = decode(self.decoder, thoughts, start, ones, self.event_shape[0]).tokens
        tokens = drawn.view(*shape, *self.event_shape)
        return torch.where(self.batch.real, tokens, 0)
