"""The board of the lessons: no line is told by its colour alone, and an unknown profile is refused."""

from __future__ import annotations

import pytest

from xgblora_lab import figures
from xgblora_lab.course.board import chart, line, pick, say


def test_a_chart_names_its_axes_and_tells_lines_apart_without_colour() -> None:
    figure = chart("Loss", "step", "loss (nats)", log="y")
    for look in range(4):
        line(figure, f"run {look}", [1, 2], [3, 4], look, mode="lines+markers")
    line(figure, "LoRA", range(2), [1, 2], figures.style("lora"))
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("step", "loss (nats)")
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("linear", "log")
    first = figure.data[:4]
    assert len({trace.line.dash for trace in first}) == len({trace.marker.symbol for trace in first}) == 4
    assert figure.data[4].line.color == figures.style("lora").colour
    assert figure.data[4].name == "LoRA"


def test_a_profile_is_one_of_those_that_there_are() -> None:
    assert pick("ci", {"ci": (1, 2), "laptop": (3, 4)}) == (1, 2)
    with pytest.raises(ValueError, match="profile is 'desktop'; choose one of ci, laptop"):
        pick("desktop", {"ci": 1, "laptop": 2})


def test_a_sentence_stands_behind_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    say("It fell.")  # outside a notebook, IPython writes what it would show
    assert "Markdown" in capsys.readouterr().out
