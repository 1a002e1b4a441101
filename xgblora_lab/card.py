"""The model card of an exported adapter: what it is, what it was fitted to, how well, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

AUTO = {  # by PEFT's task type: the class that loads base and adapter, and the hub's name of the task
    "CAUSAL_LM": ("AutoPeftModelForCausalLM", "text-generation"),
    "SEQ_CLS": ("AutoPeftModelForSequenceClassification", "text-classification"),
    "SEQ_2_SEQ_LM": ("AutoPeftModelForSeq2SeqLM", None),
    "TOKEN_CLS": ("AutoPeftModelForTokenClassification", "token-classification"),
    "QUESTION_ANS": ("AutoPeftModelForQuestionAnswering", "question-answering"),
}


def adapter_card(
    base: str,
    task_type: str | None,
    facts: Mapping[str, str],
    scores: Mapping[str, tuple[float | None, float]],
    options: str = "",
) -> str:
    """Write the text of the adapter's `README.md`.

    Parameters
    ----------
    base : str
        Name or folder of the base model; empty where it has none.
    task_type : str or None
        PEFT's, a key of `AUTO`; None where there is none.
    facts : mapping of str to str
        Rows of a table.
    scores : mapping of str to tuple of float
        By name: before the first round (None: not measured), and after the last.
    options : str, optional
        Further arguments that loading needs, e.g. `"num_labels=3"`.

    Returns
    -------
    str
        Markdown that begins with the metadata that the hub reads.
    """
    from huggingface_hub import ModelCardData

    auto, task = AUTO.get(task_type or "", ("AutoPeftModel", None))
    local = not base or Path(base).exists()
    name = Path(base).resolve().name if base and local else base
    metadata = ModelCardData(
        base_model=None if local else base,
        library_name="peft",
        pipeline_tag=task,
        tags=["lora", "boosting", "xgblora_lab"],
    )
    rows = {
        "base": name or "a model without a name: give it to `PeftModel.from_pretrained(base, …)`",
        **facts,
    }
    text = ["---", metadata.to_yaml(), "---", "", "# A LoRA adapter by boosting", ""]
    text += ["The sum of what rounds of low-rank boosters added to the base, as one LoRA adapter.", ""]
    text += _table(["", ""], [[key, value] for key, value in rows.items()])
    if scores:
        text += ["", "## Scores", ""]
        shown = [[n, "" if b is None else f"{b:.4g}", f"{a:.4g}"] for n, (b, a) in scores.items()]
        text += _table(["score", "base", "with the adapter"], shown)
    comma = f", {options}" if options else ""
    text += ["", "## How to load it", "", "```python"]
    if base:
        text += [
            f"from peft import {auto}",
            "",
            f'model = {auto}.from_pretrained("path/of/this/folder"{comma})',
        ]
    else:
        text += [
            "from peft import PeftModel",
            "",
            'model = PeftModel.from_pretrained(base, "path/of/this/folder")',
        ]
    text += [
        "merged = model.merge_and_unload()  # the base's own class, with the adapter in its weights",
        "```",
    ]
    return "\n".join(text) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]
