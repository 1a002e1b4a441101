"""A lab bench for low-rank fine-tuning: boosting with rank-1 adapters, round by round.

The names are those of `__init__.pyi`. Each is imported on first use, so that `import xgblora_lab` and the
command line's `--help` stay quick.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
