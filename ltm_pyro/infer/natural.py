"""Natural-gradient fast steps for normal guides: each entry moves as far as its own evidence says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ltm_pyro.errors import LTMError

__all__ = ["NaturalGradient"]


class NaturalGradient(torch.optim.Optimizer):
    r"""Steps along the natural gradient of a diagonal normal's mean and log-variance.

    .. math:: \sigma^{-2} \leftarrow \sigma^{-2} \, (1 + 2 \rho \, \partial_{\log \sigma^2} \ell), \qquad
        \mu \leftarrow \mu - \rho \, \sigma^2 \, \partial_\mu \ell

    with the new :math:`\sigma^2` in the second. For a likelihood that is quadratic in z, curvature h, and a KL that
    counts for w, the exact gradients give :math:`\sigma^{-2} \leftarrow (1 - \rho w) \sigma^{-2} + \rho (w + h)`: at
    :math:`\rho = w = 1` the exact posterior after one step. An entry that the text says nothing about returns to the
    prior by a share ρw of the way, where Adam's first steps move it by ±η whatever its gradient.

    Args:
        local: ``<site>.mu`` and ``<site>.log_var`` of every site, leaves of the graph.
        lr: ρ, in 0 … 1.
        most: bound on one step of μ; the precision at most halves or trebles in one.

    Raises:
        LTMError: the local parameters are not pairs of μ and log σ².

    References: Khan & Lin (2017), Conjugate-Computation Variational Inference; Hoffman et al. (2013), Stochastic
    Variational Inference.
    """

    def __init__(self, local: Mapping[str, Tensor], lr: float, most: float = 1.0):
        sites = {name.rpartition(".")[0] for name in local}
        if set(local) != {f"{site}.{part}" for site in sites for part in ("mu", "log_var")}:
            raise LTMError(
                f"natural fast steps are for guides with a mean and a log-variance, not {', '.join(local)}: take "
                "inference.fast_optimizer = adam, or the guide local-normal"
            )
        groups = [{"params": [local[f"{site}.mu"], local[f"{site}.log_var"]]} for site in sorted(sites)]
        super().__init__(groups, {"lr": lr, "most": most})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step from the leaves' ``grad``."""
        for group in self.param_groups:
            self._move(group)

    @staticmethod
    def _move(group: dict[str, Any]) -> None:
        (mu, log_var), rate = group["params"], group["lr"]
        log_var.sub_((1 + 2 * rate * log_var.grad).clamp(0.5, 3.0).log())
        mu.sub_((rate * log_var.exp() * mu.grad).clamp(-group["most"], group["most"]))
