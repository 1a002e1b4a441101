"""`python -m benchmarks --quick` produces every number; how large they are is not a test's business."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import warnings

import pytest

from benchmarks import measure
from benchmarks.__main__ import main
from benchmarks.measure import in_a_process
from xgblora_lab.methods import METHODS


def in_this_process(code, *arguments):
    """As `in_a_process`, without the five starts of torch."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", ["-c", *arguments])
        exec(code, {})
    return [float(word) for word in printed.getvalue().split("\n")[-2].split()]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmarks")
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        warnings.catch_warnings(),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(measure, "in_a_process", in_this_process)
        assert main(["--quick", "--out", str(out)]) == 0
    return out, printed.getvalue()


def test_another_process_prints_its_numbers():
    assert in_a_process("import sys; print('more'); print(*sys.argv[1:])", "2", "0.5") == [2.0, 0.5]


def test_every_row_has_a_number_and_says_what_was_to_be_reached(written):
    out, printed = written
    table = json.loads((out / "table.json").read_text())
    assert len(table["rows"]) >= 30
    for row in table["rows"]:
        assert math.isfinite(row["ratio"])
        assert row["ratio"] > 0 or row["what"].startswith("learning")  # a loss may rise in one step
        if row["spread"] is not None:
            assert row["spread"][0] <= row["spread"][1]
        assert row["reached"] == (
            row["ratio"] >= row["reach"] if row["faster"] else row["ratio"] <= row["reach"]
        )
        assert f"{row['what']} | {row['against']}" in printed
    uncounted = [row["what"] for row in table["rows"] if not row["counted"]]
    assert uncounted[0] == "control: the rank-1 step"
    assert [entry["method"] for entry in table["family"]] == list(METHODS)
    assert all(entry["step / LoRA r=8"] > 0 for entry in table["family"])


def test_the_table_and_the_figure_are_written(written):
    out, _ = written
    count = len(json.loads((out / "table.json").read_text())["rows"])
    assert (out / "table.md").read_text().count("\n") == count + 2
    assert (out / "family.md").read_text().count("\n") == len(METHODS) + 2
    page = (out / "table.html").read_text()
    assert "Cost over what was to be reached" in page
    assert "control: the rank-1 step" not in page  # it shows verdicts, of which a control has none
    assert 'src="http' not in page  # it works without a network
