"""Figures on a dark page: a stylesheet gives the colours of `_style` their dark twins.

Nothing is drawn again. plotly writes every colour into the element that has it, so a rule can find the
elements of one colour. Prints and saved images keep the light colours.
"""

from __future__ import annotations

from xgblora_lab.figures._style import BLACK, GREY, INK, PALE

# What is near black on white becomes near white on black. The methods' colours serve on both.
TWINS = {
    INK: "#E6E6E6",
    BLACK: "#FFFFFF",
    GREY: "#A9A9A9",
    PALE: "#3C3C3C",
    "#FFFFFF": "#1B1B1B",  # the rims of markers
    "#C9C9C9": "#4A4A4A",
    "#BBBBBB": "#5C5C5C",
    "#A3A3A3": "#6F6F6F",
    "#7D7D7D": "#8F8F8F",
    "#555555": "#B4B4B4",
    "#444444": "#D0D0D0",  # plotly's own ink
}


def dark(under: str) -> str:
    """The stylesheet.

    Parameters
    ----------
    under : str
        A CSS selector of the element around the figures that is there on a dark page only. A page that
        follows the reader's system passes ":root" and puts the result into
        `@media (prefers-color-scheme: dark)`.

    Returns
    -------
    str
        Rules of CSS for screens.
    """
    plot = f"{under} .js-plotly-plot"
    kept = ":not(.hoverlayer *, .heatmaplayer *, .cbfills *)"  # data, or to go with it
    rules = [
        f"{plot} .main-svg {{background: transparent !important}}",
        f"{plot} :is(.bglayer rect, rect.bg) {{fill: transparent !important}}",
        f"{plot} .annotation rect.bg {{fill: #2A2A2A !important}}",
        f"{plot} :is(.updatemenu-item-rect, .slider-rail-rect) {{fill: #2E2E2E !important}}",
        f"{plot} .slider-grip-rect {{fill: #B0B0B0 !important}}",
        f"{plot} .modebar-btn path {{fill: #A9A9A9 !important}}",
    ]
    for light, twin in TWINS.items():
        rgb = ", ".join(str(int(light[i : i + 2], 16)) for i in (1, 3, 5))
        for what in ("fill", "stroke"):
            if (what, light) != ("fill", "#FFFFFF"):
                rules.append(f'{plot} [style*="{what}: rgb({rgb})"]{kept} {{{what}: {twin} !important}}')
    return f"@media screen {{{' '.join(rules)}}}"


DARK = dark('body[data-jp-theme-light="false"]')  # JupyterLab says so, and Notebook 7
