"""What a reader waits for: imports, the stepper's buttons, and pages to be loaded."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import measure
from benchmarks.measure import Row, compared, seconds, timed
from benchmarks.text import pydocs
from xgblora_lab.bench.hooks import Spectrum
from xgblora_lab.racing.race import FIELD, race
from xgblora_lab.report.offline import packed
from xgblora_lab.report.page import report
from xgblora_lab.report.slides import slides
from xgblora_lab.tasks.models import load_model


def imports(quick: bool) -> Iterator[Row]:
    """The wait before anything happens."""
    code = "import sys, time; t = time.perf_counter(); exec(sys.argv[1]); print(time.perf_counter() - t)"
    statements = ("import xgblora_lab", "from xgblora_lab import Bench", "import torch")
    runs = [[measure.in_a_process(code, text)[0] for text in statements] for _ in range(1 if quick else 7)]
    for i, text in enumerate(statements[:2]):
        yield compared(text, "import torch", [run[i] / run[2] for run in runs], 1.1)


def clicks(quick: bool) -> Iterator[Row]:
    """*Next round* in the stepper: the button's own callback, without a browser, in processor time."""
    code = (
        "import sys, torch; from benchmarks.waiting import pressed; torch.set_num_threads(1); "
        "print(*pressed(int(sys.argv[1])))"
    )
    runs = [measure.in_a_process(code, "2" if quick else "12") for _ in range(1 if quick else 3)]
    yield compared(
        "the stepper's first click, in seconds",
        "one second",
        [first for first, *_ in runs],
        3.0,
        detail={"of it training": statistics.median(trained for _, trained, *_ in runs)},
    )
    yield compared(
        "redraw of a later click beyond its training, in seconds",
        "one second",
        [redraw for _, _, *redraws in runs for redraw in redraws],
        0.25,
    )


def pressed(clicks: int) -> list[float]:
    """Seconds: the first click in this process, the training in it, and the redraw of each later click."""
    from xgblora_lab import Bench, XGBLoRA, load
    from xgblora_lab.widgets import Stepper

    model, task = load("lab", "planted", sequences=16, length=16)
    bench = Bench(model, task, XGBLoRA(steps_per_round=2), steps=2 * clicks, batch_size=2, probe_size=4)
    stepper = Stepper(bench)
    trained: list[float] = []
    train = stepper._train

    def watched(rounds: Any) -> bool:
        began = seconds()
        going = train(rounds)
        trained.append(seconds() - began)
        return going

    stepper._train = watched  # type: ignore[method-assign]
    spent = [timed(stepper.next_button.click) for _ in range(clicks)]
    redraws = [click - training for click, training in zip(spent, trained, strict=True)]
    return [spent[0], trained[0], *redraws[1:]]


def _spectra() -> list[Spectrum]:
    return [Spectrum(limit=16)]


def pages(quick: bool) -> Iterator[Row]:
    """Bytes of a race's pages. The race has the runs, rounds and spectra of the command line's default; its
    rows are short, which the pages do not show.
    """
    size: dict[str, Any] = {"trials": 6, "seeds": 3, "steps": 40, "steps_per_round": 10}
    if quick:
        size = {"trials": 1, "seeds": 1, "steps": 1, "steps_per_round": 1}
    methods = ("lora:r=1",) if quick else FIELD
    task = pydocs(True)
    options = {"batch_size": 1, "limit": 8, "watch": _spectra, "progress": False}
    found = race(load_model("lab", task), task, methods, **size, **options)
    limit = f"plotly.js in it, which its package ships only whole: {len(packed().tag) / 1e6:.2f} MB"
    with TemporaryDirectory() as folder:
        for what, write in (("report", report), ("slides", slides)):
            written = write(found, Path(folder) / f"{what}.html").stat().st_size
            name, detail = f"bytes of the default race's {what}", {"bytes": written}
            yield Row(name, "1 MB", written / 1e6, 1.6, limit=limit, detail=detail)
