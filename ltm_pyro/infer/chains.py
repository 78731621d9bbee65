"""Chains: what a sampler drew from p(z | x), with the diagnostics that say whether to believe it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.infer.thoughts import draw_thoughts
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator

__all__ = ["ChainSummary", "Chains"]

_AT_ONCE = 64  # sets of thoughts, per sequence
_LAG_TABLE = 2**24  # numbers in the table of draws by draws by entries that Pyro's effective sample size makes


class ChainSummary(NamedTuple):
    """Of every sequence (B,): its fewest effective draws and largest R-hat over all entries, its mean acceptance."""

    effective_sample_size: Float[Tensor, " batch"]
    r_hat: Float[Tensor, " batch"]
    acceptance: Float[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class Chains:
    """S draws from p(z | x) by each of C chains of every sequence.

    Args:
        model: the program that was inferred under.
        batch: the sequences.
        sites: every continuous latent site by name, (S, C, B, *event), on its own support.
        method: ``ula``, ``mala``, ``hmc`` or ``nuts``.
        acceptance: (C, B) mean acceptance probability after warm-up; 1 where nothing is ever rejected.
        step_size: (C, B) step size after warm-up.
        seed: seed of the chains.
        divergences: (C, B) draws whose trajectory lost its energy; None for a method without trajectories.
    """

    model: LatentThoughtModel
    batch: TokenBatch
    sites: dict[str, Tensor]
    method: str
    acceptance: Float[Tensor, "chain batch"]
    step_size: Float[Tensor, "chain batch"]
    seed: int
    divergences: Int[Tensor, "chain batch"] | None = None

    def __len__(self) -> int:
        return len(self.batch)

    def thoughts(self) -> Float[Tensor, "draw chain batch layer slot width"]:
        """The thoughts of every draw: the prior's program at the drawn sites."""
        draws, chains = next(iter(self.sites.values())).shape[:2]
        generator = SequenceGenerator(self.batch.keys, self.seed, "sample")
        flat = {name: value.flatten(0, 1).split(_AT_ONCE) for name, value in self.sites.items()}
        with torch.no_grad():
            parts = [
                draw_thoughts(self.model, self.batch, dict(zip(flat, values, strict=True)), generator)
                for values in zip(*flat.values(), strict=True)
            ]
        thoughts: Tensor = torch.cat(parts).unflatten(0, (draws, chains))
        return thoughts

    @property
    def mean(self) -> Float[Tensor, "batch layer slot width"]:
        """Posterior mean of the thoughts, over all draws of all chains."""
        return self.thoughts().mean((0, 1))

    def effective_sample_size(self) -> dict[str, Float[Tensor, "batch *event"]]:
        """Independent draws that would estimate the mean of each entry as well as all C · S do.

        By Geyer's initial monotone sequence, and at most C · S · log10(C · S), as in Stan: chains that swing from side
        to side may be better than independent draws, but noise alone could make the estimate infinite.

        Raises:
            LTMError: there are fewer than 4 draws.
        """
        return {name: self._per_entry(_effective_sample_size, value) for name, value in self.sites.items()}

    def r_hat(self) -> dict[str, Float[Tensor, "batch *event"]]:
        """Split R-hat: √(variance over all half chains / mean variance inside one); 1 where they agree.

        Raises:
            LTMError: there are fewer than 4 draws.
        """
        return {name: self._per_entry(_split_r_hat, value) for name, value in self.sites.items()}

    def summary(self) -> ChainSummary:
        """The worst effective sample size and R-hat of every sequence, over sites and entries."""

        def entries(values: dict[str, Tensor]) -> Tensor:
            return torch.cat([value.reshape(len(self), -1) for value in values.values()], -1)

        return ChainSummary(
            entries(self.effective_sample_size()).amin(-1), entries(self.r_hat()).amax(-1), self.acceptance.mean(0)
        )

    def to_arviz(self) -> Any:
        """The draws as an ``arviz.InferenceData`` with dimensions chain, draw, sequence and those of each site.

        Raises:
            LTMError: ArviZ is not installed.
        """
        try:
            import arviz
        except ImportError as error:
            raise LTMError("Chains.to_arviz needs ArviZ: pip install 'ltm-pyro[arviz]'") from error
        posterior = {name: value.transpose(0, 1).cpu().numpy() for name, value in self.sites.items()}
        constants = {"acceptance": self.acceptance, "step_size": self.step_size}
        if self.divergences is not None:
            constants["divergences"] = self.divergences
        dims = {name: ["sequence", *(f"{name}_dim_{i}" for i in range(v.dim() - 3))] for name, v in self.sites.items()}
        return arviz.from_dict(
            posterior=posterior,
            constant_data={name: value.cpu().numpy() for name, value in constants.items()},
            dims=dims | {name: ["chain", "sequence"] for name in constants},
            posterior_attrs={"inference_library": "ltm_pyro", "method": self.method, "seed": str(self.seed)},
        )

    def _per_entry(self, statistic: Any, value: Tensor) -> Tensor:
        draws, _, *shape = value.shape
        if draws < 4:
            raise LTMError(f"diagnostics compare halves of chains: they need 4 draws or more, got {draws}")
        flat = value.flatten(2) if shape else value
        parts = flat.split(max(1, _LAG_TABLE // draws**2), -1)
        return torch.cat([statistic(part) for part in parts], -1).view(shape)


def _effective_sample_size(value: Float[Tensor, "draw chain entry"]) -> Float[Tensor, " entry"]:
    size: Tensor = effective_sample_size(value, chain_dim=1, sample_dim=0)
    total = value.shape[0] * value.shape[1]
    most = total * max(1.0, math.log10(total))
    return torch.where(size > 0, size.clamp(max=most), most)


def _split_r_hat(value: Float[Tensor, "draw chain entry"]) -> Float[Tensor, " entry"]:
    result: Tensor = split_gelman_rubin(value, chain_dim=1, sample_dim=0)
    return result
