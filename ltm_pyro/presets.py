"""Named settings: ``tiny`` for a laptop, the paper's three sizes by a recipe of ours, and its literal settings."""

from __future__ import annotations

from typing import Any

from ltm_pyro.config import Settings
from ltm_pyro.errors import LTMError
from ltm_pyro.values import nearest

__all__ = ["PRESETS", "preset"]

# Thoughts that earn their KL (docs/research/honest-likelihood.md): found by addresses, fitted by natural gradients, and
# all but free until the decoder can read them.
_RECIPE: dict[str, Any] = {
    "decoder.thought_addresses": True,
    "inference.fast_optimizer": "natural",
    "inference.init_log_var": 0.0,
    "inference.kl_weight_start": 0.05,
    "inference.kl_hold_steps": 0.33,
    "inference.kl_warmup_steps": 0.25,
}

# Four fast steps are enough for 256 latent dimensions, and leave the two minutes to the decoder. In so few slow steps
# thoughts that start narrow are of use sooner than those that start silent. Adam, which other guides keep, would leave
# most of the KL of such a start, so there log σ² starts at the prior's.
_TINY: dict[str, Any] = _RECIPE | {
    "inference.natural_init_log_var": -3.0,
    "data.sequence_length": 512,
    "data.documents": 2500,
    "data.vocab_size": 2048,
    "decoder.layers": 2,
    "decoder.hidden": 128,
    "decoder.heads": 4,
    "decoder.num_thoughts": 8,
    "decoder.thought_width": 32,
    "decoder.window": 64,
    "inference.fast_steps": 4,
    "training.steps": 150,
    "training.batch_size": 8,
    "training.slow_lr": 4e-3,
    "training.slow_lr_final": 4e-4,
    "training.warmup_steps": 20,
    "training.eval_every": 50,
    "training.eval_sequences": 32,
}

# Sized for one machine: the paper's networks and number of fast steps, on short sequences and small batches.
_LTM: dict[str, Any] = _RECIPE | {
    "decoder.thought_gain": 0.0,
    "data.sequence_length": 256,
    "decoder.hidden": 512,
    "decoder.heads": 8,
    "training.batch_size": 8,
}

_PAPER: dict[str, Any] = {
    "data.sequence_length": 1024,
    "data.layout": "packed",
    "decoder.hidden": 512,
    "decoder.heads": 8,
    "inference.init_log_var": -5.0,
    "training.batch_size": 512,
    "training.micro_batch_size": 32,
    "training.warmup_steps": 1000,
    "training.steps": 6000,
    "training.dtype": "bfloat16",
}

_S = {"decoder.layers": 3, "decoder.num_thoughts": 24, "inference.fast_steps": 16}
_M = {"decoder.layers": 6, "decoder.num_thoughts": 24, "inference.fast_steps": 16}
_L = {"decoder.layers": 12, "decoder.num_thoughts": 96, "inference.fast_steps": 64}

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": _TINY,
    "ltm-s": _LTM | _S,
    "ltm-m": _LTM | _M,
    "ltm-l": _LTM | _L,
    "paper-ltm-s": _PAPER | _S,
    "paper-ltm-m": _PAPER | _M,
    "paper-ltm-l": _PAPER | _L,
}
"""What each preset changes in the default `Settings`, as ``{"section.key": value}``."""


def preset(name: str) -> Settings:
    """The settings of a preset.

    Raises:
        LTMError: there is no such preset.
    """
    if name not in PRESETS:
        raise LTMError(f"unknown preset {name!r}{nearest(name, PRESETS)}")
    return Settings().updated(PRESETS[name])
