"""Telling whether a saved run belongs to this model and this task: digests of the base and of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from xgblora_lab.disk import digest
from xgblora_lab.lowrank.linear import can_merge
from xgblora_lab.stored import part, whole
from xgblora_lab.tasks.task import Task

AT_ONCE = 256  # rows in a batch


def digest_of_task(task: Task) -> str:
    """SHA-256 of a task's kind, sizes and rows, as the model sees them.

    Parameters
    ----------
    task : Task
        With a `train` split and perhaps `dev` and `test`.

    Returns
    -------
    str
        Other rows, another tokenizer or another order of the rows give another digest; another name does not.
    """
    return digest([("kind", task.kind), *rows_of(task)])


def rows_of(task: Task) -> Iterator[tuple[str, Tensor | str | int]]:
    """Every row of a task as the model sees it, in batches, for a digest; or what it says of itself.

    Parameters
    ----------
    task : Task
        As in `digest_of_task`.

    Yields
    ------
    tuple
        A name and the size of a split, then names and tensors of its batches; or the task's `identity`.
    """
    if callable(identity := getattr(task, "identity", None)):
        yield "identity", identity()
        return
    for split in ("train", "dev", "test"):
        size = task.size(split)
        yield split, size
        for start in range(0, size, AT_ONCE):
            batch = task.batch(split, range(start, min(size, start + AT_ONCE)))
            yield from ((f"{split}.{start}.{name}", batch[name]) for name in sorted(batch))


def digest_of_base(
    model: nn.Module,
    modules: Mapping[str, nn.Module] | None = None,
    base: Callable[[str], Tensor] | None = None,
    head: Mapping[str, nn.Parameter] | None = None,
) -> str:
    """SHA-256 of the weights that a model had before it was tuned.

    Parameters
    ----------
    model : nn.Module
        Fresh, or being tuned.
    modules, base : mapping, callable, optional
        The adapted modules by name, and what gives a module's base weight (see `LiveWeights.base`).
    head : mapping, optional
        Parameters that are trained as well. These are left out, and so is all that requires a gradient.

    Returns
    -------
    str
        The same before, while and after the model is tuned. Of a sharded model all processes have to ask.
    """
    return digest(_weights(model, modules or {}, base, head or {}))


def check_digests(saved: Mapping[str, Any], base: str, task: str, where: str) -> None:
    """Refuse to go on with a run on another base or on other data.

    Raises
    ------
    ValueError
        `saved` holds another `base` or `data`; `where` names the run.
    """
    if saved.get("base") != base:
        raise ValueError(f"{where} began with other weights than this model's; load its base afresh.")
    if saved.get("data") != task:
        raise ValueError(f"{where} was trained on other data than this task's; use its own task.")


def _weights(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    base: Callable[[str], Tensor] | None,
    head: Mapping[str, nn.Parameter],
) -> Iterator[tuple[str, Tensor]]:
    told = {id(p) for module in modules.values() for p in module.parameters()}
    told |= {id(p) for p in head.values()}
    for name, module in modules.items():
        if base is not None and can_merge(module):
            yield name, base(name)
        elif base is not None:  # the codes and their scales
            yield from ((f"{name}.{key}", value) for key, value in module.state_dict().items())
    for name, parameter in model.named_parameters():
        if id(parameter) not in told and not (modules and parameter.requires_grad):
            yield name, whole(part(parameter), parameter)
