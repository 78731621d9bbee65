"""What a checkpoint's state.json and tensors must be before training goes on from them, whoever wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ltm_pyro.errors import LTMError

__all__ = ["check_finite", "check_state", "not_finite"]

_MOST = 1 << 62
_HEX = re.compile("[0-9a-f]{64}")


def check_state(about: Mapping[str, Any], files: Iterable[str]) -> None:
    """Holds the content of state.json against its form.

    Args:
        about: the content.
        files: the only names that its table of digests may have: nothing else is ever opened.

    Raises:
        LTMError: it is of another form.
    """
    if not _is_count(about.get("step")):
        raise LTMError(f"state.json has the step {str(about.get('step'))[:40]!r}, which is no number of steps")
    digests = about.get("sha256")
    if not isinstance(digests, dict) or not all(isinstance(d, str) and _HEX.fullmatch(d) for d in digests.values()):
        raise LTMError("state.json has no table of SHA-256 digests")
    for name in digests.keys() - {*files}:
        raise LTMError(f"state.json names the file {name[:80]!r}, which belongs to no checkpoint")
    state = about.get("state")
    if not isinstance(state, dict):
        raise LTMError("state.json has no table of the training's state")
    sampler, sums = state.get("sampler"), state.get("sums")
    if not isinstance(sampler, dict) or not all(_is_place(name, value) for name, value in sampler.items()):
        raise LTMError("state.json does not say where the sampler stands")
    if not isinstance(sums, dict) or not all(map(_is_number, sums.values())):
        raise LTMError("state.json has sums that are no numbers")
    for name in ("tokens", "flops"):
        # Operations of a long training go beyond 64 bits.
        if not (type(state.get(name, 0)) is int and 0 <= state.get(name, 0) < _MOST**2):
            raise LTMError(f"state.json has {name} that are no count")


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Nothing, where every entry of every tensor is a number.

    Raises:
        LTMError: one is NaN or infinite.
    """
    if key := not_finite(tensors):
        raise LTMError(f"the tensor {key} in {name} has entries that are not finite")


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that holds NaN or infinity, if one does."""
    return next((name for name, value in tensors.items() if not bool(value.isfinite().all())), None)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _MOST  # nor NaN


def _is_place(name: str, value: Any) -> bool:
    """Whether a value may be a sampler's; one of a stream has a digest, and may not know how long an epoch is."""
    if name == "digest":
        return isinstance(value, str) and (value == "" or _HEX.fullmatch(value) is not None)
    return _is_count(value) or (name == "windows" and value is None)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST
