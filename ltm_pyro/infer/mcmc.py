"""HMC and NUTS in p(z | x) through Pyro: every chain of every sequence is a run of its own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from pyro.infer import HMC, MCMC, NUTS
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.infer.chains import Chains
from ltm_pyro.infer.constant import constant
from ltm_pyro.infer.posterior import Posterior
from ltm_pyro.infer.unconstrained import UnconstrainedJoint
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator, draw_seed, fixed_global_stream

__all__ = ["mcmc"]


def mcmc(
    model: LatentThoughtModel,
    batch: TokenBatch,
    *,
    kernel: Literal["nuts", "hmc"] = "nuts",
    draws: int = 500,
    warmup: int = 300,
    chains: int = 4,
    init: Posterior | None = None,
    target_accept: float = 0.8,
    trajectory_length: float = math.pi / 2,
    max_tree_depth: int = 10,
    full_mass: bool = False,
    seed: int | None = None,
    autocast: torch.dtype | None = None,
) -> Chains:
    """Hamiltonian Monte Carlo in the unconstrained space of every site.

    Warm-up adapts the step size and the mass matrix of each chain. A chain depends on its sequence, its number and the
    seed alone: padding is cut off, and torch's global stream is seeded for it and put back afterwards.

    Args:
        model: the generative program, constant here.
        batch: the sequences x.
        kernel: ``nuts`` chooses the length of every trajectory, ``hmc`` has a fixed one.
        draws: S, kept from every chain.
        warmup: transitions of every chain before the first kept draw.
        chains: C, for every sequence.
        init: a posterior of the batch whose draws start the chains; None starts them at draws of the prior.
        target_accept: acceptance probability that the step size is adapted to.
        trajectory_length: of ``hmc``, step size times steps. π/2 makes draws of a normal independent once the mass
            matrix has its scales; Pyro's own 2π would bring every trajectory back to its start.
        max_tree_depth: of ``nuts``: at most 2 to this power evaluations per draw.
        full_mass: whether the mass matrix is dense: for few, correlated dimensions.
        seed: of the sequences' noise; None draws one from torch's global stream.
        autocast: type of the decoder's products, None for the weights' own.

    Raises:
        LTMError: a number or name out of range.

    References: Hoffman & Gelman (2014), The No-U-Turn Sampler; Neal (2011), MCMC using Hamiltonian Dynamics.
    """
    if kernel not in ("nuts", "hmc"):
        raise LTMError(f"kernel = {kernel!r} is no kernel: take 'nuts' or 'hmc'")
    if min(draws, warmup, chains) < 1:
        raise LTMError(f"MCMC needs draws, warmup and chains of at least 1, got {draws}, {warmup} and {chains}")
    if not 0 < target_accept < 1:
        raise LTMError(f"target_accept is a probability between 0 and 1, got {target_accept:g}")
    seed = draw_seed() if seed is None else seed
    generator = SequenceGenerator(batch.keys, seed, "chain")
    whole = UnconstrainedJoint(model, batch, autocast)
    start = whole.start(chains, init, generator)
    seeds = [generator.seeds() for _ in range(chains)]
    options: dict[str, Any] = {"target_accept_prob": target_accept, "full_mass": full_mass}
    options |= {"max_tree_depth": max_tree_depth} if kernel == "nuts" else {"trajectory_length": trajectory_length}
    u = start.new_empty(draws, *start.shape)
    acceptance, step_size = start.new_empty(chains, len(batch)), start.new_empty(chains, len(batch))
    divergences = torch.zeros(chains, len(batch), dtype=torch.int64, device=batch.device)
    with constant(model):
        for b in range(len(batch)):
            joint = UnconstrainedJoint(model, _alone(batch, b), autocast)

            def potential(values: dict[str, Tensor], joint: UnconstrainedJoint = joint) -> Tensor:
                return -joint(values["u"][None, None])[0, 0]

            for c in range(chains):
                run = (NUTS if kernel == "nuts" else HMC)(potential_fn=potential, **options)
                with fixed_global_stream(seeds[c][b], batch.device):
                    u[:, c, b], about = _chain(run, start[c, b], draws, warmup)
                acceptance[c, b], step_size[c, b], divergences[c, b] = about
    with torch.no_grad():
        sites = whole.constrain(u)
    return Chains(
        model=model,
        batch=batch,
        sites=sites,
        method=kernel,
        acceptance=acceptance,
        step_size=step_size,
        seed=seed,
        divergences=divergences,
    )


def _alone(batch: TokenBatch, b: int) -> TokenBatch:
    """One sequence without the padding that its batch gave it."""
    part = batch[[b]]
    width = max(int(part.lengths), 1)
    return replace(part, tokens=part.tokens[:, :width], scored=None if part.scored is None else part.scored[:, :width])


def _chain(
    kernel: HMC, start: Float[Tensor, " dim"], draws: int, warmup: int
) -> tuple[Float[Tensor, "draw dim"], tuple[float, float, int]]:
    """The draws of one chain; its mean acceptance probability, step size and number of divergences."""
    seen: dict[str, Any] = {}

    def watch(kernel: HMC, params: Any, stage: str, i: int) -> None:
        # What the kernel knows is lost at the end of the run. Its "acceptance rate" counts the draws that moved.
        if stage == "Sample" and i == draws - 1:
            seen["acceptance"] = float(kernel.logging()["acc. prob"])
            seen["step_size"] = kernel.step_size
            seen["divergences"] = len(kernel.diagnostics()["divergences"])

    run = MCMC(
        kernel,
        num_samples=draws,
        warmup_steps=warmup,
        initial_params={"u": start.clone()},
        hook_fn=watch,
        disable_progbar=True,
        disable_validation=True,
    )
    run.run()
    return run.get_samples()["u"], (seen["acceptance"], seen["step_size"], seen["divergences"])
