"""A model's linear maps: which there are, their shapes, how their weights lie, and the blocks they form.

A linear map is anything whose weight is applied as y = x Wᵀ (`nn.Linear`, and whatever quantised libraries
derive from it) or as y = x W (GPT-2's transposed `Conv1D`). Axis letters: `d` out, `k` in, `r` rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn

from xgblora_lab.stored import part, rows


def _is_conv1d(module: nn.Module) -> bool:
    # By name along the class hierarchy: importing transformers for an isinstance would cost seconds.
    return any(
        c.__name__ == "Conv1D" and c.__module__ == "transformers.pytorch_utils" for c in type(module).__mro__
    )


def is_linear(module: nn.Module) -> bool:
    """Whether a booster can be attached to `module`."""
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def stored_weight(module: nn.Module) -> Tensor:
    """The weight as the module stores it: (d, k), transposed, or packed; of a sharded one, its part here."""
    return part(cast(Tensor, module.weight))


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """(d, k): outputs and inputs of the linear map, whatever the layout or packing of its weight."""
    if isinstance(module, nn.Linear):  # its weight may be packed
        return module.out_features, module.in_features
    d, k = oriented(module, cast(Tensor, module.weight)).shape
    return d, k


def oriented(module: nn.Module, stored: Tensor) -> Tensor:
    """A view of a tensor stored like the module's weight as (d, k)."""
    return stored.T if _is_conv1d(module) else stored


def dense_weight(module: nn.Module) -> Tensor:
    """A view of the weight as (d, k); of this process's part where it is sharded."""
    return oriented(module, stored_weight(module))


def parts(module: nn.Module, B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """B (d, r) and A (r, k) without what belongs to other processes' parts of the weight."""
    if _is_conv1d(module):
        return B, rows(A.T, module.weight).T
    return rows(B, module.weight), A


def can_merge(module: nn.Module) -> bool:
    """Whether the weight is stored in floating point, (d, k) or transposed; quantised ones are not."""
    weight = cast(Tensor, module.weight)
    return weight.is_floating_point() and tuple(oriented(module, weight).shape) == weight_shape(module)


def factor_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of boosters on `module`: float32, or float64 on a float64 base (used by exact tests)."""
    return torch.float64 if stored_weight(module).dtype == torch.float64 else torch.float32


def find_modules(model: nn.Module, targets: str | Sequence[str] = "all-linear") -> dict[str, nn.Module]:
    """Find the linear maps to adapt, by name, in the model's order.

    ValueError where a target matches none, a weight is tied to another module's, or there is a PEFT adapter.

    Parameters
    ----------
    model : nn.Module
        Any torch model.
    targets : str or sequence of str, default "all-linear"
        `"all-linear"`, every linear map of the backbone (not the output layer or a task head); `"attention"`,
        those inside a component whose name contains "attn" or "attention"; or names: a full name, its last
        components (`"q_proj"`, `"mlp.down_proj"`), or a pattern (`"*.layers.0.*"`).
    """
    if any(c.__name__ == "BaseTunerLayer" for m in model.modules() for c in type(m).__mro__):
        raise ValueError(
            "The model holds a PEFT adapter: take it into the base with `model = into_base(model)` (from "
            "xgblora_lab), or load the base without it."
        )
    linear = {name: m for name, m in model.named_modules() if name and is_linear(m)}
    if isinstance(targets, str):
        targets = [targets]
    chosen: set[str] = set()
    for target in targets:
        if target in ("all-linear", "attention"):
            outside = set(head_names(model))
            found = [n for n in linear if not any(n == h or n.startswith(h + ".") for h in outside)]
            if target == "attention":
                found = [n for n in found if "attn" in n.lower() or "attention" in n.lower()]
        else:
            found = [n for n in linear if n == target or n.endswith("." + target) or fnmatchcase(n, target)]
        if not found:
            some = ", ".join(list(linear)[:6]) or "none at all"
            raise ValueError(
                f"No linear map of {type(model).__name__} matches {target!r}. Accepted are 'all-linear', "
                f"'attention', names, their last parts, and patterns with *. Linear maps here: {some}, …"
            )
        chosen.update(found)
    modules = {name: m for name, m in linear.items() if name in chosen}
    _refuse_tied(model, modules)
    return modules


def block_name(module: str) -> str:
    """The transformer block that a module belongs to: its name up to the first number (`"model.layers.3"`).

    Without a number it is the name of the parent, or the name itself at the top of the model.
    """
    match = re.match(r"(.*?\.)?\d+(?=\.|$)", module)
    return match.group() if match else module.rpartition(".")[0] or module


def blocks(modules: Iterable[str]) -> list[list[str]]:
    """Group module names into transformer blocks (see `block_name`); all keep the order given."""
    found: dict[str, list[str]] = {}
    for module in modules:
        found.setdefault(block_name(module), []).append(module)
    return list(found.values())


def head_names(model: nn.Module) -> list[str]:
    """Names of the modules outside the backbone: the output layer, a classifier; none for a plain module."""
    prefix = getattr(model, "base_model_prefix", "")
    names = []
    if prefix and hasattr(model, prefix):
        names = [
            n for n, child in model.named_children() if n != prefix and any(True for _ in child.parameters())
        ]
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return names + [n for n, m in model.named_modules() if m is output and n not in names]


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of a task head by name: outside the backbone, and not the language model's output layer."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    kept = {id(p) for p in output.parameters()} if output is not None else set()
    prefix = getattr(model, "base_model_prefix", "")
    kept |= {id(p) for n, p in model.named_parameters(remove_duplicate=False) if n.startswith(f"{prefix}.")}
    heads = tuple(f"{name}." for name in head_names(model))
    return {n: p for n, p in model.named_parameters() if n.startswith(heads) and id(p) not in kept}


def _refuse_tied(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, module in modules.items():
        names = owners.get(id(module.weight), [])
        if len(names) > 1:
            other = next(n for n in names if n != f"{name}.weight")
            raise ValueError(
                f"The weight of {name!r} is tied to {other!r}: a booster on one would change the other. "
                f"Leave {name!r} out of the targets, or untie the weights first."
            )
