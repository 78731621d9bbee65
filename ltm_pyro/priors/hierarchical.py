"""A document-level topic above the thoughts of all layers."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from ltm_pyro.errors import LTMError
from ltm_pyro.priors.base import Prior

__all__ = ["HierarchicalPrior"]


class HierarchicalPrior(Prior):
    r"""Every thought is drawn around a linear map of one topic, which all layers of a document share.

    .. math::
        t \sim N(0, I), \qquad z_{lk} \mid t \sim N(W_{lk} t + b_{lk}, \operatorname{diag} s_{lk}^2)

    Latent sites: ``topic`` with event shape (topics,), and ``z`` with event shape (L, n, H); where ``centred`` is False
    the second is ``noise`` ~ N(0, I) of the same shape and z = W t + b + s · noise. Slow parameters: ``weight``
    (L, n, H, topics), ``bias`` (L, n, H), ``log_scale`` (L, n, H).

    Args:
        shape: (L, n, H) of the thoughts.
        topics: entries of the topic.
        centred: whether z itself is the site below the topic. The other form suits thoughts of which the text says
            little.

    Raises:
        LTMError: ``topics`` is below 1.

    References: Sønderby et al. (2016), Ladder Variational Autoencoders; Papaspiliopoulos et al. (2007), A General
    Framework for the Parametrization of Hierarchical Models.
    """

    zeros: Tensor
    one: Tensor

    def __init__(self, shape: tuple[int, int, int], *, topics: int = 16, centred: bool = True):
        super().__init__(shape)
        if topics < 1:
            raise LTMError(f"a hierarchical prior needs 1 topic entry or more, got topics = {topics}")
        self.centred = centred
        self.weight = nn.Parameter(torch.randn(*shape, topics) / (2 * topics) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(shape))
        # Half of the variance of each entry comes from the topic at the start, so that each is N(0, 1) over documents.
        self.log_scale = nn.Parameter(torch.full(shape, 0.5).sqrt().log())
        self.register_buffer("zeros", torch.zeros(topics), persistent=False)
        self.register_buffer("one", torch.ones(()), persistent=False)

    def forward(self, batch_size: int) -> Float[Tensor, "*particles batch layer slot hidden"]:
        """Samples the topic and the thoughts (…, B, L, n, H)."""
        standard = dist.Normal(self.zeros, self.one, validate_args=False)
        topic = pyro.sample("topic", standard.expand((batch_size, *self.zeros.shape)).to_event(1))
        mean = einsum(self.weight, topic, "l n h t, ... t -> ... l n h") + self.bias
        scale = self.log_scale.exp()
        if self.centred:
            z: Tensor = pyro.sample("z", dist.Normal(mean, scale, validate_args=False).to_event(3))
            return z
        unit = dist.Normal(torch.zeros_like(scale), self.one, validate_args=False)
        noise: Tensor = pyro.sample("noise", unit.expand((batch_size, *self.shape)).to_event(3))
        return mean + scale * noise
