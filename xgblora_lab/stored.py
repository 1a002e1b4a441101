"""Weights that are not stored as they are: packed by a quantisation, or spread over processes by FSDP2.

A sharded weight is a `DTensor` of torch, of which every process holds some rows. Both kinds are known here by
what they can do, so neither bitsandbytes nor torch's distributed package is needed. To gather a weight is a
step of all processes together: whoever asks for a whole one asks for it everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")  # torch's


def keep_stored(model: nn.Module) -> None:
    """Let weights stay as they are stored between two passes, whatever a pass does to them.

    FSDP2 leaves the root's weights gathered until a backward pass; what is merged meanwhile would be lost.
    In an evaluation on processors with AVX512-BF16, bitsandbytes packs weights of 4 bits anew, and what is
    packed so passes no gradient on.

    Parameters
    ----------
    model : nn.Module
        Sharded or packed, in part or whole, or neither.

    Raises
    ------
    ValueError
        Where the model stands inside another that sums gradients over processes.
    """
    if type(model).__name__ in WRAPPERS:
        raise ValueError(
            f"{type(model).__name__} stands around the model; give the model itself, as gradients are summed "
            "over processes anyhow. To spread its weights use torch.distributed.fsdp.fully_shard."
        )
    module: Any
    for module in model.modules():
        if hasattr(module, "set_reshard_after_forward"):
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
            module.state_dict()  # brings the codes back, where they are packed so


@torch.no_grad()
def unpacked(module: Any) -> Tensor:
    """The weight that a packed one stands for: what the map does to the identity.

    Parameters
    ----------
    module : nn.Linear
        Of whatever quantised library. Hooks on it, and so its boosters, do not count.

    Returns
    -------
    Tensor
        (d, k), float32.
    """
    identity = torch.eye(module.in_features, device=module.weight.device)
    mapped: Callable[[Tensor], Tensor] = module.forward
    training = module.training
    try:  # in evaluation bitsandbytes rounds the inputs, too
        module.train()
        return (mapped(identity) - mapped(torch.zeros_like(identity[:1]))).T
    finally:
        module.train(training)


def refuse_packed(names: Iterable[str], what: str) -> None:
    """ValueError where there is a name, that of a packed weight; `what` says why not, and what to do."""
    for name in names:
        raise ValueError(f"The weight of {name!r} is packed (quantised): {what}")


def refuse_sharded(tensors: Mapping[str, Tensor], what: str) -> None:
    """ValueError where one of these is sharded; `what` says why not, and what to do."""
    for name, tensor in tensors.items():
        if is_sharded(tensor):
            raise ValueError(f"{name!r} is sharded over processes: {what}")


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of a tensor."""
    return hasattr(tensor, "to_local")


def part(tensor: Any) -> Tensor:
    """The rows of a tensor that this process holds, as a view; a plain tensor itself.

    Parameters
    ----------
    tensor : Tensor
        (n, …), plain or sharded.

    Returns
    -------
    Tensor
        (rows here, …).
    """
    local: Tensor = tensor.detach().to_local() if is_sharded(tensor) else tensor
    return local


def rows(tensor: Tensor, like: Any) -> Tensor:
    """Those rows of a plain tensor, the same in all processes, that belong to this process's part of another.

    Parameters
    ----------
    tensor : Tensor
        (n, …).
    like : Tensor
        (n, …), plain or sharded.

    Returns
    -------
    Tensor
        (rows here, …); nothing is sent.
    """
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    local = tensor.detach().to(like.device)
    return part(distribute_tensor(local, like.device_mesh, like.placements, src_data_rank=None))


def whole(local: Tensor, like: Any) -> Tensor:
    """Gather a tensor from the parts of all processes, which all have to ask for it.

    Parameters
    ----------
    local : Tensor
        (rows here, …), this process's part.
    like : Tensor
        (n, …), plain or sharded; how it is spread.

    Returns
    -------
    Tensor
        (n, …); `local` itself where `like` is plain.
    """
    if not is_sharded(like):
        return local
    from torch.distributed.tensor import DTensor

    spread = {"shape": like.shape, "stride": like.stride(), "run_check": False}
    gathered: Tensor = DTensor.from_local(
        local.to(like.device), like.device_mesh, like.placements, **spread
    ).full_tensor()
    return gathered


def whole_state(model: nn.Module) -> dict[str, Tensor] | None:
    """The `state_dict` of a sharded model, gathered on the CPU, for all processes together.

    Parameters
    ----------
    model : nn.Module
        Sharded or not.

    Returns
    -------
    dict of str to Tensor, or None
        Tied tensors stay one tensor. None where nothing is sharded.
    """
    state = model.state_dict(keep_vars=True)
    if not any(map(is_sharded, state.values())):
        return None
    known = {id(tensor): tensor for tensor in state.values()}
    gathered = {key: whole(part(tensor), tensor).detach().cpu() for key, tensor in known.items()}
    return {name: gathered[id(tensor)] for name, tensor in state.items()}
