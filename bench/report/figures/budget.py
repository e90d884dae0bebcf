"""The value that tuning is expected to reach, against its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.report.figures.curves import handle, line
from bench.report.figures.picture import Picture, finished_picture, legend_beside
from bench.report.figures.style import Look, drawing
from bench.report.figures.words import drawable_text
from bench.report.searches import metric_title
from bench.tuning.summary import Tuning


def budget_curves(tunings: Sequence[Tuning], looks: Mapping[str, Look], name: str) -> Picture | None:
    """Expected best value of the metric that settings were chosen by, against the budget; None without a search.

    Args:
        tunings: Of the sweep.
        looks: By method.
        name: Of the picture.
    """
    shown = [tuning for tuning in tunings if len(tuning.expected_best) > 1]
    if not shown:
        return None
    with drawing(6.4, 3.6) as figure:
        axes = figure.add_subplot()
        tooltips: dict[str, str] = {}
        for number, tuning in enumerate(shown):
            points = [(point.device_seconds, point.value) for point in tuning.expected_best]
            tooltips[f"budget-{number}"] = tuning.name
            line(axes, points, looks[tuning.search.method], f"budget-{number}", marked=True)
        axes.set_xlim(left=0)
        axes.set_xlabel("budget, device-seconds")
        axes.set_ylabel(f"expected best {drawable_text(metric_title(shown[0]))}")
        legend_beside(figure, [handle(tuning.name, looks[tuning.search.method]) for tuning in shown])
        caption = (
            "What the best of 1, 2, ... tuning trials is expected to reach (Tang et al. 2020), over the trials whose "
            "settings did not depend on results."
        )
        return finished_picture(figure, name, "Expected best against budget", caption, tooltips)
