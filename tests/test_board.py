"""The board of the lessons and its pictures: what they show adds up, and no line is told by colour alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xgblora_lab import figures
from xgblora_lab.course.board import chart, forest, line, pick, say
from xgblora_lab.course.pictures import boosted_stumps, rank_one_sum
from xgblora_lab.racing.summary import paired


def test_a_chart_names_its_axes_and_tells_lines_apart_without_colour() -> None:
    figure = chart("Loss", "step", "loss (nats)", log="y")
    for look in range(4):
        line(figure, f"run {look}", [1, 2], [3, 4], look, mode="lines+markers")
    line(figure, "LoRA", range(2), [1, 2], figures.style("lora"))
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == (
        "step",
        "loss (nats), log scale",
    )
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == (
        None,
        "log",
    )  # None: names are welcome too
    first = figure.data[:4]
    assert len({trace.line.dash for trace in first}) == len({trace.marker.symbol for trace in first}) == 4
    assert figure.data[4].line.color == figures.style("lora").colour
    assert figure.data[4].name == "LoRA"


def test_a_forest_has_every_interval_and_keeps_an_outlier_on_its_edge() -> None:
    scores = {f"method {i}": [0.01 * i - 0.02, 0.01 * i - 0.01] for i in range(9)}
    differences = {name: paired(values) for name, values in scores.items()}
    differences |= {"far": paired([5.0, 5.2]), "once": paired([0.03]), "lost": paired([np.nan])}
    groups = {name: "odd" if name in ("far", "once", "lost") else "even" for name in differences}
    figure = forest("Differences", "loss", differences, groups)
    assert [trace.name for trace in figure.data] == ["even", "odd"]
    assert list(figure.layout.yaxis.categoryarray) == list(differences)[::-1]
    one = differences["method 3"]
    assert figure.data[0].x[3] == pytest.approx(one.mean)
    assert figure.data[0].error_x.array[3] == pytest.approx((one.high - one.low) / 2)
    far, once, lost = figure.data[1].x
    assert np.isnan(lost)
    assert (far < 5, once, figure.data[1].error_x.array[1]) == (True, 0.03, 0)
    assert figure.layout.xaxis.range[0] < 0 < far < figure.layout.xaxis.range[1]


def test_a_profile_is_one_of_those_that_there_are() -> None:
    assert pick("ci", {"ci": (1, 2), "laptop": (3, 4)}) == (1, 2)
    with pytest.raises(ValueError, match="profile is 'desktop'; choose one of ci, laptop"):
        pick("desktop", {"ci": 1, "laptop": 2})


def test_a_sentence_stands_behind_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say("It fell.")  # outside a notebook, IPython writes what it would show
    assert "Markdown" in capsys.readouterr().out
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    say("It fell.")
    assert [sentence.data for sentence in shown] == ["> It fell."]


def test_pictures_of_rank_one_add_up_to_the_matrix() -> None:
    target = np.random.default_rng(0).normal(size=(5, 4))
    U, s, Vh = np.linalg.svd(target, full_matrices=False)
    figure = rank_one_sum(U, s, Vh, 4)
    assert np.allclose(figure.data[0].z, target, atol=1e-3)
    sums = [np.array(frame.data[1].z) for frame in figure.frames]
    left = [np.array(frame.data[2].z) for frame in figure.frames]
    assert [np.linalg.matrix_rank(z, tol=1e-2) for z in sums] == [0, 1, 2, 3, 4]
    assert all(np.allclose(a + b, target, atol=1e-3) for a, b in zip(sums, left, strict=True))
    assert "0% of the sum" in figure.frames[-1].layout.title.subtitle.text
    assert not np.allclose(sums[-2], target, atol=1e-2)  # one picture fewer is another matrix


def test_what_the_next_tree_adds_is_the_difference_of_two_stages() -> None:
    x, y = np.arange(3.0), np.array([0.0, 1.0, 2.0])
    stages = [np.ones(3), np.array([0.5, 1.0, 1.5]), y]
    figure = boosted_stumps(x, y, stages)
    prediction, residual, added = (np.array(trace.y) for trace in figure.frames[1].data)
    assert np.allclose(prediction + residual, y)
    assert np.allclose(prediction + added, stages[2])
    assert figure.frames[1].layout.title.subtitle.text == "1 tree: the mean squared residual is 0.167"
