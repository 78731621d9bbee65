"""What the thoughts know of the text: active units, KL per layer, and mutual information I(x; z)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyro
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data.sequences import SequenceDataset
from ltm_pyro.errors import LTMError
from ltm_pyro.guides import LocalNormal, LocalParams
from ltm_pyro.infer.density import is_latent, trace_model
from ltm_pyro.infer.fast_slow import FastSlowSVI
from ltm_pyro.noise import SequenceGenerator, fixed_global_stream

__all__ = ["Information", "information", "mutual_information"]

_ACTIVE = 0.01  # of Burda et al. (2016)
_ROWS = 256  # draws compared with all posteriors at once


@dataclass(frozen=True)
class Information:
    r"""Information in the thoughts of M sequences; None is what the guide or the prior does not define.

    - ``active_units`` are the entries of z whose posterior mean varies over the sequences by more than 0.01, in the
      units of z; of ``units``. None where a site is not of all reals, and for a single sequence.
    - ``kl_per_layer``: (L,) nats per scored token, exact, for a prior that is a normal site ``z`` alone.
    - ``mutual_information`` estimates :math:`I(x; z) = E_x \mathrm{KL}(q(z \mid x) \,\|\, q(z))` in nats per sequence,
      for :math:`q(z) = \frac{1}{M} \sum_m q(z \mid x_m)`. It is at most ``mutual_information_limit``, log M.

    References: Burda et al. (2016), Importance Weighted Autoencoders; Hoffman & Johnson (2016), ELBO Surgery.
    """

    active_units: int | None = None
    units: int | None = None
    kl_per_layer: list[float] | None = None
    mutual_information: float | None = None
    mutual_information_limit: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values by name."""
        return asdict(self)


def information(
    svi: FastSlowSVI,
    data: SequenceDataset,
    indices: Sequence[int],
    *,
    samples: int = 16,
    fast_steps: int | None = None,
    fast_lr: float | None = None,
    batch_size: int = 8,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Information:
    """Fits each sequence's posterior, a diagonal normal, and compares all of them; labels stay unseen.

    Args:
        svi: the model, its guide and the settings of the fast loop; another guide gives None throughout.
        data: where the sequences come from.
        indices: which M of them; their posteriors are held at once.
        samples: S, draws per sequence behind the mutual information.
        fast_steps: T_fast; None takes the configured number.
        fast_lr: η_fast; None takes the configured one.
        batch_size: sequences fitted at once; changes the time taken and nothing else.
        seed: of the noise.
        device: where the model lives.

    Raises:
        LTMError: there is no sequence or no draw.
    """
    if samples < 1:
        raise LTMError(f"samples must be 1 or more, got {samples}")
    if not indices:
        raise LTMError("there are no sequences to evaluate: choose another source or split")
    guide = svi.guide
    if not isinstance(guide, LocalNormal):
        return Information()
    means, log_vars, keys, layers, tokens = [], [], [], [], 0
    for labelled in data.batches(indices, batch_size):
        batch = labelled.unlabelled().to(device)
        local = svi.infer(batch, steps=fast_steps, seed=seed, lr=fast_lr).local
        if not _is_diagonal(guide, set(local)):
            return Information()
        mu, log_var = (_flat(guide, local, part) for part in ("mu", "log_var"))
        means.append(mu)
        log_vars.append(log_var)
        keys.append(batch.keys.cpu())
        layers.append(_kl_per_layer(svi, batch, mu, log_var))
        tokens += int(batch.num_scored.sum())
    mu, log_var = torch.cat(means), torch.cat(log_vars)
    generator = SequenceGenerator(torch.cat(keys), seed, "score")
    noise = (generator.normal((mu.shape[1],)) for _ in range(samples))  # one draw at a time: S M D could be large
    active = int((mu.var(0) > _ACTIVE).sum()) if len(mu) > 1 and _is_real(guide) else None
    found = [kl for kl in layers if kl is not None]
    return Information(
        active_units=active,
        units=None if active is None else mu.shape[1],
        kl_per_layer=(torch.cat(found).sum(0) / tokens).tolist() if found and tokens else None,
        mutual_information=mutual_information(mu, log_var, noise),
        mutual_information_limit=math.log(len(mu)),
    )


def mutual_information(
    mu: Float[Tensor, "sequence entry"],
    log_var: Float[Tensor, "sequence entry"],
    noise: Iterable[Float[Tensor, "sequence entry"]],
) -> float:
    r"""I(x; z) in nats of M diagonal normals q_m, each as likely as the others, at S draws of each.

    .. math:: \frac{1}{MS} \sum_{m,s} \log \frac{q_m(z_{ms})}{\frac{1}{M} \sum_k q_k(z_{ms})}, \qquad
        z_{ms} = \mu_m + \sigma_m \epsilon_{ms}

    A draw's own normal is among the k, so that no term is above log M.

    Args:
        mu: (M, D) means.
        log_var: (M, D) log σ².
        noise: the ε, S tensors (M, D).

    Raises:
        LTMError: there is no draw.
    """
    mu, log_var = mu.double(), log_var.double()
    centre = mu.mean(0)  # far from 0 the squares below would cancel
    mu = mu - centre
    precision = (-log_var).exp()
    constant = (mu.square() * precision + log_var).sum(1)
    gains: list[Tensor] = []
    for eps in noise:
        z = mu + (0.5 * log_var).exp() * eps
        for start in range(0, len(z), _ROWS):
            rows = z[start : start + _ROWS]
            # -2 log q_k(z) without its D log 2π, which the ratio does not have.
            minus_two_log_q = rows.square() @ precision.T - 2 * rows @ (mu * precision).T + constant
            log_q = -0.5 * minus_two_log_q
            gains.append(log_q.diagonal(start) - log_q.logsumexp(1))
    if not gains:
        raise LTMError("mutual information needs a draw of every posterior or more, got none")
    return float(torch.cat(gains).mean()) + math.log(len(mu))


def _is_diagonal(guide: LocalNormal, names: set[str]) -> bool:
    """Whether a guide's local parameters are a mean and a variance for every entry, and nothing more."""
    return names == {f"{site.name}.{part}" for site in guide.sites for part in ("mu", "log_var")}


def _is_real(guide: LocalNormal) -> bool:
    """Whether every site is the normal itself, so that μ is its mean."""
    return all(site.transform is None for site in guide.sites)


def _flat(guide: LocalNormal, local: LocalParams, part: str) -> Float[Tensor, "batch entry"]:
    """``mu`` or ``log_var`` of all sites, end to end, on the CPU."""
    parts = [local[f"{site.name}.{part}"].detach().double().flatten(1) for site in guide.sites]
    return torch.cat(parts, dim=1).cpu()


def _kl_per_layer(
    svi: FastSlowSVI, batch: TokenBatch, mu: Float[Tensor, "batch entry"], log_var: Float[Tensor, "batch entry"]
) -> Float[Tensor, "batch layer"] | None:
    """(B, L) nats of each layer, where the prior is one normal site ``z`` of independent entries."""
    shape = svi.model.prior.shape

    def program() -> None:
        with pyro.plate("sequences", len(batch), dim=-1):
            svi.model.thoughts(batch)

    with torch.no_grad(), fixed_global_stream(0, batch.device):
        trace = trace_model(program)
    latent = {name: site for name, site in trace.nodes.items() if is_latent(site)}
    if set(latent) != {"z"} or latent["z"]["mask"] is not None or latent["z"]["scale"] != 1:
        return None
    p = latent["z"]["fn"]
    if not isinstance(p, Independent) or not isinstance(p.base_dist, Normal) or p.event_shape != shape:
        return None
    loc, scale = (t.double().cpu().expand(len(batch), *shape) for t in (p.base_dist.loc, p.base_dist.scale))
    q = Normal(mu.view_as(loc), (0.5 * log_var).exp().view_as(loc), validate_args=False)
    kl: Tensor = kl_divergence(q, Normal(loc, scale, validate_args=False))
    return kl.sum((2, 3))
