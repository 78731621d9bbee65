"""Building the model that a run's config.json describes, without trusting its sizes: its own weights bound them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ltm_pyro.config import Settings
from ltm_pyro.data.files import first_line
from ltm_pyro.errors import LTMError
from ltm_pyro.untrusted import MEBI

__all__ = ["guarded", "refuse_other_weights"]

T = TypeVar("T")

# What a build takes beside the weights: draws behind a normaliser, a trace of the prior for the guide.
_SPARE = 64 * MEBI
_SPARE_OPERATIONS = 20_000


def guarded(build: Callable[[], T], settings: Settings, weights: Mapping[str, Tensor]) -> T:
    """What ``build`` makes of settings that were read from a run whose weights these are.

    Every operation is asked for its size before it runs, and none may take more than the weights and a little beside.
    Where the settings name a class of the user's own, which has been allowed to run, nothing is held back.

    Raises:
        LTMError: the settings describe a model that is larger than the weights, or none at all.
    """
    if any(":" in getattr(settings, kind).name for kind in ("model", "prior", "guide")):
        return build()
    try:
        with _Bounded(weights):
            return build()
    except (RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        raise LTMError(f"the run's settings make no model ({first_line(error)}): restore its config.json") from error


def refuse_other_weights(modules: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Nothing, where modules have weights of just these names and shapes.

    Raises:
        LTMError: they have not; the message names one that differs.
    """
    new = modules.state_dict()
    for name in sorted(new.keys() ^ weights.keys()):
        where = "the model has no such weight" if name in weights else "missing in the checkpoint"
        raise LTMError(f"the checkpoint's weights do not fit the run's settings: {name}: {where}")
    for name, value in new.items():
        if value.shape != weights[name].shape:
            raise LTMError(
                f"the checkpoint's weights do not fit the run's settings: size mismatch for {name}: "
                f"{tuple(weights[name].shape)} in the checkpoint, {tuple(value.shape)} by the settings"
            )


class _Bounded(TorchDispatchMode):
    """Refuses an operation whose results would be larger than a model's weights, before they are there."""

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]
        size = sum(value.nbytes for value in weights.values())
        self._most, self._left = 2 * size + _SPARE, 8 * size + 4 * _SPARE
        self._operations = _SPARE_OPERATIONS + 200 * len(weights)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to say so would import the compiler, which takes a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._operations -= 1
        if not (func.is_view or func._schema.is_mutable):
            size = _size(func, args, kwargs or {})
            self._left -= size
            if size > self._most:
                raise LTMError(_LARGER)
        if self._left < 0 or self._operations < 0:
            raise LTMError(_LARGER)
        return func(*args, **(kwargs or {}))


_LARGER = "the run's settings describe a larger model than its checkpoint holds: restore its config.json"


def _size(func: Any, args: Any, kwargs: Mapping[str, Any]) -> int:
    """Bytes of what an operation returns, found without data; 0 where that depends on them."""
    shapes, options = tree_map_only(Tensor, lambda value: value.to("meta"), (args, dict(kwargs)))
    if options.get("generator") is not None:
        options["generator"] = None
    if "device" in options:
        options["device"] = torch.device("meta")
    elif not any(isinstance(value, Tensor) for value in tree_leaves((args, options))):
        return 0
    try:
        found = func(*shapes, **options)
    except (NotImplementedError, RuntimeError):
        return 0
    return sum(value.nbytes for value in tree_leaves(found) if isinstance(value, Tensor))
