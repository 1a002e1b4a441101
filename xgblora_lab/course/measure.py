"""What the lessons take to compute: `python -m xgblora_lab.course.measure`, or with numbers, some of them.

Each runs in its `laptop` profile. The processor's seconds count, so that a busy machine does not. They go to
`notebooks/source/seconds.json`, one by one, and from there into the heads at the next build; those of the
sections go to `sections.json`.
"""

from __future__ import annotations

import json
import sys

from xgblora_lab.course import sources
from xgblora_lab.course.execute import run_notebook
from xgblora_lab.course.times import SECONDS, SECTIONS, by_section, measured
from xgblora_lab.files import write_text


def main() -> int:
    """Run the notebooks that are named by number, else all."""
    source = sources.folder() / "source"
    chosen = sys.argv[1:]
    for path in sources.shipped():
        if chosen and path.stem[:2] not in chosen:
            continue
        run = run_notebook(path, {"profile": "laptop"}, timeout=1200)
        seconds = measured(source) | {path.stem: round(run.cpu_seconds or run.seconds)}
        write_text(source / SECONDS, json.dumps(seconds, indent=1, sort_keys=True) + "\n")
        number = path.stem[:2]
        others = {k: v for k, v in measured(source, SECTIONS).items() if not k.startswith(number)}
        parts = others | by_section(run.notebook, number, run.cpu_seconds)
        parts = dict(sorted(parts.items(), key=lambda item: item[0][:2]))  # the order inside a notebook stays
        write_text(source / SECTIONS, json.dumps(parts, indent=1, ensure_ascii=False) + "\n")
        sys.stdout.write(f"{path.stem}: {seconds[path.stem]} s\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
