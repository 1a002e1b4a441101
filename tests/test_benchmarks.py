"""`python -m benchmarks --quick` produces every number; how large they are is not a test's business."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import sys
import warnings
from pathlib import Path

import pytest

from benchmarks import measure
from benchmarks.__main__ import main
from benchmarks.measure import in_a_process
from xgblora_lab.course import large
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


RACES = Path(measure.__file__).parent


def committed(name):
    """Difference and verdict by method, as the committed table of a race has them."""
    with (RACES / name / "table.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    (minus,) = (column for column in table[0] if column.startswith("minus "))
    return [(row[minus], row["verdict (Holm)"]) for row in table if row["verdict (Holm)"] != "reference"]


def told(race):
    return [(str(d), d.verdict(race.greater_is_better)) for d in race.differences().values()]


def test_the_lessons_read_what_the_races_have_found():
    assert large.FILE.read_text(encoding="utf-8") == large.build(), "run `python -m xgblora_lab.course.large`"
    found = large.races()
    assert sorted(found) == sorted(path.parent.name for path in RACES.glob("*/race.json"))
    for name, race in found.items():
        assert told(race) == committed(name) if race.reference else not told(race)
    race = found["capacity"]
    race.scores["XGBLoRA, rank 1"][0] += 0.1
    assert told(race) != committed("capacity")


def test_a_race_that_is_committed_later_is_read_without_a_change(tmp_path):
    race = json.loads((RACES / "planted" / "race.json").read_text(encoding="utf-8"))
    race["settings"] |= {"data": "letters.csv", "steps": 4000}
    race["histories"] = [h for h in race["histories"] if h["settings"]["chosen"]]
    lost = next(
        h for h in race["histories"] if h["method"] == "xgblora" and h["settings"]["options"]["backfit"]
    )
    lost["scores"] = {"dev": "nan", "test": "nan"}
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "race.json").write_text(json.dumps(race), encoding="utf-8")
    (tmp_path / "races.json").write_text(large.build(tmp_path), encoding="utf-8")
    found = large.races(tmp_path / "races.json")
    row, other = large.table(found).reset_index().to_dict("records")
    assert other["method"] == "XGBLoRA, rank 1, plateau"
    assert (row["race"], row["verdict"]) == ("letters.csv, 4,000 steps", "cannot be told apart")
    assert "1 of 5 diverged" in row["difference (95 %)"]
    both = large.forest({**large.races(), **found})
    names = [name for trace in both.data for name in trace.y]
    assert len(names) == len(set(names)) == 2 + sum(len(r.differences()) for r in large.races().values())
    gain = dict(zip(names, [x for trace in both.data for x in trace.x], strict=True))
    first = "ten books, 1,000 steps<br>XGBLoRA, rank 1 against LoRA, rank 1"
    assert gain[first] == pytest.approx(100 * 0.127 / 4.66, rel=0.02)  # lower is better: to the right
