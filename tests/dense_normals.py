"""Every prior's thoughts as a sum of dense normals, written out apart from the priors' own densities."""

from __future__ import annotations

import math

import torch

from ltm_pyro.priors import GaussianPrior, HierarchicalPrior, LearnedGaussianPrior, MarkovPrior, MixturePrior, Prior


@torch.no_grad()
def dense_normals(prior: Prior) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(K,) log weights, (K, D) means and (K, D, D) covariances of the flattened thoughts, D = L · n · H."""
    size = math.prod(prior.shape)
    one, zero = torch.zeros(1), torch.zeros(1, size)
    if isinstance(prior, GaussianPrior):
        return one, zero, torch.eye(size)[None]
    if isinstance(prior, LearnedGaussianPrior):
        return one, prior.mu.view(1, size), torch.diag((2 * prior.log_scale).exp().flatten())[None]
    if isinstance(prior, MixturePrior):
        variances = (2 * prior.log_scale).exp().flatten(1)
        return prior.logits.log_softmax(0), prior.mu.flatten(1), torch.diag_embed(variances)
    if isinstance(prior, HierarchicalPrior):
        weight = prior.weight.flatten(0, 2)
        covariance = weight @ weight.T + torch.diag((2 * prior.log_scale).exp().flatten())
        return one, prior.bias.view(1, size), covariance[None]
    if isinstance(prior, MarkovPrior):
        return one, zero, chain_covariance(prior)[None]
    raise NotImplementedError(type(prior).__name__)


def chain_covariance(prior: MarkovPrior) -> torch.Tensor:
    """(D, D) covariance of a chain's flattened thoughts, propagated from the top layer down."""
    layers, slots, hidden = prior.shape
    covariance = torch.zeros(layers, slots, hidden, layers, slots, hidden)
    for slot in range(slots):
        # z_l = A_l … A_{L-1} z_L + noise that enters on the way: a matrix for each source of noise.
        sources = {layers - 1: {layers - 1: torch.eye(hidden)}}
        for layer in reversed(range(layers - 1)):
            a = prior.A.detach()[layer]
            sources[layer] = {origin: a @ m for origin, m in sources[layer + 1].items()}
            sources[layer][layer] = torch.diag(prior.log_s.detach()[layer].exp())
        for first in range(layers):
            for second in range(layers):
                shared = sources[first].keys() & sources[second].keys()
                covariance[first, slot, :, second, slot, :] = sum(
                    sources[first][origin] @ sources[second][origin].T for origin in shared
                )
    return covariance.reshape(layers * slots * hidden, -1)
