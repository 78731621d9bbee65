"""Decoding state: the last window of self-attention keys and values, and the thoughts' constant keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["DecoderCache", "LayerCache", "Slots"]


class Slots:
    """Which token position each of the W ring-buffer slots of each sequence holds; shared by all layers.

    Token position p lives in slot p mod W, so the cache never grows beyond the window, and sequences of different
    lengths share one batch.

    Args:
        lengths: (B,) tokens of each sequence that the cache starts with.
        window: W.
    """

    def __init__(self, lengths: Int[Tensor, " batch"], window: int):
        self.window = window
        self.next = lengths.clone()
        slot = torch.arange(window, device=lengths.device)
        last = lengths[:, None] - 1
        # The newest position congruent to the slot; negative where the sequence has not reached it.
        self.positions = last - (last - slot) % window

    @property
    def filled(self) -> Bool[Tensor, "batch slot"]:
        """(B, W) slots that hold a token."""
        return self.positions >= 0

    def advance(self) -> None:
        """Gives the next position of every sequence to its slot."""
        slot = (self.next % self.window)[:, None]
        self.positions = self.positions.scatter(1, slot, self.next[:, None])
        self.next = self.next + 1


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
        self, key: Float[Tensor, "batch head 1 head_dim"], value: Float[Tensor, "batch head 1 head_dim"]
    ) -> tuple[Tensor, Tensor, Bool[Tensor, "batch 1 1 slot"]]:
        """Writes the newest position (after `Slots.advance`); returns keys, values and which slots may be seen."""
        if self._kv is None:
            raise RuntimeError("append to a layer cache that was never filled: call ThoughtDecoder.prefill first")
        slot = ((self.slots.next - 1) % self.slots.window)[:, None, None, None]
        index = slot.expand(-1, key.shape[1], 1, key.shape[3])
        keys, values = self._kv
        self._kv = (keys.scatter(2, index, key), values.scatter(2, index, value))
        return *self._kv, self.slots.filled[:, None, None, :]


@dataclass
class DecoderCache:
    """All that decoding one more token needs: per-layer windows, and the thoughts as keys and values."""

    slots: Slots
    layers: list[LayerCache]
    memory: list[tuple[Tensor, Tensor]]
