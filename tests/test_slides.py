"""The slides: the report's figures, one to a screen, standing alone and led by the keyboard."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from synthetic import history, race
from test_report import contents, outline
from typer.testing import CliRunner

from xgblora_lab import cli, figures
from xgblora_lab.bench.records import History
from xgblora_lab.report.page import report
from xgblora_lab.report.slides import slides


@pytest.mark.parametrize("runs", [[history(rounds=5)], race(seeds=2)], ids=["run", "race"])
def test_every_figure_of_the_report_has_a_slide_and_nothing_is_loaded(runs: Any, tmp_path: Path) -> None:
    path = slides(runs, tmp_path / "slides.html")
    page, text = outline(path), path.read_text(encoding="utf-8")
    assert page.loads == []
    assert contents(path) == contents(report(runs, tmp_path / "report.html"))  # the figures themselves
    shown = [values for _, values in page.tags if "slide" in str(values.get("class", "")).split()]
    assert len(shown) == len(contents(path)) + 1  # and a title
    assert [values["aria-label"] for values in shown][-1] == f"Slide {len(shown)} of {len(shown)}"
    assert page.headings == [1] + [2] * (len(shown) - 1)
    assert len(page.ids) == len(set(page.ids))
    assert "<table" not in text  # numbers are the report's
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["report.html", "slides.html"]


def test_a_slide_says_in_words_what_it_shows_beside_its_keys(tmp_path: Path) -> None:
    run = history(rounds=5)
    text = slides(run, tmp_path / "slides.html").read_text(encoding="utf-8")
    for name in ("loss", "spectrum", "ranks", "alignment", "gains", "costs"):
        twin = getattr(figures, name)(run).text
        assert f"<figcaption>{escape(twin)}</figcaption>" in text
    assert "<kbd>→</kbd>" in text


def test_the_command_writes_slides_in_place_of_the_report(tmp_path: Path) -> None:
    history(rounds=4).save(tmp_path / "run" / "history.jsonl")
    arguments = ["report", str(tmp_path / "run"), "--title", "Four & more", "-o"]
    done = CliRunner().invoke(cli.app, [*arguments, str(tmp_path / "s.html"), "--slides"])
    assert done.output == f"Slides: {tmp_path / 's.html'}\n"
    assert "<h1>Four &amp; more</h1>" in (tmp_path / "s.html").read_text(encoding="utf-8")
    CliRunner().invoke(cli.app, [*arguments, str(tmp_path / "r.html")])
    assert 'class="slide' not in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_what_is_no_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither race\.json nor history\.json"):
        slides(tmp_path, tmp_path / "slides.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.browser
def test_arrow_keys_lead_from_slide_to_slide_and_a_plot_fits_the_screen(tmp_path: Path, browser: Any) -> None:
    run = history(rounds=6)
    path = slides(run, tmp_path / "slides.html")
    context = browser.new_context(offline=True, bypass_csp=True, viewport={"width": 1280, "height": 720})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    tops = "[...document.querySelectorAll('.slide')].map(e => Math.round(e.getBoundingClientRect().top))"
    assert page.evaluate(tops)[0] == 0
    artifacts = Path(__file__).resolve().parent.parent / "artifacts"
    artifacts.mkdir(exist_ok=True)
    for number in (1, 2):
        page.keyboard.press("ArrowRight")
        page.wait_for_function(f"{tops}[{number}] === 0")
        page.locator(f"#d{number} .main-svg").first.wait_for()
        page.screenshot(path=artifacts / f"slide-{number}.png")
    first = page.locator(".slide").nth(1).bounding_box()
    assert first["height"] == pytest.approx(720, abs=1)  # the first figure fits
    drawn = page.locator("#d1 .main-svg").first
    tall = drawn.bounding_box()["height"]
    page.set_viewport_size({"width": 1280, "height": 620})
    page.wait_for_function(f"document.querySelector('#d1 .main-svg').clientHeight < {tall - 80}")
    page.set_viewport_size({"width": 1280, "height": 720})
    slider = page.get_by_label("Round", exact=True)
    slider.focus()
    page.keyboard.press("ArrowLeft")  # the slider's own key now
    assert slider.input_value() == "4"
    assert page.evaluate(tops)[2] == 0
    said = page.locator("output").inner_text()
    assert said == figures.spectrum(run).frame_texts[4]
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"{tops}[1] === 0")

    many = {"spectrum": {f"layers.{i}.up_proj": [2.0, 1.0] for i in range(40)}}
    run40 = History("xgblora", run.settings, [replace(r, measurements=many) for r in run])
    page.goto(slides(run40, tmp_path / "tall.html").as_uri())
    heights = [e.bounding_box()["height"] for e in page.locator(".slide").all()]
    assert heights[1] == pytest.approx(720, abs=1)
    assert heights[3] > 720  # the ranks of forty modules: the slide grows, and scrolls
    assert errors == []
    assert not re.search("NaN", page.locator("main").inner_text())
    context.close()
