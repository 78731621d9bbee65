"""An encoder that starts the fast loop, and learns from where it ends."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.guides.amortized import Amortized
from ltm_pyro.guides.base import LocalParams

__all__ = ["SemiAmortized"]


class SemiAmortized(Amortized):
    r"""The local normal guide with a start that an encoder reads from the text.

    .. math:: (\mu_b, \log \sigma_b^2) \leftarrow \phi(x_b), \quad \text{then } T_{fast} \text{ fast steps}; \qquad
        \min_\phi \sum_b \tfrac12 \Big\| \frac{\mu_\phi(x_b) - \mu_b}{\sigma_b} \Big\|^2
        + \tfrac14 \| \log \sigma_\phi^2(x_b) - \log \sigma_b^2 \|^2

    The slow step teaches the encoder where the fast loop ended, which is a constant there: no gradient goes through the
    loop. The distance is the KL between the two normals to second order. The KL itself would have the encoder cover the
    loop's scatter around its optimum, in one direction with wider normals and in the other with narrower ones, and a
    prior that learns with the encoder would follow it round after round. As the encoder learns, fewer fast steps do.

    Local parameters: as for `LocalNormal`. Arguments: as for `Amortized`.

    References: Kim et al. (2018), Semi-Amortized Variational Autoencoders; Marino et al. (2018), Iterative Amortized
    Inference.
    """

    refined: ClassVar[bool] = True

    def attached(self, batch: TokenBatch, local: LocalParams) -> LocalParams:
        """The fitted parameters: constants."""
        return local

    def slow_loss(self, batch: TokenBatch, local: LocalParams) -> Float[Tensor, " batch"]:
        """(B,) squared distance of the encoder's normals from the fitted ones, in nats."""
        embedded, real = self._read(batch)
        start = self.encode(embedded.detach(), real)  # the embeddings are the decoder's, and learn by the ELBO alone
        total = torch.zeros(len(batch), device=batch.device)
        for site in self.sites:
            mu, log_var = (local[f"{site.name}.{part}"] for part in ("mu", "log_var"))
            moved = (start[f"{site.name}.mu"] - mu).square() * (-log_var).exp()
            scaled = (start[f"{site.name}.log_var"] - log_var).square()
            total = total + (0.5 * moved + 0.25 * scaled).reshape(len(batch), -1).sum(1)
        return total
