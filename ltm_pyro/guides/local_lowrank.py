"""A normal per sequence whose entries may be correlated along a few directions."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, TransformedDistribution, register_kl
from torch.distributions.transforms import ReshapeTransform

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.guides.base import LocalParams
from ltm_pyro.guides.local_normal import LocalNormal
from ltm_pyro.guides.sites import LatentSite
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator

__all__ = ["LocalLowRank"]


class LocalLowRank(LocalNormal):
    r"""A normal with a low-rank covariance per sequence and site, pushed through the bijection onto the site's support.

    .. math:: q(z \mid x_b) = T_\# N(\mu_b, F_b F_b^\top + \operatorname{diag} \sigma_b^2)

    Local parameters: ``<site>.mu`` and ``<site>.log_var``, each (B, \*unconstrained event shape), and ``<site>.factor``
    (B, entries of that shape, r). The KL to a diagonal normal prior is exact. Sites are independent of each other.

    Args:
        model: the program whose prior's sites are guided.
        rank: r.
        init_log_var: where log σ² starts.
        init_log_var_spread: standard deviation of the starts of log σ² around it.
        init_mu_spread: standard deviation of the starts of μ around 0.
        init_factor_spread: standard deviation of the starts of F around 0; at 0 exactly its gradient would vanish.

    Raises:
        LTMError: ``rank`` is below 1.

    References: Ong et al. (2018), Gaussian Variational Approximation with a Factor Covariance Structure.
    """

    def __init__(
        self,
        model: LatentThoughtModel,
        *,
        rank: int = 4,
        init_log_var: float = -5.0,
        init_log_var_spread: float = 0.1,
        init_mu_spread: float = 0.0,
        init_factor_spread: float = 0.01,
    ):
        super().__init__(
            model,
            init_log_var=init_log_var,
            init_log_var_spread=init_log_var_spread,
            init_mu_spread=init_mu_spread,
        )
        if rank < 1:
            raise LTMError(f"a low-rank guide needs a rank of 1 or more, got {rank}: the guide local-normal has none")
        self.rank = rank
        self.init_factor_spread = init_factor_spread

    def _start(self, site: LatentSite, generator: SequenceGenerator) -> LocalParams:
        factor = self.init_factor_spread * generator.normal((site.unconstrained_shape.numel(), self.rank))
        return super()._start(site, generator) | {f"{site.name}.factor": factor}

    def forward(self, batch: TokenBatch, local: LocalParams) -> None:
        """Samples every latent site of the prior under its own name."""
        with pyro.plate("sequences", len(batch), dim=-1):
            for site in self.sites:
                flat = dist.LowRankMultivariateNormal(
                    local[f"{site.name}.mu"].reshape(len(batch), -1),
                    local[f"{site.name}.factor"],
                    local[f"{site.name}.log_var"].reshape(len(batch), -1).exp(),
                    validate_args=False,
                )
                pyro.sample(site.name, dist.TransformedDistribution(flat, site.from_flat, validate_args=False))


@register_kl(TransformedDistribution, Independent)  # type: ignore[untyped-decorator]
def _kl_lowrank_diagonal(q: Any, p: Any) -> Tensor:
    """KL of a reshaped low-rank normal from a diagonal one."""
    transforms, base = q.transforms, q.base_dist
    if not isinstance(base, torch.distributions.LowRankMultivariateNormal) or not isinstance(p.base_dist, Normal):
        raise NotImplementedError
    if len(transforms) != 1 or not isinstance(transforms[0], ReshapeTransform):
        raise NotImplementedError
    mean, scale = (t.expand(q.batch_shape + q.event_shape) for t in (p.base_dist.loc, p.base_dist.scale))
    start = len(q.batch_shape)
    mean, precision = mean.flatten(start), scale.flatten(start).square().reciprocal()
    quadratic = ((base.loc - mean).square() + base.variance) * precision
    # log |F Fᵀ + D| = log |I + Fᵀ D⁻¹ F| + Σ log D
    factor, diagonal = base.cov_factor, base.cov_diag
    inner = factor.mT @ (factor / diagonal[..., None])
    inner = inner + torch.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device)
    log_det = torch.linalg.slogdet(inner).logabsdet + diagonal.log().sum(-1)
    kl: Tensor = 0.5 * ((quadratic - 1 - precision.log()).sum(-1) - log_det)
    return kl
