"""Every script in notebooks/examples runs as a reader would run it, and what it asserts holds.

A script is short, needs no network and no argument, writes into its working folder alone, prints what it
found and asserts it. It names packages that this project does not install, as they are imported, in a comment
among its first ten lines: `# needs: bitsandbytes, distributed`. Where one is missing the script is skipped.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import sys
import textwrap
from pathlib import Path

import forked
import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "notebooks" / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
NEEDS = re.compile(r"^# needs: (.+)$", re.MULTILINE)


def run_script(path: Path) -> None:
    """Execute a script as `python path` would; skip the test where a package that it needs is missing."""
    first_lines = "\n".join(path.read_text(encoding="utf-8").splitlines()[:10])
    needed = [name.strip() for line in NEEDS.findall(first_lines) for name in line.split(",")]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{path.name} needs {', '.join(missing)}, which is not installed here")
    runpy.run_path(str(path), run_name="__main__")


@pytest.fixture
def as_a_command(tmp_path, monkeypatch):
    """An empty working folder, no arguments, and afterwards the random state and the devices as before."""
    from accelerate.state import AcceleratorState

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py"])
    before = sorted(p.name for p in FOLDER.iterdir() if p.name != "__pycache__")
    forked.serve()
    if importlib.util.find_spec("distributed"):  # Dask's workers need not import everything again
        monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD", "forkserver")
        importlib.import_module("dask.config").refresh()
    with torch.random.fork_rng():
        yield
    AcceleratorState._reset_state(True)  # a script may have asked for another precision
    assert sorted(p.name for p in FOLDER.iterdir() if p.name != "__pycache__") == before


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_runs_and_says_what_it_found(path, as_a_command, capfd):
    run_script(path)
    printed = capfd.readouterr().out
    assert re.search(r"\d", printed), "an example prints numbers that it measured"
    assert "nan" not in printed.lower().split()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_is_short_and_asserts_something(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "its first line says what it shows"
    assert len(text.splitlines()) <= 70
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree))


def test_a_script_that_is_wrong_fails_and_one_without_its_package_is_skipped(tmp_path, as_a_command):
    script = tmp_path / "wrong.py"
    script.write_text('"""Wrong."""\nassert 1 + 1 == 3\n')
    with pytest.raises(AssertionError):
        run_script(script)
    script.write_text(
        textwrap.dedent(
            '''
            """Needs what nobody has."""
            # needs: torch, no_such_package_here

            import no_such_package_here
            '''
        ).lstrip()
    )
    with pytest.raises(pytest.skip.Exception, match=r"wrong\.py needs no_such_package_here, which"):
        run_script(script)
