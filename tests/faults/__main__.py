"""`python -m tests.faults crash` runs one of the harnesses beside this file; what follows are its options."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent

if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    names = sorted(
        path.stem for path in HERE.glob("[a-z]*.py") if "def main(" in path.read_text(encoding="utf-8")
    )
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        sys.exit(f"Name a harness: {', '.join(names)}.")
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__")
