"""What every figure of the page shares: small SVGs by matplotlib whose colours follow the page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that occur in no figure otherwise; each is replaced by a variable of the page's style sheet.
INK, FAINT, TRAIN, HELDOUT, WORSE = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
BETTER = "#101112"
VARIABLES = {
    INK: "--ink-2",
    FAINT: "--line",
    TRAIN: "--series-1",
    HELDOUT: "--series-2",
    WORSE: "--worse",
    BETTER: "--better",
}


@dataclass
class Made:
    """A figure once it is drawn."""

    svg: str = ""


@contextmanager
def drawing(prefix: str, size: tuple[float, float] = (3.6, 2.1)) -> Iterator[tuple[Figure, Made]]:
    """An empty figure to draw into; at the end it is an <svg> element for the page.

    prefix: makes the ids inside the SVG unique on the page. size: in inches of 9-point text.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": prefix, "text.parse_math": False, "font.size": 9}
    made = Made()
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, made
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    made.svg = _for_page(out.getvalue(), prefix)


def quiet(axes: Any) -> None:
    """Axes that stay behind what they carry."""
    from matplotlib.ticker import MaxNLocator

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.tick_params(colors=INK, length=0, labelcolor=INK)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.get_major_formatter().set_useOffset(False)
    axes.margins(x=0.02)


def _for_page(svg: str, prefix: str) -> str:
    """Only the <svg> element, ids made unique, sentinel colours made variables, width left to the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{prefix}-\1"', svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
