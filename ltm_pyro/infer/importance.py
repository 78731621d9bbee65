"""Importance weights of a posterior's draws, sequence by sequence, and the Pareto shape that says if they serve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from typing import cast

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from ltm_pyro.errors import LTMError
from ltm_pyro.guides.sites import latent_sites
from ltm_pyro.infer.density import is_latent, joint_at, site_log_prob
from ltm_pyro.infer.posterior import Posterior, autocasting
from ltm_pyro.noise import SequenceGenerator, sequence_noise

__all__ = ["ImportanceWeights", "importance_weights"]


@dataclass(frozen=True, eq=False)
class ImportanceWeights:
    r"""Weights of S draws of every sequence.

    .. math:: w_{sb} = p(x_b, z_{sb}) / q(z_{sb} \mid x_b), \qquad z_{sb} \sim q(z \mid x_b)

    Args:
        log_weights: (S, B) log w.

    References: Burda et al. (2016), Importance Weighted Autoencoders; Vehtari et al. (2024), Pareto Smoothed Importance
    Sampling.
    """

    log_weights: Float[Tensor, "draw batch"]

    @property
    def log_evidence(self) -> Float[Tensor, " batch"]:
        """(B,) log (1/S) Σ_s w_s, which is below log p(x) in expectation and meets it as S grows."""
        return self.log_weights.logsumexp(0) - math.log(len(self.log_weights))

    @property
    def standard_error(self) -> Float[Tensor, " batch"]:
        """(B,) of `log_evidence` by the delta method: sd(w) / (mean(w) √S). Not to be trusted where `k_hat` > 0.5."""
        relative = (self.log_weights - self.log_evidence).exp()
        return relative.std(0) / math.sqrt(len(relative))

    @property
    def effective_sample_size(self) -> Float[Tensor, " batch"]:
        """(B,) (Σ w)² / Σ w²: equal weights that would estimate as well."""
        return (2 * self.log_weights.logsumexp(0) - (2 * self.log_weights).logsumexp(0)).exp()

    @property
    def k_hat(self) -> Float[Tensor, " batch"]:
        """(B,) shape of the generalized Pareto distribution fitted to the largest min(S / 5, 3 √S) weights.

        Moments of order 1 / k and above are infinite: below 0.5 the weights have a variance, above 0.7 do not use them.
        ∞ where fewer than five weights stand out or a weight is 0, so that nothing can be said, and -∞ where all are
        equal.
        """
        return self._fits[0]

    @property
    def smoothed(self) -> Float[Tensor, "draw batch"]:
        """(S, B) log weights with the largest replaced by quantiles of the fitted Pareto distribution."""
        return self._fits[1]

    @cached_property
    def _fits(self) -> tuple[Tensor, Tensor]:
        # Pyro's fit is for one sample on the CPU.
        fits = [_pareto_smoothed(column) for column in self.log_weights.double().cpu().unbind(1)]
        k_hat = torch.tensor([k for k, _ in fits]).to(self.log_weights)
        return k_hat, torch.stack([smooth for _, smooth in fits], 1).to(self.log_weights)


@torch.no_grad()
def importance_weights(posterior: Posterior, num: int, *, chunk_size: int = 64) -> ImportanceWeights:
    """Weights of ``num`` new draws of a posterior, enumerated sites summed out of p(x, z).

    Args:
        posterior: q(z | x) of a batch.
        num: S.
        chunk_size: draws that are scored at once; bounds the memory, and changes no number but for rounding.

    Raises:
        LTMError: q has no density, lacks a latent site of the prior, or samples one that the prior does not have.
    """
    if num < 1 or chunk_size < 1:
        raise LTMError(f"importance weights need num and chunk_size of at least 1, got {num} and {chunk_size}")
    guide, model, batch = posterior.guide, posterior.model, posterior.batch
    if not guide.has_density:
        raise LTMError(
            f"{type(guide).__name__} draws without a density, so its draws have no weights: take another guide"
        )
    draws = pyro.plate("particles", num, dim=-2)(partial(guide, batch, posterior.local))
    with sequence_noise(SequenceGenerator(batch.keys, posterior.seed, "score")):
        trace = poutine.trace(draws).get_trace()
    drawn = [site for site in trace.nodes.values() if is_latent(site)]
    values = {str(site["name"]): cast(Tensor, site["value"]) for site in drawn}
    wanted = {site.name for site in latent_sites(model)}
    if set(values) != wanted:
        raise LTMError(
            f"the guide samples {sorted(values)} and the prior {sorted(wanted)}: weights need the same sites in both"
        )
    log_q = reduce(torch.add, map(site_log_prob, drawn))
    chunks = zip(*(value.split(chunk_size) for value in values.values()), strict=True)
    with autocasting(batch.device, posterior.autocast):
        program = partial(model, batch, stem=model.stem(batch))
        joint = [joint_at(program, dict(zip(values, chunk, strict=True))).total for chunk in chunks]
    return ImportanceWeights(torch.cat(joint) - log_q)


def _pareto_smoothed(log_weights: Float[Tensor, " draw"]) -> tuple[float, Float[Tensor, " draw"]]:
    """Pareto shape of the upper tail of one sequence's weights, and the weights with that tail smoothed."""
    top = log_weights.max()
    relative = log_weights - top
    if (relative == 0).all():
        return -math.inf, log_weights
    num = len(relative)
    size = min(math.ceil(min(num / 5, 3 * math.sqrt(num))), num - 1)
    cutoff = relative.sort().values[-1 - size].clamp(min=math.log(torch.finfo(relative.dtype).tiny))
    tail = (relative > cutoff).nonzero()[:, 0]
    if len(tail) < 5 or not relative.isfinite().all():
        return math.inf, log_weights
    tail = tail[relative[tail].argsort()]
    k, sigma = fit_generalized_pareto(relative[tail].exp() - cutoff.exp())
    if not math.isfinite(k):
        return k, log_weights
    survival = torch.log1p(-(torch.arange(len(tail), dtype=relative.dtype) + 0.5) / len(tail))
    excess = -sigma * survival if k == 0 else sigma * torch.expm1(-k * survival) / k
    # No smoothed weight is above the largest raw one, so that one draw cannot outweigh what was seen.
    smooth = (excess + cutoff.exp()).log().clamp(max=0)
    return k, relative.index_copy(0, tail, smooth) + top
