"""Slides: the report's figures, one to a screen, in one HTML file that needs no network and no kernel."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from xgblora_lab.bench.records import History
from xgblora_lab.report.contents import Section, Source, histories, sections
from xgblora_lab.report.page import SCRIPT, figure_html, heading_of, scores_html, write_page


def slides(source: Source, path: str | Path, *, title: str | None = None, cells: Any = None) -> Path:
    """Write the figures of `report(source, …)` to `path` as slides, whole or not at all; return the path.

    source, title, cells: as for `report`. A first slide with the title, then one for every figure, with its
    sentence and, where it scrubs, its slider. The keys → and ←, page down and page up, and scrolling lead on
    and back; printing gives one page per slide. Raises FileNotFoundError or ValueError for a source without a
    history.
    """
    runs = histories(source)
    told = sections(runs, cells)
    return write_page(path, _page(title or heading_of(runs), told, runs))


def _page(heading: str, told: list[Section], runs: list[History]) -> str:
    from plotly.offline import get_plotlyjs

    drawn = [(section.title, figure) for section in told for figure in section.figures.values()]
    body = "\n".join(
        f'<section class="slide" aria-label="Slide {number + 1} of {len(drawn) + 1}">\n'
        f'<p class="part">{escape(part)}<span>{number + 1} / {len(drawn) + 1}</span></p>\n'
        f"{figure_html(number, figure, level=2, table=False)}\n</section>"
        for number, (part, figure) in enumerate(drawn, 1)
    )
    parts = "".join(f"<li>{escape(section.title)}</li>" for section in told if section.title != heading)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(heading)}</title>
<style>{STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<main>
<section class="slide first" aria-label="Slide 1 of {len(drawn) + 1}">
<h1>{escape(heading)}</h1>
{f"<ul>{parts}</ul>" if parts else ""}
{scores_html(runs)}
<p class="keys"><kbd>→</kbd> and <kbd>←</kbd> lead on and back.</p>
<noscript><p><strong>The figures need JavaScript; their sentences do not.</strong></p></noscript>
</section>
{body}
</main>
<script>{SCRIPT}{KEYS}</script>
</body>
</html>
"""


# A figure fills what the words leave of the screen, but is never squeezed below a readable height: a tall one
# (many modules) makes its slide taller than the screen, and scrolls.
STYLE = """
:root { color-scheme: light; scroll-snap-type: y proximity; }
body { font: 20px/1.4 "Open Sans", "DejaVu Sans", Arial, sans-serif; color: #222; background: #fff;
  margin: 0; }
.slide { box-sizing: border-box; min-height: 100vh; padding: 1.2rem 3vw; scroll-snap-align: start;
  display: flex; flex-direction: column; }
.first { justify-content: center; padding: 0 10vw; }
h1 { font-size: 2.6rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.5rem; line-height: 1.2; margin: 0 0 .2rem; }
.part { margin: 0 0 .3rem; color: #595959; font-size: .9rem; display: flex; justify-content: space-between; }
.keys { color: #595959; }
figure { margin: 0; flex: 1; display: flex; flex-direction: column; }
.plot { flex: 1; min-height: calc(.65 * var(--height)); }
figcaption { font-size: 1rem; margin-top: .4rem; }
:focus-visible { outline: 3px solid #D55E00; outline-offset: 2px; }
.controls { display: flex; flex-wrap: wrap; gap: .8rem; align-items: center; margin: .2rem 0; }
.controls input { flex: 1 1 20rem; accent-color: #D55E00; }
.controls output { flex: 1 1 100%; font-weight: 600; }
button, select { font: inherit; padding: .2rem .8rem; }
@media print { .controls, .keys { display: none; } .slide { break-after: page; } @page { size: landscape; } }
"""

KEYS = """
const all = [...document.querySelectorAll(".slide")];
addEventListener("keydown", event => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, button")) return;
  const by = {ArrowRight: 1, PageDown: 1, ArrowLeft: -1, PageUp: -1}[event.key];
  if (!by) return;
  event.preventDefault();
  const now = all.findLastIndex(slide => slide.getBoundingClientRect().top < 10);
  all[Math.min(all.length - 1, Math.max(0, now + by))].scrollIntoView();
});
"""
