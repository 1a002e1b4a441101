"""The report: one file that stands alone, says in words what it draws, and scrubs without a network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from synthetic import cells, history, race

from xgblora_lab import figures
from xgblora_lab.bench.records import History
from xgblora_lab.racing import Race
from xgblora_lab.report import offline
from xgblora_lab.report.contents import histories, lead, sections
from xgblora_lab.report.page import export_images, report


class Outline(HTMLParser):
    """Headings, ids and the addresses a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if "src" in values or (tag == "link" and not str(values.get("href")).startswith("data:")):
            self.loads.append(str(values))


def outline(path: Path) -> Outline:
    parser = Outline()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def contents(path: Path) -> list[dict[str, Any]]:
    found = re.findall(
        r'<script type="application/json"[^>]*>(.*?)</script>', path.read_text(encoding="utf-8"), re.S
    )
    return [json.loads(text) for text in found]


def test_a_run_becomes_one_file_that_loads_nothing(tmp_path: Path) -> None:
    run = history(rounds=6, versions={"torch": "2.13.0"})
    path = report(run, tmp_path / "page.html")
    page = outline(path)
    text = path.read_text(encoding="utf-8")
    assert page.loads == []
    assert text.count('id="plotlyjs"') == 1  # embedded, once, packed
    assert path.stat().st_size < 2_400_000
    assert '<meta name="description" content="In 6 rounds of xgblora, 120 optimizer steps, the' in text
    assert '<link rel="icon" href="data:image' in text
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]  # no half-written file beside it
    assert len(contents(path)) == 6  # loss, spectrum, ranks, alignment, gains, costs
    for name in ("loss", "spectrum", "ranks", "alignment", "gains", "costs"):
        twin = getattr(figures, name)(run).text
        assert str(escape(twin)) in text
    assert "2.13.0" in text


def test_headings_come_in_order_and_every_control_has_a_name(tmp_path: Path) -> None:
    page = outline(report([*race(seeds=2), history()], tmp_path / "page.html", cells=cells()))
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in zip(page.headings, page.headings[1:], strict=False))
    assert len(page.ids) == len(set(page.ids))
    labelled = {values["for"] for tag, values in page.tags if tag == "label" and "for" in values}
    assert {values["id"] for tag, values in page.tags if tag == "input"} <= labelled
    plots = [values for _, values in page.tags if values.get("class") == "plot"]
    assert plots
    assert all(len(str(values["aria-label"])) > 40 for values in plots)
    targets = [str(values["href"])[1:] for tag, values in page.tags if tag == "a"]
    assert set(targets) <= set(page.ids)


def test_every_frame_of_the_spectrum_is_in_the_page(tmp_path: Path) -> None:
    run = history(rounds=9)
    spectrum = next(c for c in contents(report(run, tmp_path / "page.html")) if c["frames"])
    assert len(spectrum["frames"]) == len(spectrum["texts"]) == 9
    module = figures.spectrum(run).plot.layout.title.subtitle.text
    drawn = [v for v in spectrum["frames"][4]["data"][0]["y"] if v is not None]
    assert drawn == pytest.approx(run[4].measurements["spectrum"][module])
    assert not spectrum["plot"]["layout"].get("sliders")


def test_a_race_has_its_axes_and_a_table_row_per_method(tmp_path: Path) -> None:
    path = report(race(seeds=2), tmp_path / "race.html")
    drawn = contents(path)[0]
    assert len(drawn["axes"]) == 6  # all budgets but floating-point operations, which nobody counted
    text = path.read_text(encoding="utf-8")
    assert "<h1>xgblora against lora against full on planted</h1>" in text
    for name in ("xgblora", "lora", "full"):
        assert f"<td>{name}</td>" in text


@pytest.mark.parametrize(
    "run",
    [
        history(rounds=1),
        history(hooks=False),
        history(diverged_at=0),
        History("xgblora", rounds=history().rounds[:2]),
    ],
    ids=["one round", "no hook", "nan", "bare"],
)
def test_degenerate_runs_make_a_page(run: History, tmp_path: Path) -> None:
    path = report(run, tmp_path / "page.html")
    for drawn in contents(path):
        json.dumps(drawn, allow_nan=False)


def test_text_from_outside_cannot_become_markup(tmp_path: Path) -> None:
    run = history(rounds=2, label="</script><script>alert(1)</script>", data="<b>x</b>")
    text = report(run, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in text
    assert "<b>x</b>" not in re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)


def test_runs_are_read_from_folders_and_files(tmp_path: Path) -> None:
    one, two = history(rounds=2), history("lora", rounds=2)
    one.save(tmp_path / "a" / "history.jsonl")
    two.save(tmp_path / "b" / "history.jsonl")
    Race(race(seeds=1)).save(tmp_path / "race")
    assert [h.method for h in histories([tmp_path / "a", two])] == ["xgblora", "lora"]
    assert len(histories(tmp_path / "race")) == 9
    assert [h.to_dict() for h in histories(tmp_path / "a" / "history.jsonl")] == [one.to_dict()]
    (tmp_path / "two").mkdir()
    (tmp_path / "a").rename(tmp_path / "two" / "a")
    (tmp_path / "b").rename(tmp_path / "two" / "b")
    assert [h.method for h in histories(str(tmp_path / "two"))] == ["xgblora", "lora"]


def test_what_is_no_run_is_said_in_words_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither race\.json nor history\.json"):
        report(tmp_path, tmp_path / "page.html")
    (tmp_path / "history.jsonl").write_text('{"method": "x"}', encoding="utf-8")
    with pytest.raises(ValueError, match="not the history of a run"):
        report(tmp_path, tmp_path / "page.html")
    with pytest.raises(ValueError, match="at least one history"):
        report([], tmp_path / "page.html")
    with pytest.raises(ValueError, match="not float"):
        report(math.pi, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_story_skips_what_was_not_measured_and_says_so() -> None:
    (told,) = sections([history(hooks=False)])
    assert list(told.figures) == ["loss", "gains", "costs"]
    assert "Spectrum() hook adds it" in told.prose
    (other,) = sections([history("lora", rank=4)])
    assert "gains" not in other.figures  # equal shares of the same modules would say nothing


def test_a_race_shows_its_sweep_its_price_and_what_was_measured() -> None:
    bare = sections(race(seeds=1))[0]
    assert list(bare.figures) == ["race", "loss", "costs", "sweep", "memory"]
    measured = sections(race(seeds=1, measures=True))[0]
    assert list(measured.figures) == [*bare.figures, "forgetting", "intruders"]
    seeds = sections([history(seed=s) for s in range(2)])[0]  # one method at one rate has nothing to compare
    assert list(seeds.figures) == ["race", "loss", "costs"]
    assert "intruders" in sections([history(measures=True)])[0].figures


def test_a_race_tells_no_empty_section_and_leads_with_its_result(tmp_path: Path) -> None:
    told = sections(race(seeds=2))
    assert [section.title for section in told] == ["The race", "xgblora on planted"]
    assert all(section.figures for section in told)
    said = lead(race(seeds=2))
    assert re.fullmatch(
        r"3 methods trained on the same data in the same order. full ended with the lowest loss, 0.508; "
        r"lora with 0.553, xgblora with 0.638 \(medians over 2 seeds\).",
        said,
    )
    page = report(race(seeds=2), tmp_path / "page.html").read_text(encoding="utf-8")
    assert f'<p class="lead">{said}</p>' in page
    assert "None were recorded" not in page
    assert "not finite at the end" in lead([history(diverged_at=0)])
    assert "no finished round" in lead([History("xgblora")])


def test_a_policy_lets_only_the_pages_own_scripts_run() -> None:
    packed = offline.packed()
    said = offline.policy(["let a = 1;"], packed)
    assert "default-src 'none'" in said
    digest = base64.b64encode(hashlib.sha256(b"let a = 1;").digest()).decode()
    assert f"script-src 'sha256-{digest}' {packed.source};" in said
    assert "unsafe-inline" not in said.split("style-src")[0]
    assert "script-src 'none'" in offline.policy([])
    script = gzip.decompress(base64.b64decode(re.sub("<[^>]+>", "", packed.tag)))
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" == packed.source


def test_images_need_a_renderer_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import plotly.graph_objects as go

    with pytest.raises(ValueError, match="'png' or 'svg'"):
        export_images(history(), tmp_path / "slides", "gif")

    def missing(*args: Any, **kwargs: Any) -> bytes:
        raise ValueError("Image export requires Kaleido.")

    monkeypatch.setattr(go.Figure, "to_image", missing)
    with pytest.raises(RuntimeError, match="pip install kaleido"):
        export_images(history(), tmp_path / "slides")
    assert not (tmp_path / "slides").exists()


def test_images_come_with_their_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import plotly.graph_objects as go

    asked: list[dict[str, Any]] = []

    def drawn(self: go.Figure, **options: Any) -> bytes:
        asked.append(options)
        assert not self.layout.sliders
        return b"image"

    monkeypatch.setattr(go.Figure, "to_image", drawn)
    written = export_images(history(rounds=3), tmp_path / "slides", "svg")
    names = ["01-loss", "01-spectrum", "01-ranks", "01-alignment", "01-gains", "01-costs"]
    assert [p.name for p in written] == [f"{name}.svg" for name in names]
    assert (
        "Residual"
        not in (tmp_path / "slides" / "01-loss.txt").read_text(encoding="utf-8").splitlines()[0][:5]
    )
    assert {a["format"] for a in asked} == {"svg"}


@pytest.mark.browser
def test_a_browser_scrubs_the_page_from_the_file_system(tmp_path: Path, browser: Any) -> None:
    run = history(rounds=12)
    path = report(run, tmp_path / "page.html")
    context = browser.new_context(offline=True, bypass_csp=True)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    slider = page.get_by_label("Round", exact=True)
    plot = page.locator("figure", has=slider).locator(".plot")
    spectrum = plot.locator(".scatterlayer .trace path.js-line").nth(-3)
    plot.locator(".heatmaplayer image").wait_for(state="attached")
    before = page.evaluate("e => e.data.map(t => Array.from(t.y._inputArray || t.y))", plot.element_handle())
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    said = page.locator("output").inner_text()
    assert said == figures.spectrum(run).frame_texts[7]
    after = page.evaluate("e => e.data.map(t => Array.from(t.y._inputArray || t.y))", plot.element_handle())
    assert before != after
    assert after[-1] == pytest.approx([run[7].probe_after])
    assert spectrum.count() == 1
    hovered = "(plot, x) => plot.emit('plotly_hover', {points: [{x, xaxis: {_id: 'x2'}}]})"
    page.evaluate(f"plot => ({hovered})(plot, 3)", plot.element_handle())
    assert page.locator("output").inner_text() == figures.spectrum(run).frame_texts[3]
    assert slider.input_value() == "7"
    page.evaluate("plot => plot.emit('plotly_unhover', {})", plot.element_handle())
    assert page.locator("output").inner_text() == said
    plot.hover()
    with page.expect_download() as saved:
        plot.locator("[data-title='Download plot as SVG']").click()
    saved.value.save_as(tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text(encoding="utf-8").startswith("<svg")
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('input[type=range]').value === '11'")
    artifacts = Path(__file__).resolve().parent.parent / "artifacts"
    artifacts.mkdir(exist_ok=True)
    page.screenshot(path=artifacts / "report.png", full_page=True)
    assert errors == []
    context.close()
