"""The command line's `race`: its options, and the one call of the library that they become."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from xgblora_lab.bench.hooks import Hook


class Precision(str, Enum):
    """Arithmetic of the forward and backward pass."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"
    auto = "auto"


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
            "the worse two thirds (of few, all but three) end after half of the steps."
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
    precision: Annotated[
        Precision, typer.Option(help="Mixed precision; `auto`: bf16 where it is the faster here.")
    ] = Precision.no,
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
    """Race several methods over the same data, in the same order.

    Every method has the same number of trials over its own knobs, chosen by the score on dev; then it runs
    with several seeds. The table says who is ahead of LoRA, who is behind, and what cannot be told, and shows
    peak and total trainable parameters, time and optimizer memory beside the scores. The defaults are a first
    look in minutes; a race that decides takes more steps and seeds. Ctrl-C stops it; the same command goes
    on. Table, settings and histories are in the folder --out.

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
    from xgblora_lab.cli_live import print_result, shown
    from xgblora_lab.racing.processes import workers as workers_
    from xgblora_lab.racing.race import race as race_

    try:
        with workers_(workers) as executor, shown(getattr(executor, "count", 1)) as progress:
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
                watch=_spectra,
                precision=precision.value,
                out=out,
                executor=executor,
                progress=progress,
                **{name: value for name, value in named.items() if value is not None},
            )
    except KeyboardInterrupt:
        kept = len(list((out / "runs").glob("*.json")))
        typer.echo(
            f"Stopped. Finished runs in {out}: {kept}. Give the same command again, and the race goes on.",
            err=True,
        )
        raise typer.Exit(130) from None
    if precision is Precision.auto:
        typer.echo(f"Mixed precision: {result.settings['precision']}, the faster one where this race began.")
    print_result(result)
    typer.echo(f"All columns: {out / 'table.md'}; for the figures: xgblora-lab report {out} -o race.html")


def _spectra() -> list[Hook]:
    """What a report scrubs through: the head of the spectrum in every round."""
    from xgblora_lab.bench.hooks import Spectrum

    return [Spectrum(limit=16)]


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(f"{text.strip()!r} is no learning rate: give positive numbers such as 1e-3,1e-2.")
    return value
