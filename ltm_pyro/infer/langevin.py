"""Langevin dynamics in p(z | x), unadjusted or Metropolis-adjusted, for every chain of every sequence at once."""

from __future__ import annotations

import math

import pyro
import torch
from jaxtyping import Bool, Float
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.infer.chains import Chains
from ltm_pyro.infer.constant import constant
from ltm_pyro.infer.posterior import Posterior
from ltm_pyro.infer.unconstrained import Point, UnconstrainedJoint
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator, draw_seed

__all__ = ["langevin"]


def langevin(
    model: LatentThoughtModel,
    batch: TokenBatch,
    *,
    draws: int = 500,
    warmup: int = 500,
    thin: int = 1,
    step_size: float = 0.01,
    adjusted: bool = True,
    adapt: bool = True,
    target_accept: float = 0.574,
    chains: int = 4,
    init: Posterior | None = None,
    seed: int | None = None,
    autocast: torch.dtype | None = None,
) -> Chains:
    r"""Langevin dynamics in the unconstrained space of every site.

    .. math:: z \leftarrow z + s\, \nabla_z \log p(z \mid x) + \sqrt{2s}\, \epsilon, \qquad \epsilon \sim N(0, I)

    Adjusted (MALA), a step from z to z' is taken with probability min(1, p(z', x) q(z | z') / p(z, x) q(z' | z)), where
    q is the density of the step, so that p(z | x) is kept exactly. Unadjusted (ULA) it is always taken, and what is
    kept is off by O(s). Noise and step size are each chain's own: a chain depends neither on its batch nor on the
    number of other chains.

    Args:
        model: the generative program, constant here.
        batch: the sequences x.
        draws: S, kept from every chain.
        warmup: steps of every chain before the first kept draw.
        thin: steps from one kept draw to the next.
        step_size: s; adapted from here if ``adjusted`` and ``adapt``.
        adjusted: whether a step may be rejected (MALA) or not (ULA).
        adapt: whether dual averaging moves the step size of every chain of every sequence toward ``target_accept``
            during warm-up. An unadjusted step size is always fixed.
        target_accept: acceptance probability to adapt toward; 0.574 is the best in high dimension.
        chains: C, for every sequence.
        init: a posterior of the batch whose draws start the chains; None starts them at draws of the prior.
        seed: of the sequences' noise; None draws one from torch's global stream.
        autocast: type of the decoder's products, None for the weights' own.

    Raises:
        LTMError: a number out of range; a start without a density; an unadjusted chain that ran away to infinity.

    References: Kong et al. (2025), Scalable Language Models with Posterior Inference of Latent Thought Vectors; Roberts
    & Tweedie (1996), Exponential Convergence of Langevin Distributions; Roberts & Rosenthal (1998), Optimal Scaling of
    Discrete Approximations to Langevin Diffusions.
    """
    if min(draws, thin, chains) < 1 or warmup < 0 or not step_size > 0:
        raise LTMError(
            "Langevin dynamics needs draws, thin and chains of at least 1, warmup of at least 0 and step_size above 0, "
            f"got {draws}, {thin}, {chains}, {warmup} and {step_size:g}"
        )
    if not 0 < target_accept < 1:
        raise LTMError(f"target_accept is a probability between 0 and 1, got {target_accept:g}")
    seed = draw_seed() if seed is None else seed
    generator = SequenceGenerator(batch.keys, seed, "chain")
    joint = UnconstrainedJoint(model, batch, autocast)
    s = torch.full((chains, len(batch)), float(step_size), device=batch.device)
    # One for every chain: a common one would be happy with one chain stuck and the others at full speed.
    averaging = DualAveraging(prox_center=(10 * s).log())
    kept, acceptance = [], []
    with constant(model), torch.no_grad():
        now = joint.at(joint.start(chains, init, generator))
        # A wrong program has been caught by now; checks of values would only forbid proposals that get rejected.
        with pyro.validation_enabled(False):
            for t in range(warmup + draws * thin):
                proposal = joint.at(_proposal(now, s, generator))
                if adjusted:
                    log_accept = _log_accept(now, proposal, s)
                    log_uniform = torch.special.log_ndtr(generator.normal((), particles=(chains,)))
                    now = _choose(log_uniform < log_accept, proposal, now)
                    probability = log_accept.exp()
                else:
                    now, probability = proposal, torch.ones_like(now.log_prob)
                if t < warmup and adjusted and adapt:
                    averaging.step(target_accept - probability)
                    tried, average = averaging.get_state()
                    s = (average if t == warmup - 1 else tried).exp()
                if t >= warmup:
                    acceptance.append(probability)
                    if (t - warmup + 1) % thin == 0:
                        kept.append(now.u)
        u = torch.stack(kept)
        if not u.isfinite().all():
            raise LTMError(
                f"unadjusted Langevin dynamics ran away to infinity: lower step_size = {step_size:g}, or set adjusted"
            )
        return Chains(
            model=model,
            batch=batch,
            sites=joint.constrain(u),
            method="mala" if adjusted else "ula",
            acceptance=torch.stack(acceptance).mean(0),
            step_size=s,
            seed=seed,
        )


def _proposal(now: Point, s: Float[Tensor, "chain batch"], generator: SequenceGenerator) -> Tensor:
    chains, _, dim = now.u.shape
    noise = generator.normal((dim,), particles=(chains,), dtype=now.u.dtype)
    return now.u + s[..., None] * now.gradient + (2 * s[..., None]).sqrt() * noise


def _log_accept(now: Point, new: Point, s: Float[Tensor, "chain batch"]) -> Float[Tensor, "chain batch"]:
    """Log of min(1, p(z') q(z | z') / p(z) q(z' | z)); -inf where the proposal has no density."""

    def log_q(end: Point, start: Point) -> Tensor:
        return -(end.u - start.u - s[..., None] * start.gradient).square().sum(-1) / (4 * s)

    log_ratio = new.log_prob - now.log_prob + log_q(now, new) - log_q(new, now)
    return log_ratio.nan_to_num(nan=-math.inf).clamp(max=0)


def _choose(accepted: Bool[Tensor, "chain batch"], new: Point, old: Point) -> Point:
    return Point(
        torch.where(accepted[..., None], new.u, old.u),
        torch.where(accepted, new.log_prob, old.log_prob),
        torch.where(accepted[..., None], new.gradient, old.gradient),
    )
