"""The look of figures. Colour-blind readers, and readers of black-and-white print, can tell methods apart.

Colours are those of Okabe & Ito 2008 ("Color universal design") without yellow, which vanishes on white. Every method
has a marker and a dash of its own as well, so that nothing is told by colour alone.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from bench.schema.printable import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1b1f24"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)))
FAINT = "#8a9199"
GRID = "#e3e6ea"
# Three or more parts of a stacked bar: from dark to light, so that print keeps them apart as well.
PARTS = (FAINT, "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", INK)
UNTOUCHED = "none"  # the base model itself, in neutral ink, because it does not compete

# What a page replaces in an inlined picture, so that it follows the page's light or dark theme.
THEMED = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    GRID: "var(--grid)",
    **{color: f"var(--series-{n})" for n, color in enumerate(PALETTE[:-1])},
}

SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tuneoff",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 6.5,
    "errorbar.capsize": 2.5,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Look:
    """The look of a method, the same in every figure of a report."""

    color: str
    marker: str
    dash: Any
    filled: bool = True

    @property
    def mark(self) -> dict[str, Any]:
        """Arguments of a point for ``Axes.plot`` and ``Axes.errorbar``."""
        return {
            "color": self.color,
            "marker": self.marker,
            "markerfacecolor": self.color if self.filled else "none",
            "markeredgecolor": self.color,
            "markeredgewidth": 1.2,
        }


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """A look for each method, by name, so that the number of a method's trials changes nothing."""
    found: dict[str, Look] = {}
    for n, method in enumerate(sorted(set(methods) - {UNTOUCHED})):
        cycle = n // len(PALETTE)
        found[method] = Look(
            PALETTE[n % len(PALETTE)], MARKERS[n % len(MARKERS)], DASHES[n % len(DASHES)], cycle % 2 == 0
        )
    return {UNTOUCHED: Look(FAINT, "_", DASHES[2]), **found}


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches in this style. It needs no display, and nothing global stays changed."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        yield Figure(figsize=(width, height))


def svg(figure: Figure, name: str, titles: Mapping[str, str]) -> str:
    """The figure as SVG text, the same bytes for the same content.

    Args:
        figure: With its marks' ids set through ``set_gid``.
        name: Prefix of all ids, so that several pictures can stand in one page.
        titles: Id of a mark to what a pointer over it tells.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for mark, tooltip in titles.items():
        text = text.replace(f'<g id="{mark}">', f'<g id="{mark}"><title>{escape(tooltip)}</title>', 1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return printable(re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", text))


def png(figure: Figure) -> bytes:
    """The figure as PNG, 180 dots per inch, for slides and documents that take no SVG.

    A drawing of few colours needs no more than a palette, which makes the file three times smaller.
    """
    import matplotlib
    from PIL import Image

    drawn, buffer = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(drawn, format="png", dpi=180)
    picture = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def inlined(text: str, title: str = "picture") -> str:
    """An SVG for a page: colours follow the page's theme, the background is the page's own, the size its column's.

    Args:
        text: The SVG.
        title: What it shows, for those who cannot see it.
    """
    for color, themed in THEMED.items():
        text = text.replace(color, themed)
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = text.replace("fill: #ffffff", "fill: none", 1)
    opened = f'<svg role="img" aria-label="{escape(title)}" '
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', lambda found: opened + found[1], text, count=1)
