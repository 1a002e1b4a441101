"""The command line: open the notebooks, run one, race methods, report on runs.

Every command is a thin call of the library. What is refused there is one sentence here, on stderr, and exit
code 2; `--traceback` shows where it came from.
"""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from xgblora_lab import cli_race

app = typer.Typer(
    name="xgblora-lab",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
_options = {"traceback": False}


class Profile(str, Enum):
    """How much a notebook computes."""

    ci = "ci"
    laptop = "laptop"
    classroom = "classroom"


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
    """A lab bench for low-rank fine-tuning: XGBLoRA round by round, beside LoRA and full fine-tuning."""
    _options["traceback"] = traceback


@app.command("open")
def open_(
    notebook: Annotated[
        str, typer.Argument(help="A notebook by number, name or path, or a folder: 2, one_matrix, my.ipynb.")
    ] = "00",
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

    Example: xgblora-lab open 2

    The notebooks are copied to ./xgblora-notebooks first; what is already there is yours and stays as it is.
    Stop it with Ctrl-C.
    """
    from xgblora_lab.course import serve, sources

    serve.check_port(port)
    path = serve.openable(notebook)
    if path.parent == sources.folder():
        path = sources.working_copy() / path.name
    if headless:
        _execute(path, {"profile": "ci"}, Path("runs") / path.name, html=True, timeout=600)
    else:
        serve.jupyterlab(path, port, no_browser)


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
    warnings: Annotated[
        bool, typer.Option("--warnings", help="Let a warning end the run like an error.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the notebook's parameters and leave.")] = False,
) -> None:
    """Execute a notebook from top to bottom and keep the result.

    Example: xgblora-lab run 01 --profile ci -p seed=1 --html

    An unknown parameter, a value of the wrong type, a cell that takes too long and a hidden error (in a
    widget, a task, a thread, a shell command, a captured or logged traceback) each end the run with a
    sentence.
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
    pairs = [_assignment(text) for text in parameter or []]
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("A parameter is given twice: write -p name=value once for each.")
    if profile is not None:
        values["profile"] = profile.value
    out = out or Path("runs") / path.with_suffix(".ipynb").name
    _execute(path, values, out, html=html, timeout=timeout, warnings=warnings)


app.command()(cli_race.race)


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
    """Write a run or a race as one page that needs no network.

    It opens by double click, and its figures scrub without a kernel.

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
    out: Annotated[Path, typer.Argument(help="Folder for the site.")] = Path("gallery"),
    notebook: Annotated[
        list[str] | None,
        typer.Option("--notebook", "-n", help="Only this one, by number, name or path; repeatable."),
    ] = None,
    profile: Annotated[
        Profile, typer.Option(help="Size of the runs: ci, laptop (as the notebooks stand), classroom.")
    ] = Profile.laptop,
    timeout: Annotated[float, typer.Option(help="Seconds that one cell may take.")] = 600,
    lessons: Annotated[
        bool, typer.Option("--lessons", help="The notebooks' pages and their index alone.")
    ] = False,
) -> None:
    """Make the site: lessons, playground, reference, teacher's pack.

    Example: xgblora-lab gallery site --profile ci -n 02

    Every notebook is executed, solutions included, and becomes a page. An index leads to all of it, and every
    link is checked. Publish the folder, or open its index.html by double click: nothing is fetched.
    """
    from xgblora_lab.course.gallery import gallery as gallery_
    from xgblora_lab.course.gallery import solved
    from xgblora_lab.course.site import PARTS

    paths = [solved(name) for name in notebook] if notebook else None
    if profile is Profile.ci:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    made = gallery_(out, paths, profile=profile.value, timeout=timeout, parts=() if lessons else PARTS)
    typer.echo(f"Gallery: {made}")


@app.command()
def playground(
    out: Annotated[Path, typer.Argument(help="Folder for the page, index.html.")] = Path("playground"),
) -> None:
    """Write a page on which boosting rounds run in the browser.

    It needs no server and no network: open it by double click, or publish the folder.

    Example: xgblora-lab playground site/playground
    """
    from xgblora_lab.report.playground import playground as playground_

    typer.echo(f"Playground: {playground_(out)}")


def _execute(
    path: Path, values: dict[str, Any], out: Path, *, html: bool, timeout: float, warnings: bool = False
) -> None:
    """Run, then say where the result lies."""
    from xgblora_lab.course.execute import run_notebook

    if out.suffix != ".ipynb" or out.is_dir():
        raise ValueError(f"{out} cannot hold the executed notebook: give --out a file that ends in .ipynb.")

    if out.resolve() == path.resolve():
        raise ValueError(f"{out} is the notebook itself; choose another name for the result with --out.")
    if values.get("profile") == "ci":
        # on matrices as small as these, threads only wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    page = out.with_suffix(".html") if html else None
    result = run_notebook(path, values, output=out, html=page, timeout=timeout, warnings=warnings)
    typer.echo(f"{path.name} ran in {result.seconds:.0f} s: {out}" + (f" and {page}" if page else ""))


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise ValueError(f"{text!r} is no parameter: write -p name=value.")
    return name, value


def main() -> None:
    """Run the console script: whatever goes wrong is one sentence on stderr and exit code 2 (1: a fault)."""
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        _refuse(error)
    raise SystemExit(code if isinstance(code, int) else 0)


def _refuse(error: Exception) -> NoReturn:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        raise SystemExit(2) from None
    if _options["traceback"]:
        sys.stderr.write(getattr(error, "traceback", ""))  # the kernel's, for a notebook
        raise error
    sentence, code = _sentence(error)
    sys.stderr.write(f"xgblora-lab: {sentence}\n")
    raise SystemExit(code) from None


def _sentence(error: Exception) -> tuple[str, int]:
    """What went wrong and what to do, on one line, and the exit code."""
    text = " ".join(str(error).split())
    if hasattr(error, "format_message"):  # of the command line's own parser
        command = getattr(getattr(error, "ctx", None), "command_path", None) or "xgblora-lab"
        return f"{' '.join(error.format_message().split()).rstrip('.')}. See `{command} --help`.", 2
    if isinstance(error, typer.Abort):
        return "Stopped.", 1
    if isinstance(error, MemoryError):
        return "The memory does not suffice; take a smaller model, batch or rank, or fewer workers.", 2
    if isinstance(error, OSError) and error.strerror:
        name = str(error.filename or "")
        place = f"{name if len(name) <= 200 else name[:80] + '…'}: " if name else ""
        return f"{place}{error.strerror.lower()}; give another path, or change this one.", 2
    if isinstance(error, ValueError | OSError | RuntimeError | ImportError):
        return text or type(error).__name__, 2
    return (
        f"A fault of xgblora-lab, or input that it does not foresee ({type(error).__name__}: {text}). "
        "Repeat it as `xgblora-lab --traceback …` and report what that shows.",
        1,
    )


if __name__ == "__main__":
    main()
