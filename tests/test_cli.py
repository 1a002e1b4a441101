"""The command line: help a student can read, one sentence per refusal, JupyterLab with the notebook open."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
import synthetic
import typer
from typer.testing import CliRunner

from xgblora_lab import cli
from xgblora_lab.course import gallery as gallery_room
from xgblora_lab.course import serve, sources
from xgblora_lab.course.pack import ARCHIVE

SOURCE = """\
# %% [markdown]
# # A test notebook

# %% tags=["parameters"]
profile: str = "laptop"  # "ci" | "laptop" | "classroom"
rounds: int = 3  # how many

# %%
print(profile, rounds)
"""


def package(root: Path, *, clone: bool) -> Path:
    """A folder laid out like a clone of the repository, or like an installed wheel."""
    home = root / "notebooks"
    (home / "source").mkdir(parents=True)
    (home / "source" / "01_first.py").write_text(SOURCE)
    (home / "source" / "02_second.py").write_text(SOURCE)
    sources.build(home)
    if not clone:
        (root / "xgblora_lab").mkdir()
        home.rename(root / "xgblora_lab" / "_notebooks")
    return root / "xgblora_lab"


@pytest.fixture(params=["clone", "wheel"])
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with the package laid out as a clone or as a wheel."""
    monkeypatch.setattr(sources, "_PACKAGE", package(tmp_path / "installed", clone=request.param == "clone"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of the console script."""
    monkeypatch.setattr(sys, "argv", ["xgblora-lab", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


COMMANDS = ["open", "run", "race", "report", "gallery", "playground"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    overview = CliRunner().invoke(cli.app, ["--help"]).output
    (line,) = re.findall(rf"^  {command} +(.+)", overview, flags=re.MULTILINE)
    assert line.endswith(".")
    assert not line.endswith("...")  # click cuts what is too long
    assert (
        "Usage: xgblora-lab"
        in CliRunner().invoke(cli.app, [command, "--help"], prog_name="xgblora-lab").output
    )
    parameters = typer.main.get_command(cli.app).commands[command].params  # type: ignore[attr-defined]
    assert parameters
    assert all(len(parameter.help) > 10 for parameter in parameters)


CHEAP = {  # what an example is given besides, so that it takes little; the last of an option counts
    "race": [
        "--steps=2",
        "--steps-per-round=1",
        "--trials=1",
        "--seeds=1",
        "--batch-size=2",
        "--limit=4",
        "--workers=1",
        "--max-length=16",
        "--methods=xgblora,lora:r=1",
    ],
}


def test_every_example_of_the_help_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(sources.folder(), tmp_path / "notebooks")
    monkeypatch.setattr(sources, "folder", lambda: tmp_path / "notebooks")
    monkeypatch.setattr("xgblora_lab.course.pack.board", synthetic.small_board)
    monkeypatch.chdir(tmp_path)
    opened: list[Path] = []
    monkeypatch.setattr("xgblora_lab.course.serve.jupyterlab", lambda path, *rest: opened.append(path))
    for command in COMMANDS:
        text = typer.main.get_command(cli.app).commands[command].help  # type: ignore[attr-defined]
        (example,) = re.findall(r"^Example: xgblora-lab (.+)$", text, flags=re.MULTILINE)
        assert example.split()[0] == command
        given = [*example.split(), *CHEAP.get(command, [])]
        done = CliRunner().invoke(cli.app, given)
        assert done.exit_code == 0, (example, done.output, done.exception)
    assert [path.stem for path in opened] == ["02_one_transformer"]
    for name in (
        "runs/01_one_matrix.html",
        "runs/first-race/race.json",
        "slides.html",
        "site/02_one_transformer.html",
    ):
        assert (tmp_path / name).is_file(), name
    assert 'type="range"' in (tmp_path / "slides.html").read_text(
        encoding="utf-8"
    )  # a race's spectrum scrubs
    check_site(tmp_path / "site")
    wrong = CliRunner().invoke(cli.app, ["run", "01", "-p", "rounds=8"])  # what a help once said
    assert "has no parameter rounds" in str(wrong.exception)


def check_site(site: Path) -> None:
    """One page leads to everything, and nothing on the site is fetched from elsewhere."""
    first = (site / "index.html").read_text(encoding="utf-8")
    for page in (
        "playground/index.html",
        "reference/index.html",
        "teachers/index.html",
        "02_one_transformer.html",
    ):
        assert f'href="{page}"' in first
        text = (site / page).read_text(encoding="utf-8")
        assert not re.findall(
            r"""<(?:script|img|iframe|link)[^>]+(?:src|href)=["'](?!data:|#)\w+://""", text
        ), page
    assert "Bench.rewind" in (site / "reference" / "xgblora_lab.html").read_text(encoding="utf-8")
    with zipfile.ZipFile(site / "teachers" / ARCHIVE) as pack:
        assert {"quiz.md", "00_start_here.ipynb"} <= set(pack.namelist())
        assert b"For instructors" in pack.read("README.md")


def cut(whole: Path, home: Path) -> None:
    """Copies of the notebooks that end with their parameters."""
    for path in [*whole.glob("0[0-2]*.ipynb"), *whole.glob("instructor/0[0-2]*.ipynb")]:
        notebook = nbformat.read(path, as_version=4)
        tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
        end = next(i for i, found in enumerate(tags) if "parameters" in found) + 1
        notebook.cells = [
            cell
            for cell in notebook.cells[:end]
            if cell.cell_type == "markdown" or "parameters" in cell.metadata.get("tags", [])
        ]
        target = home / path.relative_to(whole)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)
    for path in whole.glob("instructor/*.md"):
        shutil.copyfile(path, home / path.relative_to(whole))


def test_the_shell_completes_commands() -> None:
    asked = {"_XGBLORA_LAB_COMPLETE": "complete_bash", "COMP_WORDS": "xgblora-lab ra", "COMP_CWORD": "1"}
    done = CliRunner().invoke(cli.app, [], env=asked, prog_name="xgblora-lab")
    assert done.output.split() == ["race"]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['xgblora-lab', '--help']\n"
        "from xgblora_lab import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'pandas', 'plotly', 'papermill'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["run", "seven"],
            "seven is neither a file nor one of our notebooks: give a path or one of 01_first, 02_",
        ),
        (["run", "0"], "0 is neither a file"),
        (["run", "_"], "_ fits several notebooks: give a path or one of 01_first, 02_second."),
        (
            ["run", "1", "-p", "rouds=9"],
            "01_first.ipynb has no parameter rouds; it has profile (str, default",
        ),
        (["run", "1", "-p", "rounds=many"], "The parameter rounds of 01_first.ipynb is int; 'many' is not."),
        (["run", "1", "-p", "rounds"], "'rounds' is no parameter: write -p name=value."),
        (["run", "1", "--timeout", "0"], "must be more than 0 seconds"),
        (["run", "1", "--timeout", "inf"], "must be more than 0 seconds and at most 1,000,000; it is inf."),
        (["run", "1", "-p", "rounds=1", "-p", "rounds=2"], "given twice"),
        (["run", "1", "-o", "out.html", "--html"], "out.html cannot hold the executed notebook"),
        (["run", "²"], "² is neither a file"),
        (["run", "x" * 5000], "is neither a file"),
        (["open", "--port", "-1"], "--port is a number from 1 to 65535, not -1."),
        (["open", "--port", "65536"], "not 65536."),
        (["open", "."], "There are no notebooks in ."),
        (["open", "/etc/passwd"], "passwd is not a notebook"),
        (["open", "/etc"], "There are no notebooks in /etc"),
        (["gallery", "--timeout", "nan"], "it is nan."),
        (["gallery", "-n", "seven"], "seven is neither a file"),
        (["race", "--lrs", "1e-3,fast"], "'fast' is no learning rate"),
        (["race", "--workers", "0"], "--workers is a number of processes, at least 1"),
        (["race", "--data", "nosuch.csv", "--workers", "1"], "There is no file or folder 'nosuch.csv'"),
        (["report", "."], "No run in .: it holds neither race.json nor history.jsonl."),
    ],
)
def test_a_refusal_is_one_sentence_and_exit_code_2(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("xgblora-lab: ")
    assert len(error.splitlines()) == 1
    assert list(here.iterdir()) == []


def test_traceback_on_request(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli._options, "traceback", False)
    monkeypatch.setattr(sys, "argv", ["xgblora-lab", "--traceback", "run", "seven"])
    with pytest.raises(FileNotFoundError):
        cli.main()


def test_run_writes_the_notebook_and_the_page(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        call(monkeypatch, "run", "1", "--profile", "ci", "-p", "rounds=9", "-o", "out.ipynb", "--html") == 0
    )
    assert nbformat.read(here / "out.ipynb", as_version=4).cells[-1].outputs[0].text == "ci 9\n"
    assert "ci 9" in (here / "out.html").read_text()


def test_run_lists_parameters_and_protects_its_input(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", "first", "--list") == 0
    assert "rounds: int = 3  # how many" in capsys.readouterr().out
    mine = here / "mine.ipynb"
    mine.write_bytes(sources.find("2").read_bytes())
    assert call(monkeypatch, "run", "mine.ipynb", "-o", "mine.ipynb") == 2
    assert mine.read_bytes() == sources.find("2").read_bytes()


def test_report_writes_a_page(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("xgblora", "lora"):
        synthetic.history(method, rounds=3).save(here / "runs" / method / "history.jsonl")
    assert call(monkeypatch, "report", "runs/xgblora", "runs/lora", "-o", "page.html", "--title", "Two") == 0
    assert "Report: page.html" in capsys.readouterr().out
    page = (here / "page.html").read_text(encoding="utf-8")
    assert "<h1>Two</h1>" in page
    assert "2 runs of xgblora, lora" in page


def test_report_writes_images_where_it_can_and_says_so_where_not(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import plotly.graph_objects as go

    synthetic.history(rounds=3).save(here / "run" / "history.jsonl")
    arguments = ("report", "run", "--images", "slides", "--format", "svg")
    monkeypatch.setattr(go.Figure, "to_image", lambda self, **options: options["format"].encode())
    assert call(monkeypatch, *arguments) == 0
    assert "6 images and their texts: slides" in capsys.readouterr().out
    assert (here / "slides" / "01-loss.svg").read_bytes() == b"svg"
    assert (here / "report.html").is_file()

    def missing(self: go.Figure, **options: object) -> bytes:
        raise ValueError("Image export requires Kaleido.")

    monkeypatch.setattr(go.Figure, "to_image", missing)
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert "pip install kaleido" in error
    assert len(error.splitlines()) == 1


def test_open_headless_executes_and_keeps_the_readers_files(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = here / "xgblora-notebooks" / "02_second.ipynb"
    own.parent.mkdir()
    own.write_text("my work")
    theirs = {path: path.read_bytes() for path in sources.folder().rglob("*") if path.is_file()}
    assert call(monkeypatch, "open", "1", "--headless") == 0
    assert "runs/01_first.ipynb and runs/01_first.html" in capsys.readouterr().out.replace("\\", "/")
    assert nbformat.read(here / "runs" / "01_first.ipynb", as_version=4).cells[-1].outputs[0].text == "ci 3\n"
    assert own.read_text() == "my work"
    assert sorted(path.name for path in own.parent.iterdir()) == ["01_first.ipynb", "02_second.ipynb"]
    assert theirs == {path: path.read_bytes() for path in sources.folder().rglob("*") if path.is_file()}


def test_open_begins_with_the_first_notebook() -> None:
    (argument,) = (p for p in typer.main.get_command(cli.app).commands["open"].params if p.name == "notebook")  # type: ignore[attr-defined]
    assert sources.find(argument.default).stem == "00_start_here"


def test_open_takes_a_folder_of_notebooks_but_none_of_the_system(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "b.txt").touch()
    (here / "mine" / "own.ipynb").write_bytes(sources.find("2").read_bytes())
    assert serve.openable("mine") == Path("mine/own.ipynb")
    assert serve.openable("2") == sources.find("2")
    monkeypatch.setattr(serve, "_SYSTEM", ((here / "mine").relative_to(here.anchor).as_posix(),))
    with pytest.raises(ValueError, match="mine belongs to the system and is not served"):
        serve.openable(here / "mine" / "own.ipynb")


def test_a_gallery_of_chosen_notebooks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, parts = [], []

    def record(out: Path, paths: list[Path], **options: Any) -> Path:
        asked.append(paths)
        parts.append([part.name for part in options["parts"]])
        return out

    monkeypatch.setattr(gallery_room, "gallery", record)
    own = here / "own.ipynb"
    own.write_bytes(sources.find("2").read_bytes())
    assert call(monkeypatch, "gallery", "site", "-n", "2", "--notebook", str(own)) == 0
    assert call(monkeypatch, "gallery", "site", "--lessons") == 0
    assert asked == [[sources.folder() / "instructor" / "02_second.ipynb", own], None]
    assert parts == [["playground", "reference", "teachers"], []]


def fetch(address: str, tries: int = 60) -> bytes:
    """JupyterLab prints its address a moment before it listens there."""
    for remaining in reversed(range(tries)):
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return bytes(answer.read())
        except urllib.error.URLError:
            if not remaining:
                raise
            time.sleep(0.5)
    raise AssertionError


def test_open_starts_jupyterlab_on_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    source = tmp_path / "01_first.py"
    source.write_text(SOURCE)
    notebook = tmp_path / "notes" / "01_first.ipynb"
    notebook.parent.mkdir()
    notebook.write_text(sources.text(sources.convert(source)))
    command = [
        sys.executable,
        "-m",
        "xgblora_lab.cli",
        "open",
        str(notebook),
        "--no-browser",
        "--port",
        str(port),
    ]
    server = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(120, server.kill)
    watchdog.start()
    try:
        assert server.stderr is not None
        pattern = re.compile(rf"http://127\.0\.0\.1:{port}/lab/tree/01_first\.ipynb\?token=(\w+)")
        token = next((match[1] for line in server.stderr if (match := pattern.search(line))), None)
        assert token, "JupyterLab did not say where the notebook is open"
        address = f"http://127.0.0.1:{port}/api/contents/01_first.ipynb?token={token}"
        served = json.loads(fetch(address))
        assert served["type"] == "notebook"
        assert "A test notebook" in json.dumps(served["content"])
        sessions: list[Any] = []  # its kernel starts without a browser that asks for it
        while not sessions and server.poll() is None:
            time.sleep(0.2)
            sessions = json.loads(fetch(f"http://127.0.0.1:{port}/api/sessions?token={token}"))
        assert [session["path"] for session in sessions] == ["01_first.ipynb"]
    finally:
        watchdog.cancel()
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
