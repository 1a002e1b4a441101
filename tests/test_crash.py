"""A sample of the crash points; `python tests/faults/crash.py` tries them all."""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a crash is tried in a fork")

from faults import crash  # noqa: E402  (forks are there)

from xgblora_lab.racing.cells import Cells  # noqa: E402


@pytest.mark.parametrize("name", ["drop, rewind, save", "ensemble.save", "report", "run, its page"])
def test_a_crash_or_an_error_leaves_the_old_state_or_the_new_one(name: str) -> None:
    counts = crash.try_all(name, every=23)
    assert counts["wrong"] == 0
    assert counts["points"] >= 5
    assert counts["old"] > 0
    assert counts["points"] == counts["old"] + counts["new"] + counts["between"]


@pytest.mark.parametrize(("name", "every"), [("save", 300), ("run, its page", 70), ("report", 30)])
def test_ctrl_c_at_any_line_leaves_the_old_state_or_the_new_one(name: str, every: int) -> None:
    counts = crash.try_all(name, (crash.INTERRUPT,), every)
    assert counts["wrong"] == 0
    assert counts["points"] >= 4
    assert counts["points"] == counts["old"] + counts["new"] + counts["between"]


def test_the_harness_sees_a_page_that_ctrl_c_cuts(tmp_path) -> None:
    """The negative: a page in two pieces, with lines of the package between them."""

    def careless(history, path) -> None:
        path.write_text("<html>")
        history.to_frame()
        path.write_text("<html></html>")

    page = crash.of_target("page.html", careless)
    (tmp_path / "in").mkdir()
    old, new, _, lines = crash.without_a_fault(page, tmp_path / "in")
    assert lines > 1
    (tmp_path / "cut" / "in").mkdir(parents=True)
    found = crash.trial_of(page, tmp_path / "cut" / "in", crash.INTERRUPT, 0, old, new, several=False)
    assert found == "wrong"


def test_a_race_ends_as_if_no_worker_had_died(monkeypatch) -> None:
    counts = crash.dead_workers(every=5000)
    assert counts["points"] == counts["new"] >= 2
    original = Cells._trained

    def once(cells, waiting):  # the negative: a run that a dead worker takes along is not tried again
        return cells._spread(waiting) if cells.executor else original(cells, waiting)

    monkeypatch.setattr(Cells, "_trained", once)
    assert crash.dead_workers(every=5000)["wrong"] >= 2


def test_the_harness_sees_a_file_that_is_written_in_place(tmp_path) -> None:
    """The negative: a page that is written where it stands is cut by some fault, and that is found."""

    def careless(history, path) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write("<html>")
            file.write("</html>")

    page = crash.of_target("page.html", careless)
    (tmp_path / "in").mkdir()
    old, new, count, _ = crash.without_a_fault(page, tmp_path / "in")
    assert count == 3
    found = []
    for at in range(count):
        (tmp_path / str(at) / "in").mkdir(parents=True)
        found.append(crash.trial_of(page, tmp_path / str(at) / "in", "kill", at, old, new, several=False))
    assert found == ["old", "wrong", "wrong"]
