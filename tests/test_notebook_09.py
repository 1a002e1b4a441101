"""Notebook 09 takes a model folder and a data file by the parameters that name hub ids elsewhere."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from torch import nn

from xgblora_lab.course.execute import Executed, run_notebook

INSTRUCTORS = Path(__file__).resolve().parent.parent / "notebooks" / "instructor" / "09_a_real_model.ipynb"
WARM, COLD = ("fire", "sun", "oven", "summer"), ("ice", "snow", "winter", "frost")


def weather(rows: int) -> list[dict[str, Any]]:
    """Short sentences and whether they are warm or cold; every third is cold."""
    pick = random.Random(0)
    return [
        {
            "text": f"{i} {pick.choice(COLD if i % 3 == 0 else WARM)}",
            "label": "cold" if i % 3 == 0 else "warm",
        }
        for i in range(rows)
    ]


def sums(rows: int) -> list[dict[str, Any]]:
    """Questions with answers, in the columns that GSM8K has."""
    return [{"question": f"What is {i} and {i + 1}?", "answer": str(2 * i + 1)} for i in range(rows)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(run: Executed) -> str:
    """All that the notebook printed or said."""
    outputs = [out for cell in run.notebook.cells for out in cell.get("outputs", [])]
    return "\n".join(
        out.text if out.output_type == "stream" else out.get("data", {}).get("text/markdown", "")
        for out in outputs
    )


@pytest.mark.notebook
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("make", "rows", "parameters", "said"),
    [
        pytest.param(
            lambda: tiny.tiny_bert(),
            weather,
            {"targets": "query,value", "max_length": 16},
            ("BertForSequenceClassification", "labels: cold, warm", "4 modules", "(always “warm”)"),
            id="an encoder and labels, in one file",
        ),
        pytest.param(
            lambda: tiny.tiny_llama(),
            sums,
            {"targets": "attention", "max_length": 48},
            ("LlamaForCausalLM", "task: prompt-answer, ranked by loss", "half of dev is test now"),
            id="a decoder and questions, without a test file",
        ),
    ],
)
def test_a_model_folder_and_a_data_file(
    make: Callable[[], nn.Module],
    rows: Callable[[int], list[dict[str, Any]]],
    parameters: dict[str, Any],
    said: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    offline_kernels: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny.save_tiny(make(), tmp_path / "model")
    if rows is sums:
        data = tmp_path / "data"
        data.mkdir()
        jsonl(data / "train.jsonl", rows(90))
        jsonl(data / "dev.jsonl", rows(30))
    else:
        data = jsonl(tmp_path / "rows.jsonl", rows(200))
    given = {"profile": "ci", "model": str(model), "data": str(data), "steps": 16, **parameters}
    run = run_notebook(INSTRUCTORS, given, timeout=120, progress=False)
    assert all(verdict["passed"] for verdict in run.checks)
    assert len(run.checks) == 5
    told = texts(run)
    assert "All facts hold." in told
    for part in said:
        assert part in told, part


@pytest.mark.notebook
def test_a_name_that_is_nothing_ends_with_one_sentence(tmp_path: Path, offline_kernels: None) -> None:
    given = {"profile": "ci", "model": "lab", "data": str(tmp_path / "none.csv")}
    with pytest.raises(RuntimeError, match=r"There is no file or folder .*none\.csv"):
        run_notebook(INSTRUCTORS, given, timeout=120, progress=False)
