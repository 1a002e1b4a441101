"""What turns sources into lessons: notebooks, their parameters, their execution, self-checks, the gallery."""

from xgblora_lab.course import check

__all__ = ["check"]
