"""Posterior: what the fast loop found for a batch, as an object that samples, scores, moves and saves itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast

import pyro
import torch
from jaxtyping import Bool, Float
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.guides.base import Guide, LocalParams
from ltm_pyro.infer.density import enumerated_posterior, is_latent, trace_model, trace_of
from ltm_pyro.infer.elbo import ELBOTerms, SequenceELBO
from ltm_pyro.infer.subsampling import FastStep
from ltm_pyro.infer.thoughts import draw_thoughts, expected_thoughts
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator, sequence_noise

__all__ = ["Posterior"]

_FORMAT = "ltm-pyro posterior 1"


@dataclass(frozen=True, eq=False)
class Posterior:
    """q(z | x) of every sequence of a batch.

    Every draw made here is new noise, drawn after the fit, from the sequences' own streams: repeating a call on an
    equal posterior repeats its numbers, and a sequence's numbers do not depend on its batch.

    Args:
        model: the generative program that was inferred under.
        guide: family of q.
        batch: the sequences.
        local: fitted local parameters, each with leading dimension B.
        seed: seed of the sequences' streams.
        steps_taken: fast steps behind ``local``, of the sequence that took the most.
        autocast: type of the decoder's products, None for their own.
        fast_steps: what each of the steps taken ran on (not saved).
        diverged: (B,) sequences whose fast loop led to NaN or infinity, so that ``local`` has where they started (not
            saved); None where nothing was fitted.
    """

    model: LatentThoughtModel
    guide: Guide
    batch: TokenBatch
    local: LocalParams
    seed: int
    steps_taken: int
    autocast: torch.dtype | None = None
    fast_steps: tuple[FastStep, ...] = ()
    diverged: Bool[Tensor, " batch"] | None = None

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def mean(self) -> Float[Tensor, "batch layer slot width"]:
        """Thoughts (B, L, n, H) with every latent site at its mean; a transformed normal's site is where its μ ends.

        This is the posterior mean of the thoughts wherever q is normal and the prior's thoughts are linear in its
        sites. On a constrained support it is the image of μ under the bijection (the median, entry by entry, where that
        acts so), under a flow its image under the steps. Thoughts that depend on an enumerated site directly are
        averaged over its values.
        """
        with torch.no_grad(), _at_location():
            trace = poutine.trace(self._guide).get_trace()
        with torch.no_grad():
            values = {name: value[None] for name, value in _latent_values(trace).items()}
            return expected_thoughts(self.model, self.batch, values)[0]

    def sites(self, num: int = 1) -> dict[str, Tensor]:
        """``num`` draws of every latent site by name, each (num, B, …)."""
        return self._draw(num, SequenceGenerator(self.batch.keys, self.seed, "sample"))

    def sample(
        self, num: int = 1, *, purpose: Literal["sample", "score"] = "sample"
    ) -> Float[Tensor, "num batch layer slot width"]:
        """``num`` draws of the thoughts z ~ q(z | x); those of the purpose ``score`` are the ones of `elbo_terms`."""
        generator = SequenceGenerator(self.batch.keys, self.seed, purpose)
        values = self._draw(num, generator)
        with torch.no_grad():
            return draw_thoughts(self.model, self.batch, values, generator)

    def discrete(self, num: int = 1) -> dict[str, Float[Tensor, "batch value"]]:
        r"""Probabilities (B, K) of the values of every enumerated site by name, averaged over ``num`` draws of z.

        .. math:: E_{q(z \mid x)}[p(k \mid z, x)]
        """
        values = self.sites(num)
        with torch.no_grad(), autocasting(self.batch.device, self.autocast):
            trace = trace_model(_particles(num, partial(self.model, self.batch)), trace_of(values))
            return {name: value.mean(1).T for name, value in enumerated_posterior(trace).items()}

    @cached_property
    def terms(self) -> ELBOTerms:
        """Expected log-likelihood and KL of every sequence, from one draw made after the fit."""
        return self.elbo_terms()

    @property
    def kl(self) -> Float[Tensor, " batch"]:
        """(B,) KL(q ‖ p) of each sequence in nats."""
        return self.terms.kl

    def elbo_terms(self, num_particles: int = 1) -> ELBOTerms:
        """Terms of every sequence's ELBO averaged over ``num_particles`` draws made after the fit."""
        elbo = SequenceELBO(num_particles)
        generator = SequenceGenerator(self.batch.keys, self.seed, "score")
        with torch.no_grad(), sequence_noise(generator), autocasting(self.batch.device, self.autocast):
            return elbo.terms(partial(self.model, self.batch), self._guide)

    def to(self, device: torch.device | str) -> Posterior:
        """The same posterior with its tensors elsewhere; drawing and scoring need the model on that device too."""
        moved = replace(
            self,
            batch=self.batch.to(device),
            local={name: value.to(device) for name, value in self.local.items()},
            diverged=None if self.diverged is None else self.diverged.to(device),
        )
        if "terms" in self.__dict__:
            terms = ELBOTerms(self.terms.log_likelihood.to(device), self.terms.kl.to(device))
            moved.__dict__["terms"] = terms
        return moved

    def save(self, path: str | Path) -> None:
        """Writes the local parameters and the batch to one safetensors file."""
        from safetensors.torch import save_file

        batch = {"tokens": self.batch.tokens, "lengths": self.batch.lengths, "start": self.batch.start}
        if self.batch.scored is not None:
            batch["scored"] = self.batch.scored
        if self.batch.labels is not None:
            batch["labels"] = self.batch.labels
        tensors: dict[str, Tensor] = {f"local.{name}": value for name, value in self.local.items()}
        tensors |= {f"batch.{name}": value for name, value in batch.items()}
        about = {"format": _FORMAT, "guide": type(self.guide).__name__, "seed": self.seed, "steps": self.steps_taken}
        about["autocast"] = None if self.autocast is None else str(self.autocast).removeprefix("torch.")
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(tensors, str(path), metadata={"ltm_pyro": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path, model: LatentThoughtModel, guide: Guide) -> Posterior:
        """Reads what `save` wrote, onto the CPU.

        Raises:
            LTMError: the file is missing, damaged, no posterior, or was fitted with another guide.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("ltm_pyro", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise LTMError(
                f"cannot read the posterior {path}: {error}; give a file that Posterior.save wrote"
            ) from error
        if not isinstance(about, dict) or about.get("format") != _FORMAT:
            raise LTMError(f"{path} holds no posterior of this version: give a file that Posterior.save wrote")
        if about["guide"] != type(guide).__name__:
            raise LTMError(f"{path} was fitted with {about['guide']}, not {type(guide).__name__}: pass that guide")
        autocast = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(str(about.get("autocast")))
        parts: dict[str, dict[str, Tensor]] = {"local": {}, "batch": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = value
        return cls(model, guide, TokenBatch(**parts["batch"]), parts["local"], about["seed"], about["steps"], autocast)

    def _guide(self) -> None:
        with autocasting(self.batch.device, None):
            self.guide(self.batch, self.local)

    def _draw(self, num: int, generator: SequenceGenerator) -> dict[str, Tensor]:
        with torch.no_grad(), sequence_noise(generator):
            return _latent_values(poutine.trace(_particles(num, self._guide)).get_trace())


class _at_location(Messenger):
    """Effect handler: every site takes its mean, pushed through the transforms of a transformed distribution."""

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) and not msg["is_observed"] and msg["value"] is None:
            msg["value"] = _location(msg["fn"])


def _location(fn: Any) -> Tensor:
    if isinstance(fn, torch.distributions.TransformedDistribution):
        value = _location(fn.base_dist)
        for transform in fn.transforms:
            value = transform(value)
        return value
    mean: Tensor = fn.mean
    return mean


def _particles(num: int, program: Callable[[], Any]) -> Callable[[], Any]:
    wrapped: Callable[[], Any] = pyro.plate("particles", num, dim=-2)(program)
    return wrapped


def _latent_values(trace: Any) -> dict[str, Tensor]:
    return {name: cast(Tensor, site["value"]) for name, site in trace.nodes.items() if is_latent(site)}


def autocasting(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to ``dtype`` on ``device``, or no autocast where ``dtype`` is None."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
