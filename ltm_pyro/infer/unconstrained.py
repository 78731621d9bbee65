"""log p(x, z) of a batch as a function of one real vector per sequence: what Langevin dynamics and HMC move in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import NamedTuple, cast

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder.transformer import Stem
from ltm_pyro.errors import LTMError
from ltm_pyro.guides.sites import latent_sites
from ltm_pyro.infer.density import joint_at
from ltm_pyro.infer.posterior import Posterior, autocasting
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator, fixed_global_stream

__all__ = ["Point", "UnconstrainedJoint"]


class Point(NamedTuple):
    """A place of every chain of every sequence, with the log-density there and its gradient."""

    u: Float[Tensor, "chain batch dim"]
    log_prob: Float[Tensor, "chain batch"]
    gradient: Float[Tensor, "chain batch dim"]


class UnconstrainedJoint:
    r"""The joint density of x and z, where every continuous site of z is a bijection of real numbers.

    .. math:: \log p(x_b, T(u_b)) + \log |\det \partial T(u_b)|, \qquad T = \texttt{biject\_to(support)}

    The numbers u_b of all sites stand end to end in one vector of length ``dim``. Enumerated sites are summed out. The
    decoder's work before the thoughts is done once.

    Args:
        model: the generative program.
        batch: the data x.
        autocast: type of the decoder's products, None for the weights' own.

    Raises:
        LTMError: the prior has no continuous site, or one that cannot be read from a trace.
    """

    def __init__(self, model: LatentThoughtModel, batch: TokenBatch, autocast: torch.dtype | None = None):
        self.model = model
        self.batch = batch
        self.autocast = autocast
        self.sites = latent_sites(model)
        self.dim = sum(site.unconstrained_shape.numel() for site in self.sites)

    @cached_property
    def _stem(self) -> Stem | None:
        with torch.no_grad(), autocasting(self.batch.device, self.autocast):
            return self.model.stem(self.batch)

    def __call__(self, u: Float[Tensor, "chain batch dim"]) -> Float[Tensor, "chain batch"]:
        """The log-density at u, differentiable."""
        values = self.constrain(u)
        with autocasting(self.batch.device, self.autocast):
            log_prob = joint_at(partial(self.model, self.batch, stem=self._stem), values).total
        for site, part in zip(self.sites, self._split(u), strict=True):
            if site.transform is not None:
                jacobian: Tensor = site.transform.log_abs_det_jacobian(part, values[site.name])
                log_prob = log_prob + jacobian.reshape(*u.shape[:2], -1).sum(-1)
        return log_prob

    def at(self, u: Float[Tensor, "chain batch dim"]) -> Point:
        """The log-density at u with its gradient: each chain of each sequence its own."""
        with torch.enable_grad():
            leaf = u.detach().requires_grad_()
            log_prob = self(leaf)
            (gradient,) = torch.autograd.grad(log_prob.sum(), leaf)
        return Point(u, log_prob.detach(), gradient)

    def constrain(self, u: Float[Tensor, "*draw batch dim"]) -> dict[str, Tensor]:
        """Values of every site, (…, B, *event)."""
        parts = zip(self.sites, self._split(u), strict=True)
        return {s.name: part if s.transform is None else s.transform(part) for s, part in parts}

    def unconstrain(self, values: Mapping[str, Tensor]) -> Float[Tensor, "*draw batch dim"]:
        """The vector u of given values (…, B, *event).

        Raises:
            LTMError: a site has no value.
        """
        parts = []
        for site in self.sites:
            if site.name not in values:
                raise LTMError(f"no value of the latent site {site.name!r} to start from: pass a guide that samples it")
            value = values[site.name]
            part = value if site.transform is None else site.transform.inv(value)
            parts.append(part.flatten(-len(site.unconstrained_shape)) if site.unconstrained_shape else part[..., None])
        return torch.cat(parts, -1)

    def start(
        self, chains: int, init: Posterior | None, generator: SequenceGenerator
    ) -> Float[Tensor, "chain batch dim"]:
        """Where every chain starts: draws of a fitted posterior, or of the prior from each sequence's own stream.

        Raises:
            LTMError: the posterior is that of other sequences; the density there is not finite.
        """
        if init is None:
            # Not every distribution draws from a counter: each chain's prior is run alone, on a seed of its own.
            seeds = list(enumerate(generator.seeds()))
            u = torch.stack(
                [torch.cat([self._prior_draw(self.batch[[b]], seed + c) for b, seed in seeds]) for c in range(chains)]
            )
        elif torch.equal(init.batch.keys, self.batch.keys):
            u = self.unconstrain(init.sites(chains))
        else:
            raise LTMError("the chains would start at a posterior of other sequences: infer init for this batch")
        with torch.no_grad():
            finite = self(u).isfinite()
        if not finite.all():
            raise LTMError("a chain starts where log p(x, z) is not finite: pass a fitted posterior as init")
        return u

    def _prior_draw(self, one: TokenBatch, seed: int) -> Float[Tensor, "1 dim"]:
        def prior() -> None:
            with pyro.plate("sequences", 1, dim=-1):
                self.model.thoughts(one)

        with torch.no_grad(), fixed_global_stream(seed, self.batch.device):
            trace = poutine.trace(prior).get_trace()
        return self.unconstrain({site.name: cast(Tensor, trace.nodes[site.name]["value"]) for site in self.sites})

    def _split(self, u: Tensor) -> list[Tensor]:
        parts = u.split([site.unconstrained_shape.numel() for site in self.sites], -1)
        shapes = [(*u.shape[:-1], *site.unconstrained_shape) for site in self.sites]
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
