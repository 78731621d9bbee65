"""Sharding: a network whose weights, gradients and moments lie in parts on the ranks, by FSDP2 (ZeRO stage 3)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from ltm_pyro.decoder.tied import TiedTransformer
from ltm_pyro.ranks import Ranks, is_split, noticing_loss

__all__ = ["Sharding", "clip_norm_", "joined", "local_part", "split_like", "total_norm"]


@dataclass(frozen=True)
class Sharding:
    """How the weights of a model's network lie in parts on the ranks, and when they are whole.

    Each layer's weights are two *units*: self-attention with the cross-attention's query map, and the rest. A unit is
    gathered for a forward pass through it, freed behind it, gathered again for the backward pass, so a rank holds about
    two units whole at a time. Gathered once for a whole slow step is only what is read outside such passes: the
    embedding, the norms, the maps to keys and values, and addresses.

    What is computed is what `Ranks` compute with whole weights. With ``autocast`` units travel in its type, in which
    their products are made anyhow; all else is gathered as it is, and gradients are summed in float32.

    Args:
        root: the model around the network: its class is FSDP's from now on, which is a subclass of the old one.
        units: of the network, in the order of the forward pass; each is the first module of its group.
    """

    root: Any
    units: tuple[Any, ...]

    @classmethod
    def of(
        cls,
        root: nn.Module,
        network: TiedTransformer,
        ranks: Ranks,
        device: torch.device,
        *,
        ignored: Iterable[nn.Parameter] = (),
        autocast: torch.dtype | None = None,
        methods: Iterable[str] = (),
    ) -> Sharding:
        """Splits the weights of a model that is the same on every rank, and may lie elsewhere than on ``device``.

        Args:
            root: the model around ``network``; all its weights are split but the ``ignored``.
            network: the Transformer.
            ranks: those that hold the parts.
            device: where they hold them.
            ignored: weights that every rank keeps whole, there already.
            autocast: type of the network's products.
            methods: of ``root`` that go through the network; ``forward`` always is.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        # A product's result is a view, and FSDP fears for views that are changed in place, as nothing here is.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
        mesh = init_device_mesh(device.type, (ranks.size,))
        products = MixedPrecisionPolicy(param_dtype=autocast, reduce_dtype=torch.float32, cast_forward_inputs=False)
        as_they_are = MixedPrecisionPolicy(cast_forward_inputs=False)
        groups = [group for block in network.blocks for group in _groups(block)]
        for group in groups:
            fully_shard(group, mesh=mesh, mp_policy=products, reshard_after_forward=True)
        fully_shard(root, mesh=mesh, mp_policy=as_they_are, reshard_after_forward=False, ignored_params=set(ignored))
        sharding = cls(root, tuple(group[0] for group in groups))
        for part in (sharding.root, *sharding.units):
            # The loss is divided by all ranks' tokens already. Only plain sums are the same on every backend.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
        sharding.root.set_reshard_after_backward(False, recurse=False)
        # The next unit is on its way while one computes; FSDP's own plan for that needs one forward pass around all.
        for unit, following in zip(sharding.units, sharding.units[1:], strict=False):
            unit.set_modules_to_forward_prefetch([following])
        root.gather_root = MethodType(_nothing, root)  # type: ignore[assignment]
        for method in ("gather_root", *methods):
            register_fsdp_forward_method(root, method)
        with sharding.stepping():  # so that FSDP gets to know the root first, and weights that ask for gradients
            pass
        return sharding

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Inside, the model takes slow steps; every rank goes through its network as often as the others.

        Raises:
            RankLost: another rank does not take part.
        """
        # A block that is run again for its gradients is run to its end, where FSDP's hooks are.
        with noticing_loss(), set_checkpoint_early_stop(False):
            self.root.gather_root()
            try:
                yield
            finally:
                self.root.reshard()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, every rank holds all weights, and goes through the network as often as it likes; no slow step.

        Raises:
            RankLost: another rank does not take part.
        """
        self._keep(True)
        try:
            with noticing_loss():
                for part in (self.root, *self.units):
                    part.unshard()
            yield
        finally:
            self._keep(False)
            for part in (*self.units, self.root):
                part.reshard()

    def _keep(self, whole: bool) -> None:
        for unit in self.units:
            unit.set_reshard_after_forward(not whole, recurse=False)
            unit.set_reshard_after_backward(not whole, recurse=False)


def _groups(block: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules of a block that are called one after the other, with no thoughts but between the groups."""
    across: Any = getattr(block, "cross_attention", None)
    before, after = cast(nn.Module, block.self_attention), cast(nn.Module, block.feed_forward)
    yield [before] if across is None else [before, across.query]
    yield [after] if across is None else [across.out, after]


def _nothing(_: nn.Module) -> None:
    """A forward pass through nothing, which gathers what it would go through."""


def joined(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The tensors by name, those in parts whole and on the CPU; on the main rank alone, for the others they are empty.

    All ranks call it. One tensor at a time is whole on a device.

    Raises:
        RankLost: another rank does not take part.
    """
    found = {}
    for name in sorted(tensors):  # moments that were read from a file come in another order on every rank
        value = tensors[name]
        if not is_split(value):
            found[name] = value
            continue
        with noticing_loss():
            full: Tensor = value.full_tensor()  # type: ignore[attr-defined]
        found[name] = full.cpu() if ranks.is_main else full.new_empty(0, device="cpu")
    return found


def split_like(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor that all ranks have, where ``like`` is in parts; else the tensor as it is."""
    if not is_split(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    split: Any = like
    return distribute_tensor(value.to(split.device), split.device_mesh, split.placements, src_data_rank=None)


def total_norm(gradients: list[Tensor], ranks: Ranks) -> Float[Tensor, ""]:
    """The norm of all gradients together: those in parts over all ranks, the others, the same on every one, once."""
    parts = [local_part(gradient) for gradient in gradients if is_split(gradient)]
    same = nn.utils.get_total_norm([gradient for gradient in gradients if not is_split(gradient)])
    if not parts:
        return same
    return (ranks.sum(nn.utils.get_total_norm(parts).square()) + same.square()).sqrt()


def clip_norm_(gradients: list[Tensor], most: float, norm: Tensor) -> None:
    """Scales the gradients in place so that their `total_norm`, which is ``norm``, is at most ``most``."""
    if not gradients:
        return
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local_part(gradient) for gradient in gradients], factor)


def local_part(tensor: Tensor) -> Tensor:
    """The part that this rank holds; the tensor itself where it is whole."""
    return cast(Tensor, tensor.to_local()) if is_split(tensor) else tensor  # type: ignore[attr-defined]
