"""`written`: text that a language model itself writes, to see what it forgets."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from xgblora_lab import seeds
from xgblora_lab.tasks.task import Example, evaluating
from xgblora_lab.tasks.text import TextTask


def written(model: nn.Module, rows: int = 64, length: int = 64, seed: int = 0) -> TextTask:
    """Sample text from a model as it is now, as a task that scores any later state of it.

    In expectation the loss on it rises by KL(model now ‖ model later) per token, so that any rise is
    something forgotten. No text by others is needed.

    Parameters
    ----------
    model : nn.Module
        A decoder of transformers with a language-modelling head.
    rows : int, default 64
        Sequences.
    length : int, default 64
        Tokens of each, the first of which is given and not scored.
    seed : int, default 0
        Of the samples. The global random state is left as it was.

    Returns
    -------
    TextTask
        With a dev split alone.

    Raises
    ------
    ValueError
        For a model that writes no text.
    """
    config = getattr(model, "config", None)
    if config is None or not getattr(model, "can_generate", lambda: False)() or config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} writes no text: give a decoder with a language-modelling head, or text."
        )
    first = next((i for i in (config.bos_token_id, config.eos_token_id) if isinstance(i, int)), 0)
    generator = seeds.generator("written", seed)
    # The name of the argument depends on the version of transformers.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache: dict[str, Any] = {}
    with evaluating(model) as device:
        ids = torch.full((rows, 1), first)
        while ids.shape[1] < length:
            output = model(ids[:, -1:].to(device), use_cache=True, **cache)
            cache = {name: output[name if name in output else "past_key_values"]}
            likely = output.logits[:, -1].float().softmax(-1).cpu()  # (N, V)
            ids = torch.cat([ids, torch.multinomial(likely, 1, generator=generator)], 1)
    examples = [Example(row, row) for row in ids.tolist()]
    return TextTask("written", "prompt-answer", "loss", {"dev": examples}, pad_token_id=first)
