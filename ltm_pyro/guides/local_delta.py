"""A point per sequence: maximum a posteriori instead of a posterior."""

from __future__ import annotations

from typing import ClassVar

import pyro
import pyro.distributions as dist

from ltm_pyro.batch import TokenBatch
from ltm_pyro.guides.base import Guide, LocalParams
from ltm_pyro.guides.sites import latent_sites
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator, draw_seed

__all__ = ["LocalDelta"]


class LocalDelta(Guide):
    r"""Maximum a posteriori: the fast loop climbs log p(x, z) itself.

    .. math:: q(z \mid x_b) = \delta(z - T(u_b)), \qquad T = \texttt{biject\_to(support)}

    A point has no entropy against a density, so what takes the ELBO's place, log p(x | z) + log p(z), bounds nothing:
    the term called KL is -log p(z) alone, and evaluations report it under its own name. The maximum is that of the
    density over the sites' own values, and so depends on how a prior names its unknowns.

    Local parameters: ``<site>.point``, (B, \*unconstrained event shape).

    Args:
        model: the program whose prior's sites are guided.
        init_mu_spread: standard deviation of the starts around 0.

    References: Gelman et al. (2013), Bayesian Data Analysis, section 13.1 (posterior modes).
    """

    has_density: ClassVar[bool] = False

    def __init__(self, model: LatentThoughtModel, *, init_mu_spread: float = 0.0):
        super().__init__()
        self.sites = latent_sites(model)
        self.init_mu_spread = init_mu_spread

    def init_local(self, batch: TokenBatch, generator: SequenceGenerator | None = None) -> LocalParams:
        """The points of every site, before the bijection onto its support."""
        if generator is None:
            generator = SequenceGenerator(batch.keys, draw_seed())
        spread = self.init_mu_spread
        return {f"{s.name}.point": spread * generator.normal(tuple(s.unconstrained_shape)) for s in self.sites}

    def forward(self, batch: TokenBatch, local: LocalParams) -> None:
        """Samples every latent site of the prior at its point."""
        with pyro.plate("sequences", len(batch), dim=-1):
            for site in self.sites:
                point = local[f"{site.name}.point"]
                value = point if site.transform is None else site.transform(point)
                pyro.sample(site.name, dist.Delta(value, event_dim=len(site.event_shape), validate_args=False))
