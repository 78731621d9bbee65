"""The exact optimisations undone one by one, and the paper's algorithm written out in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

import benchmarks.released as released
from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder import ThoughtDecoder, attention, linear, tied, token_loss
from ltm_pyro.decoder.rotary import rotate, rotation
from ltm_pyro.infer import FastConfig, fast_slow
from ltm_pyro.infer.convergence import Convergence
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator

ROWS = {False: 24, True: 50}
"""Rows of a chunk of the token loss, without and with a gradient for its weight: no batch's tokens fit into one."""


def undo(monkeypatch: pytest.MonkeyPatch, names: Iterable[str]) -> set[str]:
    """Replaces the optimisations of these names by torch's own operations; returns the names, once they are called."""
    called: set[str] = set()

    def noted(name: str, plain: Callable[..., object]) -> Callable[..., object]:
        def function(*args: object, **kwargs: object) -> object:
            called.add(name)
            return plain(*args, **kwargs)

        return function

    monkeypatch.setattr(token_loss, "_rows_at_once", lambda _, *, weight_gradient=False: ROWS[weight_gradient])
    for name in names:
        for owner, attribute, plain in UNDONE[name]:
            monkeypatch.setattr(owner, attribute, noted(name, plain))
    return called


def _dense_window(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    distance = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    mask = (distance >= 0) & (distance < (q.shape[2] if window is None else window))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _full_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(F.linear(hidden, weight), targets, reduction="none")


def _layer_by_layer(decoder: ThoughtDecoder, thoughts: Tensor) -> list[tuple[Tensor, Tensor]]:
    layers, per_layer, _ = decoder.thought_shape
    places = torch.arange(per_layer) * (decoder.max_length // (layers * per_layer))
    rope = rotation(places, decoder.head_dim, decoder.rope_base)
    memory = []
    for i in range(layers):
        maps = decoder.blocks[i].cross_attention
        keys, values = (
            rearrange(m(thoughts[:, i]), "b n (h d) -> b h n d", h=maps.heads) for m in (maps.key, maps.value)
        )
        memory.append((rotate(keys, rope), values))
    return memory


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight)


def _times_transposed(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.T


UNDONE: dict[str, list[tuple[object, str, Callable[..., object]]]] = {
    "products by oneDNN": [
        (linear, "product", _product),
        (token_loss, "times_transposed", _times_transposed),
    ],
    "weights held": [(fast_slow, "held", lambda *_: nullcontext())],
    "no weight gradients in the loop": [(fast_slow, "constant", lambda *_: nullcontext())],
    "attention in a band": [(attention, "windowed_attention", _dense_window)],
    "logits in chunks": [(tied, "target_log_prob", _full_logits)],
    "thoughts of all layers in one product": [(ThoughtDecoder, "_memory", _layer_by_layer)],
    "stem once per loop": [(LatentThoughtModel, "stem", lambda *_: None)],
    "sequences leave when done": [(Convergence, "going_on", lambda _: None)],
}
"""What each optimisation becomes: the place that is patched, and plain torch."""


class WrittenOut:
    """Algorithm 1 in plain torch: `forward_logits` of all tokens at every fast step, loss and KL by their formulas.

    It shares with the library the noise (`SequenceGenerator`), the optimisers, which are torch's, and the rounding of
    rotary angles, which is to float32 in every type.

    Args:
        decoder: whose weights are trained.
        fast: the fast loop.
        slow: optimiser of the weights.
        init_log_var: where log σ² starts, with a spread of 0.1.
        clip_norm: of the slow gradient.
        autocast: type of the products; None for the weights' own.
    """

    def __init__(
        self,
        decoder: ThoughtDecoder,
        fast: FastConfig,
        slow: torch.optim.Optimizer,
        *,
        init_log_var: float,
        clip_norm: float,
        autocast: torch.dtype | None = None,
    ):
        self.decoder, self.fast, self.slow = decoder, fast, slow
        self.init_log_var, self.clip_norm, self.autocast = init_log_var, clip_norm, autocast

    def step(self, batch: TokenBatch, seed: int) -> None:
        """T_fast fast steps and the slow one."""
        weights = list(self.decoder.parameters())
        total = batch.num_scored.sum()
        mu, log_var, passed = self._fit(batch, seed, weights)
        if self.fast.noise == "fixed":
            noise = SequenceGenerator(batch.keys, seed)
            noise.draws = 2  # behind the starts of μ and log σ²
        else:
            noise = SequenceGenerator(batch.keys, seed, "slow")
        final = torch.autograd.grad(self._loss(batch, mu, log_var, noise), weights)
        for i, weight in enumerate(weights):
            along = sum(g[i] for g in passed) if self.fast.slow_gradient == "trajectory" else 0.0
            weight.grad = (final[i] + along) / total
        torch.nn.utils.clip_grad_norm_(weights, self.clip_norm)
        self.slow.step()

    def infer(self, batch: TokenBatch, seed: int) -> dict[str, Tensor]:
        """Local parameters after T_fast steps."""
        mu, log_var, _ = self._fit(batch, seed, list(self.decoder.parameters()))
        return {"z.mu": mu, "z.log_var": log_var}

    def _fit(
        self, batch: TokenBatch, seed: int, weights: list[Tensor]
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, ...]]]:
        generator = SequenceGenerator(batch.keys, seed)
        mu = 0.0 * generator.normal(self.decoder.thought_shape)
        log_var = self.init_log_var + 0.1 * generator.normal(self.decoder.thought_shape)
        local = [mu.requires_grad_(), log_var.requires_grad_()]
        adam, passed = torch.optim.Adam(local, lr=self.fast.lr), []
        for t in range(self.fast.steps):
            if self.fast.noise == "fixed":
                generator.draws = 2
            gradients = torch.autograd.grad(self._loss(batch, *local, generator), [*local, *weights])
            mu.grad, log_var.grad = gradients[:2]
            passed.append(gradients[2:])
            adam.param_groups[0]["lr"] = self.fast.lr_at(t, self.fast.steps, self.fast.lr)
            adam.step()
        return mu.detach(), log_var.detach(), passed

    def _loss(self, batch: TokenBatch, mu: Tensor, log_var: Tensor, generator: SequenceGenerator) -> Tensor:
        noise = generator.normal(self.decoder.thought_shape, dtype=mu.dtype)
        thoughts = mu + (0.5 * log_var).exp() * noise
        with torch.autocast("cpu", self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            logits = released.forward_logits(self.decoder, batch.inputs, thoughts)
            losses = F.cross_entropy(logits.flatten(0, 1), batch.tokens.flatten(), reduction="none")
        kl = 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum()
        return losses[batch.mask.flatten()].sum() + kl


def library_angles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary angles as the library rounds them, for comparisons closer than float32."""
    monkeypatch.setattr(released, "_angles", rotation)
