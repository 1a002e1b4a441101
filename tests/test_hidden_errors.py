"""Forty ways in which a notebook hides an error: the runner finds all but two, and finds nothing in health.

Each way is a cell that papermill passes. `WAY` stands for the mark by which the finding is known.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from xgblora_lab.course import execute, hidden, watch
from xgblora_lab.course.execute import NotebookError, run_notebook

SETUP = """\
import asyncio, atexit, concurrent.futures, contextlib, io, logging, multiprocessing, os, subprocess, sys
import threading, time, traceback, warnings
import ipywidgets as w
from IPython.display import HTML, clear_output, display

class Way(Exception):
    pass

def ways(mark):
    def fail(*ignored):
        raise Way(mark)

    async def fails(seconds=0):
        await asyncio.sleep(seconds)
        raise Way(mark)

    return fail, fails
"""
PRINTED = "try:\n    fail()\nexcept Way:\n    {}"
CAUGHT = [
    # in a widget's output
    "out = w.Output()\nwith out:\n    fail()",
    "out, slider = w.Output(), w.IntSlider()\n@out.capture()\ndef f(change):\n    fail()\n"
    "slider.observe(f, 'value')\nslider.value = 3\nw.VBox([out])",
    "out = w.Output()\nwith out:\n    " + PRINTED.format("traceback.print_exc()").replace("\n", "\n    "),
    "out = w.Output()\nout.append_stdout('Traceback (most recent call last):\\nWay: WAY')",
    "out = w.Output()\nwith out:\n    fail()\nout.clear_output()",
    "@w.interact(x=3)\ndef f(x):\n    fail()",
    "out, button = w.Output(), w.Button()\nbutton.on_click(fail)\nwith out:\n    button.click()",
    # in a task
    "asyncio.create_task(fails()); None",
    "kept = asyncio.create_task(fails())",
    "late = asyncio.create_task(fails(0.8))",
    "asyncio.get_running_loop().call_soon(fail); None",
    "asyncio.get_running_loop().call_later(0.7, fail); None",
    "never = asyncio.get_running_loop().create_future()\nnever.set_exception(Way('WAY'))",
    "asyncio.get_running_loop().set_exception_handler(lambda *ignored: None)\n"
    "asyncio.get_running_loop().call_soon(fail); None",
    "gone = asyncio.create_task(asyncio.to_thread(fail))",
    # in a thread or an executor
    "t = threading.Thread(target=fail)\nt.start()\nt.join()",
    "threading.Thread(target=lambda: (time.sleep(0.9), fail()), daemon=True).start()",
    "threading.Timer(0.6, fail).start()",
    "threading.excepthook = lambda ignored: None\nthreading.Thread(target=fail).start()",
    "threading.Thread(target=sys.exit, args=('WAY',)).start()",
    "pool = concurrent.futures.ThreadPoolExecutor(1)\nheld = pool.submit(fail)",
    "pool.map(fail, [1]); None",
    "pool.submit(lambda: (time.sleep(0.5), fail())); None",
    # in another process
    "!exit 3 # WAY",
    "lines = !sh -c 'exit 3 # WAY'",
    "os.system('exit 3 # WAY'); None",
    "subprocess.run('exit 3 # WAY', shell=True, capture_output=True); None",
    "left = subprocess.Popen('sleep 0.5; exit 3 # WAY', shell=True)",
    "p = multiprocessing.get_context('fork').Process(target=os._exit, args=(3,), name='WAY')\np.start()",
    # captured or printed
    "%%capture\n" + PRINTED.format("print(traceback.format_exc())"),
    "%%capture\n" + PRINTED.format("traceback.print_exc()"),
    PRINTED.format("print(traceback.format_exc())"),
    PRINTED.format("display(HTML(f'<pre>{traceback.format_exc()}</pre>'))"),
    PRINTED.format("print(traceback.format_exc()); sys.stdout.flush(); clear_output()"),
    "with contextlib.redirect_stderr(io.StringIO()):\n    "
    + PRINTED.format("traceback.print_exc()").replace("\n", "\n    "),
    # in a log, at the end, in a destructor
    "logging.getLogger('quiet').propagate = False\nlogging.getLogger('quiet').error('WAY')",
    "atexit.register(fail); None",
    "class Deleted:\n    def __del__(self):\n        fail()\nDeleted(); None",
]
UNSEEN = [
    "try:\n    fail()\nexcept Way:\n    pass",
    "await asyncio.gather(fails(), return_exceptions=True); None",
]
HEALTHY = [
    "out = w.Output()\nwith out:\n    print('well')\nout",
    "kept = asyncio.create_task(asyncio.sleep(0.1))",
    "asked = asyncio.create_task(fails())\nwith contextlib.suppress(Way):\n    await asked",
    "forever = asyncio.create_task(asyncio.Event().wait())\nforever.cancel(); None",
    "asyncio.get_running_loop().call_later(0.1, print); None",
    "t = threading.Thread(target=print)\nt.start()",
    "with concurrent.futures.ThreadPoolExecutor(1) as pool:\n    held = pool.submit(fail)\n"
    "held.exception(); None",
    "!true",
    "lines = !true",
    "with contextlib.suppress(subprocess.CalledProcessError):\n"
    "    subprocess.run('exit 3', shell=True, check=True)",
    "stopped = subprocess.Popen(['sleep', '30'])\nstopped.terminate()",
    "p = multiprocessing.get_context('fork').Process(target=print)\np.start()",
    "%%capture\nprint('well')",
    PRINTED.format("print('handled')"),
    "logging.getLogger('quiet').info('well')",
    "atexit.register(print, 'at the end'); None",
    "atexit.register(fail)\natexit.unregister(fail)",
]
WARNED = ["warnings.warn('WAY')", "logging.getLogger('quiet').warning('WAY')"]


def write(path: Path, cells: list[str]) -> Path:
    """A notebook in which `fail`, `fails` and `WAY` of each cell have that cell's number in them."""
    sources = [
        SETUP + "".join(f"\nfail_{i:02d}, fails_{i:02d} = ways('way-{i:02d}')" for i in range(len(cells)))
    ]
    for i, cell in enumerate(cells):
        sources.append(re.sub(r"\b(fails?)\b", rf"\1_{i:02d}", cell).replace("WAY", f"way-{i:02d}"))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources]), path)
    return path


def test_at_least_38_of_40_ways_to_hide_an_error_are_found(tmp_path: Path) -> None:
    ways = [*CAUGHT, *UNSEEN]
    assert len(ways) == 40
    path = write(tmp_path / "ways.ipynb", ways + WARNED)
    with pytest.raises(NotebookError, match=r"more hidden\)") as caught:
        run_notebook(path, warnings=True, progress=False)
    found = " ".join(f"{error} {error.traceback}" for error in caught.value.hidden)
    missed = [cell for i, cell in enumerate(ways + WARNED) if f"way-{i:02d}" not in found]
    assert missed == UNSEEN
    assert all("ways.ipynb, " in str(error) for error in caught.value.hidden)


def test_what_is_handled_or_healthy_is_not_found(tmp_path: Path) -> None:
    path = write(tmp_path / "healthy.ipynb", HEALTHY + WARNED)
    result = run_notebook(path, output=tmp_path / "out.ipynb", progress=False)
    assert len(result.notebook.cells) == len(HEALTHY + WARNED) + 1  # the cell that looks is gone
    assert "xgblora" not in (tmp_path / "out.ipynb").read_text(encoding="utf-8")


def test_a_run_that_stops_without_a_word_is_found() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("stops()")])
    notebook.cells[0].metadata["papermill"] = {"start_time": "now"}
    failure = execute._hidden(notebook, "n.ipynb", False)
    assert str(failure) == "n.ipynb, cell `stops()`: failed, and its error was suppressed."
    end = nbformat.v4.new_code_cell("", metadata={"tags": [hidden.END]})
    end.outputs = [nbformat.v4.new_output("display_data", {watch.MIME: {"errors": [], "warnings": []}})]
    notebook.cells.append(end)
    assert execute._hidden(notebook, "n.ipynb", False) is None
