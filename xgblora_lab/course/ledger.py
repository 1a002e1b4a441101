"""What a run holds, computed from shapes alone: a model on paper, and what autograd would keep of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xgblora_lab.lowrank.booster import LowRank, attached, init_A
from xgblora_lab.lowrank.linear import find_modules, weight_shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def on_paper(config: PretrainedConfig) -> nn.Module:
    """Make a causal language model of shapes without numbers, in bfloat16: it takes no memory.

    Parameters
    ----------
    config : PretrainedConfig
        Of a Llama.
    """
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(config).to(torch.bfloat16)


def pair_numbers(model: nn.Module, rank: int) -> int:
    """Return how many numbers the pairs BA of this rank on all linear maps have, r (d + k) for each map."""
    return rank * sum(sum(weight_shape(module)) for module in find_modules(model).values())


def map_numbers(model: nn.Module) -> int:
    """Return how many numbers the weights of all adapted linear maps have, d · k for each."""
    shapes = [weight_shape(module) for module in find_modules(model).values()]
    return sum(d * k for d, k in shapes)


def kept_for_backward(run: Callable[[], object], without: nn.Module) -> int:
    """Return the bytes that autograd keeps of a forward pass, those of the parameters left out.

    Parameters
    ----------
    run : callable
        The forward pass.
    without : nn.Module
        Whose parameters are held in any case.
    """
    held = {p.untyped_storage()._cdata for p in without.parameters()}
    kept: dict[int, Any] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in held and not isinstance(x, nn.Parameter):
            kept[storage._cdata] = storage  # by storage: what two operations share is held once
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def activation_bytes(model: nn.Module, rank: int | None, tokens: int) -> int:
    """Return what one sequence's forward pass leaves for the backward pass of a Llama on paper.

    One layer is traced and counted as often as there are layers; then the head and its loss. Nothing is
    recomputed (no gradient checkpointing), and attention keeps its tokens × tokens weights.

    Parameters
    ----------
    model : nn.Module
        From `on_paper`.
    rank : int or None
        Of the pairs that train on all linear maps; None: every weight trains.
    tokens : int
        Length of the sequence.
    """
    whole: Any = model
    config = whole.config
    model.requires_grad_(rank is None)
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device": "meta"}
    x = torch.empty(1, tokens, config.hidden_size, requires_grad=True, **options)
    angles = torch.empty(1, tokens, config.hidden_size // config.num_attention_heads, **options)
    labels = torch.zeros(tokens, dtype=torch.long, device="meta")
    layer = whole.model.layers[0]
    drawn = torch.Generator()
    pairs = {
        name: LowRank.fresh(module, init_A("kaiming", rank or 1, weight_shape(module)[1], drawn))
        for name, module in find_modules(model).items()
        if rank is not None and name.startswith("model.layers.0.")
    }

    def head() -> Tensor:
        logits = whole.lm_head(whole.model.norm(x)).float().flatten(0, 1)
        return nn.functional.cross_entropy(logits, labels)

    with attached(model, pairs):
        in_layer = kept_for_backward(
            lambda: layer(x, position_embeddings=(angles, angles), attention_mask=None), model
        )
    return config.num_hidden_layers * in_layer + kept_for_backward(head, model)
