"""Training from the weights of another run: finetuning."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ltm_pyro.config import DecoderSettings, Settings
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError
from ltm_pyro.training.checkpoints import read_checkpoint
from ltm_pyro.training.run import RunDirectory

__all__ = ["check_initial_weights", "load_initial_weights"]

# Not every one of them shows in the shape of a weight.
_SHAPING = ("layers", "hidden", "heads", "num_thoughts", "thought_width", "rope_base")


def check_initial_weights(settings: Settings) -> None:
    """Refuses a ``training.init_from`` that cannot be, before any work on the data.

    Raises:
        LTMError: there is no such run, its decoder is another, or a tokenizer is to be trained that is not the run's.
    """
    source = settings.training.init_from
    if source is None:
        return
    run = _open(source, settings)
    if settings.data.tokenizer == "train":
        raise _other_tokenizer(source, run)


def load_initial_weights(modules: nn.ModuleDict, settings: Settings, tokenizer: Tokenizer) -> None:
    """Copies the weights that ``training.init_from`` names into new modules; nothing else of that run is taken.

    Args:
        modules: ``model`` and ``guide``, as a checkpoint names them.
        settings: of the new run; ``training.init_from`` is a run, for its newest whole checkpoint, one of a run's
            checkpoints, or None, which leaves the modules as they are.
        tokenizer: what the new run reads text with.

    Raises:
        LTMError: there is no such run, its decoder or tokenizer is another, or its weights have other names or shapes.
    """
    source = settings.training.init_from
    if source is None:
        return
    run = _open(source, settings)
    if run.tokenizer.digest != tokenizer.digest:
        raise _other_tokenizer(source, run)
    checkpoint = run.store().latest() if run.path == Path(source) else read_checkpoint(source)
    there, new = checkpoint.model, modules.state_dict()
    different = [name for name in new if name not in there or there[name].shape != new[name].shape]
    different += there.keys() - new.keys()
    if different:
        name = different[0]
        shapes = [str(tuple(state[name].shape)) if name in state else "missing" for state in (there, new)]
        raise LTMError(
            f"training.init_from={source}: the weight {name} is {shapes[0]} in that run and {shapes[1]} in the new "
            "one; give the new one the model, prior and guide of that run, options too (see `ltm-pyro info`)"
        )
    modules.load_state_dict(there)


def _open(source: str, settings: Settings) -> RunDirectory:
    """The run, which has the decoder of the settings."""
    run = RunDirectory.open(source, allow_custom_code=True)  # sizes are read from it, no class is imported
    there, here = run.settings.decoder, settings.decoder
    for key in _SHAPING:
        if _shape(there, key) != _shape(here, key):
            raise LTMError(
                f"training.init_from={source}: that run has decoder.{key} = {_shape(there, key)}, the new one "
                f"{_shape(here, key)}; give the new one the preset and the decoder settings of that run"
            )
    return run


def _shape(decoder: DecoderSettings, key: str) -> float:
    value: float | None = getattr(decoder, key)
    return decoder.hidden if value is None else value


def _other_tokenizer(source: str, run: RunDirectory) -> LTMError:
    return LTMError(
        f"training.init_from={source}: the weights know the tokens of that run alone; read the text with its "
        f"tokenizer, --tokenizer {run.path / 'tokenizer.json'}"
    )
