"""Pages in a browser: nothing from outside runs in them, and they fit a phone, the dark and paper."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import axe_playwright_python
import nbformat
import pytest
from synthetic import history, race, small_board

from xgblora_lab import figures
from xgblora_lab.course import sources
from xgblora_lab.course.gallery import gallery
from xgblora_lab.course.pack import pack
from xgblora_lab.course.pages import to_html
from xgblora_lab.course.site import Part
from xgblora_lab.report import report, slides
from xgblora_lab.report.offline import Plotly, beside

COLUMNS = """() => [...document.querySelectorAll(".js-plotly-plot")].map(plot => {
  const layout = plot._fullLayout, axes = Object.keys(layout).filter(key => /^xaxis/.test(key));
  return new Set(axes.map(key => layout[key].domain[0])).size;
})"""
COLLISIONS = """() => [...document.querySelectorAll(".js-plotly-plot")].flatMap(plot => {
  const box = part => part.getBoundingClientRect();
  const legend = plot.querySelector(".legend"), titles = plot.querySelectorAll("[class^=g-x], [class^=g-y]");
  const over = (a, b) => a.width && b.width && a.left < b.right - 1 && b.left < a.right - 1
    && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  const cut = title => box(title).right > box(plot).right + 1 || box(title).left < box(plot).left - 1;
  const wrong = title => cut(title) || legend && over(box(legend), box(title));
  return [...titles].filter(wrong).map(title => title.textContent);
})"""
ARTIFACTS = Path(__file__).resolve().parent.parent / "artifacts"
EVIL = "<img src=x onerror=\"document.title='attacked'\"><script>document.title='attacked'</script>*_`$a$"


def notebook_page(label: str = "xgblora", spoilt: bool = False, plotly: Plotly | None = None) -> str:
    """A page of a notebook that shows a figure, as a kernel's display would put it there."""
    figure = figures.loss([history(label=label), history("lora")])
    new = nbformat.v4
    plot = new.new_output("display_data", {"application/vnd.plotly.v1+json": figure.plot.to_plotly_json()})
    shown: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("IPython.display.display", lambda data, **options: shown.append(data))
        figure._ipython_display_()
    words = new.new_output("display_data", {"text/markdown": shown[-1]["text/markdown"]})
    long = "a_name_that_does_not_fit = " + "1 + " * 60 + "1"
    cells = [
        new.new_markdown_cell(
            "# A lesson\n\n*What is `it`?* See [there](#A-lesson).\n\n| a | b |\n|---|---|\n| `c` | d |"
        ),
        new.new_code_cell(long, outputs=[plot, words]),
    ]
    if spoilt:
        cells.append(new.new_code_cell("1", outputs=[new.new_output("display_data", {"text/html": EVIL})]))
    text = nbformat.from_dict(new.new_notebook(cells=cells, metadata={}))
    return to_html(nbformat.reads(nbformat.writes(text), as_version=4), f"Lesson {label}", plotly)


def test_the_markdown_of_a_figure_is_plain_text() -> None:
    page = notebook_page(EVIL)
    body = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.S)
    assert "<img src=x" not in body
    assert "&lt;img src=x" in body
    assert "<script>document" not in body
    assert "<title>Lesson &lt;img" in page
    assert "<title>Lesson xgblora</title>" in notebook_page()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    run = history(rounds=8, label=EVIL, data=EVIL)
    lesson = notebook_page(EVIL, spoilt=True, plotly=beside(folder))  # as a gallery makes it
    (folder / "notebook.html").write_text(lesson, encoding="utf-8")
    taught = folder / "site" / "teachers"
    pack(sources.folder() / sources.INSTRUCTOR, taught, small_board())
    part = Part("a", "A part", "It is here.", lambda out: report(run, out.with_suffix(".html")))
    return {
        "index": gallery(folder / "site", [], parts=[part]),
        "report": report([run, *race(seeds=1, grid=(1e-3, 1e-2))], folder / "report.html"),
        "slides": slides(run, folder / "slides.html"),
        "notebook": folder / "notebook.html",
        "deck": taught / "deck.html",
        "handout": taught / "handout.html",
        "script": taught / "script_45.html",
    }


@pytest.mark.browser
@pytest.mark.parametrize("name", ["report", "slides", "notebook", "deck", "index", "handout", "script"])
def test_no_script_from_outside_runs_and_the_page_fits(
    pages: dict[str, Path], browser: Any, name: str
) -> None:
    assert pages[name].stat().st_size < (1_600_000 if name == "notebook" else 2_400_000)
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = context.new_page()
    errors: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfinished", lambda request: asked.append(request.url.partition(":")[0]))
    page.goto(pages[name].as_uri())
    if name in (
        "deck",
        "index",
        "handout",
        "script",
    ):  # made of the same templates as the others, or of words
        if name == "deck":
            page.locator(".plot .main-svg").last.wait_for(state="attached", timeout=120_000)
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate(COLLISIONS) == []
        assert errors == []
        if name == "deck":
            assert sheets(page.pdf()) == page.locator(".slide").count()
        if name == "handout":
            assert sheets(page.pdf(prefer_css_page_size=True)) == 2
            page.evaluate(
                "document.querySelector('main').append(document.querySelector('main').cloneNode(true))"
            )
            assert sheets(page.pdf(prefer_css_page_size=True)) > 2  # what does not fit is seen
        context.close()
        return
    page.locator(".plot .main-svg").last.wait_for(state="attached", timeout=120_000)
    assert set(asked) <= {"file", "data", "blob"}
    assert asked.count("file") == (2 if name == "notebook" else 1)  # it shares plotly.js with its neighbours
    assert "attacked" not in page.title().replace(EVIL, "")
    assert errors == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ink, paper = page.evaluate(
        "() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert _light(ink) < 60 < 180 < _light(paper)
    assert _light(page.locator(".plot svg.main-svg").first.evaluate("e => e.style.background")) < 60
    assert violations(page) == []
    assert set(page.evaluate(COLUMNS)) == {1}  # panels stand one below the other
    assert page.evaluate(COLLISIONS) == []
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}-390-dark.png", full_page=True)
    page.set_viewport_size({"width": 800, "height": 720})
    wait(page, lambda: name == "notebook" or max(page.evaluate(COLUMNS)) > 1)
    assert page.evaluate(COLLISIONS) == []
    page.set_viewport_size({"width": 1280, "height": 720})
    page.emulate_media(color_scheme="light")
    paint = page.locator(".plot svg.main-svg").first
    wait(page, lambda: "22, 24, 28" not in paint.evaluate("e => e.style.background"))
    assert "22, 24, 28" not in paint.evaluate("e => e.style.background")
    assert name == "notebook" or max(page.evaluate(COLUMNS)) > 1
    assert page.evaluate(COLLISIONS) == []
    page.evaluate("document.querySelector('[class^=g-x]').style.transform = 'translate(1500px)'")
    assert page.evaluate(COLLISIONS) != []  # what is cut is seen
    page.evaluate("document.querySelector('[class^=g-x]').style.transform = ''")
    page.screenshot(path=ARTIFACTS / f"{name}-1280.png", full_page=True)
    assert violations(page, "color-contrast") == []  # the other rules know no colour
    if name == "notebook":  # once: axe sees what is wrong
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img class=wrong src=data:,>')")
        assert violations(page) != []
        page.evaluate("document.querySelector('.wrong').remove()")
    if name == "slides":
        page.emulate_media(color_scheme="dark")
        assert sheets(page.pdf()) == page.locator(".slide").count()
    context.close()


def sheets(printed: bytes) -> int:
    """The pages of a PDF."""
    return len(re.findall(rb"/Type\s*/Page\b", printed))


def wait(page: Any, done: Callable[[], bool]) -> None:
    """A page's policy keeps Playwright from waiting inside it."""
    deadline = time.monotonic() + 120
    while not done() and time.monotonic() < deadline:
        page.wait_for_timeout(100)


def violations(page: Any, *rules: str) -> list[tuple[str, list[str]]]:
    """What axe finds on the page, by these rules or by all."""
    page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    found = page.evaluate("options => axe.run(options).then(r => r.violations)", options)
    return [(rule["id"], [node["html"][:300] for node in rule["nodes"]]) for rule in found]


def _light(colour: str) -> float:
    parts = [float(part) for part in re.findall(r"[\d.]+", colour)[:3]]
    return sum(parts) / 3
