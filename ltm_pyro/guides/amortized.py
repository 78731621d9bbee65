"""An encoder that reads the text and gives the posterior at once: the paper's VAE baseline."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ltm_pyro.batch import TokenBatch
from ltm_pyro.guides.base import LocalParams
from ltm_pyro.guides.encoder import SequenceEncoder
from ltm_pyro.guides.local_normal import LocalNormal
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator

__all__ = ["Amortized"]


class Amortized(LocalNormal):
    r"""A diagonal normal whose parameters an encoder computes from the text; there is no fast loop.

    .. math:: q(z \mid x_b) = T_\# N(\mu_\phi(x_b), \operatorname{diag} \sigma^2_\phi(x_b)), \qquad
        T = \texttt{biject\_to(support)}

    The encoder φ is slow: it learns with the decoder, by the same ELBO. It reads the decoder's own token embeddings.
    Against a posterior that collapses, `FastSlowSVI` has a weight on the KL and free bits (settings
    ``inference.kl_warmup_steps`` and ``inference.free_bits``).

    Local parameters, computed and not fitted: ``<site>.mu`` and ``<site>.log_var``, each (B, \*unconstrained event
    shape).

    Args:
        model: the program whose prior's sites are guided.
        width: of the encoder, a multiple of 2 * ``heads``.
        layers: of the encoder.
        heads: of the encoder.
        init_log_var: where log σ² starts, for every text.

    Raises:
        LTMError: a number that no encoder can have.

    References: Kingma & Welling (2014), Auto-Encoding Variational Bayes; Bowman et al. (2016), Generating Sentences
    from a Continuous Space.
    """

    refined: ClassVar[bool] = False

    def __init__(
        self,
        model: LatentThoughtModel,
        *,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        init_log_var: float = -5.0,
    ):
        super().__init__(model, init_log_var=init_log_var, init_log_var_spread=0.0)
        # Not a submodule: the decoder's embedding is stored, counted and moved with the decoder.
        self._embedding: tuple[nn.Embedding] = (model.decoder.embedding,)
        self.encoder = SequenceEncoder(
            self.embedding.embedding_dim,
            self.sites,
            width=width,
            layers=layers,
            heads=heads,
            init_log_var=init_log_var,
        )
        model.prior.pair(self)

    @property
    def embedding(self) -> nn.Embedding:
        """The decoder's token embedding."""
        return self._embedding[0]

    def encode(
        self, embedded: Float[Tensor, "batch token hidden"], real: Tensor
    ) -> dict[str, Float[Tensor, "batch *unconstrained"]]:
        """Parameters of q for sequences that are given as embeddings (B, N, hidden), with the real positions (B, N)."""
        return self.encoder(embedded, real)  # type: ignore[no-any-return]

    def init_local(self, batch: TokenBatch, generator: SequenceGenerator | None = None) -> LocalParams:
        """μ and log σ² of every site, as the encoder reads them from the text; nothing is random."""
        return self.encode(*self._read(batch))

    def _read(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Embeddings (B, 1 + N, hidden) of the start token and the text, and which of them are real."""
        tokens = torch.cat([batch.start[:, None], torch.where(batch.real, batch.tokens, 0)], dim=1)
        real = torch.cat([torch.ones_like(batch.real[:, :1]), batch.real], dim=1)
        return self.embedding(tokens), real

    def attached(self, batch: TokenBatch, local: LocalParams) -> LocalParams:
        """The encoder's output with its graph, through which the ELBO teaches it."""
        return self.init_local(batch)
