"""A model that has a PEFT adapter already: the adapter goes into the base, and the rounds begin there."""

from __future__ import annotations

from typing import Any

from torch import nn


def into_base(model: Any) -> nn.Module:
    """Merge a PEFT adapter into the weights below it, by PEFT's own `merge_and_unload`.

    The merged weights are a base of their own: an adapter that is exported later fits them, and not the base
    that the first adapter was made for. So the model loses its name here. Save it with `save_pretrained`, and
    give the folder to `export_peft(base=…)`.

    Parameters
    ----------
    model : PeftModel
        From `PeftModel.from_pretrained` or `get_peft_model`. It is used up: its weights are changed in place,
        in their own dtype.

    Returns
    -------
    nn.Module
        The model below, in evaluation mode and without a trace of PEFT.

    Raises
    ------
    TypeError
        The model is no PeftModel.
    ValueError
        The adapter cannot be merged (a prompt), or holds numbers that are not finite.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise TypeError(
            f"into_base takes a PeftModel, got {type(model).__name__}; load an adapter on its base with "
            "PeftModel.from_pretrained(base, folder)."
        )
    if not hasattr(model.base_model, "merge_and_unload"):
        kind = getattr(model.active_peft_config.peft_type, "value", model.active_peft_config.peft_type)
        raise ValueError(f"{kind} adds nothing to weights, so it cannot go into the base: train without it.")
    merged = model.merge_and_unload(safe_merge=True)
    merged.name_or_path = ""
    if getattr(merged, "config", None) is not None:
        merged.config.name_or_path = ""
    return merged.eval()
