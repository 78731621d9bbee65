"""SequenceEncoder: a bidirectional Transformer from token embeddings to one normal per latent site."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ltm_pyro.errors import LTMError
from ltm_pyro.guides.sites import LatentSite

__all__ = ["SequenceEncoder"]

_LOW, _HIGH = -10.0, 2.0  # of log σ²


class SequenceEncoder(nn.Module):
    """Token embeddings → Transformer → one learned query per thought → mean and log-variance of every site's entries.

    The rows of a site's unconstrained shape (…, rows, entries) have a query each, so a site of thoughts reads its text
    once per thought; a site with fewer than two dimensions has one query. The means start near 0 and the log-variances
    at ``init_log_var``, whatever the text; they stay between -10 and 2, since together with a prior that learns, the
    scale of the thoughts is free and would drift.

    Args:
        embedding: width of the token embeddings.
        sites: what to infer.
        width: of the encoder, a multiple of ``heads``.
        layers: Transformer layers.
        heads: attention heads.
        init_log_var: where every log σ² starts.

    Raises:
        LTMError: the width is no multiple of 2 * heads, a number is below 1, or ``init_log_var`` is out of range.

    References: Vaswani et al. (2017), Attention Is All You Need; Lee et al. (2019), Set Transformer (pooling by
    attention).
    """

    def __init__(
        self, embedding: int, sites: Sequence[LatentSite], *, width: int, layers: int, heads: int, init_log_var: float
    ):
        super().__init__()
        if min(width, layers, heads) < 1 or width % (2 * heads):
            raise LTMError(
                f"an encoder needs 1 layer or more and a width that is a multiple of 2 * heads, got width = {width}, "
                f"layers = {layers}, heads = {heads}"
            )
        if not _LOW < init_log_var < _HIGH:
            raise LTMError(f"an encoder's init_log_var must lie between {_LOW:g} and {_HIGH:g}, got {init_log_var}")
        self.sites = list(sites)
        share = (init_log_var - _LOW) / (_HIGH - _LOW)
        self._start = math.log(share / (1 - share))
        self.read = nn.Linear(embedding, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.queries = nn.ParameterList(0.5 * torch.randn(_rows(site), width) for site in self.sites)
        self.pool = nn.MultiheadAttention(width, heads, batch_first=True)
        self.heads = nn.ModuleList(_head(width, _entries(site)) for site in self.sites)

    def forward(
        self, embedded: Float[Tensor, "batch token embedding"], real: Bool[Tensor, "batch token"]
    ) -> dict[str, Float[Tensor, "batch *unconstrained"]]:
        """``<site>.mu`` and ``<site>.log_var`` of every site; ``real``: True at what counts, somewhere in each row."""
        x = self.read(embedded)
        x = self.body(x + _positions(x), src_key_padding_mask=~real)
        local = {}
        for site, query, head in zip(self.sites, self.queries, self.heads, strict=True):
            asked = query.expand(len(x), -1, -1)
            pooled = self.pool(asked, x, x, key_padding_mask=~real, need_weights=False)[0]
            # Divided by √width, so that one step of Adam moves an output by a bounded amount at any width.
            both = head(pooled) * pooled.shape[-1] ** -0.5
            mu, raw = both.to(torch.promote_types(both.dtype, torch.float32)).chunk(2, dim=-1)
            log_var = _LOW + (_HIGH - _LOW) * (raw + self._start).sigmoid()
            for part, value in (("mu", mu), ("log_var", log_var)):
                local[f"{site.name}.{part}"] = value.reshape(-1, *site.unconstrained_shape)
        return local


def _head(width: int, entries: int) -> nn.Linear:
    head = nn.Linear(width, 2 * entries)
    nn.init.normal_(head.weight, std=0.1)
    nn.init.zeros_(head.bias)
    return head


def _rows(site: LatentSite) -> int:
    shape = site.unconstrained_shape
    return shape[:-1].numel() if len(shape) > 1 else 1


def _entries(site: LatentSite) -> int:
    return site.unconstrained_shape.numel() // _rows(site)


def _positions(x: Float[Tensor, "batch token width"]) -> Float[Tensor, "token width"]:
    """Sines and cosines of the positions, for sequences of any length."""
    half = x.shape[-1] // 2
    rates = torch.exp(torch.arange(half, device=x.device) * (-math.log(10_000.0) / half))
    angles = torch.arange(x.shape[1], device=x.device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(x.dtype)
