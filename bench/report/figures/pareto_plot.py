"""Score against a cost: every configuration with its intervals, and the front of those that none beats in both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.report.column import Column
from bench.report.configurations import Comparison, Configuration
from bench.report.figures.picture import Picture, finished_picture, legend_beside
from bench.report.figures.style import FAINT, INK, UNTOUCHED, Look, drawing
from bench.report.figures.words import drawable_text
from bench.report.pareto import front
from bench.statistics.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# So many configurations are drawn besides the front and the best of each method.
MOST_POINTS = 150
# So many points of the front are named.
MOST_NAMES = 8
# Costs that span more than this factor are drawn on a logarithmic axis.
LOG_SPAN = 30.0
# The untouched base model may widen the score axis by this factor; from further below, only its value is told.
MOST_STRETCH = 1.6
# An interval may widen the score axis by this share of the spread of means, or by this multiple of the median half
# width, whichever is more; a wider one leaves the frame, so that one noisy configuration does not flatten the others.
MOST_WHISKER = 0.35
MOST_MEDIANS = 1.5


def pareto_plot(
    comparison: Comparison,
    score: Column,
    cost: Column,
    looks: Mapping[str, Look],
    name: str,
    letters: Mapping[str, str] | None = None,
) -> Picture | None:
    """The picture; None if fewer than two configurations have both values.

    Args:
        comparison: Configurations of one model and task.
        score: Drawn upwards.
        cost: Drawn to the right.
        looks: Of each method.
        name: Of the picture's files.
        letters: Of the groups, by configuration: those that share one cannot be told apart in the score.
    """
    groups = letters if letters and len(set(letters.values())) > 1 else {}
    points = [
        configuration
        for configuration in comparison.scored
        if _value(configuration, cost) is not None and _value(configuration, score) is not None
    ]
    untouched = _untouched(comparison.scored)
    if len(points) < 2 or len({_mean(configuration, cost) for configuration in points}) < 2:
        return None
    best = front(points, score, cost)
    leading = {configuration.method: configuration for configuration in reversed(points)}
    known = len(points)
    if known > MOST_POINTS:  # best first, so that what is left out is what scores worst
        kept = [*best, *leading.values(), *points][: MOST_POINTS + len(best) + len(leading)]
        points = [configuration for configuration in points if any(configuration is one for one in kept)]
    notes = [f"The best {len(points)} of {known} configurations are shown."] if len(points) < known else []
    if groups:
        notes.append(f"Those that share a letter cannot be told apart in {score.title}.")
    with drawing(6.4, 3.8) as figure:
        axes = figure.add_subplot()
        tooltips: dict[str, str] = {}
        _axes(axes, points, score, cost)
        _draw_front(axes, best, score, cost)
        for number, configuration in enumerate(points):
            tooltips[f"point-{number}"] = _tooltip(configuration, score, cost)
            leads = configuration in best or leading[configuration.method] is configuration
            _draw_point(axes, configuration, score, cost, looks[configuration.method], f"point-{number}", leads)
        _limits(axes, points, score)
        handles = _handles(points, looks)
        if untouched is not None and untouched not in points:
            handles.append(_draw_base(axes, _estimate(untouched, score).mean * score.scale, score))
        _label(axes, best, points, score, cost, groups)
        legend_beside(figure, handles)
        return finished_picture(figure, name, f"{score.title} against {cost.axis}", " ".join(notes), tooltips)


def _untouched(scored: Sequence[Configuration]) -> Configuration | None:
    """The base model with a plain prompt, as it is where there is such a row; of several the best one."""
    found = [one for one in scored if one.method == UNTOUCHED and one.results[0].spec.few_shot is None]
    return min(found, key=lambda one: one.results[0].spec.model.stored_in is not None, default=None)


def _value(configuration: Configuration, column: Column) -> float | None:
    """What can be drawn: nothing where a method trains nothing, whose cost of training is no cost."""
    found = configuration.estimate(column.name)
    return None if found is None or (found.mean == 0 and not column.varies_over_seeds) else found.mean * column.scale


def _estimate(configuration: Configuration, column: Column) -> Estimate:
    found = configuration.estimate(column.name)
    if found is None:
        raise ValueError(f"{configuration.name} has no {column.name}")
    return found


def _mean(configuration: Configuration, column: Column) -> float:
    return _estimate(configuration, column).mean * column.scale


def _axes(axes: Axes, points: Sequence[Configuration], score: Column, cost: Column) -> None:
    costs = [_mean(configuration, cost) for configuration in points]
    if min(costs) > 0 and max(costs) / min(costs) > LOG_SPAN:
        axes.set_xscale("log")
    arrow = {True: " (more is better)", False: " (less is better)", None: ""}
    axes.set_xlabel(f"{drawable_text(cost.axis)}{arrow[cost.higher_is_better]}")
    axes.set_ylabel(f"{drawable_text(score.title)}{arrow[score.higher_is_better]}")


def _draw_front(axes: Axes, best: Sequence[Configuration], score: Column, cost: Column) -> None:
    x, y = (
        [_mean(configuration, cost) for configuration in best],
        [_mean(configuration, score) for configuration in best],
    )
    axes.plot(x, y, color=FAINT, linewidth=1.4, drawstyle="steps-post", zorder=1.5)


def _draw_point(
    axes: Axes, configuration: Configuration, score: Column, cost: Column, look: Look, mark: str, leads: bool
) -> None:
    x, y = _estimate(configuration, cost), _estimate(configuration, score)
    bars: dict[str, Any] = {"elinewidth": 1.0, "linestyle": "none", **look.mark}
    if not leads:
        bars |= {"markersize": 3.5, "alpha": 0.6, "elinewidth": 0.6, "capsize": 0}
    if y.half_width is not None:
        bars["yerr"] = [y.half_width * score.scale]
    if x.half_width is not None and cost.varies_over_seeds:
        bars["xerr"] = [x.half_width * cost.scale]
    marks = axes.errorbar([x.mean * cost.scale], [y.mean * score.scale], zorder=3, **bars)
    marks.lines[0].set_gid(mark)


def _draw_base(axes: Axes, base: float, score: Column) -> Any:
    """A line at the score of the untouched base model, if it is near; its entry for the legend in any case."""
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"color": FAINT, "linestyle": (0, (2, 2)), "linewidth": 1.2}
    low, high = axes.get_ylim()
    near = max(high, base) - min(low, base) < MOST_STRETCH * (high - low)
    if near:
        axes.axhline(base, **style)
    return Line2D([], [], label=f"base model: {base:.{score.decimals}f}", **(style if near else {"linestyle": "none"}))


def score_limits(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Lower and upper end of the score axis: every mean, and every interval but those far wider than most."""
    means = [estimate.mean for estimate in estimates]
    half_widths = [estimate.half_width or 0.0 for estimate in estimates]
    spread = (max(means) - min(means)) or abs(means[0]) or 1.0
    most = max(MOST_WHISKER * spread, MOST_MEDIANS * statistics.median(half_widths))
    whiskers = [min(half_width, most) for half_width in half_widths]
    low = min(mean - whisker for mean, whisker in zip(means, whiskers, strict=True))
    high = max(mean + whisker for mean, whisker in zip(means, whiskers, strict=True))
    return low - 0.08 * spread, high + 0.12 * spread


def _limits(axes: Axes, shown: Sequence[Configuration], score: Column) -> None:
    low, high = score_limits([_estimate(configuration, score) for configuration in shown])
    axes.set_ylim(low * score.scale, high * score.scale)
    axes.margins(x=0.12)
    if axes.get_xlim()[0] < 0:  # An interval of few seeds may reach below zero; a cost does not.
        axes.set_xlim(left=0)


def _label(
    axes: Axes,
    best: Sequence[Configuration],
    points: Sequence[Configuration],
    score: Column,
    cost: Column,
    groups: Mapping[str, str],
) -> None:
    """Names beside the front's points, and letters of groups, each where it hides the fewest other points and texts."""
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("the axes are in no figure")
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    taken = [
        tuple(axes.transData.transform((_mean(configuration, cost), _mean(configuration, score))))
        for configuration in points
    ]
    boxes: list[tuple[float, float, float, float]] = [(x - 5, y - 5, x + 5, y + 5) for x, y in taken]
    scale = figure.dpi / 72
    for configuration, text in _labels(best, points, groups):
        x, y = axes.transData.transform((_mean(configuration, cost), _mean(configuration, score)))
        width, height = 4.9 * len(text) * scale, 10 * scale
        places: list[tuple[float, int, str, int, int, tuple[float, float, float, float]]] = []
        for align, dx in (("left", 7), ("right", -7), ("center", 0), ("left", 14), ("right", -14)):
            for dy in (8, -8, 16, -16) if align == "center" else (7, -7, 0, 15, -15):
                left = x + dx * scale - {"left": 0.0, "right": width, "center": width / 2}[align]
                bottom = y + dy * scale - (0 if dy > 0 else height if dy < 0 else height / 2)
                box = (left, bottom, left + width, bottom + height)
                outside = max(0.0, frame.x0 - left) + max(0.0, left + width - frame.x1)
                outside += max(0.0, frame.y0 - bottom) + max(0.0, bottom + height - frame.y1)
                hidden = sum(_overlap(box, other) for other in boxes)
                places.append((hidden + 40 * outside, len(places), align, dx, dy, box))
        _, _, align, dx, dy, box = min(places)
        boxes.append(box)
        vertical = "bottom" if dy > 0 else "top" if dy < 0 else "center"
        axes.annotate(
            text,
            (_mean(configuration, cost), _mean(configuration, score)),
            xytext=(dx, dy),
            textcoords="offset points",
            ha=align,
            va=vertical,
            fontsize=8,
            color=INK,
        )


def _labels(
    best: Sequence[Configuration], points: Sequence[Configuration], groups: Mapping[str, str]
) -> list[tuple[Configuration, str]]:
    """What stands beside points: the names of the front's first ones, and the letters of all that have some."""
    named = best[:MOST_NAMES]
    texts = [
        (one, " ".join(filter(None, (drawable_text(one.name) if one in named else "", _in_brackets(groups, one)))))
        for one in [*named, *(point for point in points if point not in named)]
    ]
    return [(configuration, text) for configuration, text in texts if text]


def _in_brackets(groups: Mapping[str, str], configuration: Configuration) -> str:
    found = groups.get(configuration.name, "")
    return f"({found})" if found else ""


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _handles(points: Sequence[Configuration], looks: Mapping[str, Look]) -> list[Any]:
    from matplotlib.lines import Line2D

    methods = dict.fromkeys(sorted(configuration.method for configuration in points))
    marks: list[Any] = [
        Line2D([], [], linestyle="none", label=drawable_text(method), **looks[method].mark) for method in methods
    ]
    return [*marks, Line2D([], [], color=FAINT, linewidth=1.4, label="front")]


def _tooltip(configuration: Configuration, score: Column, cost: Column) -> str:
    return f"{configuration.name}: {_shown(configuration, score)}, {_shown(configuration, cost)}"


def _shown(configuration: Configuration, column: Column) -> str:
    found = _estimate(configuration, column)
    width = found.half_width
    interval = "" if width is None or math.isclose(width, 0.0) else f" ± {column.text(width)}"
    return f"{column.title} {column.text(found.mean)}{interval}"
