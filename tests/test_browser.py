"""The interactive pieces in JupyterLab, as a reader meets them: a real browser, a real kernel, no network.

Screenshots go to `artifacts/`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = ROOT / "artifacts"
NEWS = Path("@jupyterlab", "apputils-extension", "notification.jupyterlab-settings")
PATIENCE = 90_000  # milliseconds: the machine may be busy

STEPPER = """\
from xgblora_lab import Bench, Hook, XGBLoRA, matrix
from xgblora_lab.widgets import Stepper

class Broken(Hook):
    broken = True

    def on_step(self, bench, step, loss):
        if self.broken and len(bench.history) == 3:
            self.broken = False
            raise RuntimeError("the hook fell off its hinge")

model, task = matrix()
bench = Bench(model, task, XGBLoRA(steps_per_round=30, lr=0.05), steps=600, batch_size=1, hooks=[Broken()])
Stepper(bench)
"""
VIEWS = """\
from synthetic import history, race
from xgblora_lab.widgets import RaceView, SpectrumExplorer

SpectrumExplorer(history(rounds=12), {"full fine-tuning": history("full", rounds=12, rank=8)})
# ---
RaceView(race(seeds=2))
# ---
import plotly.graph_objects as go
from xgblora_lab import figures

go.Figure(go.Scatter(y=[1, 2]))  # a figure that is not ours
# ---
figures.ranks(history(rounds=12))
"""
PLOTS = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => ({
  sends: plot._context.showSendToCloud,
  buttons: [...plot.querySelectorAll('.modebar-btn')].map(button => button.dataset.title ?? ''),
  drawn: plot._fullLayout.width,
  cell: plot.clientWidth,
}))"""
INK = "() => getComputedStyle(document.querySelector('.js-plotly-plot .xtick text')).fill"
FOCUS = "() => document.activeElement.textContent.trim()"
WATCH = """() => {
  window.seen = [];
  const look = () => {
    const buttons = [...document.querySelectorAll('.xgblora-panel button')];
    const button = buttons.find(found => /Next/.test(found.textContent));
    const busy = [...document.querySelectorAll('[role=status]')].map(s => s.textContent);
    window.seen.push(busy.some(text => /Training round 0 …/.test(text)) && button.disabled);
  };
  new MutationObserver(look).observe(document.querySelector('.xgblora-panel'),
    {subtree: true, childList: true, attributes: true});
}"""
CURRENT = """
() => {
  const trace = document.querySelector('.js-plotly-plot')?.data?.find(t => /under the slider/.test(t.name));
  const y = trace && (trace.y._inputArray || trace.y);
  return y ? Array.from(y).filter(v => v !== null && !Number.isNaN(v)) : null;
}
"""


class Lab(NamedTuple):
    """A JupyterLab: its address, with NAME for a notebook's, and since when it answers."""

    address: str
    since: float


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """What `xgblora-lab open` serves: the first lesson and two notebooks beside it; its own settings."""
    pytest.importorskip("jupyterlab")
    home = tmp_path_factory.mktemp("lab")
    notes = home / "notes"
    notes.mkdir()
    for name, source in (("stepper", STEPPER), ("views", VIEWS)):
        cells = [nbformat.v4.new_code_cell(part) for part in source.split("# ---\n")]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), notes / f"{name}.ipynb")
    shutil.copy(ROOT / "notebooks" / "00_start_here.ipynb", notes / "first.ipynb")
    own = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    own += ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    environment = os.environ | {name: str(home / name.lower()) for name in own}
    paths = [str(ROOT / "tests" / "offline"), str(ROOT / "tests"), str(ROOT)]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    token = secrets.token_hex(16)
    config = {"IdentityProvider": {"token": token}, "LabApp": {"expose_app_in_browser": True}}
    news = {"fetchNews": "false", "checkForUpdates": False}
    for path, chosen in (
        (home / "jupyter_config_dir" / "jupyter_lab_config.json", config),
        (home / "jupyterlab_settings_dir" / NEWS, news),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(chosen))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "xgblora_lab.cli", "open", str(notes / "first.ipynb")]
    log = (home / "log").open("wb")
    server = subprocess.Popen(
        [*command, "--no-browser", f"--port={port}"], cwd=home, env=environment, stdout=log, stderr=log
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api/status?token={token}", server, home / "log")
        yield Lab(f"{address}/lab/tree/NAME?token={token}", time.perf_counter())
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(180):
        assert server.poll() is None, f"JupyterLab ended: {log.read_text()[-2000:]}"
        try:
            urllib.request.urlopen(address, timeout=30).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not answer: {log.read_text()[-2000:]}")


@pytest.fixture
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page that reaches this machine alone; what it asked of any other fails the test, like its errors."""
    context = browser.new_context(viewport={"width": 1280, "height": 1500})
    context.set_default_timeout(PATIENCE)
    outside: list[str] = []
    errors: list[str] = []

    def gate(route: Any) -> None:
        if urlsplit(route.request.url).hostname in ("127.0.0.1", None):
            route.continue_()
        else:
            if "badge" not in route.request.url:  # Colab's and Binder's, in the lesson's head
                outside.append(route.request.url)
            route.abort()

    context.route("**/*", gate)
    page = context.new_page()
    # anywidget gives plotly.js two seconds, too few on a busy machine: then the piece draws plain figures
    slow = "[anywidget] Failed to initialize model"
    page.on("pageerror", lambda error: None if slow in str(error) else errors.append(str(error)))
    yield page
    screenshot(page, f"end-of-{request.node.name}")  # also of a test that failed
    context.close()
    assert outside == []
    assert errors == []


def run_all(page: Any, address: str, name: str) -> None:
    """Open a notebook in JupyterLab and run all its cells."""
    page.goto(address.replace("NAME", f"{name}.ipynb") + "&reset")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("^Run All Cells")).first.click()


def command(page: Any, name: str, **arguments: str) -> None:
    """Start a command of JupyterLab, without waiting for its end."""
    page.evaluate(
        "([name, given]) => { window.jupyterapp.commands.execute(name, given); }", [name, arguments]
    )


def screenshot(page: Any, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png")


def drawn(page: Any, count: int) -> list[float]:
    """The spectrum in the page, once it has so many values."""
    page.wait_for_function(f"() => ({CURRENT})()?.length === {count}")
    found: list[float] = page.evaluate(CURRENT)
    return found


def test_the_first_cell_moves_under_one_click(page: Any, lab: Lab) -> None:
    page.set_viewport_size({"width": 1280, "height": 720})
    began = lab.since
    page.goto(lab.address.replace("NAME", "first.ipynb") + "&reset")
    page.locator(".jp-Notebook .jp-CodeCell").filter(has_text="first_look()").first.click()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    kernel = time.perf_counter()
    page.keyboard.press("Shift+Enter")
    step = page.get_by_role("button", name="Next round")
    status = page.get_by_role("status").filter(has_text=re.compile("base model|Round"))
    status.filter(has_text="no round yet").wait_for()
    page.locator(".js-plotly-plot").wait_for()
    ready = time.perf_counter()
    assert not page.locator(".xgblora-asleep").is_visible()

    page.evaluate(WATCH)
    step.focus()
    page.keyboard.press("Enter")
    clicked = time.perf_counter()
    drawn(page, 1)
    picture = time.perf_counter() - clicked
    parts = (
        f"page and kernel {kernel - began:.1f} s, first cell {ready - kernel:.1f} s, click {picture:.1f} s"
    )
    whole, load = ready - began + picture, ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"from the address to the moved spectrum {whole:.1f} s ({parts}; load {load}, {os.cpu_count()} cores)"
    )
    assert True in page.evaluate("window.seen")  # the round was said and the button off before it was trained
    status.filter(has_text="Round 0 (1 of 12 planned)").wait_for()
    page.wait_for_function(f"({FOCUS})() === 'Next round'")
    page.wait_for_function(f"({PLOTS})().every(plot => Math.abs(plot.drawn - plot.cell) <= 2)")
    assert page.evaluate("document.querySelector('.xgblora-panel').getBoundingClientRect().height") <= 640
    page.evaluate("document.querySelector('.xgblora-panel').scrollIntoView({block: 'end'})")
    screenshot(page, "first-1-light")
    light = page.evaluate(INK)
    command(page, "apputils:change-theme", theme="JupyterLab Dark")
    page.wait_for_function(f"({INK})() !== '{light}'")
    assert [light, page.evaluate(INK)] == ["rgb(34, 34, 34)", "rgb(230, 230, 230)"]
    screenshot(page, "first-2-dark")
    command(page, "apputils:change-theme", theme="JupyterLab Light")
    page.wait_for_function(f"({INK})() === '{light}'")

    found = Axe().run(page, context=".xgblora-panel").response["violations"]
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []

    command(page, "kernelmenu:restart")
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    asleep = page.locator(".xgblora-asleep")
    asleep.wait_for()
    assert "run this cell again" in asleep.inner_text()


def test_the_stepper_in_jupyterlab(page: Any, lab: Lab) -> None:
    run_all(page, lab.address, "stepper")
    step = page.get_by_role("button", name="Next round")
    status = page.get_by_role("status").filter(has_text=re.compile("base model|Round|The model"))
    status.filter(has_text="no round yet").wait_for()
    screenshot(page, "stepper-0-base")

    step.click()
    status.filter(has_text="Round 0 (1 of 20 planned)").wait_for()
    first = drawn(page, 1)
    said = status.inner_text()
    step.click()
    status.filter(has_text="Round 1 ").wait_for()
    second = drawn(page, 2)
    assert second[0] == pytest.approx(first[0], rel=0.5)
    assert status.inner_text() != said
    step.click()
    status.filter(has_text="Round 2 ").wait_for()
    drawn(page, 3)
    screenshot(page, "stepper-1-three-rounds")

    handle = page.get_by_role("slider")
    handle.focus()
    page.keyboard.press("Home")
    status.filter(has_text="Round 0 ").wait_for()
    page.keyboard.press("End")
    status.filter(has_text="Round 2 ").wait_for()
    clicked = "{points: [{x: 1, xaxis: {_id: 'x2'}}]}"  # a click on round 1 of the loss
    page.evaluate(f"document.querySelector('.js-plotly-plot').emit('plotly_click', {clicked})")
    status.filter(has_text="Round 1 ").wait_for()
    drawn(page, 2)
    handle.focus()
    page.keyboard.press("End")
    status.filter(has_text="Round 2 ").wait_for()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    status.filter(has_text="Round 0 ").wait_for()
    assert drawn(page, 1) == first
    assert status.inner_text() == said
    screenshot(page, "stepper-2-scrubbed-back")

    step.click()  # the hook raises in round 3
    alert = page.get_by_role("alert").filter(has_text="RuntimeError")
    assert alert.inner_text() == "RuntimeError: the hook fell off its hinge"
    screenshot(page, "stepper-3-error")
    step.click()  # and the bench goes on
    status.filter(has_text="Round 3 ").wait_for()
    alert.wait_for(state="detached")
    drawn(page, 4)

    page.get_by_label("rounds to run").fill("500")
    run = page.get_by_role("button", name="Run", exact=True)
    run.focus()
    page.keyboard.press("Enter")
    status.filter(has_text=re.compile("Round ([6-9]|1[0-9]) ")).wait_for()
    page.wait_for_function(f"({FOCUS})() === 'Pause'")  # the next button that can be pressed
    page.keyboard.press("Enter")
    status.filter(has_text="Paused after").wait_for()
    page.wait_for_function(f"['Run', 'Next round', 'Reset'].includes(({FOCUS})())")
    assert int(re.findall(r"Paused after (\d+) of 500", status.inner_text())[0]) < 499
    screenshot(page, "stepper-4-paused")

    field = page.get_by_role("spinbutton", name="Look at round")
    field.fill("3")
    field.press("Enter")
    status.filter(has_text="Round 3 ").wait_for()
    page.get_by_role("button", name="Drop its boosters").click()
    status.filter(has_text="Out of the model: the boosters of round 3.").wait_for()
    screenshot(page, "stepper-5-dropped")
    page.get_by_role("button", name="Undo drop").click()
    status.filter(has_text="Undone: drop.").wait_for()
    assert "Out of the model" not in status.inner_text()
    page.get_by_role("button", name="Reset", exact=True).focus()
    page.keyboard.press("Enter")
    status.filter(has_text="no round yet").wait_for()
    page.wait_for_function(f"['Undo reset', 'Next round'].includes(({FOCUS})())")
    page.get_by_label("rank").fill("2")
    page.keyboard.press("Enter")
    step.click()
    drawn(page, 2)


def test_the_explorer_and_the_race_in_jupyterlab(page: Any, lab: Lab) -> None:
    run_all(page, lab.address, "views")
    status = page.get_by_role("status").filter(has_text=re.compile("After round|learning rate|method"))
    explorer, race = status.first, status.last
    race.filter(has_text="3 methods against optimizer steps").wait_for()
    page.locator(".js-plotly-plot").nth(4).wait_for()
    plots = page.evaluate(PLOTS)
    assert [plot["sends"] for plot in plots] == [False] * 5
    assert all(plot["buttons"] for plot in plots)
    assert not [title for plot in plots for title in plot["buttons"] if re.search("share|cloud", title, re.I)]
    before = drawn(page, 4)
    handle = page.get_by_role("slider").first
    handle.focus()
    page.keyboard.press("Home")
    explorer.filter(has_text="After round 0: 1 singular value").wait_for()
    assert drawn(page, 1) != before[:1]
    page.get_by_label("Reference").select_option("full fine-tuning")
    explorer.filter(has_text="Full, last round").wait_for()
    page.get_by_label("Module").select_option("model.layers.1.self_attn.q_proj")
    explorer.filter(has_text="model.layers.1.self_attn.q_proj. After").wait_for()
    screenshot(page, "explorer")
    page.get_by_label("Budget").select_option("tokens")
    race.filter(has_text="against tokens").wait_for()
    page.get_by_label("full", exact=True).uncheck()
    race.filter(has_text="2 methods against").wait_for()
    page.get_by_role("slider").last.focus()
    page.keyboard.press("ArrowRight")
    race.filter(has_text="learning rate 0.001 for all").wait_for()
    page.get_by_label("Budget").scroll_into_view_if_needed()
    screenshot(page, "race")
