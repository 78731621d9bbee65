"""The ELBO, sequence by sequence, with its two terms apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from ltm_pyro.errors import LTMError
from ltm_pyro.infer.density import is_enumerated, is_latent, sample_sites, site_log_prob, sum_out, trace_model

__all__ = ["ELBOTerms", "SequenceELBO"]


@dataclass(frozen=True)
class ELBOTerms:
    r"""The two terms of each sequence's ELBO, in nats.

    Args:
        log_likelihood: (B,) estimate of E_q[log p_β(x | z)].
        kl: (B,) KL(q(z | x) ‖ p(z)), exact where it has a closed form.
    """

    log_likelihood: Float[Tensor, " batch"]
    kl: Float[Tensor, " batch"]

    @property
    def elbo(self) -> Float[Tensor, " batch"]:
        """(B,) log_likelihood - kl, a lower bound on log p_β(x) in expectation over the noise."""
        return self.log_likelihood - self.kl

    def detach(self) -> ELBOTerms:
        """The same numbers without their graph."""
        return ELBOTerms(self.log_likelihood.detach(), self.kl.detach())

    @staticmethod
    def cat(parts: list[ELBOTerms]) -> ELBOTerms:
        """The terms of several batches, end to end."""
        return ELBOTerms(torch.cat([p.log_likelihood for p in parts]), torch.cat([p.kl for p in parts]))


class SequenceELBO(ELBO):
    r"""Pyro's ELBO for programs whose every site stands in the plate of sequences (dim -1).

    .. math:: L_b = E_q[\log p_\beta(x_b \mid z_b)] - \mathrm{KL}(q(z_b \mid x_b) \,\|\, p(z_b))

    The KL of a site is exact where torch knows it in closed form, and otherwise estimated at the draw. A discrete site
    of the prior marked ``infer={"enumerate": "parallel"}`` is summed out exactly inside the logarithm; the guide does
    not sample it. No value is ever read back to the host, so nothing waits for the device.

    Args:
        num_particles: draws of z per evaluation, vectorised in a plate at dim -2.
    """

    def __init__(self, num_particles: int = 1):
        super().__init__(num_particles, max_plate_nesting=1, vectorize_particles=True)  # type: ignore[no-untyped-call]

    def terms(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> ELBOTerms:
        """Runs guide and model once; differentiable in whatever they depend on.

        Raises:
            LTMError: a latent site that the guide does not sample, or samples without a reparameterised draw.
        """
        model, guide = self._vectorized_num_particles(model), self._vectorized_num_particles(guide)
        model_trace, guide_trace = self._get_trace(model, guide, args, kwargs)
        latent = {n: site for n, site in model_trace.nodes.items() if is_latent(site)}
        enumerated = [site_log_prob(site) for site in latent.values() if is_enumerated(site)]
        guided = {n: _guided(n, guide_trace) for n, site in latent.items() if not is_enumerated(site)}
        # A closed-form KL averages over its own site alone, so it needs the guide's later sites to be the model's too.
        same_order = list(guided) == [n for n, site in guide_trace.nodes.items() if is_latent(site)]
        log_likelihood: Tensor | float = 0.0
        kl: Tensor | float = 0.0
        for name, q in guided.items():
            if len(latent[name]["fn"].batch_shape) > 2:  # its prior depends on an enumerated site
                enumerated.append(site_log_prob(latent[name]))
                # As in the other terms, the prior's mask says for which sequences the site counts.
                kl = kl + self._per_sequence(site_log_prob({**q, "mask": latent[name]["mask"]}))
            else:
                kl = kl + self._per_sequence(_site_kl(q, latent[name], exact=same_order))
        dependent = []
        for log_prob in (site_log_prob(site) for site in sample_sites(model_trace) if site["is_observed"]):
            if log_prob.dim() > 2:
                dependent.append(log_prob)
            else:
                log_likelihood = log_likelihood + self._per_sequence(log_prob)
        if enumerated:
            log_prior = sum_out(enumerated)
            kl = kl - self._per_sequence(log_prior)
            if dependent:
                log_likelihood = log_likelihood + self._per_sequence(sum_out([*enumerated, *dependent]) - log_prior)
        return ELBOTerms(_as_tensor(log_likelihood), _as_tensor(kl))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """-Σ_b L_b, a scalar in nats."""
        return -self.terms(model, guide, *args, **kwargs).elbo.sum()

    @torch.no_grad()
    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """-Σ_b L_b as a number."""
        return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """-Σ_b L_b as a number, after its backward pass."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return float(loss.detach())

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        return trace_model(model, guide_trace, *args, **kwargs), guide_trace

    def _vectorized_num_particles(self, fn: Any) -> Any:
        if self.num_particles == 1:
            return fn
        return pyro.plate("particles", self.num_particles, dim=-2)(fn)

    def _per_sequence(self, value: Tensor) -> Tensor:
        return value.mean(dim=tuple(range(value.dim() - 1))) if value.dim() > 1 else value


def _guided(name: str, guide_trace: Any) -> Any:
    """The guide's site of that name."""
    site = guide_trace.nodes.get(name)
    if site is None:
        raise LTMError(f"the guide does not sample the latent site {name!r}: every site of the prior needs one")
    if not site["fn"].has_rsample:
        raise LTMError(
            f"the guide samples {name!r} from {type(site['fn']).__name__}, which has no reparameterised "
            "draw: use a continuous one that has it; a discrete site is the prior's to mark for enumeration"
        )
    return site


def _site_kl(q: Any, p: Any, *, exact: bool) -> Tensor:
    # Autocast is for the decoder: in bfloat16 a density would have two digits.
    with torch.autocast(q["value"].device.type, enabled=False):
        kl = _closed_form(q["fn"], p["fn"]) if exact else None
        if kl is None:
            kl = q["fn"].log_prob(q["value"]) - p["fn"].log_prob(q["value"])
    return cast(Tensor, scale_and_mask(kl, scale=p["scale"], mask=p["mask"]))


def _closed_form(q: Any, p: Any) -> Tensor | None:
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def _as_tensor(value: Tensor | float) -> Tensor:
    return value if isinstance(value, Tensor) else torch.zeros(1)
