"""What the lm-evaluation-harness asks of a generated text: its ``generation_kwargs``, read, and its stop strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.errors import LTMError
from ltm_pyro.values import nearest

__all__ = ["cut", "read_generation"]

_MAX_TOKENS = 256  # the harness's own default
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = (*_LIMITS, "until", "do_sample", "temperature", "top_k", "top_p", "num_beams")


def read_generation(options: Mapping[str, Any]) -> tuple[list[str], int, Sampling]:
    """Stop strings, most tokens, and how tokens are drawn.

    Tokens are the most probable ones unless ``do_sample`` or a ``temperature`` above 0 asks for draws; ``do_sample``
    alone draws at temperature 1.

    Raises:
        LTMError: an option that there is none of, or one out of range.
    """
    for name in options:
        if name not in _KNOWN:
            raise LTMError(f"the model ltm-pyro has no generation option {name!r}{nearest(name, _KNOWN)}")
    if options.get("num_beams") not in (None, 1):
        raise LTMError(f"the model ltm-pyro has no beam search: num_beams must be 1, got {options['num_beams']}")
    until = options.get("until") or []
    limit = next((options[name] for name in _LIMITS if options.get(name) is not None), _MAX_TOKENS)
    temperature = options.get("temperature")
    do_sample = options.get("do_sample")
    if do_sample is None:
        do_sample = bool(temperature)
    sampling = Sampling(
        temperature=float(1.0 if temperature is None else temperature) if do_sample else 0.0,
        top_k=options.get("top_k") or None,  # the harness's 0 is no limit
        top_p=options.get("top_p"),
    )
    return [until] if isinstance(until, str) else list(until), int(limit), sampling


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stop strings; an empty one stops nothing."""
    return min((text.partition(stop)[0] for stop in until if stop), key=len, default=text)
