"""What two processes of one run do, for all tests that ask: two interpreters are started once (conftest.py).

The arguments are a folder and the names of test modules. Each of these has a function `in_two_processes`, and
leaves what its tests read in a folder of its name.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        importlib.import_module(name).in_two_processes(Path(sys.argv[1]) / name)
