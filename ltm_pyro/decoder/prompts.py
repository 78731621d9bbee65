"""Many prompts, several texts of each, continued in batches that memory bounds and no text depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder.decoding import CachedNetwork, Ended, decode, token_lists
from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.decoder.tied import TiedTransformer
from ltm_pyro.errors import LTMError
from ltm_pyro.noise import GOLDEN, SequenceGenerator, mix64

__all__ = ["Part", "Prompts", "continue_part"]

_PART_TOKENS = 4096  # of the prompts, padding included, that are taken at once
_DECODING_BYTES = 2**30  # of keys, values, logits and the prompt's activations that are held at once


@dataclass(frozen=True, eq=False)
class Part:
    """Different prompts and how many texts of each to draw; a text is a row, and those of one prompt stand together.

    Args:
        batch: B prompts.
        draws: texts of each.
        places: which of all the prompts these are.
        first: number of the first text of each.
    """

    batch: TokenBatch
    draws: Sequence[int]
    places: Sequence[int]
    first: int = 0

    def to(self, device: torch.device) -> Part:
        """The same part elsewhere."""
        return Part(self.batch.to(device), self.draws, self.places, self.first)

    @property
    def prompt(self) -> Int[Tensor, " row"]:
        """(R,) the prompt of each row."""
        counts = torch.tensor(self.draws, device=self.batch.device)
        return torch.arange(len(self.draws), device=self.batch.device).repeat_interleave(counts)

    @property
    def draw(self) -> Int[Tensor, " row"]:
        """(R,) which of its prompt's texts each row is."""
        return self.first + torch.cat([torch.arange(count, device=self.batch.device) for count in self.draws])

    @property
    def keys(self) -> Int[Tensor, " row"]:
        """(R,) identities of the rows, made from prompt and draw alone."""
        return mix64(self.batch.keys[self.prompt] + self.draw * GOLDEN)


class Prompts:
    """What is to be continued, ``num`` times each. A prompt that was given before gets the draws after the first ones.

    Args:
        prompts: token ids of each, which may be none.
        start: the token before the first, of all prompts or of each.
        num: texts of each.
        progress: told how many texts are done after each part.
        first: number of the first text of each.

    Raises:
        LTMError: there is not one start token for each.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        start: int | Sequence[int],
        num: int,
        progress: Callable[[int], None] | None = None,
        first: int = 0,
    ):
        starts = [start] * len(prompts) if isinstance(start, int) else list(start)
        if len(starts) != len(prompts):
            raise LTMError(f"{len(prompts)} prompts need one start token for each, got {len(starts)}")
        self.num = num
        self.first = first
        self.progress = progress
        counts: dict[tuple[int, ...], int] = {}
        self._first: list[tuple[tuple[int, ...], int]] = []  # the prompt and its first draw, for each one given
        for first, prompt in zip(starts, prompts, strict=True):
            key = (first, *prompt)
            self._first.append((key, counts.get(key, 0)))
            counts[key] = counts.get(key, 0) + num
        self._different = sorted(counts, key=len)
        self._counts = [counts[key] for key in self._different]
        self._texts: dict[tuple[int, ...], list[list[int]]] = {}

    def parts(self) -> Iterator[Part]:
        """The different prompts, the shortest first, those without tokens apart from all others."""
        at = 0
        while at < len(self._different):
            end = at + 1
            while (
                end < len(self._different)
                and (len(self._different[end]) == 1) == (len(self._different[at]) == 1)
                and (end + 1 - at) * len(self._different[end]) <= _PART_TOKENS
            ):
                end += 1
            chosen = self._different[at:end]
            batch = TokenBatch.from_lists([key[1:] for key in chosen], [key[0] for key in chosen])
            yield Part(batch, self._counts[at:end], range(at, end), self.first)
            at = end

    def keep(self, part: Part, texts: Sequence[list[int]]) -> None:
        """Takes the texts of a part's rows."""
        at = 0
        for place, count in zip(part.places, part.draws, strict=True):
            self._texts[self._different[place]] = list(texts[at : at + count])
            at += count
        if self.progress is not None:
            self.progress(sum(map(len, self._texts.values())))

    def texts(self) -> list[list[list[int]]]:
        """The texts of each prompt as it was given, once those of all parts are kept."""
        return [self._texts[key][first : first + self.num] for key, first in self._first]


def continue_part(
    network: CachedNetwork,
    part: Part,
    thoughts: Float[Tensor, "row layer slot width"] | None,
    max_tokens: int,
    *,
    sampling: Sampling | None,
    stop: int | None,
    ended: Ended | None,
    seed: int,
) -> list[list[int]]:
    """The texts of a part's rows, as many rows at once as memory is meant for; other arguments as for `decode`."""
    inputs = torch.cat([part.batch.start[:, None], part.batch.tokens], dim=1)[part.prompt]
    lengths = part.batch.lengths[part.prompt] + 1
    inputs = inputs[:, : int(lengths.max())]  # a prompt without tokens is padded to one
    uniforms = SequenceGenerator(part.keys, seed, "token").uniform(max_tokens)
    texts: list[list[int]] = []
    for rows in torch.arange(len(inputs), device=inputs.device).split(_rows(network, inputs.shape[1], max_tokens)):
        drawn = decode(
            network,
            None if thoughts is None else thoughts[rows],
            inputs[rows],
            lengths[rows],
            max_tokens,
            sampling=sampling,
            stop=stop,
            ended=ended,
            uniforms=uniforms[rows],
        )
        texts += token_lists(drawn)
    return texts


def _rows(network: CachedNetwork, prompt: int, max_tokens: int) -> int:
    """How many rows to decode at once: by the float32 numbers of each."""
    if not isinstance(network, TiedTransformer):
        return 64
    hidden, layers = network.embedding.embedding_dim, len(network.blocks)
    cache = 2 * layers * hidden * min(network.window, prompt + max_tokens)
    activations = 16 * hidden * prompt
    return max(_DECODING_BYTES // (4 * (cache + activations + 4 * network.vocab_size)), 1)
