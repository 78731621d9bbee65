"""Which runs can have their weights in parts on the ranks (`ltm_pyro.sharding`)."""

from __future__ import annotations

from ltm_pyro.config import Settings
from ltm_pyro.errors import LTMError
from ltm_pyro.ranks import Ranks

__all__ = ["check_sharding"]


def check_sharding(settings: Settings, ranks: Ranks) -> None:
    """Nothing, where ranks with parts of the weights can take the slow steps.

    Each pass through the network gathers weights from all ranks, so all must make the same passes.

    Raises:
        LTMError: the settings keep them from it.
    """
    training, inference = settings.training, settings.inference
    if training.batch_size % ranks.size:
        raise LTMError(
            f"training.shard=true gives each of {ranks.size} ranks as many sequences as the others: choose a "
            f"training.batch_size that is a multiple of {ranks.size}, not {training.batch_size}"
        )
    refused = {
        "inference.tolerance": (inference.tolerance is not None, "stops each rank's fast loop at another step"),
        "inference.slow_gradient=trajectory": (
            inference.slow_gradient == "trajectory" and settings.model.name == "ltm",
            "takes gradients of the weights in every fast step",
        ),
        "inference.cuda_graph": (inference.cuda_graph, "captures a fast step without what gathers its weights"),
        "decoder.compile": (settings.decoder.compile, "compiles a decoder without what gathers its weights"),
    }
    for name, (asked, reason) in refused.items():
        if asked:
            raise LTMError(f"{name} cannot go with training.shard=true: it {reason}; leave one of them out")
