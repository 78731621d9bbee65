"""CompiledSteps: a network whose decoding steps run through torch.compile."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ltm_pyro.decoder.cache import DecoderCache
from ltm_pyro.decoder.decoding import CachedNetwork

__all__ = ["CompiledSteps"]


class CompiledSteps:
    """A `CachedNetwork` for `decode` whose `step` is compiled; prompts are read and logits computed as before.

    The first step of a network takes seconds, and so does the first one with another number of rows. Where compiling
    fails, for want of a C++ compiler, say, a warning tells why and all steps run as they would without.

    Args:
        network: what to decode with.
    """

    def __init__(self, network: CachedNetwork):
        self.network = network
        self._step: Any = torch.compile(network.step)
        self._sound = False

    def prefill(
        self, inputs: Tensor, lengths: Tensor, thoughts: Any, max_tokens: int | None = None
    ) -> tuple[Tensor, DecoderCache]:
        """The network's own."""
        return self.network.prefill(inputs, lengths, thoughts, max_tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """The network's own."""
        return self.network.logits(hidden)

    def modules(self) -> Iterator[nn.Module]:
        """The network's own."""
        return self.network.modules()

    def step(self, inputs: Tensor, cache: DecoderCache) -> Tensor:
        """The network's own, compiled."""
        if self._sound:
            return self._step(inputs, cache)  # type: ignore[no-any-return]
        try:
            hidden: Tensor = self._step(inputs, cache)  # compiled before anything is written
        except Exception as error:  # the compilers raise many classes
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            warnings.warn(f"torch.compile failed, decoding goes on without it: {reason}", stacklevel=2)
            self._step = self.network.step
            hidden = self._step(inputs, cache)
        self._sound = True
        return hidden
