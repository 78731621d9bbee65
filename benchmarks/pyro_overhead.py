"""What Pyro costs: `FastSlowSVI.step` against a hand-written torch loop that does the same arithmetic.

The loop below knows that the prior is a standard normal and the guide a diagonal one: it has no plates, traces or
handlers. The decoder, its stem, the token loss and the optimisers are the same objects; the noise comes from
``torch.randn``.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from benchmarks.measure import compare, write_result
from ltm_pyro.batch import TokenBatch
from ltm_pyro.components import build_guide, build_model
from ltm_pyro.decoder import Stem
from ltm_pyro.infer import FastConfig, FastSlowSVI
from ltm_pyro.presets import preset

GPT2_VOCABULARY = 50_257


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/pyro-overhead.json."""
    parser = argparse.ArgumentParser(prog="just bench pyro-overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="ltm-s")
    parser.add_argument("--vocabulary", type=int, default=GPT2_VOCABULARY)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--fast-steps", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default="pyro-overhead", help="name of the JSON file under benchmarks/results/")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    settings = preset(options.preset).updated({"data.sequence_length": options.tokens})
    model = build_model(settings, options.vocabulary).to(options.device)
    svi = FastSlowSVI(
        model,
        build_guide(settings, model),
        fast=FastConfig(steps=options.fast_steps),
        slow=torch.optim.AdamW(model.parameters(), lr=1e-6),
        clip_norm=1.0,
    )
    tokens = torch.randint(options.vocabulary, (options.batch, options.tokens))
    lengths = torch.full((options.batch,), options.tokens)
    batch = TokenBatch(tokens, lengths, torch.zeros(options.batch, dtype=torch.int64)).to(options.device)
    by_hand = HandWritten(svi, settings.inference.init_log_var)

    result = compare(lambda: svi.step(batch, seed=0), lambda: by_hand.step(batch), pairs=options.pairs).summary()
    result["first"], result["second"] = "FastSlowSVI.step", "hand-written torch loop"
    result["settings"] = {
        "preset": options.preset,
        "vocabulary": options.vocabulary,
        "batch": options.batch,
        "tokens": options.tokens,
        "fast_steps": options.fast_steps,
        "device": options.device,
    }
    path = write_result(options.out, result)
    for name in ("first", "second"):
        spread = result[f"{name}_s"]
        print(f"{result[name]:26} median {spread['median']:.3f} s  ({spread['min']:.3f} … {spread['max']:.3f})")
    ratio = result["ratio"]
    print(f"{'ratio, pair by pair':26} median {ratio['median']:.3f}    ({ratio['min']:.3f} … {ratio['max']:.3f})")
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
