"""One stream of standard-normal noise per sequence, and the effect handler that feeds it to Pyro's sample sites.

Pyro's sites draw from one global stream, so the noise that a sequence meets depends on which others share its batch.
Here a draw is a function of the seed, the sequence's key, the number of the draw and the entry, and of nothing else.

References: Salmon et al. (2011), Parallel Random Numbers: As Easy as 1, 2, 3; Steele et al. (2014), Fast Splittable
Pseudorandom Number Generators (the mixing function, in Stafford's variant 13).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, Literal, cast, get_args

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = ["Purpose", "SequenceGenerator", "fixed_global_stream", "sequence_noise"]

Purpose = Literal["fit", "slow", "sample", "score", "chain", "mask", "prior", "token", "subset"]
"""What noise is drawn for: the fast loop, the slow step, draws of z, scoring after the fit, Markov chains, masks, draws
of the prior, tokens of generated texts, and the tokens that a fast step scores. A stream goes by its place here: new
ones stand at the end."""

GOLDEN = -7046029254386353131  # 2**64 / golden ratio as a signed integer: spreads consecutive inputs over all bits


def mix64(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """A bijection of 64-bit integers whose output bits each depend on all input bits (wrapping arithmetic)."""
    x = (x ^ _logical_shift(x, 30)) * -4658895280553007687
    x = (x ^ _logical_shift(x, 27)) * -7723592293110705685
    return x ^ _logical_shift(x, 31)


def draw_seed() -> int:
    """A seed from torch's global stream, so that whoever seeds that stream seeds all else."""
    return int(torch.randint(2**62, ()))


def _wrap(x: int) -> int:
    """The signed 64-bit integer that is congruent to ``x``."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


class SequenceGenerator:
    """Counter-based standard-normal noise: sequence b's draws depend on ``keys[b]`` and the seed alone.

    Args:
        keys: (B,) identities of the sequences (`TokenBatch.keys`).
        seed: chooses the family of streams.
        purpose: what the draws are for; each purpose has streams of its own, so that a posterior is never scored on the
            noise that it was fitted on.
    """

    ahead: Tensor | None = None
    """How many draws more than ``draws`` have been made, a number on the device; None is none."""

    def __init__(self, keys: Int[Tensor, " batch"], seed: int, purpose: Purpose = "fit"):
        self.draws = 0
        self.seed = seed
        family = torch.full_like(keys, _wrap(seed * GOLDEN + get_args(Purpose).index(purpose)))
        self._streams = mix64(keys ^ mix64(family))

    @property
    def device(self) -> torch.device:
        """Where the streams are."""
        return self._streams.device

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self._streams)

    def rows(self, index: Int[Tensor, " chosen"]) -> SequenceGenerator:
        """The streams of some of the sequences, as far drawn as here."""
        chosen = copy(self)
        chosen._streams = self._streams[index]
        return chosen

    def normal(
        self, event_shape: tuple[int, ...], *, particles: tuple[int, ...] = (), dtype: torch.dtype | None = None
    ) -> Float[Tensor, "..."]:
        """(*particles, B, *event_shape) independent N(0, 1) draws; each call is a new draw.

        The first particles of a draw do not depend on how many are asked for.
        """
        bits = self.words(math.prod(particles) * math.prod(event_shape))
        # Box-Muller on the two halves of each word; the half-step offsets keep the logarithm finite.
        radius = (_logical_shift(bits, 40).to(torch.float32) + 0.5) * 2.0**-24
        angle = (bits & 0xFFFFFF).to(torch.float32) * (2.0 * math.pi * 2.0**-24)
        noise = (-2.0 * radius.log()).sqrt() * angle.cos()
        noise = noise.to(torch.get_default_dtype() if dtype is None else dtype)
        batch = self._streams.shape[0]
        return noise.view(batch, *particles, *event_shape).movedim(0, len(particles))

    def words(self, count: int) -> Int[Tensor, "batch count"]:
        """(B, count) independent uniform 64-bit integers; each call is a new draw.

        The first of a draw do not depend on how many are asked for, so neither on a batch's padding.
        """
        self.draws += 1
        index = torch.arange(count, device=self._streams.device)
        drawn = self._streams + _wrap(self.draws * GOLDEN)
        stream = mix64(drawn if self.ahead is None else drawn + self.ahead * GOLDEN)
        return mix64(stream[:, None] + index * GOLDEN)

    def uniform(self, count: int) -> Float[Tensor, "batch count"]:
        """(B, count) independent float64 numbers in [0, 1), as for `words`."""
        return _logical_shift(self.words(count), 11).double() * 2.0**-53

    def seeds(self) -> list[int]:
        """B numbers that seed other generators: sequence b's is a function of its key and the seed alone."""
        self.draws += 1
        numbers: list[int] = mix64(self._streams + _wrap(self.draws * GOLDEN)).tolist()
        return numbers


@contextmanager
def fixed_global_stream(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's global stream starts at ``seed``; afterwards it goes on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


class sequence_noise(Messenger):
    """Effect handler: reparameterised sites in the sequences' plate (dim -1) draw from a `SequenceGenerator`.

    Handles Normal, LowRankMultivariateNormal and their Independent and Transformed forms. Any other distribution draws
    from torch's global stream as it always does, and then a sequence's noise depends on its batch.

    Args:
        generator: where the noise comes from; the handler advances it by one draw per handled Normal.
    """

    def __init__(self, generator: SequenceGenerator):
        super().__init__()
        self.generator = generator

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or site_is_subsample(msg):
            return
        if msg["fn"].batch_shape:
            msg["value"] = _draw(msg["fn"], self.generator, len(msg["fn"].event_shape))


def _draw(fn: Any, generator: SequenceGenerator, event_dim: int) -> Tensor | None:
    """A reparameterised draw of ``fn`` whose last ``event_dim`` dimensions are events, or None if unsupported."""
    if isinstance(fn, torch.distributions.Independent):
        return _draw(fn.base_dist, generator, event_dim)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        inner = sum(t.domain.event_dim - t.codomain.event_dim for t in fn.transforms)
        value = _draw(fn.base_dist, generator, event_dim + inner)
        if value is not None:
            for transform in fn.transforms:
                value = transform(value)
        return value
    if isinstance(fn, dist.Normal):
        shape = fn.batch_shape
        return fn.loc + fn.scale * _noise(shape, generator, event_dim, fn.loc.dtype)
    if isinstance(fn, dist.LowRankMultivariateNormal):
        factor: Tensor = fn._unbroadcasted_cov_factor
        rank = factor.shape[-1]
        shape = fn.batch_shape
        shared = _noise((*shape, rank), generator, event_dim, fn.loc.dtype)
        own = _noise((*shape, *fn.event_shape), generator, event_dim, fn.loc.dtype)
        correlated: Tensor = (factor @ shared[..., None])[..., 0]
        value = fn.loc + correlated + fn._unbroadcasted_cov_diag.sqrt() * own
        return cast(Tensor, value)
    return None


def _noise(shape: tuple[int, ...], generator: SequenceGenerator, event_dim: int, dtype: torch.dtype) -> Tensor:
    split = len(shape) - event_dim
    return generator.normal(tuple(shape[split:]), particles=tuple(shape[: split - 1]), dtype=dtype)
