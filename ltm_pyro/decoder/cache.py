"""Decoding state: the last window of self-attention keys and values, and the thoughts' constant keys and values.

All of it is written in place: a step reads the cache once and writes one token of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["DecoderCache", "LayerCache", "Slots"]


class Slots:
    """Which token position each of the W ring-buffer slots of each sequence holds; shared by all layers.

    Token position p lives in slot p mod W, so the cache never grows beyond the window, and sequences of different
    lengths share one batch. ``next`` (B,) is the position of each sequence's next token, ``newest`` (B,) the slot of
    its last one, ``positions`` (B, W) what the slots hold, negative where they hold nothing.

    Args:
        lengths: (B,) tokens of each sequence that the cache starts with.
        window: W, the decoder's window or, where no sequence will have more tokens, that number.
    """

    def __init__(self, lengths: Int[Tensor, " batch"], window: int):
        self.window = window
        self.next = lengths.clone()
        slot = torch.arange(window, device=lengths.device)
        last = lengths[:, None] - 1
        # The newest position congruent to the slot; negative where the sequence has not reached it.
        self.positions = last - (last - slot) % window
        self.newest = last[:, 0] % window
        self.rows = torch.arange(len(lengths), device=lengths.device)
        self._bias = torch.zeros(self.positions.shape, device=lengths.device).masked_fill(
            self.positions < 0, -torch.inf
        )

    def bias(self, dtype: torch.dtype) -> Float[Tensor, "batch 1 1 slot"]:
        """What to add to the scores of the slots: -inf where there is no token yet."""
        if self._bias.dtype != dtype:
            self._bias = self._bias.to(dtype)
        return self._bias[:, None, None]

    def advance(self) -> Int[Tensor, "batch 1"]:
        """Gives the next position of every sequence to its slot; returns these positions."""
        positions = self.next.clone()
        torch.remainder(positions, self.window, out=self.newest)
        place = (self.rows, self.newest)
        self.positions.index_put_(place, positions)
        self._bias.index_put_(place, self._bias.new_zeros(()))
        self.next.add_(1)
        return positions[:, None]

    def keep(self, rows: Int[Tensor, " row"]) -> None:
        """Drops all other sequences."""
        for name in ("next", "positions", "newest", "_bias"):
            setattr(self, name, getattr(self, name)[rows])
        self.rows = self.rows[: len(rows)]


class LayerCache:
    """Ring buffer of one layer's rotated keys and values, (B, heads, W, head_dim) each."""

    def __init__(self, slots: Slots):
        self.slots = slots
        self._kv: tuple[Tensor, Tensor] | None = None

    def fill(
        self, keys: Float[Tensor, "batch head token head_dim"], values: Float[Tensor, "batch head token head_dim"]
    ) -> None:
        """Keeps the last window of right-padded keys and values."""
        index = self.slots.positions.clamp(min=0)[:, None, :, None]
        index = index.expand(-1, keys.shape[1], -1, keys.shape[3])
        self._kv = (keys.gather(2, index), values.gather(2, index))

    def append(
        self, key: Float[Tensor, "batch head head_dim"], value: Float[Tensor, "batch head head_dim"]
    ) -> tuple[Tensor, Tensor]:
        """Writes the newest position (after `Slots.advance`); returns all keys and values."""
        if self._kv is None:
            raise RuntimeError("append to a layer cache that was never filled: call ThoughtDecoder.prefill first")
        keys, values = self._kv
        keys[self.slots.rows, :, self.slots.newest] = key
        values[self.slots.rows, :, self.slots.newest] = value
        return keys, values

    def keep(self, rows: Int[Tensor, " row"]) -> None:
        """Drops all other sequences."""
        if self._kv is not None:
            self._kv = (self._kv[0][rows], self._kv[1][rows])


@dataclass
class DecoderCache:
    """All that decoding one more token needs: per-layer windows, and the thoughts as keys and values."""

    slots: Slots
    layers: list[LayerCache]
    memory: list[tuple[Tensor, Tensor]]

    def keep(self, rows: Int[Tensor, " row"]) -> None:
        """Drops all other sequences."""
        self.slots.keep(rows)
        for layer in self.layers:
            layer.keep(rows)
        self.memory = [(keys[rows], values[rows]) for keys, values in self.memory]
