"""The playground: its rounds are the library's, its sentences are true, and it works as a page must."""

from __future__ import annotations

import base64
import csv
import hashlib
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from xgblora_lab import Bench, LoRA, XGBLoRA, cli, matrix
from xgblora_lab.figures._style import style
from xgblora_lab.report import playground, recorded

PATIENCE = 60_000  # milliseconds: the machine may be busy
ALL = 480  # rounds: as many as there are
NOW = {"reduced_motion": "reduce"}  # nothing moves: every click has its result at once
RUN = """
([settings, rounds]) => {
  const s = {...defaults(), ...settings}, problem = new Problem(s.spectrum, s.seed), steps = DATA.steps;
  const boosting = new Boosting(problem, {...s, steps});
  const lora = new LoRA(problem, {rank: s.lorarank, lr: s.loralr, kappa: s.kappa, steps});
  const at = boosting.stepAfter(rounds);
  const told = run => ({losses: [...run.losses], spectrum: [...run.spectrum(at)]});
  const floors = Array.from({length: SIZE + 1}, (_, rank) => problem.floor(rank));
  const ends = Array.from({length: boosting.planned + 1}, (_, t) => boosting.stepAfter(t));
  return {boosting: told(boosting), lora: told(lora), floors, ends, settings: s};
}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, written by the command."""
    out = tmp_path_factory.mktemp("site") / "playground"
    done = CliRunner().invoke(cli.app, ["playground", str(out)])
    assert done.exit_code == 0, done.output
    assert done.output == f"Playground: {out / 'index.html'}\n"
    return out / "index.html"


@pytest.fixture
def visit(browser: Any, site: Path) -> Iterator[Callable[..., Any]]:
    """Open the page from the file system: `visit(hash, **context)`. What it asks for and its errors fail."""
    contexts, wrong = [], []

    def visit(part: str = "", **context: Any) -> Any:
        contexts.append(browser.new_context(offline=True, **context))
        contexts[-1].set_default_timeout(PATIENCE)
        page = contexts[-1].new_page()
        page.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else wrong.append(r.url),
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.add_init_script(
            """
            new MutationObserver(() => {
              const line = document.querySelector("#loss path.boosting.line")?.getAttribute("d");
              if (line?.includes("L")) window.firstMoved ??= performance.now();
            }).observe(document, {subtree: true, attributes: true, attributeFilter: ["d"]});
            """
        )
        page.goto(site.as_uri() + part)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []


# The page as a file


def test_the_page_is_one_small_file_that_allows_only_itself(site: Path) -> None:
    text = site.read_text(encoding="utf-8")
    assert [p.name for p in site.parent.iterdir()] == ["index.html"]
    assert len(text.encode()) < 1_000_000
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    (css,) = re.findall(r"<style>(.*?)</style>", text, re.S)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    for name, part in {"script-src": script, "style-src": css}.items():
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"{name} &#39;sha256-{digest}&#39;" in policy or f"{name} 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert ' style="' not in text  # the policy would not let it
    assert style("xgblora").colour in css
    assert style("lora").colour in css


def test_its_sources_stay_short() -> None:
    folder = Path(recorded.__file__).parent / "templates" / "playground"
    scripts = list(folder.glob("*.js"))
    assert len(scripts) > 5
    for path in scripts:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path.name


def test_a_file_is_not_replaced_by_the_folder(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(ValueError, match=r"is a file; give the folder"):
        playground(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "mine"


def test_the_recorded_run_is_what_the_command_gives() -> None:
    shipped, again = recorded.read(), recorded.record(rounds=1)
    assert again["modules"] == shipped["modules"]
    assert again["truth"] == [pytest.approx(values, rel=1e-3) for values in shipped["truth"]]
    for name in ("boosting", "lora"):
        assert again[name]["loss"] == pytest.approx(shipped[name]["loss"][:2], rel=5e-3)
        (first,) = again[name]["spectra"]
        told = shipped[name]["spectra"][0]
        assert {m: pytest.approx(values, rel=5e-3) for m, values in told.items()} == first
        assert shipped[name]["loss"][1] != pytest.approx(shipped[name]["loss"][2], rel=5e-3)  # a round tells
        assert len(shipped[name]["loss"]) == len(shipped[name]["spectra"]) + 1 == recorded.ROUNDS + 1


# The numbers


def library(settings: dict[str, Any], rounds: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The first rounds of the same two runs by the bench, in float64: losses by step, the last spectrum."""
    s = settings
    spectrum = [1, 0.8, 0.6, 0.4] + 28 * [0.02] if s["spectrum"] == "four" else s["spectrum"]
    model, task = matrix(spectrum, seed=s["seed"])
    common = {"steps_per_round": s["kappa"], "schedule": "constant"}
    methods = {
        "boosting": XGBLoRA(rank=s["rank"], lr=s["lr"], shrinkage=s["shrinkage"], **common),
        "lora": LoRA(rank=s["lorarank"], lr=s["loralr"], **common),
    }
    found = {}
    for name, method in methods.items():
        with Bench(model.double(), task, method, steps=480, batch_size=1, seed=s["seed"]) as bench:
            history = bench.run(rounds, progress=False)
            losses = [loss for r in history for loss in r.losses] + [history[-1].probe_after]
            found[name] = torch.tensor(losses, dtype=torch.float64) / task.floor(0), bench.spectrum("matrix")
    return found


CASES = [  # settings, and rounds to compare; the next test goes to the end of a run
    ({}, 2),
    ({"kappa": 3, "lr": 0.1, "lorarank": 8}, 20),
    ({"spectrum": "exponential", "seed": 1, "rank": 2, "kappa": 10, "lr": 0.2, "shrinkage": 0.5}, 8),
    ({"spectrum": "flat", "seed": 2, "rank": 8, "kappa": 40, "lr": 0.03, "lorarank": 32}, 2),
]


@pytest.mark.browser
def test_the_pages_curves_are_the_benchs(visit: Callable[..., Any]) -> None:
    page = visit("#round=0", **NOW)
    worst = 0.0
    for case, rounds in CASES:
        here = page.evaluate(RUN, [case, rounds])
        there = library(here["settings"], rounds)
        for name, (losses, values) in there.items():
            mine = torch.tensor(here[name]["losses"][: len(losses)], dtype=torch.float64)
            worst = max(worst, float((mine - losses).abs().max()))
            spectrum = torch.tensor(here[name]["spectrum"], dtype=torch.float64)
            assert torch.allclose(spectrum[: len(values)], values, atol=1e-6), (case, name)
            assert float(spectrum[len(values) :].abs().sum()) < 1e-6
    print(f"largest difference of a loss to the bench's: {worst:.1e}")
    assert worst < 1e-6
    losses = there["boosting"][0]
    other = page.evaluate(RUN, [CASES[-1][0] | {"kappa": 30}, 1])["boosting"]["losses"]
    assert float((torch.tensor(other)[: len(losses)] - losses).abs().max()) > 0.01  # a difference is seen


@pytest.mark.browser
def test_the_python_lines_on_the_page_give_what_its_csv_holds(
    visit: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = visit("#round=3&kappa=120&rank=2&shrinkage=0.9&lorarank=4&spectrum=four&seed=1", **NOW)
    for summary in ("The numbers, round by round", "The same in Python"):
        page.get_by_text(summary).click()
    assert page.locator("#rows tr").count() == 4
    with page.expect_download() as download:
        page.get_by_role("button", name="Save every step as CSV").click()
    download.value.save_as(tmp_path / "playground.csv")
    with (tmp_path / "playground.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 481
    exec(page.locator("#code").inner_text(), {})
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(said["xgblora"]) == pytest.approx(float(rows[-1]["boosting"]), abs=1e-6)
    assert float(said["lora"]) == pytest.approx(float(rows[-1]["lora"]), abs=1e-6)
    assert float(said["lora"]) != pytest.approx(float(said["xgblora"]), abs=1e-5)


# The sentences of "Try this"


def at_ends(run: dict[str, Any]) -> list[float]:
    return [run["boosting"]["losses"][s] for s in run["ends"]]


def steps_to(losses: list[float], level: float) -> int:
    return next((s for s, loss in enumerate(losses) if loss <= level), 10_000)


def jumps(run: dict[str, Any]) -> bool:
    losses = run["boosting"]["losses"]
    return all(losses[s] > losses[s - 1] * 1.01 for s in run["ends"][1:-1])


def near_floor(losses: list[float], floors: list[float]) -> bool:
    return all(loss <= 1.02 * floor for loss, floor in zip(losses, floors, strict=False))


TRUE: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {  # (this run, the run as at first)
    "one-by-one": lambda run, _: len(run["ends"]) == 9 and near_floor(at_ends(run), run["floors"]),
    "lora-stops": lambda run, _: (
        run["lora"]["losses"][-1] == pytest.approx(0.38, abs=0.002)
        and run["floors"][1] == pytest.approx(0.38, abs=0.002)
        and at_ends(run)[-1] < run["lora"]["losses"][-1] / 20
    ),
    "lora-is-faster": lambda run, _: (
        near_floor([run["lora"]["losses"][-1], at_ends(run)[-1]], 2 * [run["floors"][8]])
        and steps_to(run["lora"]["losses"], 1.02 * run["floors"][8]) < 160
        and steps_to(run["boosting"]["losses"], 1.02 * run["floors"][8]) > 400
    ),
    "short-rounds": lambda run, _: len(run["ends"]) == 161 and run["boosting"]["losses"][-1] > 0.2,
    "small-steps": lambda run, first: (
        run["boosting"]["losses"][-1] < 0.006
        and run["boosting"]["losses"][-1] < at_ends(first)[-1] / 9
        and run["boosting"]["spectrum"][31] > 1e-4
    ),
    "long-rounds": lambda run, _: (
        len(run["ends"]) == 5
        and near_floor([run["boosting"]["losses"][s + 60] for s in run["ends"][:-1]], run["floors"][1:])
        and run["boosting"]["losses"][-1] == pytest.approx(0.118, abs=0.001)
    ),
    "shrinkage": lambda run, first: jumps(run) and at_ends(run)[-1] == pytest.approx(0.077, abs=0.001),
    "flat": lambda run, _: (
        all(before - after == pytest.approx(1 / 32, abs=0.002) for before, after in pairwise(at_ends(run)))
        and at_ends(run)[-1] == pytest.approx(0.5, abs=0.01)
    ),
    "four": lambda run, _: (
        min(before - after for before, after in pairwise(at_ends(run)[:5])) > 0.05
        and at_ends(run)[4] - at_ends(run)[8] < 0.01
    ),
    "rank-four": lambda run, _: (
        at_ends(run)[-1] < 0.001 and run["lora"]["losses"][-1] == pytest.approx(0.118, abs=0.001)
    ),
}


@pytest.mark.browser
def test_every_example_shows_what_its_sentence_says(visit: Callable[..., Any]) -> None:
    page = visit("#round=0", **NOW)
    first = page.evaluate(RUN, [{}, ALL])
    examples = page.evaluate("EXAMPLES")
    assert [e["id"] for e in examples] == list(TRUE)
    for example in examples:
        page.get_by_role("button", name=example["title"]).click()
        page.locator("#lesson").get_by_text(example["seen"]).wait_for()
        address = page.evaluate("readAddress(location.hash)")
        assert address["settings"] == page.evaluate("defaults()") | example["set"]
        run = page.evaluate(RUN, [example["set"], ALL])
        assert address["round"] == len(run["ends"]) - 1
        assert TRUE[example["id"]](run, first), example["id"]
        if example["id"] != "one-by-one":
            assert not TRUE[example["id"]](first, first), f"{example['id']} holds anyway"
    assert not TRUE["one-by-one"](page.evaluate(RUN, [{"kappa": 40}, ALL]), first)
    plain = page.evaluate(RUN, [{"kappa": 30}, ALL])  # shrinkage: three times the loss without it
    shrunk = page.evaluate(RUN, [{"kappa": 30, "shrinkage": 0.5}, ALL])
    assert 2.8 < shrunk["boosting"]["losses"][-1] / plain["boosting"]["losses"][-1] < 3.3


# The page in use


@pytest.mark.browser
def test_it_moves_within_two_seconds_and_plays_to_its_end(visit: Callable[..., Any]) -> None:
    page = visit()
    bars = (
        "[...document.querySelectorAll('#spectrum rect.bar')].map(bar => bar.getAttribute('height')).join()"
    )
    early = page.wait_for_function(f"window.firstMoved !== undefined && {bars}").json_value()
    moved = page.evaluate("window.firstMoved")
    print(f"first movement after {moved:.0f} ms")
    page.locator("#round-text", has_text="round 8 of 8").wait_for()
    assert page.evaluate(bars) != early
    page.locator("#heard", has_text="After 8 rounds").wait_for()
    assert page.evaluate("location.hash").startswith("#round=8")
    assert moved < 2000


@pytest.mark.browser
def test_a_reader_who_wants_no_movement_gets_the_result_at_once(visit: Callable[..., Any]) -> None:
    page = visit(**NOW)
    assert page.locator("#round-text").inner_text() == "round 8 of 8"


@pytest.mark.browser
def test_the_address_holds_the_state(visit: Callable[..., Any]) -> None:
    page = visit("#round=7&kappa=30&lr=0.1", **NOW)
    assert page.locator("#round-text").inner_text() == "round 7 of 16"
    assert page.locator("#kappa-text").inner_text() == "30"
    assert page.locator("#notice").is_hidden()
    page.evaluate("location.hash = '#round=2&kappa=31&colour=red'")
    page.locator("#round-text", has_text="round 2 of 16").wait_for()
    said = page.locator("#notice").inner_text()
    assert "kappa=31 is not on offer; you see the nearest, 30." in said
    assert "colour=red, which this page cannot set" in said
    assert page.locator("#lr-text").inner_text() == "0.05"
    page.evaluate("location.hash = '#tab=model&round=5&module=2'")
    page.locator("#model-round-text", has_text="round 5 of").wait_for()
    assert page.locator("#maps input").nth(2).is_checked()


@pytest.mark.browser
def test_the_keyboard_does_everything(visit: Callable[..., Any]) -> None:
    page = visit("#round=0", **NOW)
    page.get_by_role("button", name="Next round").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.locator("#round-text").inner_text() == "round 2 of 8"
    heard = page.locator("#heard").inner_text()
    assert heard.startswith("After 2 rounds, 120 steps, boosting has rank 2")
    page.get_by_role("slider", name="κ, steps per round").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#kappa-text").inner_text() == "40"
    page.locator("#round-text", has_text="round 3 of 12").wait_for()  # the same 120 steps
    assert page.locator("#heard").inner_text() != heard
    assert "kappa=40" in page.evaluate("location.hash")
    page.get_by_role("slider", name="Look at round").focus()
    page.keyboard.press("End")
    assert page.locator("#round-text").inner_text() == "round 12 of 12"
    assert page.get_by_role("button", name="Next round").is_disabled()
    page.get_by_role("tab", name="One matrix").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_role("slider", name="Look at round").focus()
    page.keyboard.press("ArrowRight")
    heard = page.locator("#heard").inner_text()
    assert "Round 1 gave a booster to" in heard
    page.locator("#maps input").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#maps input").nth(1).is_checked()
    assert page.locator("#heard").inner_text() != heard


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_and_nothing_scrolls_sideways(
    visit: Callable[..., Any], scheme: str, width: int
) -> None:
    import axe_playwright_python

    axe = Path(axe_playwright_python.__file__).parent / "axe.min.js"
    page = visit("#round=4", color_scheme=scheme, viewport={"width": width, "height": 800}, **NOW)
    page.evaluate(axe.read_text(encoding="utf-8"))
    page.get_by_text("The numbers, round by round").click()
    for tab in ("One matrix", "A language model"):
        page.get_by_role("tab", name=tab).click()
        found = page.evaluate("axe.run({resultTypes: ['violations']}).then(r => r.violations)")
        assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
    page.evaluate("document.getElementById('tab-model').removeAttribute('aria-selected')")
    page.evaluate("document.getElementById('model-next').textContent = ''")  # axe sees what is wrong
    assert page.evaluate("axe.run({resultTypes: ['violations']}).then(r => r.violations.length)") > 0
