"""Training from the weights of another run: finetuning."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ltm_pyro.config import Settings
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError
from ltm_pyro.training.checkpoints import read_checkpoint
from ltm_pyro.training.run import RunDirectory

__all__ = ["check_initial_weights", "load_initial_weights"]


def check_initial_weights(settings: Settings) -> None:
    """Refuses a ``training.init_from`` that cannot be, before any work on the data.

    Raises:
        LTMError: there is no such run, or a tokenizer is to be trained, which would be another than the run's.
    """
    source = settings.training.init_from
    if source is not None:
        run = RunDirectory.open(source)
        if settings.data.tokenizer == "train":
            raise _other_tokenizer(source, run)


def load_initial_weights(modules: nn.ModuleDict, source: str | Path, tokenizer: Tokenizer) -> None:
    """Copies the weights of another run's model and guide into new ones; nothing else of the run is taken.

    Args:
        modules: ``model`` and ``guide``, as a checkpoint names them.
        source: a run, for its newest whole checkpoint, or one of its checkpoints.
        tokenizer: what the new run reads text with.

    Raises:
        LTMError: there is no such run, its tokenizer is another, or its weights have other names or shapes.
    """
    run = RunDirectory.open(source)
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
            "one; give the new one the decoder, prior and guide settings of that run (see them with `ltm-pyro info`)"
        )
    modules.load_state_dict(there)


def _other_tokenizer(source: str | Path, run: RunDirectory) -> LTMError:
    return LTMError(
        f"training.init_from={source}: the weights know the tokens of that run alone; read the text with its "
        f"tokenizer, --tokenizer {run.path / 'tokenizer.json'}"
    )
