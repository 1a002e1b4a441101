"""All harnesses in a row: `python -m tests.faults` prints their counts and which found something wrong.

`--quick` tries a sample of the points, lines and operations; all hostile inputs run in both. All lines of
all that writes take hours.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HARNESSES = (  # what is run, and what it is given with --quick
    (["crash.py"], ["--every", "25"]),
    (["crash.py", "--lines"], ["--every", "400"]),
    (["interrupt.py"], ["--every", "40"]),
    (["machine.py"], ["--operations", "200"]),
    (["hostile.py"], []),
)


def main() -> int:
    """Run them; returns how many found something wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a sample of each")
    chosen = parser.parse_args()
    here = Path(__file__).resolve().parent
    paths = [str(here.parent), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    wrong = []
    for (name, *given), sample in HARNESSES:
        told = " ".join([name, *given])
        print(f"\n{told}", flush=True)
        command = [sys.executable, str(here / name), *given, *(sample if chosen.quick else [])]
        if subprocess.run(command, env=environment).returncode:
            wrong.append(told)
    print("\nWrong: " + ", ".join(wrong) if wrong else "\nNothing is wrong.")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
