"""The presets as the recorded comparisons took them: without the recipe of honest-likelihood."""

from __future__ import annotations

from typing import Any

from ltm_pyro.config import Settings
from ltm_pyro.presets import preset

__all__ = ["PLAIN", "plain_preset"]

PLAIN: dict[str, Any] = {
    "decoder.thought_addresses": False,
    "decoder.thought_gain": None,
    "inference.fast_optimizer": "adam",
    "inference.natural_init_log_var": None,
    "inference.kl_weight_start": 0.0,
    "inference.kl_hold_steps": 0.0,
    "inference.kl_warmup_steps": 0.0,
}
"""The paper's decoder, Adam's fast steps, the whole KL from the first slow step."""


def plain_preset(name: str) -> Settings:
    """A preset in which all comparisons with the paper's algorithm start; log σ² at the prior's but for ``paper-*``."""
    start = {} if name.startswith("paper-") else {"inference.init_log_var": 0.0}
    return preset(name).updated(PLAIN | start)
