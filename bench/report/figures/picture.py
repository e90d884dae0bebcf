"""A finished picture, and functions that several figures share."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.report.figures.style import png, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """One figure of the report."""

    name: str  # of its files
    title: str
    caption: str
    width_inches: float
    svg: str
    png: bytes


def finished_picture(figure: Figure, name: str, title: str, caption: str, tooltips: Mapping[str, str]) -> Picture:
    """Render a figure.

    Args:
        figure: Complete.
        name: Of the files, and prefix of the ids.
        title: Heading in the page.
        caption: What it shows, in a sentence or two; empty where the title says it.
        tooltips: Id of a mark to what a pointer over it shows.
    """
    with warnings.catch_warnings():
        # A letter that the font lacks is a box in the PNG; in the SVG it is text, and the reader's fonts have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # a new layout for each format would take long
        return Picture(name, title, caption, figure.get_figwidth(), svg(figure, name, tooltips), png(figure))


def legend_beside(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend to the right of the axes, where it hides nothing; in columns below them if it is long."""
    if len(handles) <= 16:
        figure.legend(handles=list(handles), loc="outside right upper")
    else:
        figure.legend(handles=list(handles), loc="outside lower center", ncols=4)
