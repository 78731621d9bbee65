"""The slow optimiser: AdamW, which weights it decays, and its moments as tensors by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltm_pyro.config import TrainingSettings
from ltm_pyro.errors import LTMError
from ltm_pyro.priors import Prior
from ltm_pyro.sharding import split_like

__all__ = ["build_optimizer", "moments", "refuse_shared_weights", "restore_moments"]


def build_optimizer(modules: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone: the weights of linear maps, attentions and embeddings.

    Norms and all that is a prior's own, be it a mean or a network, are left as they are.
    """
    kinds = {nn.Linear: "weight", nn.Embedding: "weight", nn.MultiheadAttention: "in_proj_weight"}
    maps = {getattr(m, name) for m in modules.modules() for kind, name in kinds.items() if isinstance(m, kind)}
    matrices = maps - {p for m in modules.modules() if isinstance(m, Prior) for p in m.parameters()}
    parameters = [p for p in modules.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p in matrices], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p not in matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.slow_lr, betas=(settings.beta1, settings.beta2))


def refuse_shared_weights(modules: nn.Module) -> None:
    """Nothing, where no weight goes by two names.

    Raises:
        LTMError: one does, and a checkpoint keeps each weight once.
    """
    names: dict[Tensor, str] = {}
    for name, parameter in modules.named_parameters(remove_duplicate=False):
        if parameter in names:
            raise LTMError(
                f"the weight {names[parameter]} is also {name}, and a checkpoint keeps each weight once: a guide must "
                "not hold its model as a module (keep it in a tuple), nor a prior tie its weights"
            )
        names[parameter] = name


def moments(optimizer: torch.optim.Optimizer, modules: nn.Module) -> dict[str, Tensor]:
    """The optimiser's moments as ``<weight>.<moment>``."""
    names = _names(modules)
    return {
        f"{names[parameter]}.{moment}": value
        for parameter, state in optimizer.state.items()
        for moment, value in state.items()
    }


def restore_moments(optimizer: torch.optim.Optimizer, modules: nn.Module, saved: dict[str, Tensor]) -> None:
    """Gives the optimiser back what `moments` took from it.

    Raises:
        LTMError: these are not its moments.
    """
    names = _names(modules)
    _check_moments({name: parameter for parameter, name in names.items()}, saved)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            prefix = f"{names[parameter]}."
            found = {key[len(prefix) :]: value for key, value in saved.items() if key.startswith(prefix)}
            for moment, value in found.items():
                # Adam counts its steps on the host.
                place = value if moment == "step" else split_like(value.to(parameter.device), parameter)
                optimizer.state[parameter][moment] = place.clone()


def _check_moments(parameters: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    of: dict[str, set[str]] = {}
    for key, value in saved.items():
        name, _, moment = key.rpartition(".")
        expected = () if moment == "step" else parameters[name].shape if name in parameters else None
        sound = value.is_floating_point() and value.shape == expected and not (moment == "step" and value < 0)
        if name not in parameters or moment not in _MOMENTS or not sound:
            raise LTMError(f"the checkpoint's moment {key} is none of the optimiser's: resume from an earlier one")
        of.setdefault(name, set()).add(moment)
    for name, found in of.items():
        if found != _MOMENTS:
            raise LTMError(f"the checkpoint lacks moments of the weight {name}: resume from an earlier checkpoint")


_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # AdamW's


def _names(modules: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in modules.named_parameters()}
