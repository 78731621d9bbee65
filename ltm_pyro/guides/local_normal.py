"""The paper's guide: one diagonal normal per sequence, for the latent sites of any prior."""

from __future__ import annotations

from typing import ClassVar

import pyro
import pyro.distributions as dist

from ltm_pyro.batch import TokenBatch
from ltm_pyro.guides.base import Guide, LocalParams
from ltm_pyro.guides.sites import LatentSite, latent_sites
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator, draw_seed

__all__ = ["LocalNormal"]


class LocalNormal(Guide):
    r"""A diagonal normal per sequence and site, pushed through the bijection onto the site's support.

    .. math:: q(z \mid x_b) = T_\# N(\mu_b, \operatorname{diag} \sigma_b^2), \qquad T = \texttt{biject\_to(support)}

    Local parameters: ``<site>.mu`` and ``<site>.log_var``, each (B, \*unconstrained event shape). On a real support the
    site is sampled as the normal itself, so that its KL to a normal prior is exact.

    Args:
        model: the program whose prior's sites are guided.
        init_log_var: where log σ² starts.
        init_log_var_spread: standard deviation of the starts of log σ² around it.
        init_mu_spread: standard deviation of the starts of μ around 0.

    References: Kong et al. (2025), Scalable Language Models with Posterior Inference of Latent Thought Vectors.
    """

    natural: ClassVar[bool] = True

    def __init__(
        self,
        model: LatentThoughtModel,
        *,
        init_log_var: float = -5.0,
        init_log_var_spread: float = 0.1,
        init_mu_spread: float = 0.0,
    ):
        super().__init__()
        self.sites = latent_sites(model)
        self.init_log_var = init_log_var
        self.init_log_var_spread = init_log_var_spread
        self.init_mu_spread = init_mu_spread

    def init_local(self, batch: TokenBatch, generator: SequenceGenerator | None = None) -> LocalParams:
        """μ and log σ² of every site; all that is random comes from ``generator``."""
        if generator is None:
            generator = SequenceGenerator(batch.keys, draw_seed())
        local: LocalParams = {}
        for site in self.sites:
            local |= self._start(site, generator)
        return {name: value.requires_grad_() for name, value in local.items()}

    def _start(self, site: LatentSite, generator: SequenceGenerator) -> LocalParams:
        """Starting values of one site's parameters."""
        shape = tuple(site.unconstrained_shape)
        mu = self.init_mu_spread * generator.normal(shape)
        log_var = self.init_log_var + self.init_log_var_spread * generator.normal(shape)
        return {f"{site.name}.mu": mu, f"{site.name}.log_var": log_var}

    def forward(self, batch: TokenBatch, local: LocalParams) -> None:
        """Samples every latent site of the prior under its own name."""
        with pyro.plate("sequences", len(batch), dim=-1):
            for site in self.sites:
                mu, log_var = local[f"{site.name}.mu"], local[f"{site.name}.log_var"]
                normal = dist.Normal(mu, (0.5 * log_var).exp(), validate_args=False)
                if site.transform is None:
                    pyro.sample(site.name, normal.to_event(len(site.event_shape)))
                else:
                    q = normal.to_event(len(site.unconstrained_shape))
                    pyro.sample(site.name, dist.TransformedDistribution(q, [site.transform], validate_args=False))
