"""The runner finds what papermill lets pass, and leaves nothing half-written."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
import zmq
import zmq.asyncio
from filelock import FileLock
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.session import Session

from xgblora_lab.course import kernel, sources
from xgblora_lab.course.execute import NotebookError, run_notebook
from xgblora_lab.course.parameters import check_parameters, parameters_of

pytestmark = pytest.mark.usefixtures("offline_kernels")

PARAMETERS = """\
profile: str = "laptop"  # "ci" | "laptop" | "classroom"
rounds: int = 3  # how many
rate: float = 0.1
names: list = ["a"]
seed: int | None = None
flag: bool = False
untyped = 5
"""


def write(path: Path, *cells: str, parameters: str | None = None, kernel: str = "python3") -> Path:
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": kernel, "display_name": kernel}})
    if parameters:
        notebook.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    return write(tmp_path / "declared.ipynb", "print(rounds)", parameters=PARAMETERS)


def test_parameters_are_listed_with_type_default_and_help(declared: Path) -> None:
    found = parameters_of(declared)
    assert list(found) == ["profile", "rounds", "rate", "names", "seed", "flag", "untyped"]
    assert found["rounds"] == {"type": "int", "default": "3", "help": "how many"}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rounds", "9", 9),
        ("rate", "1e-3", 1e-3),
        ("rate", 2, 2.0),
        ("names", "['b', 'c']", ["b", "c"]),
        ("names", ["d"], ["d"]),
        ("seed", "none", None),
        ("seed", "7", 7),
        ("flag", "true", True),
        ("flag", False, False),
        ("untyped", "6", 6),
        ("profile", "ci", "ci"),
    ],
)
def test_text_is_read_as_the_declared_type(declared: Path, name: str, text: Any, value: Any) -> None:
    read = check_parameters(declared, {name: text})[name]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("rouds", "9", r"no parameter rouds; it has profile \(str.*rounds \(int, default 3\)"),
        ("rounds", "many", "parameter rounds of declared.ipynb is int; 'many' is not"),
        ("rounds", True, "is int; True is not"),
        ("rounds", 2.5, "is int; 2.5 is not"),
        ("seed", "x", "is int or None; 'x' is not"),
        ("names", "3", "is list; '3' is not"),
        ("flag", "perhaps", "is bool"),
        ("profile", "huge", "choose one of ci, laptop, classroom"),
    ],
)
def test_a_wrong_parameter_is_refused_with_a_sentence(declared: Path, name: str, text: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        run_notebook(declared, {name: text}, progress=False)


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no notebook"):
        run_notebook(tmp_path / "none.ipynb")
    (tmp_path / "a.py").write_text("1")
    with pytest.raises(ValueError, match=r"ends in \.ipynb"):
        run_notebook(tmp_path / "a.py")
    foreign = nbformat.v4.new_notebook(metadata={"language_info": {"name": "R"}})
    nbformat.write(foreign, tmp_path / "r.ipynb")
    with pytest.raises(ValueError, match="written in R"):
        run_notebook(tmp_path / "r.ipynb")


def test_parameters_arrive_in_this_interpreter_whatever_kernel_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "a {b} c"
    folder.mkdir()
    path = write(
        folder / "n.ipynb", "import sys\n(rounds, sys.executable)", parameters=PARAMETERS, kernel="julia"
    )
    before = path.read_bytes()
    out = tmp_path / "deep" / "out.ipynb"
    result = run_notebook(path, {"rounds": "9"}, output=out, progress=False)
    assert result.notebook.cells[-1].outputs[0].data["text/plain"] == str((9, sys.executable))
    assert path.read_bytes() == before
    assert nbformat.read(out, as_version=4) == result.notebook
    assert str(tmp_path) not in out.read_text()
    assert [p.name for p in out.parent.iterdir()] == ["out.ipynb"]


def test_a_slow_cell_is_named_and_stopped(tmp_path: Path) -> None:
    path = write(tmp_path / "slow.ipynb", "1", "import time\ntime.sleep(60)", "2")
    with pytest.raises(
        NotebookError, match=r"slow.ipynb, cell `import time`: took longer than 1 seconds"
    ) as caught:
        run_notebook(path, timeout=1, progress=False)
    assert caught.value.cell == 1


def test_a_failing_cell_is_named_and_the_old_output_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.ipynb", "print('before')", "x = 1\nraise KeyError('gone')")
    out = tmp_path / "out.ipynb"
    out.write_text("older result")
    with pytest.raises(NotebookError, match="cell `x = 1`: KeyError: 'gone'") as caught:
        run_notebook(path, output=out, html=tmp_path / "out.html", progress=False)
    assert "raise KeyError" in caught.value.traceback
    assert "\x1b" not in caught.value.traceback
    assert out.read_text() == "older result"
    assert not (tmp_path / "out.html").exists()
    assert "before" in (tmp_path / "out.failed.ipynb").read_text()


SLIDER = "import ipywidgets as w\ns, out = w.IntSlider(), w.Output()\n"
BROKEN = {
    "with Output()": SLIDER
    + "def f(change):\n    with out:\n        raise ValueError('broken callback')\n"
    + "s.observe(f, 'value')\nw.VBox([s, w.HBox([out])])",
    "capture": SLIDER
    + "@out.capture()\ndef f(change):\n    raise ValueError('broken callback')\n"
    + "s.observe(f, 'value')\nw.VBox([s, w.HBox([out])])",
}


@pytest.mark.parametrize("timeout", [0, -1, math.inf, math.nan, 1e18])
def test_a_timeout_is_a_number_of_seconds(declared: Path, timeout: float) -> None:
    with pytest.raises(ValueError, match="must be more than 0 seconds and at most 1,000,000; it is"):
        run_notebook(declared, timeout=timeout, progress=False)


def test_magics_in_the_cell_of_parameters_are_read_and_a_syntax_error_is_refused(tmp_path: Path) -> None:
    magic = write(tmp_path / "magic.ipynb", parameters="%matplotlib inline\n!ls\nrounds: int = 3  # how many")
    assert parameters_of(magic) == {"rounds": {"type": "int", "default": "3", "help": "how many"}}
    for source in ("rounds = = 3", "rounds = (3", "text = 'a"):
        path = write(tmp_path / "broken.ipynb", parameters=source)
        with pytest.raises(ValueError, match=r"`parameters` of broken\.ipynb is not Python .*; mend it"):
            parameters_of(path)


@pytest.mark.parametrize("damage", [{"cells": [1]}, {"cells": [{"cell_type": "code"}]}, {"metadata": None}])
def test_a_damaged_notebook_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    whole = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "n.ipynb").write_text(json.dumps(whole | damage), encoding="utf-8")
    with pytest.raises(ValueError, match=r"n\.ipynb is not a notebook"):
        sources.read(tmp_path / "n.ipynb")


@pytest.mark.parametrize("ours", [True, False])
def test_a_reply_that_comes_during_a_send_is_found(ours: bool, tmp_path: Path) -> None:
    client = kernel.kernel_manager({}, tmp_path)().client()  # as a run has it
    made = client.shell_channel_class if ours else AsyncZMQSocketChannel
    with ThreadPoolExecutor(1) as elsewhere:  # a browser's fixture keeps a loop in this thread
        seconds = elsewhere.submit(lambda: asyncio.run(_until_the_reply_is_seen(made))).result()
    if seconds < 2 and not ours:
        pytest.skip("jupyter_client's own channel finds it in this version or on this system")
    assert (seconds < 2) is ours


async def _until_the_reply_is_seen(made: type, timeout: float = 3) -> float:
    session = Session(key=b"key")
    with zmq.asyncio.Context() as context:
        router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        dealer.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
        channel = made(dealer, session)
        channel.send(session.msg("execute_request"))
        sender = (await router.recv_multipart())[0]
        awaited = asyncio.create_task(channel.get_msg(timeout=timeout))
        await asyncio.sleep(0.1)  # it sleeps on the socket
        session.send(zmq.Socket.shadow(router.underlying), "execute_reply", ident=sender)
        time.sleep(0.1)  # the reply is there, and the loop has not been back to see it
        channel.send(session.msg("comm_msg"))
        begun = time.monotonic()
        assert (await awaited)["msg_type"] == "execute_reply"
        context.destroy(linger=0)
    return time.monotonic() - begun


def test_folders_of_killed_runs_are_swept_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = ("xgblora-lab-run-dead", "xgblora-lab-run-alive", "xgblora-lab-run-young", "xgblora-lab-other")
    dead, alive, young, other = (tmp_path / name for name in names)
    for folder in (dead, alive, young, other):
        folder.mkdir()
        (folder / "notebook.ipynb").touch()
    with FileLock(alive / "lock"):
        for folder in (dead, alive, other):
            os.utime(folder, (0, 0))
        with kernel.scratch_folder() as scratch:
            assert {path.name for path in tmp_path.iterdir()} == {*names[1:], scratch.name}
            os.utime(scratch, (0, 0))
            with kernel.scratch_folder():  # a second run leaves the first one's folder alone
                assert scratch.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


@pytest.mark.parametrize("kind", BROKEN)
def test_an_error_hidden_in_a_widget_is_found(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "widget.ipynb", BROKEN[kind], "s.value = 3")
    papermill.execute_notebook(
        str(path), None, kernel_name="python3", progress_bar=False, execution_timeout=60
    )  # passes
    with pytest.raises(
        NotebookError, match="hidden in a widget's output: ValueError: broken callback"
    ) as caught:
        run_notebook(path, progress=False)
    assert caught.value.cell == 0


def test_a_healthy_widget_passes_and_its_state_is_dropped(tmp_path: Path) -> None:
    path = write(
        tmp_path / "widget.ipynb", BROKEN["capture"].replace("raise ValueError", "print"), "s.value = 3"
    )
    result = run_notebook(path, output=tmp_path / "out.ipynb", progress=False)
    assert "widgets" not in result.notebook.metadata
    assert "widget-view" not in (tmp_path / "out.ipynb").read_text()


def test_a_thread_that_fails_is_found(tmp_path: Path) -> None:
    cell = "import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start(); t.join()"
    path = write(tmp_path / "thread.ipynb", cell, "1")
    with pytest.raises(NotebookError, match=r"thread or task failed.*ZeroDivisionError"):
        run_notebook(path, progress=False)


FIGURE = "import plotly.graph_objects as go\ngo.Figure(go.Scatter(y=[1, 3, 2]), {{'title': 'plot {0}'}})"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    path = write(folder / "plots.ipynb", FIGURE.format(1), FIGURE.format(2) + ".show()")
    run_notebook(path, output=folder / "out.ipynb", html=folder / "out.html", progress=False)
    return folder / "out.html"


def test_the_page_holds_the_plots_and_one_copy_of_plotly_js(page: Path) -> None:
    html = page.read_text()
    assert html.count('class="plot plotly-graph-div"') == 2
    assert len(html) < 2.4e6  # one plotly.js, packed
    assert not re.search(r'<script[^>]* src=|<link[^>]* href="(?!data:)|@import|import\(', html)
    assert len((page.parent / "out.ipynb").read_text()) < 100_000


@pytest.mark.browser
def test_the_plots_are_visible_in_a_browser_without_a_network(page: Path, browser: Any) -> None:
    tab = browser.new_page()
    tab.route("http://**", lambda route: route.abort())
    tab.route("https://**", lambda route: route.abort())
    tab.goto(page.as_uri(), wait_until="load")
    tab.wait_for_selector(".scatterlayer .trace path.js-line", timeout=30_000, state="attached")
    assert tab.locator(".scatterlayer .trace").count() == 2
    boxes = tab.locator(".plot-container .scatterlayer .trace").evaluate_all(
        "traces => traces.map(t => t.getBoundingClientRect().width)"
    )
    assert min(boxes) > 100
    tab.close()
