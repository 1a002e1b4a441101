"""A run or a race as a page or as slides, and the playground."""

from xgblora_lab.report.page import export_images, report
from xgblora_lab.report.playground import playground
from xgblora_lab.report.slides import slides

__all__ = ["export_images", "playground", "report", "slides"]
