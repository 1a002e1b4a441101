"""The playground: one page on which boosting rounds run in the browser, ready for a static web server."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from xgblora_lab import seeds
from xgblora_lab.figures import _style
from xgblora_lab.files import write_text
from xgblora_lab.tasks.matrix import singular_directions

SIZE, STEPS, SEEDS = 32, 480, (0, 1, 2)  # of the matrix problem; SEEDS are those that the page offers
SCRIPTS = ("engine", "state", "draw", "charts", "tiles", "examples", "numbers", "matrix", "lab", "main")


def playground(out: str | Path) -> Path:
    """Write the playground: a page that needs no server, no network and no installation.

    On its first tab the learner runs boosting beside LoRA on one matrix. The rounds are computed in the page,
    number for number as `Bench` computes them in float64. On the second tab a recorded run of the lab model
    is scrubbed round by round.

    Parameters
    ----------
    out : str or Path
        The folder of the page, made where it is missing. Its address on a web server is the page's.

    Returns
    -------
    Path
        The page, `out/index.html`.

    Raises
    ------
    ValueError
        `out` is a file.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give the folder that the page's index.html goes into.")
    write_text(out / "index.html", _page())
    return out / "index.html"


def _page() -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("xgblora_lab.report", "templates/playground"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.policies["json.dumps_kwargs"] = {"allow_nan": False}

    def text(name: str) -> str:
        assert templates.loader is not None
        return templates.loader.get_source(templates, name)[0]

    script = text("data.js") + "".join(text(f"{name}.js") for name in SCRIPTS)
    colours = {"boosting": _style.style("xgblora").colour, "lora": _style.style("lora").colour}
    css = templates.get_template("style.css").render(colours=colours, font=_style.FONT)
    return templates.get_template("page.html").render(
        data=_data(),
        script=script,
        script_hash=_hash(script),
        style=css,
        style_hash=_hash(css),
    )


def _data() -> dict[str, Any]:
    """What the page needs from here: how the matrix problem begins, for every seed, and the recorded run."""
    import torch

    from xgblora_lab.report import recorded  # here, so that `python -m` finds it not yet imported

    directions = {}
    for seed in SEEDS:
        U, V = singular_directions(SIZE, SIZE, SIZE, torch.Generator().manual_seed(seed))
        directions[seed] = {"U": _packed(U), "V": _packed(V)}
    return {
        "size": SIZE,
        "steps": STEPS,
        "directions": directions,
        # Of the generator of every round's A. torch seeds its Mersenne twister with the lower 32 bits.
        "seeds": {seed: [seeds.seed_of("A", seed, t) & 0xFFFFFFFF for t in range(STEPS)] for seed in SEEDS},
        "run": recorded.read(),
    }


def _packed(values: Any) -> str:
    """A float64 tensor as base64, row after row, in the byte order of every browser."""
    return base64.b64encode(values.contiguous().numpy().astype("<f8").tobytes()).decode("ascii")


def _hash(text: str) -> str:
    """The source of an inline script or style in a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
