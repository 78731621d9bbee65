"""A mixture of diagonal normals over whole sets of thoughts."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ltm_pyro.errors import LTMError
from ltm_pyro.priors.base import Prior

__all__ = ["MixturePrior"]


class MixturePrior(Prior):
    r"""A document is of one of K kinds, each with a normal of its own; the kind is summed out exactly.

    .. math:: k \sim \operatorname{Cat}(\pi), \quad z \mid k \sim N(m_k, \operatorname{diag} s_k^2), \qquad
        p(z) = \sum_{k=1}^K \pi_k N(z; m_k, \operatorname{diag} s_k^2)

    Latent sites: ``z`` with event shape (L, n, H), and, where ``enumerated`` is True, ``kind`` above it, whose values
    are all run through at once. Slow parameters: ``logits`` (K,), ``mu`` (K, L, n, H), ``log_scale`` (K, L, n, H).
    `responsibilities` reads the kind of given thoughts.

    Args:
        shape: (L, n, H) of the thoughts.
        components: K.
        spread: standard deviation of the starts of the components' means around 0.
        enumerated: whether the kind is a site of its own, so that ``Posterior.discrete()["kind"]`` is a document's
            label. The density, the parameters and the bound are the same either way.
        scale: where every s starts.
        learned_scale: whether s is learned. A constant one cannot shrink onto a posterior that says little, nor can a
            component, by fitting the early thoughts first, leave the others without documents.

    Raises:
        LTMError: ``components`` is below 1, or ``scale`` is not above 0.

    References: Dilokthanakul et al. (2016), Deep Unsupervised Clustering with Gaussian Mixture Variational
    Autoencoders.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        components: int = 8,
        spread: float = 0.1,
        enumerated: bool = False,
        scale: float = 1.0,
        learned_scale: bool = True,
    ):
        super().__init__(shape)
        if components < 1:
            raise LTMError(f"a mixture prior needs 1 component or more, got components = {components}")
        if not scale > 0:
            raise LTMError(f"the scale of a mixture prior's components must be above 0, got scale = {scale}")
        self.enumerated = enumerated
        self.logits = nn.Parameter(torch.zeros(components))
        self.mu = nn.Parameter(spread * torch.randn(components, *shape))
        self.log_scale = nn.Parameter(torch.full((components, *shape), scale).log(), requires_grad=learned_scale)

    def forward(self, batch_size: int) -> Float[Tensor, "*particles batch layer slot hidden"]:
        """Samples ``z`` (…, B, L, n, H), below ``kind`` (…, B) where that is a site."""
        kinds = dist.Categorical(logits=self.logits, validate_args=False)
        density: Any
        if self.enumerated:
            kind = pyro.sample("kind", kinds.expand((batch_size,)), infer={"enumerate": "parallel"})
            density = dist.Normal(self.mu[kind], self.log_scale[kind].exp(), validate_args=False).to_event(3)
        else:
            density = dist.MixtureSameFamily(kinds, self._components(), validate_args=False).expand((batch_size,))
        z: Tensor = pyro.sample("z", density)
        return z

    def responsibilities(
        self, thoughts: Float[Tensor, "*batch layer slot hidden"]
    ) -> Float[Tensor, "*batch component"]:
        """p(k | z), the probability of each component given the thoughts."""
        joint = self._components().log_prob(thoughts[..., None, :, :, :]) + self.logits.log_softmax(-1)
        result: Tensor = joint.softmax(-1)
        return result

    def _components(self) -> torch.distributions.Distribution:
        components: torch.distributions.Distribution = dist.Normal(
            self.mu, self.log_scale.exp(), validate_args=False
        ).to_event(3)
        return components
