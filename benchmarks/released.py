"""The arithmetic of the released training code, written out in plain torch, to measure against.

Every fast step is a whole forward and backward pass: gradients for the weights are taken too and added up, the window
is a dense mask, all the logits are made at once, and nothing is kept from one step to the next. The weights are a
`ThoughtDecoder`'s; no code of the library's own passes is shared. Under ``autocast`` torch casts as it sees fit, which
for weights that ask for gradients means once per pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder import ThoughtDecoder
from ltm_pyro.infer import FastConfig

__all__ = ["ReleasedAlgorithm", "forward_logits"]


Linear = Callable[[Tensor, Tensor], Tensor]


class ReleasedAlgorithm:
    """One slow step of the released code: fixed noise, weights' gradients summed over the fast steps.

    Args:
        decoder: whose weights are trained.
        fast: T_fast and the learning rate of the local parameters.
        slow: optimiser of the weights.
        init_log_var: where log σ² starts.
        autocast: type of the products; None for the weights' own.
        linear: computes the products with the weights; the library's `product` in place of torch's own shows what is
            due to the algorithm alone.
    """

    def __init__(
        self,
        decoder: ThoughtDecoder,
        fast: FastConfig,
        slow: torch.optim.Optimizer,
        *,
        init_log_var: float = -5.0,
        autocast: torch.dtype | None = None,
        linear: Linear = F.linear,
    ):
        self.decoder = decoder
        self.fast = fast
        self.slow = slow
        self.init_log_var = init_log_var
        self.autocast = autocast
        self.linear = linear

    def step(self, batch: TokenBatch) -> Tensor:
        """T_fast fast steps and the slow one; every token is scored."""
        weights = list(self.decoder.parameters())
        self.slow.zero_grad(set_to_none=True)
        shape = (len(batch), *self.decoder.thought_shape)
        mu = torch.zeros(shape, device=batch.device, requires_grad=True)
        log_var = self.init_log_var + 0.1 * torch.randn(shape, device=batch.device)
        log_var.requires_grad_()
        noise = torch.randn_like(mu)
        adam = torch.optim.Adam([mu, log_var], lr=self.fast.lr)
        for t in range(self.fast.steps):
            self._loss(batch, mu, log_var, noise).backward()
            adam.param_groups[0]["lr"] = self.fast.lr_at(t, self.fast.steps, self.fast.lr)
            adam.step()
            adam.zero_grad()
        loss = self._loss(batch, mu.detach(), log_var.detach(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        self.slow.step()
        return loss.detach()

    def _loss(self, batch: TokenBatch, mu: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
        thoughts = mu + (0.5 * log_var).exp() * noise
        with torch.autocast(batch.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            logits = forward_logits(self.decoder, batch.inputs, thoughts, self.linear)
            # The mean over tokens, as a trainer of language models reports it.
            negative_log_likelihood = F.cross_entropy(logits.flatten(0, 1), batch.tokens.flatten())
        kl = 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum()
        return negative_log_likelihood + kl / batch.tokens.numel()


def forward_logits(decoder: ThoughtDecoder, inputs: Tensor, thoughts: Tensor, linear: Linear = F.linear) -> Tensor:
    """(B, N, V) logits of the decoder's equations, by torch's own operations alone."""
    num_tokens, layers, per_layer = inputs.shape[1], *decoder.thought_shape[:2]
    index = torch.arange(num_tokens, device=inputs.device)
    distance = index[:, None] - index[None, :]
    mask = (distance >= 0) & (distance < decoder.window)
    head_dim, base = decoder.head_dim, decoder.rope_base
    tokens = _angles(index, head_dim, base)
    queries = _angles(index.clamp(max=decoder.max_length - 1), head_dim, base)
    slots = torch.arange(per_layer, device=inputs.device) * (decoder.max_length // (layers * per_layer))
    memory = _angles(slots, head_dim, base)
    weights = dict(decoder.named_parameters())
    x = F.embedding(inputs, weights["embedding.weight"])
    for i in range(layers):
        block = {name: weights[f"blocks.{i}.{name}.weight"] for name in _BLOCK}
        y = F.rms_norm(x, x.shape[-1:], block["self_norm"], 1e-5)
        q, k, v = (_heads(part, head_dim) for part in linear(y, block["self_attention.qkv"]).chunk(3, -1))
        attended = F.scaled_dot_product_attention(_rotate(q, tokens), _rotate(k, tokens), v, attn_mask=mask)
        x = x + linear(_flat(attended), block["self_attention.out"])
        y = F.rms_norm(x, x.shape[-1:], block["cross_norm"], 1e-5)
        q = _rotate(_heads(linear(y, block["cross_attention.query"]), head_dim), queries)
        k = _rotate(_heads(linear(thoughts[:, i], block["cross_attention.key"]), head_dim), memory)
        v = _heads(linear(thoughts[:, i], block["cross_attention.value"]), head_dim)
        x = x + linear(_flat(F.scaled_dot_product_attention(q, k, v)), block["cross_attention.out"])
        y = F.rms_norm(x, x.shape[-1:], block["feed_forward_norm"], 1e-5)
        gate, up = linear(y, block["feed_forward.gate_up"]).chunk(2, -1)
        x = x + linear(F.silu(gate) * up, block["feed_forward.down"])
    return linear(F.rms_norm(x, x.shape[-1:], weights["norm.weight"], 1e-5), weights["embedding.weight"])


_BLOCK = (
    "self_norm",
    "self_attention.qkv",
    "self_attention.out",
    "cross_norm",
    "cross_attention.query",
    "cross_attention.key",
    "cross_attention.value",
    "cross_attention.out",
    "feed_forward_norm",
    "feed_forward.gate_up",
    "feed_forward.down",
)


def _angles(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    frequencies = torch.exp(-math.log(base) / head_dim * torch.arange(0, head_dim, 2, device=positions.device))
    angles = positions[:, None] * frequencies
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = by[0].to(x.dtype), by[1].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def _heads(x: Tensor, head_dim: int) -> Tensor:
    return rearrange(x, "b n (h d) -> b h n d", d=head_dim)


def _flat(x: Tensor) -> Tensor:
    return rearrange(x, "b h n d -> b n (h d)")
