"""MaskedDiffusion: tokens are hidden at random and predicted from all that is left, in both directions (MDLM)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ltm_pyro.baselines.base import Baseline, check_generation
from ltm_pyro.baselines.transformer import PlainTransformer, TransformerShape
from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder.decoding import Ended
from ltm_pyro.decoder.prompts import Prompts
from ltm_pyro.decoder.sampling import Sampling, TokenDraws
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.protocols import Protocol
from ltm_pyro.flops import TransformerSize, transformer_step_flops
from ltm_pyro.infer.posterior import autocasting
from ltm_pyro.language_model import Prediction, context_lengths
from ltm_pyro.noise import SequenceGenerator

__all__ = ["MaskedDiffusion"]


_AT_ONCE = 64  # texts of one prompt


class MaskedDiffusion(Baseline):
    r"""Absorbing-state diffusion over tokens, with a Transformer that attends in both directions.

    Its protocol ``nelbo`` is the negative ELBO of the continuous-time process, an upper bound on -log p(x):

    .. math:: \int_0^1 \frac{1}{t} E_{m \sim t} \sum_{n \in m} -\log p(x_n \mid x_{\setminus m}) \, dt
        = E_{k \sim U\{1 \dots N\}} E_{|m| = k} \frac{N}{k} \sum_{n \in m} -\log p(x_n \mid x_{\setminus m})

    where m holds each of the N scored tokens with probability t (log-linear schedule), or is a uniform subset of k of
    them: a set of k has the weight B(k, N - k + 1) = 1 / (k C(N, k)) on both sides. The right side is what is drawn: no
    weight is above N, and no smallest t cuts the integral. It is also the loss of predicting the tokens one by one,
    averaged over all orders, so that the optimum is the entropy itself.

    The mask is an input alone: logits are over the V tokens, and a visible token stays what it is (SUBS). What the
    masked tokens are, given the visible ones, does not depend on t, so the network is not told it. The start token and
    what is not scored are always visible. The *length is given*, as it is to no model that predicts a text's end: in a
    sequence that is a document, the end-of-text token costs next to nothing.

    Slow parameters: the network's, and ``mask_embedding`` (H,).

    Args:
        shape: sizes of the network; its window is not used.
        sampling_steps: evaluations of the network in `generate`; none is one for each token. With fewer, tokens of the
            same step are drawn independently of one another.
        autocast: type of the network's products; None for the weights' own.

    Raises:
        LTMError: there is no sampling step.

    References: Sahoo et al. (2024), Simple and Effective Masked Diffusion Language Models; Shi et al. (2024),
    Simplified and Generalized Masked Diffusion for Discrete Data; Ou et al. (2024), Your Absorbing Discrete Diffusion
    Secretly Models the Conditional Distributions of Clean Data; Uria et al. (2014), A Deep and Tractable Density
    Estimator (orders).
    """

    kind = "mdlm"
    protocols: ClassVar[tuple[Protocol, ...]] = ("nelbo",)
    default_protocols: ClassVar[tuple[Protocol, ...]] = ("nelbo",)
    comparable: ClassVar[Protocol] = "nelbo"
    exact: ClassVar[bool] = False
    open_ended: ClassVar[bool] = False
    validation_samples: ClassVar[int] = 8

    def __init__(
        self, shape: TransformerShape, *, sampling_steps: int | None = None, autocast: torch.dtype | None = None
    ):
        if sampling_steps is not None and sampling_steps < 1:
            raise LTMError(f"sampling_steps must be 1 or more, got {sampling_steps}: none is one for each token")
        super().__init__(PlainTransformer(shape, causal=False), autocast)
        self.sampling_steps = sampling_steps
        self.mask_embedding = nn.Parameter(torch.empty(shape.hidden))
        # Ten times the tokens' scale: beside them a mask is then something else from the start, and training leaves the
        # unigram's plateau several hundred steps sooner.
        nn.init.normal_(self.mask_embedding, std=0.2)

    def sequence_loss(self, batch: TokenBatch, *, seed: int = 0, samples: int = 1) -> Float[Tensor, " batch"]:
        """(B,) unbiased estimates of the negative ELBO of each sequence, in nats.

        Args:
            batch: the sequences.
            seed: of the masks; a sequence's are its own, whatever its batch.
            samples: masks for each sequence, their sizes spread evenly over 1 … N.
        """
        loss = torch.zeros((), device=batch.device)
        for masked, weight in _masks(batch, SequenceGenerator(batch.keys, seed, "mask"), samples):
            log_prob = self.masked_log_prob(batch, masked).sum(-1)
            loss = loss - weight.to(log_prob.dtype) * log_prob / samples
        return loss

    def step_flops(self, batch: TokenBatch) -> int:
        """As of any baseline; the start token is read, too, and of N tokens (N + 1) / 2 are masked, on average."""
        rows, length = batch.tokens.shape
        masked = int(batch.num_scored.sum() + (batch.num_scored > 0).sum()) // 2
        return transformer_step_flops(TransformerSize.of(self.network), rows, length + 1, masked)

    def masked_log_prob(self, batch: TokenBatch, masked: Bool[Tensor, "batch token"]) -> Float[Tensor, "batch token"]:
        """(B, N) log p(x_n | the tokens that are not masked) at the masked tokens and 0 elsewhere."""
        places = masked.flatten().nonzero()[:, 0]
        with autocasting(batch.device, self.autocast):
            hidden = self._hidden(batch.start, batch.tokens, masked, batch.real).flatten(0, 1)[places]
            log_prob = self.network.token_log_prob(hidden, batch.tokens.flatten()[places])
        return log_prob.new_zeros(masked.numel()).index_copy(0, places, log_prob).view(masked.shape)

    @torch.no_grad()
    def predict(
        self, batch: TokenBatch, *, samples: int = 1, fast_steps: int | None = None, seed: int = 0
    ) -> Prediction:
        """A lower bound on log p(scored tokens | context, their number), by S masks.

        ``greedy`` is True where the scored tokens are what `generate` fills in at temperature 0, one at a time: again
        and again the token that the network is surest of, at whatever place.
        """
        if samples < 1:
            raise LTMError(f"samples must be 1 or more, got {samples}")
        batch = batch.unlabelled().to(self.device)
        context_lengths(batch)
        bound = -self.sequence_loss(batch, seed=seed, samples=samples).double()
        return Prediction(bound, self._greedy(batch))

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        start: int | Sequence[int],
        num: int = 1,
        first: int = 0,
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: int | None = None,
        ended: Ended | None = None,
        fast_steps: int | None = None,
        label: int | None = None,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[list[int]]]:
        """Fills ``max_tokens`` masks after each prompt, in a uniform order, and drops what follows the first ``stop``.

        There are fewer masks where prompt and text would be longer than the training length, the longest that the
        network has seen. Temperature, top-k and top-p act on each token; at temperature 0 the surest tokens come first.
        One prompt is filled after the other, and ``ended``, which is told of no text before all of it is there, saves
        nothing.
        """
        check_generation(self, prompts, num, max_tokens, label, first)
        for prompt in prompts:
            if len(prompt) >= self.max_length:
                raise LTMError(
                    f"the prompt has {len(prompt)} tokens and leaves none to fill of the {self.max_length} that the "
                    f"model was trained on: shorten it"
                )
        asked = Prompts(prompts, start, num, progress, first)
        for part in asked.parts():
            texts: list[list[int]] = []
            here = part.to(self.device)
            noise = SequenceGenerator(here.keys, seed, "token")
            rows = torch.arange(len(here.prompt), device=self.device).split(list(part.draws))
            lists = zip(part.batch.tokens.tolist(), part.batch.lengths.tolist(), part.batch.start.tolist(), strict=True)
            for (tokens, length, before), own in zip(lists, rows, strict=True):
                for some in own.split(_AT_ONCE):
                    texts += self._fill(
                        tokens[:length], before, noise.rows(some), max_tokens, sampling or Sampling(), stop
                    )
            asked.keep(part, texts)
        return asked.texts()

    @torch.no_grad()
    def _fill(
        self,
        prompt: Sequence[int],
        start: int,
        noise: SequenceGenerator,
        max_tokens: int,
        sampling: Sampling,
        stop: int | None,
    ) -> list[list[int]]:
        """A text of one prompt for each stream of the noise."""
        num = noise.size
        length = min(max_tokens, self.max_length - len(prompt))
        tokens = torch.tensor([[*prompt, *([0] * length)]] * num, dtype=torch.int64, device=self.device)
        masked = (torch.arange(tokens.shape[1], device=self.device) >= len(prompt)).repeat(num, 1)
        starts = torch.full((num,), start, dtype=torch.int64, device=self.device)
        order = noise.words(length).argsort(-1) + len(prompt)
        draws = TokenDraws(sampling)
        steps = min(self.sampling_steps or length, length)
        for begin, end in pairwise(length * step // steps for step in range(steps + 1)):
            with autocasting(self.device, self.autocast):
                hidden = self._hidden(starts, tokens, masked, None)
                if sampling.temperature == 0:
                    surest, best = self._surest(hidden, masked)
                    places = surest.topk(end - begin).indices
                    drawn = best.gather(1, places)
                else:
                    places = order[:, begin:end]
                    chosen = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1])).flatten(0, 1)
                    uniforms = noise.uniform(places.shape[1]).flatten()
                    drawn = draws(self.network.logits(chosen).float(), uniforms).view(places.shape)
            tokens = tokens.scatter(1, places, drawn)
            masked = masked.scatter(1, places, False)
        texts = tokens[:, len(prompt) :].tolist()
        return [text[: text.index(stop)] if stop in text else text for text in texts]

    def _hidden(
        self,
        start: Int[Tensor, " batch"],
        tokens: Int[Tensor, "batch token"],
        masked: Bool[Tensor, "batch token"],
        real: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch token hidden"]:
        """Final hidden states at the tokens, the start token standing before them."""
        embedded = torch.where(masked[..., None], self.mask_embedding, self.network.embedding(tokens))
        embedded = torch.cat([self.network.embedding(start[:, None]), embedded], 1)
        if real is not None:
            # Without padding there is no mask, which is what the fastest attention takes.
            real = None if bool(real.all()) else torch.cat([torch.ones_like(real[:, :1]), real], 1)
        return self.network.hidden(embedded, real)[:, 1:]

    def _surest(
        self, hidden: Float[Tensor, "batch token hidden"], masked: Bool[Tensor, "batch token"]
    ) -> tuple[Float[Tensor, "batch token"], Int[Tensor, "batch token"]]:
        """Log-probability of the most probable token at each masked place, -inf elsewhere, and that token."""
        surest = hidden.new_full(masked.shape, -torch.inf, dtype=torch.float32)
        best = torch.zeros(masked.shape, dtype=torch.int64, device=hidden.device)
        rows = hidden[masked].split(max(2**23 // self.vocab_size, 1))
        found = [self.network.logits(part).float().log_softmax(-1).max(-1) for part in rows]
        surest[masked] = torch.cat([part.values for part in found])
        best[masked] = torch.cat([part.indices for part in found])
        return surest, best

    def _greedy(self, batch: TokenBatch) -> Bool[Tensor, " batch"]:
        """(B,) whether the surest token is right, again and again, until no scored token is masked."""
        right = torch.ones(len(batch), dtype=torch.bool, device=batch.device)
        masked = batch.mask.clone()
        while len(rows := (right & masked.any(-1)).nonzero()[:, 0]):
            some, left = batch[rows], masked[rows]
            with autocasting(batch.device, self.autocast):
                hidden = self._hidden(some.start, some.tokens, left, some.real)
                surest, best = self._surest(hidden, left)
            place = surest.argmax(-1, keepdim=True)
            right[rows] = (best.gather(1, place) == some.tokens.gather(1, place))[:, 0]
            masked[rows] = left.scatter(1, place, False)
        return right


def _masks(
    batch: TokenBatch, noise: SequenceGenerator, samples: int
) -> Iterator[tuple[Bool[Tensor, "batch token"], Float[Tensor, " batch"]]]:
    """S times, for each sequence: a uniform subset of k of its N scored tokens, and N / k.

    One uniform number, moved on by 1 / S from draw to draw, gives a sequence's k: each k is uniform on 1 … N, and S
    of them differ as much as they can.
    """
    count = batch.num_scored
    first = (noise.words(1)[:, 0] >> 11).double() * 2.0**-53 + 0.5  # the shift keeps the sign
    for draw in range(samples):
        level = (first + draw / samples) % 1.0
        size = (level * count).long().clamp(max=(count - 1).clamp(min=0)) + 1
        words = noise.words(batch.tokens.shape[1]).masked_fill(~batch.mask, torch.iinfo(torch.int64).max)
        rank = words.argsort(-1).argsort(-1)
        yield batch.mask & (rank < size[:, None]), count / size
