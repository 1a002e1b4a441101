"""`python -m benchmarks --quick` produces every number; how large they are is not a test's business."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xgblora_lab.methods import METHODS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmarks")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stdout


def test_every_row_has_a_number_and_says_what_was_to_be_reached(written):
    out, printed = written
    table = json.loads((out / "table.json").read_text())
    assert len(table["rows"]) >= 16
    for row in table["rows"]:
        assert math.isfinite(row["ratio"])
        assert row["ratio"] > 0
        assert row["reached"] == (
            row["ratio"] >= row["reach"] if row["faster"] else row["ratio"] <= row["reach"]
        )
        assert f"{row['what']} | {row['against']}" in printed
    assert [entry["method"] for entry in table["family"]] == list(METHODS)
    assert all(entry["step / LoRA r=8"] > 0 for entry in table["family"])


def test_the_table_and_the_figure_are_written(written):
    out, _ = written
    rows = len(json.loads((out / "table.json").read_text())["rows"])
    assert (out / "table.md").read_text().count("\n") == rows + 2
    assert (out / "family.md").read_text().count("\n") == len(METHODS) + 2
    page = (out / "table.html").read_text()
    assert "Cost over what was to be reached" in page
    assert 'src="http' not in page  # it works without a network
