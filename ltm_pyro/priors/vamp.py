"""A mixture of posteriors at learned pseudo-inputs."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ltm_pyro.errors import LTMError
from ltm_pyro.priors.base import Prior

__all__ = ["VampPrior"]

_ENCODER = "choose the guide amortized or semi-amortized"


class VampPrior(Prior):
    r"""The aggregate posterior of K learned texts: what a guide's encoder makes of pseudo-inputs.

    .. math:: p(z) = \sum_{k=1}^K \pi_k \, q_\phi(z \mid u_k)

    Latent sites: ``z`` with event shape (L, n, H). Slow parameters: ``logits`` (K,) and, made when a guide with an
    encoder is made for the model, ``inputs`` (K, tokens, embedding width): token embeddings that no text need have.

    Args:
        shape: (L, n, H) of the thoughts.
        components: K.
        tokens: length of a pseudo-input.

    Raises:
        LTMError: a number below 1; or, when the prior is run, there is no guide with an encoder.

    References: Tomczak & Welling (2018), VAE with a VampPrior.
    """

    inputs: nn.Parameter

    def __init__(self, shape: tuple[int, int, int], *, components: int = 16, tokens: int = 16):
        super().__init__(shape)
        if components < 1 or tokens < 1:
            raise LTMError(
                f"a vamp prior needs 1 component and 1 token or more, got components = {components}, tokens = {tokens}"
            )
        self.tokens = tokens
        self.logits = nn.Parameter(torch.zeros(components))
        self._guide: tuple[Any] | None = None

    @classmethod
    def refusal(cls, guide: type) -> str | None:
        """Guides without an encoder have no posterior at an input of their own making."""
        if hasattr(guide, "encode"):
            return None
        return (
            f"the prior {cls.__name__} mixes an encoder's posteriors, and {guide.__name__} has no encoder: {_ENCODER}"
        )

    def pair(self, guide: Any) -> None:
        """Takes the guide's encoder, and makes the pseudo-inputs: as long as its embeddings, and as large."""
        # In a tuple, so that the encoder is stored, counted and moved with the guide alone.
        self._guide = (guide,)
        weight = guide.embedding.weight
        inputs = torch.randn(len(self.logits), self.tokens, weight.shape[1], device=weight.device, dtype=weight.dtype)
        self.inputs = nn.Parameter(weight.detach().std() * inputs)

    def template(self, batch_size: int) -> None:
        """One real site of the thoughts' shape."""
        pyro.sample("z", dist.Normal(torch.zeros(batch_size, *self.shape), 1.0).to_event(3))

    def forward(self, batch_size: int) -> Float[Tensor, "*particles batch layer slot hidden"]:
        """Samples ``z`` (…, B, L, n, H)."""
        if self._guide is None:
            raise LTMError(f"a vamp prior needs a guide with an encoder before it can be run: {_ENCODER}")
        real = torch.ones(self.inputs.shape[:2], dtype=torch.bool, device=self.inputs.device)
        local = self._guide[0].encode(self.inputs, real)
        normals = dist.Normal(local["z.mu"], (0.5 * local["z.log_var"]).exp(), validate_args=False).to_event(3)
        kinds = dist.Categorical(logits=self.logits, validate_args=False)
        mixture = dist.MixtureSameFamily(kinds, normals, validate_args=False)
        z: Tensor = pyro.sample("z", mixture.expand((batch_size,)))
        return z
