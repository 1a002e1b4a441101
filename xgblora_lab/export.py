"""Taking the result away: a PEFT adapter, or a merged `transformers` checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xgblora_lab.card import adapter_card
from xgblora_lab.files import check_folder, replaced_folder, write_tensors
from xgblora_lab.lowrank import spectra
from xgblora_lab.lowrank.ensemble import Ensemble
from xgblora_lab.lowrank.linear import find_modules, head_names, head_parameters, is_linear
from xgblora_lab.stored import whole_state


def export_peft(
    ensemble: Ensemble,
    folder: str | Path,
    model: nn.Module,
    rank: int | None = None,
    base: str = "",
    upto: int | None = None,
    facts: Mapping[str, str] | None = None,
    scores: Mapping[str, tuple[float | None, float]] | None = None,
) -> dict[str, Any]:
    """Write the accumulated update as a PEFT LoRA adapter that `PeftModel.from_pretrained` loads.

    A trained classifier head goes along (PEFT's `modules_to_save`), and a model card (`README.md`). Where the
    base has a name, PEFT's `AutoPeftModelFor…` load both at once. ValueError for a rank below 1 and an empty
    ensemble, FileExistsError where the folder holds something else.

    Parameters
    ----------
    ensemble : Ensemble
    folder : str or Path
    model : nn.Module
        The model that the ensemble was trained on; gives names, the head and the kind of task.
    rank : int, optional
        None keeps every factor, which is exact; a number truncates each module's update to its best
        approximation of that rank (Eckart and Young 1936).
    base : str
        Name or folder of the base model, written into the adapter's configuration; default: the model's own.
    upto : int, optional
        Rounds that count; default: all.
    facts, scores : mapping, optional
        For the card, see `card.adapter_card`.

    Returns
    -------
    dict
        `{"rank": largest rank written, "relative_error": {module: ‖ΔW − written‖/‖ΔW‖}}`.
    """
    if rank is not None and rank < 1:
        raise ValueError(
            f"The adapter's rank must be at least 1, got {rank}; leave it out for the exact update."
        )
    check_folder(folder)
    tensors: dict[str, Tensor] = {}
    ranks, errors = dict[str, int](), dict[str, float]()
    for name in ensemble.shapes:
        B, A = ensemble.factors(name, upto)
        if B.shape[1] == 0:
            continue
        limit = min(*ensemble.shapes[name], B.shape[1] if rank is None else rank)
        B, A, errors[name] = _truncated(B, A, limit)
        ranks[name] = B.shape[1]
        tensors[f"base_model.model.{name}.lora_A.weight"] = A.float().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = B.float().contiguous()
    if not ranks:
        raise ValueError("The ensemble is empty: run at least one round before exporting it.")
    heads = _trained_head(model)
    tensors |= {f"base_model.model.{n}": p.detach().float().cpu().contiguous() for n, p in heads.items()}
    config = _config(model, ranks, base, sorted(heads))
    adapted = {"adapted": f"{len(ranks)} linear maps", "rank": str(max(ranks.values()))}
    if any(errors.values()):
        adapted["relative error"] = f"{max(errors.values()):.2g} at most, as the update was cut to this rank"
    labels = f"num_labels={getattr(model.config, 'num_labels', 2)}" if config.task_type == "SEQ_CLS" else ""
    base = config.base_model_name_or_path
    card = adapter_card(base, config.task_type, {**(facts or {}), **adapted}, scores or {}, labels)
    with replaced_folder(folder) as partial:
        config.save_pretrained(str(partial))
        write_tensors(partial / "adapter_model.safetensors", tensors)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return {"rank": max(ranks.values()), "relative_error": errors}


def export_merged(model: Any, folder: str | Path, tokenizer: Any = None) -> None:
    """Write a model whose update is in its weights (see `Bench.merged`) as a `transformers` checkpoint.

    ValueError where the model is not one of transformers, FileExistsError where the folder holds something
    else. A tokenizer is saved beside the model. Of a sharded model every process calls, and the first writes.
    """
    if not hasattr(model, "save_pretrained"):
        raise ValueError(f"{type(model).__name__} is no transformers model; save its state_dict instead.")
    state = whole_state(model)
    if state is not None and torch.distributed.get_rank():
        return
    with replaced_folder(folder) as partial:
        model.save_pretrained(partial, **({} if state is None else {"state_dict": state}))
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)


def _truncated(B: Tensor, A: Tensor, limit: int) -> tuple[Tensor, Tensor, float]:
    """Factors of the best approximation of rank `limit`, and its relative error."""
    if B.shape[1] <= limit:
        return B, A, 0.0
    U, s, Vh = spectra.svd(B, A)
    error = float((s[limit:].square().sum() / s.square().sum().clamp_min(1e-300)).sqrt())
    root = s[:limit].sqrt()
    return U[:, :limit] * root, root[:, None] * Vh[:limit], error


def _config(model: nn.Module, ranks: dict[str, int], base: str, heads: list[str]) -> Any:
    from peft import LoraConfig

    modules = find_modules(model, sorted(ranks)).values()
    saved = sorted({n for n in head_names(model) if any(p.startswith(n + ".") for p in heads)})
    kind, parent = _task_type(model), type(model).__module__
    auto = {"base_model_class": type(model).__name__, "parent_library": parent}  # where no task type says it
    return LoraConfig(
        task_type=kind,
        auto_mapping=auto if kind is None and parent.startswith("transformers.") else None,
        base_model_name_or_path=base or str(getattr(model, "name_or_path", "")),
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        rank_pattern=ranks,
        alpha_pattern=ranks,  # alpha = rank: a scale of 1, the scale is in the factors already
        target_modules=sorted(ranks),
        modules_to_save=saved or None,
        fan_in_fan_out=any(is_linear(m) and not isinstance(m, nn.Linear) for m in modules),
        inference_mode=True,
    )


def _trained_head(model: nn.Module) -> dict[str, nn.Parameter]:
    """A classifier's own parameters; those between a language model and its vocabulary are the base's."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return head_parameters(model) if output is None else {}


def _task_type(model: nn.Module) -> str | None:
    name = type(model).__name__
    kinds = {"ForSequenceClassification": "SEQ_CLS", "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}
    kinds |= {"ForTokenClassification": "TOKEN_CLS", "ForQuestionAnswering": "QUESTION_ANS"}
    kinds["ForConditionalGeneration"] = "SEQ_2_SEQ_LM"
    return next((kind for ending, kind in kinds.items() if name.endswith(ending)), None)
