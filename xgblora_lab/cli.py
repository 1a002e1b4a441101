"""The command line: open the notebooks, run one, race methods, report on runs.

Every command is a thin call of the library. What is refused there is one sentence here, on stderr, and exit
code 2.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(
    name="xgblora-lab",
    help="A lab bench for low-rank fine-tuning: XGBLoRA round by round, beside LoRA and full fine-tuning.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_options = {"traceback": False}


class Profile(str, Enum):
    """How much a notebook computes."""

    ci = "ci"
    laptop = "laptop"
    classroom = "classroom"


class Precision(str, Enum):
    """Arithmetic of the forward and backward pass."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


class ImageFormat(str, Enum):
    """Images of figures: pixels, or lines that scale."""

    png = "png"
    svg = "svg"


def _version(value: bool) -> None:
    if value:
        from xgblora_lab import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the whole traceback of an error, for a bug report.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Keep what holds for every command."""
    _options["traceback"] = traceback


@app.command("open")
def open_(
    notebook: Annotated[
        str, typer.Argument(help="A notebook by number, name or path: 2, one_matrix, my.ipynb.")
    ] = "01",
    headless: Annotated[
        bool,
        typer.Option(
            "--headless", help="Execute the notebook without JupyterLab (small parameters), then stop."
        ),
    ] = False,
    port: Annotated[
        int, typer.Option(help="Port on 127.0.0.1; the next free one is taken if it is in use.")
    ] = 8888,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address, open no browser.")
    ] = False,
) -> None:
    """Start JupyterLab on the notebooks, with the first one open.

    From a clone, JupyterLab works in the repository's folder `notebooks`. From an installed package, the
    notebooks are copied to ./xgblora-notebooks first; what is already there is yours and stays as it is. Stop
    it with Ctrl-C.
    """
    from xgblora_lab.course import sources

    path = sources.find(notebook)
    if path.parent == sources.folder():
        path = sources.working_copy() / path.name
    if headless:
        _execute(path, {"profile": "ci"}, Path("runs") / path.name, html=True, timeout=600)
    else:
        _jupyterlab(path, port, no_browser)


@app.command()
def run(
    notebook: Annotated[
        str, typer.Argument(help="A notebook by number, name or path: 2, one_matrix, my.ipynb.")
    ],
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter", "-p", metavar="NAME=VALUE", help="Set a parameter of the notebook; repeatable."
        ),
    ] = None,
    profile: Annotated[
        Profile | None,
        typer.Option(
            help="Size of the run: ci (under a minute or two), laptop (as the notebook stands), classroom."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The executed notebook.  [default: runs/NOTEBOOK.ipynb]"),
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="Also write a page beside it whose plots show without a network.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that one cell may take.")] = 600,
    list_: Annotated[bool, typer.Option("--list", help="List the notebook's parameters and leave.")] = False,
) -> None:
    """Execute a notebook from top to bottom and keep the result.

    Example: xgblora-lab run 01 -p rounds=8 --html

    An unknown parameter, a value of the wrong type, a cell that takes too long and an error hidden in a
    widget each end the run with a sentence.
    """
    from xgblora_lab.course import sources
    from xgblora_lab.course.parameters import parameters_of

    path = sources.find(notebook)
    if list_:
        for name, p in parameters_of(path).items():
            typer.echo(
                f"{name}: {p['type'] or 'any'} = {p['default']}" + (f"  # {p['help']}" if p["help"] else "")
            )
        return
    values = dict(_assignment(text) for text in parameter or [])
    if profile is not None:
        values["profile"] = profile.value
    _execute(path, values, out or Path("runs") / path.name, html=html, timeout=timeout)


@app.command()
def race(
    model: Annotated[str, typer.Option(help="`lab` (shipped), a folder, or a hub id.")] = "lab",
    data: Annotated[
        str,
        typer.Option(
            help="pydocs, planted, a CSV / TSV / JSONL file, a folder with train, dev, test; a hub id."
        ),
    ] = "pydocs",
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated; options after colons: xgblora:k=25:modules=0.3,lora:r=8,full:lr=1e-4. "
            "`all`: every method."
        ),
    ] = "xgblora,lora:r=1,lora:r=8,full",
    trials: Annotated[
        int,
        typer.Option(
            help="Trials of every method over learning rates a quarter decade apart and its own knobs; "
            "the worse two thirds end after a third of the steps."
        ),
    ] = 6,
    lrs: Annotated[
        str | None,
        typer.Option(help="Try exactly these learning rates, for every method alike, and nothing else."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds that the chosen knobs run with.")] = 3,
    steps: Annotated[int, typer.Option(help="Optimizer steps of every run.")] = 40,
    steps_per_round: Annotated[
        int,
        typer.Option(
            help="Steps of a round of methods that do not merge; the others tune it (fix it: k=25)."
        ),
    ] = 10,
    schedule: Annotated[str, typer.Option(help="Learning rate over the run, for example linear.")] = "linear",
    warmup: Annotated[int, typer.Option(help="Steps of warm-up at the start of a run.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 8,
    targets: Annotated[
        str, typer.Option(help="`all-linear`, `attention`, or comma-separated names and patterns of modules.")
    ] = "all-linear",
    limit: Annotated[int | None, typer.Option(help="Score at most so many rows of dev and of test.")] = 200,
    precision: Annotated[Precision, typer.Option(help="Mixed precision.")] = Precision.no,
    kind: Annotated[
        str | None,
        typer.Option(
            help="classification, regression, causal-lm, prompt-answer or seq2seq-lm; else guessed."
        ),
    ] = None,
    text: Annotated[str | None, typer.Option(help="Column of the text.")] = None,
    text_b: Annotated[str | None, typer.Option(help="Column of the second text of a pair.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of the label.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens per row; longer rows are cut.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="What to rank by, for example matthews; else the kind's usual score.")
    ] = None,
    spectrum: Annotated[
        str | None, typer.Option(help="Of the planted update: 1/i, exponential or flat (`--data planted`).")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that share the runs.  [default: as many as cores, up to 4]"),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the table and the histories; an interrupted race goes on there.")
    ] = Path("runs/race"),
) -> None:
    """Race several methods over the same data, order and number of steps; print one row per method.

    Every method has the same number of trials over its own knobs, chosen by the score on dev; then it runs
    with several seeds. The table says who is ahead of LoRA, who is behind, and what cannot be told, and shows
    peak and total trainable parameters, time and optimizer memory beside the scores. The defaults are a first
    look in minutes; a race that decides takes more steps and seeds.

    Example: xgblora-lab race --methods xgblora,lora:r=8,full --steps 200 --out runs/first-race
    """
    grid = [_positive(rate) for rate in lrs.split(",")] if lrs is not None else None
    named: dict[str, Any] = {
        "kind": kind,
        "text": text,
        "text_b": text_b,
        "label": label,
        "max_length": max_length,
        "metric": metric,
        "spectrum": spectrum,
    }
    from xgblora_lab.racing.race import race as race_

    with _workers(workers) as executor:
        result = race_(
            model,
            data,
            methods if methods == "all" else [method.strip() for method in methods.split(",")],
            lrs=grid,
            trials=trials,
            seeds=seeds,
            steps=steps,
            steps_per_round=steps_per_round,
            schedule=schedule,
            warmup=warmup,
            batch_size=batch_size,
            targets=[target.strip() for target in targets.split(",")] if "," in targets else targets,
            limit=limit,
            hooks=_spectra,
            precision=precision.value,
            out=out,
            executor=executor,
            **{name: value for name, value in named.items() if value is not None},
        )
    typer.echo(str(result))
    typer.echo(f"Table, settings and histories: {out}")


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders or JSON files of runs or races, told in one report."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page: one file, no network needed.")] = Path(
        "report.html"
    ),
    title: Annotated[
        str | None, typer.Option(help="Heading of the page.  [default: who ran on what]")
    ] = None,
    slides: Annotated[
        bool, typer.Option("--slides", help="Slides in place of the report: one figure to a screen.")
    ] = False,
    images: Annotated[
        Path | None, typer.Option(help="Folder for every figure as an image too; needs kaleido and Chrome.")
    ] = None,
    format_: Annotated[ImageFormat, typer.Option("--format", help="Kind of the images.")] = ImageFormat.png,
) -> None:
    """Write a run or a race as one page that opens by double click and scrubs without a kernel.

    Example: xgblora-lab report runs/first-race -o slides.html --slides
    """
    from xgblora_lab.report.page import export_images
    from xgblora_lab.report.page import report as report_
    from xgblora_lab.report.slides import slides as slides_

    sources = list(runs)
    write, name = (slides_, "Slides") if slides else (report_, "Report")
    typer.echo(f"{name}: {write(sources, out, title=title)}")
    if images is not None:
        try:
            written = export_images(sources, images, format_.value)
        except RuntimeError as error:  # a renderer is missing: the sentence says what to install
            raise ValueError(str(error)) from error
        typer.echo(f"{len(written)} images and their texts: {images}")


@app.command()
def gallery(
    out: Annotated[Path, typer.Argument(help="Folder for the pages and their index.")] = Path("gallery"),
    profile: Annotated[
        Profile, typer.Option(help="Size of the runs: ci, laptop (as the notebooks stand), classroom.")
    ] = Profile.laptop,
    timeout: Annotated[float, typer.Option(help="Seconds that one cell may take.")] = 600,
) -> None:
    """Execute every notebook, solutions included, to pages with an index, and check their links.

    Example: xgblora-lab gallery site --profile ci
    """
    from xgblora_lab.course.gallery import gallery as gallery_

    if profile is Profile.ci:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    typer.echo(f"Gallery: {gallery_(out, profile=profile.value, timeout=timeout)}")


def _execute(path: Path, values: dict[str, Any], out: Path, *, html: bool, timeout: float) -> None:
    """Run, then say where the result lies."""
    from xgblora_lab.course.execute import run_notebook

    if out.resolve() == path.resolve():
        raise ValueError(f"{out} is the notebook itself; choose another name for the result with --out.")
    if values.get("profile") == "ci":
        # on matrices as small as these, threads only wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    page = out.with_suffix(".html") if html else None
    result = run_notebook(path, values, output=out, html=page, timeout=timeout)
    typer.echo(f"{path.name} ran in {result.seconds:.0f} s: {out}" + (f" and {page}" if page else ""))


def _jupyterlab(path: Path, port: int, no_browser: bool) -> None:
    from jupyterlab.labapp import LabApp

    root = path.resolve().parent
    arguments = [
        str(root),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        f"--ServerApp.root_dir={root}",
        f"--LabApp.default_url=/lab/tree/{path.name}",
    ]
    if no_browser:
        arguments.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--allow-root")  # a container: the server is on the loopback, behind its token
    LabApp.launch_instance(argv=arguments)


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise ValueError(f"{text!r} is no parameter: write -p name=value.")
    return name, value


@contextmanager
def _workers(count: int | None) -> Iterator[Executor | None]:
    """Processes to run in; none where one is enough."""
    if count is None:
        count = min(4, os.cpu_count() or 1)
    if count < 1:
        raise ValueError(f"--workers is a number of processes, at least 1; got {count}.")
    if count == 1:
        yield None
        return
    from xgblora_lab.racing.processes import Processes

    executor = Processes(count)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _spectra() -> list[Any]:
    """The hooks of a race's runs: a report needs the spectrum's head to be scrubbed."""
    from xgblora_lab.bench.hooks import Spectrum

    return [Spectrum(limit=16)]


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ValueError(f"{text.strip()!r} is no learning rate: give positive numbers such as 1e-3,1e-2.")
    return value


def main() -> None:
    """Run the console script: an error that the library explains is one sentence and exit code 2."""
    try:
        app()
    except (FileNotFoundError, ValueError) as error:
        _refuse(error)
    except RuntimeError as error:
        from xgblora_lab.course.execute import NotebookError  # here, so that `--help` stays quick

        if not isinstance(error, NotebookError):
            raise
        _refuse(error)


def _refuse(error: Exception) -> NoReturn:
    if _options["traceback"]:
        sys.stderr.write(getattr(error, "traceback", ""))  # the kernel's, for a notebook
        raise error
    sys.stderr.write(f"xgblora-lab: {error}\n")
    raise SystemExit(2) from None


if __name__ == "__main__":
    main()
