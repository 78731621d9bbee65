"""Training from the weights of another run: finetuning."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError
from ltm_pyro.training.checkpoints import read_checkpoint
from ltm_pyro.training.run import RunDirectory

__all__ = ["load_initial_weights"]


def load_initial_weights(modules: nn.ModuleDict, source: str | Path, tokenizer: Tokenizer) -> None:
    """Copies the weights of another run's model and guide into new ones; nothing else of the run is taken.

    Args:
        modules: ``model`` and ``guide``, as a checkpoint names them.
        source: a run, for its newest whole checkpoint, or one of its checkpoints.
        tokenizer: what the new run reads text with.

    Raises:
        LTMError: there is no such run, its tokenizer is another, or its weights have other names or shapes.
    """
    here = f"training.init_from={source}"
    run = RunDirectory.open(source)
    if run.tokenizer.digest != tokenizer.digest:
        raise LTMError(
            f"{here}: the weights know the tokens of that run alone; set data.tokenizer to its tokenizer, "
            f"--tokenizer {run.path / 'tokenizer.json'}"
        )
    checkpoint = run.store().latest() if run.path == Path(source) else read_checkpoint(source)
    there, new = checkpoint.model, modules.state_dict()
    different = [name for name in new if name not in there or there[name].shape != new[name].shape]
    different += there.keys() - new.keys()
    if different:
        name = different[0]
        shapes = [str(tuple(state[name].shape)) if name in state else "missing" for state in (there, new)]
        raise LTMError(
            f"{here}: the weight {name} is {shapes[0]} in that run and {shapes[1]} in the new one; give the new one "
            "the decoder, prior and guide settings of that run (see them with `ltm-pyro info`)"
        )
    modules.load_state_dict(there)
