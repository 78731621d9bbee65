"""The paper's algorithm as a loop in plain torch, to measure the library against.

It knows that the prior is a standard normal and the guide a diagonal one: there are no plates, traces or handlers. The
decoder, its stem, the token loss and the optimisers are the library's; the noise comes from ``torch.randn``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder import Stem
from ltm_pyro.decoder.linear import held
from ltm_pyro.infer import FastSlowSVI
from ltm_pyro.infer.constant import constant
from ltm_pyro.infer.posterior import autocasting

__all__ = ["HandWritten"]


class HandWritten:
    """The paper's algorithm for a standard normal prior and a diagonal normal q, every token scored.

    Args:
        svi: whose decoder, settings and slow optimiser it takes.
        init_log_var: where log σ² starts.
    """

    def __init__(self, svi: FastSlowSVI, init_log_var: float):
        self.decoder = svi.model.decoder
        self.fast = svi.fast
        self.autocast = svi.autocast
        self.clip_norm = svi.clip_norm or math.inf
        assert svi.slow is not None
        self.slow = svi.slow
        self.weights = list(self.decoder.parameters())
        self.init_log_var = init_log_var

    def step(self, batch: TokenBatch) -> Tensor:
        """One whole step: T_fast fast steps and the slow one."""
        self.slow.zero_grad(set_to_none=True)
        shape = (len(batch), *self.decoder.thought_shape)
        mu = torch.zeros(shape, device=batch.device, requires_grad=True)
        log_var = self.init_log_var + 0.1 * torch.randn(shape, device=batch.device)
        log_var.requires_grad_()
        with constant(self.decoder), held(self.decoder, self.autocast):
            with torch.no_grad(), autocasting(batch.device, self.autocast):
                stem = self.decoder.stem(batch.inputs)
            adam = torch.optim.Adam([mu, log_var], lr=self.fast.lr)
            for t in range(self.fast.steps):
                loss = self._loss(batch, mu, log_var, stem)
                mu.grad, log_var.grad = torch.autograd.grad(loss, (mu, log_var))
                adam.param_groups[0]["lr"] = self.fast.lr_at(t, self.fast.steps, self.fast.lr)
                adam.step()
        loss = self._loss(batch, mu.detach(), log_var.detach(), None)
        (loss / batch.tokens.numel()).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.clip_norm)
        self.slow.step()
        return loss.detach()

    def _loss(self, batch: TokenBatch, mu: Tensor, log_var: Tensor, stem: Stem | None) -> Tensor:
        z = mu + (0.5 * log_var).exp() * torch.randn_like(mu)
        with autocasting(batch.device, self.autocast):
            hidden = self.decoder(self.decoder.stem(batch.inputs) if stem is None else stem, z).flatten(0, 1)
            log_likelihood = self.decoder.token_log_prob(hidden, batch.tokens.flatten()).sum()
        kl = 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum()
        loss: Tensor = kl - log_likelihood
        return loss
