"""TokenBatch: the tokens of B sequences, right-padded, with what each is conditioned on and which tokens count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from ltm_pyro.errors import LTMError
from ltm_pyro.noise import GOLDEN, mix64

__all__ = ["TokenBatch"]


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """B token sequences x = (x_1 … x_N), right-padded to one length.

    Args:
        tokens: (B, N) token ids; entries at and after ``lengths`` are padding and never looked at.
        lengths: (B,) real tokens of each sequence, 0 … N.
        start: (B,) the token before the first: the end-of-text token at a document's start, the preceding token
            where a sequence continues one. Every likelihood is conditional on it.
        scored: (B, N) which tokens enter the likelihood; None means every real one. A token that is not scored
            still conditions the tokens after it.
        labels: (B,) class of each sequence, -1 where it is unknown; None where the data have no classes.
    """

    tokens: Int[Tensor, "batch token"]
    lengths: Int[Tensor, " batch"]
    start: Int[Tensor, " batch"]
    scored: Bool[Tensor, "batch token"] | None = None
    labels: Int[Tensor, " batch"] | None = None

    @classmethod
    def from_lists(cls, sequences: Sequence[Sequence[int]], start: int | Sequence[int], *, pad: int = 0) -> TokenBatch:
        """Pads lists of token ids on the right with ``pad``.

        Raises:
            LTMError: there is no sequence, or not one start token for each.
        """
        if not sequences:
            raise LTMError("a batch needs at least one sequence, got none")
        width = max(max(len(s) for s in sequences), 1)
        rows = [[*s, *([pad] * (width - len(s)))] for s in sequences]
        starts = [start] * len(sequences) if isinstance(start, int) else list(start)
        if len(starts) != len(sequences):
            raise LTMError(f"a batch of {len(sequences)} sequences needs one start token for each, got {len(starts)}")
        return cls(
            tokens=torch.tensor(rows, dtype=torch.int64),
            lengths=torch.tensor([len(s) for s in sequences], dtype=torch.int64),
            start=torch.tensor(starts, dtype=torch.int64),
        )

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, index: slice | Tensor | list[int]) -> TokenBatch:
        """The chosen sequences, padded as they were."""
        if isinstance(index, list):
            index = torch.tensor(index, dtype=torch.int64, device=self.tokens.device)
        scored = None if self.scored is None else self.scored[index]
        labels = None if self.labels is None else self.labels[index]
        return TokenBatch(self.tokens[index], self.lengths[index], self.start[index], scored, labels)

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        scored = None if self.scored is None else self.scored.to(device)
        labels = None if self.labels is None else self.labels.to(device)
        moved = TokenBatch(self.tokens.to(device), self.lengths.to(device), self.start.to(device), scored, labels)
        # Counted where the tokens are now, normally the host: on the other side it would make the host wait.
        moved.__dict__["scored_index"] = self.scored_index.to(device)
        moved.__dict__["scored_counts"] = self.scored_counts
        return moved

    def unlabelled(self) -> TokenBatch:
        """The same batch without its labels: what an evaluation may look at."""
        plain = replace(self, labels=None)
        plain.__dict__.update(self.__dict__ | {"labels": None})  # nothing computed so far depends on the labels
        return plain

    def scoring(self, index: Int[Tensor, " scored"]) -> TokenBatch:
        """The same batch with other scored tokens, given by their places in the flattened (B · N)."""
        chosen = torch.zeros_like(self.real).flatten().index_fill(0, index, True).view_as(self.real)
        batch = replace(self, scored=chosen)
        batch.__dict__.update(real=self.real, mask=chosen, keys=self.keys, scored_index=index)
        return batch

    def prefix(self, length: int) -> TokenBatch:
        """The first ``length`` tokens of every sequence, and nothing that was computed from later ones."""
        scored = None if self.scored is None else self.scored[:, :length]
        lengths = self.lengths.clamp(max=length)
        return replace(self, tokens=self.tokens[:, :length], lengths=lengths, scored=scored)

    def rounded_up(self, multiple: int) -> TokenBatch:
        """The same sequences under more padding, so that N is a multiple of so many tokens."""
        more = -self.tokens.shape[1] % multiple
        if not more:
            return self
        scored = None if self.scored is None else F.pad(self.scored, (0, more))
        return replace(self, tokens=F.pad(self.tokens, (0, more)), scored=scored)

    @property
    def device(self) -> torch.device:
        """Where the tokens live."""
        return self.tokens.device

    @property
    def inputs(self) -> Int[Tensor, "batch token"]:
        """(B, N) what the decoder reads: ``start``, then the tokens shifted right by one."""
        return torch.cat([self.start[:, None], self.tokens[:, :-1]], dim=1)

    @cached_property
    def real(self) -> Bool[Tensor, "batch token"]:
        """(B, N) True at the tokens that are not padding."""
        return torch.arange(self.tokens.shape[1], device=self.device) < self.lengths[:, None]

    @cached_property
    def mask(self) -> Bool[Tensor, "batch token"]:
        """(B, N) True at the tokens that enter the likelihood: real, and scored."""
        return self.real if self.scored is None else self.real & self.scored

    @cached_property
    def scored_index(self) -> Int[Tensor, " scored"]:
        """Places of the scored tokens in the flattened (B · N): made once, its length being known on the host."""
        return self.mask.flatten().nonzero()[:, 0]

    @cached_property
    def scored_counts(self) -> tuple[int, ...]:
        """`num_scored` on the host, made once."""
        return tuple(self.num_scored.tolist())

    @cached_property
    def num_scored(self) -> Int[Tensor, " batch"]:
        """(B,) tokens that enter each sequence's likelihood."""
        return self.mask.sum(-1)

    @cached_property
    def keys(self) -> Int[Tensor, " batch"]:
        """(B,) 64-bit identities made from the real tokens alone.

        A sequence keeps its key in any batch, at any place, under any padding and label, which is what gives every
        sequence a random stream of its own (`ltm_pyro.noise`).
        """
        positions = torch.arange(1, self.tokens.shape[1] + 1, device=self.device)
        terms = mix64(mix64(self.tokens) + positions * GOLDEN)
        return mix64(torch.where(self.real, terms, 0).sum(-1) + mix64(self.start) * GOLDEN)
