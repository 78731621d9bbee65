"""LanguageModel: what a trained model of any kind can be asked, and the Latent Thought one's answers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data.sequences import SequenceDataset
from ltm_pyro.decoder.decoding import Ended
from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.protocols import PROTOCOLS, VALIDATION, Protocol, Report, evaluate, refuse_flattery
from ltm_pyro.generate import generate_batch
from ltm_pyro.infer.fast_slow import FastSlowSVI
from ltm_pyro.infer.posterior import autocasting
from ltm_pyro.noise import fixed_global_stream

__all__ = ["LanguageModel", "Prediction", "ThoughtLanguageModel", "context_lengths"]


class Prediction(NamedTuple):
    """What a model says of the scored tokens of B sequences, each given the tokens before them.

    ``log_prob`` (B,) is their log-probability in nats, or a lower bound on it for a model that has no more
    (`LanguageModel.exact`). ``greedy`` (B,) is True where each of them is its most probable token given all before.
    """

    log_prob: Float[Tensor, " batch"]
    greedy: Bool[Tensor, " batch"]


class LanguageModel(ABC):
    """A trained model of token sequences.

    Class attributes: ``kind`` is the model's name on the command line; ``protocols`` are those that `evaluate` can
    report, and ``default_protocols`` those that it does report unless told otherwise; ``comparable`` is the one that
    compares between kinds of model, a probability of the text or a bound on it; ``exact`` says whether `predict` gives
    probabilities rather than lower bounds; ``open_ended`` says whether a text and its prompt may be longer than
    `max_length` in `generate`; ``validation_samples`` is S of the validations of a training.
    """

    kind: ClassVar[str]
    protocols: ClassVar[tuple[Protocol, ...]]
    default_protocols: ClassVar[tuple[Protocol, ...]]
    comparable: ClassVar[Protocol]
    exact: ClassVar[bool] = True
    open_ended: ClassVar[bool] = True
    validation_samples: ClassVar[int] = 1

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """V."""

    @property
    @abstractmethod
    def max_length(self) -> int:
        """Tokens of the longest sequence that the model was trained on."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @abstractmethod
    def evaluate(
        self,
        data: SequenceDataset,
        indices: Sequence[int],
        *,
        protocols: Sequence[str] | None = None,
        samples: int = 1,
        block_size: int = 32,
        fast_steps: int | None = None,
        batch_size: int = 8,
        seed: int = 0,
    ) -> Report:
        """Scores sequences by protocols; the values depend on the seed and on no batch.

        Args:
            data: where the sequences come from.
            indices: which of them.
            protocols: some of the model's; None takes its default ones.
            samples: S, draws per sequence, where the model needs any.
            block_size: tokens of a block of ``prequential``.
            fast_steps: T_fast of a model with thoughts; None takes the configured number.
            batch_size: sequences at once.
            seed: of the noise.

        Raises:
            LTMError: nothing to score, or a protocol that is not the model's.
        """

    @abstractmethod
    def predict(
        self,
        batch: TokenBatch,
        *,
        samples: int = 1,
        fast_steps: int | None = None,
        seed: int = 0,
    ) -> Prediction:
        """Log p(scored tokens | the tokens before them), sequence by sequence.

        A sequence's context is what stands before its first scored token; the scored tokens are the rest of it.

        Args:
            batch: B sequences; `TokenBatch.scored` marks what to predict, None all of it.
            samples: S, draws per sequence, where the model needs any.
            fast_steps: T_fast of a model with thoughts; None takes the configured number.
            seed: of the noise.

        Raises:
            LTMError: a sequence has unscored tokens after a scored one.
        """

    @abstractmethod
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
        """Draws ``num`` texts for each prompt as lists of token ids; the arguments are those of `generate_batch`.

        A text depends on the seed, its prompt and its number alone.

        Raises:
            LTMError: a number is out of range, a prompt is too long, or there is a label and the model has none.
        """

    def generate(
        self,
        *,
        start: int,
        prompt: Sequence[int] = (),
        num: int = 1,
        first: int = 0,
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: int | None = None,
        fast_steps: int | None = None,
        label: int | None = None,
        seed: int = 0,
    ) -> list[list[int]]:
        """Draws ``num`` texts as lists of token ids, the prompt left out: `generate_batch` of one prompt.

        Raises:
            LTMError: a number is out of range, the prompt is too long, or there is a label and the model has none.
        """
        (texts,) = self.generate_batch(
            [prompt],
            start=start,
            num=num,
            first=first,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            fast_steps=fast_steps,
            label=label,
            seed=seed,
        )
        return texts

    def about_inference(self, fast_steps: int | None) -> dict[str, int]:
        """What a report says of the inference that it was asked for: T_fast, where there are thoughts."""
        return {}

    def features(
        self, batch: TokenBatch, *, fast_steps: int | None = None, seed: int = 0
    ) -> Float[Tensor, "batch width"]:
        """One vector for each sequence, by which sets of texts are compared: the last hidden state at its last token.

        Args:
            batch: B sequences.
            fast_steps: T_fast of a model with thoughts; None takes the configured number.
            seed: of the noise.

        Raises:
            LTMError: the kind of model has no such vector.
        """
        raise LTMError(f"a model of kind {self.kind} has no features of a text: take another model for them")

    def choose(self, protocols: Sequence[str] | None) -> tuple[Protocol, ...]:
        """The protocols to compute, in the model's order.

        Raises:
            LTMError: one of them is not the model's.
        """
        if protocols is None:
            return self.default_protocols
        refuse_flattery(protocols)
        for name in protocols:
            if name not in self.protocols:
                raise LTMError(f"a model of kind {self.kind} has no {name}: it reports {', '.join(self.protocols)}")
        return tuple(name for name in self.protocols if name in protocols)


class ThoughtLanguageModel(LanguageModel):
    r"""A Latent Thought Language Model with its guide and fast loop.

    `predict` infers the thoughts from the context alone and averages probabilities over S draws,

    .. math:: \log \frac{1}{S} \sum_s p_\beta(x_{scored} \mid x_{context}, z_s), \qquad z_s \sim q(z \mid x_{context}),

    the draws being the prior's where there is no context. ``greedy`` is by the same mixture over draws.

    Args:
        svi: the model, its guide and the settings of the fast loop.
        fast_lr: η_fast; None takes the configured one.
    """

    kind = "ltm"
    protocols = PROTOCOLS
    default_protocols = VALIDATION
    comparable: ClassVar[Protocol] = "prequential"

    def __init__(self, svi: FastSlowSVI, fast_lr: float | None = None):
        self.svi = svi
        self.fast_lr = fast_lr

    def about_inference(self, fast_steps: int | None) -> dict[str, int]:  # noqa: D102
        return {"fast_steps": self.svi.fast_steps(fast_steps)}

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.svi.model.decoder.vocab_size

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that the model was trained on."""
        return self.svi.model.decoder.max_length

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.svi.model.decoder.embedding.weight.device

    def evaluate(  # noqa: D102
        self,
        data: SequenceDataset,
        indices: Sequence[int],
        *,
        protocols: Sequence[str] | None = None,
        samples: int = 1,
        block_size: int = 32,
        fast_steps: int | None = None,
        batch_size: int = 8,
        seed: int = 0,
    ) -> Report:
        return evaluate(
            self.svi,
            data,
            indices,
            protocols=self.choose(protocols),
            samples=samples,
            block_size=block_size,
            fast_steps=fast_steps,
            fast_lr=self.fast_lr,
            batch_size=batch_size,
            seed=seed,
            device=self.device,
        )

    def predict(  # noqa: D102
        self,
        batch: TokenBatch,
        *,
        samples: int = 1,
        fast_steps: int | None = None,
        seed: int = 0,
    ) -> Prediction:
        if samples < 1:
            raise LTMError(f"samples must be 1 or more, got {samples}")
        batch = batch.unlabelled().to(self.device)
        decoder = self.svi.model.decoder
        thoughts = self._thoughts(batch, context_lengths(batch), samples, fast_steps, seed)
        scored, targets = batch.scored_index, batch.tokens.flatten()[batch.scored_index]
        with torch.no_grad(), autocasting(batch.device, self.svi.autocast):
            stem = decoder.stem(batch.inputs)
            hidden = torch.stack([decoder(stem, z).flatten(0, 1)[scored] for z in thoughts])
            log_probs = torch.stack([decoder.token_log_prob(h, targets) for h in hidden]).double()
        by_place = log_probs.new_zeros(samples, batch.tokens.numel()).index_copy(1, scored, log_probs)
        by_place = by_place.view(samples, *batch.tokens.shape)
        # What each draw has predicted so far weighs it for the next token.
        before = (by_place.cumsum(-1) - by_place).flatten(1)[:, scored]
        rows = max(2**23 // (samples * decoder.vocab_size), 1)
        with torch.no_grad():
            best = [
                _most_probable(decoder.logits(h), w)
                for h, w in zip(hidden.split(rows, 1), before.split(rows, 1), strict=True)
            ]
        right = torch.ones(batch.tokens.numel(), dtype=torch.bool, device=batch.device)
        right[scored] = torch.cat([*best, targets[:0]]) == targets
        return Prediction(by_place.sum(-1).logsumexp(0) - math.log(samples), right.view(batch.tokens.shape).all(-1))

    def _thoughts(
        self, batch: TokenBatch, lengths: Int[Tensor, " batch"], samples: int, fast_steps: int | None, seed: int
    ) -> Float[Tensor, "draw batch layer slot width"]:
        """S draws for each sequence from q(z | context), from the prior where there is no context."""
        with fixed_global_stream(seed, batch.device):
            drawn = self.svi.model.sample_prior(samples)
        thoughts = drawn[:, None].repeat(1, len(batch), 1, 1, 1)
        told = (lengths > 0).nonzero()[:, 0]
        if len(told):
            some = batch[told]
            longest = int(lengths.max())
            context = TokenBatch(some.tokens[:, :longest], lengths[told], some.start)
            # The choices of one question share their context, and equal contexts have equal posteriors and draws.
            keys, place = context.keys.unique(return_inverse=True)
            one_of_each = torch.zeros_like(keys).scatter(0, place, torch.arange(len(place), device=batch.device))
            posterior = self.svi.infer(context[one_of_each], steps=fast_steps, seed=seed, lr=self.fast_lr)
            thoughts[:, told] = posterior.sample(samples)[:, place]
        return thoughts

    def features(
        self, batch: TokenBatch, *, fast_steps: int | None = None, seed: int = 0
    ) -> Float[Tensor, "batch width"]:
        """The last hidden state at each sequence's last token, under the mean of the thoughts inferred from it."""
        batch = batch.unlabelled().to(self.device)
        posterior = self.svi.infer(batch, steps=fast_steps, seed=seed, lr=self.fast_lr)
        inputs = torch.cat([batch.start[:, None], batch.tokens], dim=1)
        with torch.no_grad(), autocasting(batch.device, self.svi.autocast):
            return self.svi.model.decoder.prefill(inputs, batch.lengths + 1, posterior.mean)[0]

    def generate_batch(  # noqa: D102
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
        return generate_batch(
            self.svi,
            prompts,
            start=start,
            num=num,
            first=first,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            ended=ended,
            fast_steps=fast_steps,
            fast_lr=self.fast_lr,
            label=label,
            seed=seed,
            progress=progress,
        )


def context_lengths(batch: TokenBatch) -> Int[Tensor, " batch"]:
    """(B,) tokens before each sequence's first scored one; all of a sequence of which nothing is scored.

    Raises:
        LTMError: a sequence has unscored tokens after a scored one.
    """
    context = batch.real & ~batch.mask
    lengths = context.sum(-1)
    if bool((context & (torch.arange(context.shape[1], device=batch.device) >= lengths[:, None])).any()):
        raise LTMError("the scored tokens must be the last ones of their sequence: what stands before them is context")
    return lengths


def _most_probable(
    logits: Float[Tensor, "draw row vocab"], log_weights: Float[Tensor, "draw row"]
) -> Int[Tensor, " row"]:
    """The most probable token of each row under the draws' mixture, Σ_s w_s softmax(logits_s)."""
    if len(logits) == 1:
        return logits[0].argmax(-1)
    mixed = (logits.float().log_softmax(-1) + log_weights[..., None].float()).logsumexp(0)
    return mixed.argmax(-1)
