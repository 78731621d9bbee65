"""What Pyro costs: `FastSlowSVI.step` against a hand-written torch loop that does the same arithmetic.

The loop below knows that the prior is a standard normal and the guide a diagonal one: it has no plates, traces or
handlers. The decoder, its stem, the token loss and the optimisers are the same objects; the noise comes from
``torch.randn``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.measure import compare, write_result
from benchmarks.workload import GPT2_VOCABULARY, Workload, options_of, parser_of, plain
from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder import Stem
from ltm_pyro.infer import FastSlowSVI

SMOKE = {"preset": "tiny", "vocabulary": 300, "batch": 2, "tokens": 32, "fast_steps": 2, "rounds": 2}


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/pyro-overhead.json."""
    work = {"preset": "ltm-s", "vocabulary": GPT2_VOCABULARY, "batch": 4, "tokens": 256, "fast_steps": 16}
    options = options_of(parser_of("pyro-overhead", __doc__, rounds=5, **work), arguments, SMOKE)
    through_pyro = Workload.of(**plain(options))
    by_hand = HandWritten(through_pyro.svi, through_pyro.settings.inference.init_log_var)

    compared = compare(
        {"FastSlowSVI.step": through_pyro.step, "by hand": lambda: by_hand.step(through_pyro.batch)},
        rounds=options.rounds,
        reference="by hand",
    )
    path = write_result(options.out, {"options": plain(options), **compared.summary()}, options.folder)
    print(compared.table())
    print(f"written to {path}")


class HandWritten:
    """The paper's algorithm for a standard normal prior and a diagonal normal q, in plain torch."""

    def __init__(self, svi: FastSlowSVI, init_log_var: float):
        self.decoder = svi.model.decoder
        self.fast = svi.fast
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
        for weight in self.weights:
            weight.requires_grad_(False)
        with torch.no_grad():
            stem = self.decoder.stem(batch.inputs)
        adam = torch.optim.Adam([mu, log_var], lr=self.fast.lr)
        for t in range(self.fast.steps):
            loss = self._loss(batch, mu, log_var, stem)
            mu.grad, log_var.grad = torch.autograd.grad(loss, (mu, log_var))
            progress = t / max(self.fast.steps - 1, 1)
            cosine = 0.5 * (1 + math.cos(math.pi * progress))
            adam.param_groups[0]["lr"] = self.fast.lr * (self.fast.lr_decay + (1 - self.fast.lr_decay) * cosine)
            adam.step()
        for weight in self.weights:
            weight.requires_grad_(True)
        loss = self._loss(batch, mu.detach(), log_var.detach(), self.decoder.stem(batch.inputs))
        (loss / batch.tokens.numel()).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.slow.step()
        return loss.detach()

    def _loss(self, batch: TokenBatch, mu: Tensor, log_var: Tensor, stem: Stem) -> Tensor:
        z = mu + (0.5 * log_var).exp() * torch.randn_like(mu)
        hidden = self.decoder(stem, z).flatten(0, 1)
        log_likelihood = self.decoder.token_log_prob(hidden, batch.tokens.flatten()).sum()
        kl = 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum()
        loss: Tensor = kl - log_likelihood
        return loss
