"""Loss over training, and dev loss over learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.report.columns import LEARNING_RATE
from bench.report.configurations import Configuration, chosen_of_methods, failed
from bench.report.figures.picture import Picture, finished_picture, legend_beside
from bench.report.figures.style import INK, Look, drawing
from bench.report.figures.words import drawable_text
from bench.report.sharing import losses
from bench.schema.labels import names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 12
MOST_POINTS = 80

Points = list[tuple[float, float]]


def training_curves(configurations: Sequence[Configuration], looks: Mapping[str, Look], name: str) -> Picture | None:
    """Training and dev loss by step, mean over seeds; None where nothing was trained.

    Args:
        configurations: Of each method the one with the lowest dev loss is drawn.
        looks: By method.
        name: Of the picture.
    """
    chosen = chosen_of_methods(
        configuration
        for configuration in configurations
        if any(outcome.train_curve for _, outcome in configuration.completed)
    )
    chosen = chosen[:MOST_LINES]
    if not chosen:
        return None
    with drawing(7.4, 3.4) as figure:
        left, right = figure.subplots(1, 2, sharex=True)
        tooltips: dict[str, str] = {}
        lines: list[Points] = []
        for number, configuration in enumerate(chosen):
            look = looks[configuration.method]
            train = _mean_curve(losses(outcome.train_curve) for _, outcome in configuration.completed)
            dev = _mean_curve(losses(outcome.dev_curve) for _, outcome in configuration.completed)
            lines += [train, dev]
            line(left, train, look, f"train-{number}", marked=False)
            line(right, dev, look, f"dev-{number}", marked=True)
            tooltips[f"train-{number}"] = tooltips[f"dev-{number}"] = configuration.name
        for axes, what in ((left, "training loss"), (right, "dev loss")):
            axes.set_xlabel("optimiser step")
            axes.set_ylabel(f"{what}, nats per target token")
        _limit(left, lines[0::2])
        _limit(right, lines[1::2])
        legend_beside(figure, [handle(configuration.name, looks[configuration.method]) for configuration in chosen])
        few = (
            " Of each method, the configuration with the lowest dev loss is shown."
            if len(chosen) < len(configurations)
            else ""
        )
        caption = f"Mean over seeds. The training loss is averaged over neighbouring steps.{few}"
        return finished_picture(figure, name, "Training", caption, tooltips)


def learning_rate_curves(
    configurations: Sequence[Configuration], looks: Mapping[str, Look], name: str
) -> Picture | None:
    """Dev loss against the learning rate, for every method that was tried with several; None where none was.

    Args:
        configurations: Of all stages.
        looks: By method.
        name: Of the picture.
    """
    series = [
        members
        for members in _by_learning_rate(configurations)
        if len({_rate(configuration) for configuration in members}) > 1
    ]
    if not series:
        return None
    with drawing(6.4, 3.6) as figure:
        axes = figure.add_subplot()
        tooltips: dict[str, str] = {}
        lines: list[Points] = []
        for number, (members, name_of_line) in enumerate(zip(series, _names(series), strict=True)):
            points = _mean_by_rate(members)
            lines.append(points)
            tooltips[f"rate-{number}"] = name_of_line
            line(axes, points, looks[members[0].method], f"rate-{number}", marked=True)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("dev loss, nats per target token")
        _limit(axes, lines)
        handles = [handle(members[0].method, looks[members[0].method]) for members in _first_of_methods(series)]
        if lost := _mark_diverged(axes, series, looks):
            handles.append(lost)
        legend_beside(figure, handles)
        caption = (
            "Dev loss of the state that was scored, mean over seeds. A minimum at the end of a line says that the best "
            "learning rate may lie beyond it."
        )
        return finished_picture(figure, name, "Learning rates", caption, tooltips)


def _by_learning_rate(configurations: Sequence[Configuration]) -> list[list[Configuration]]:
    """Configurations in groups that differ only in learning rate, seed and stage, without those that stopped early."""
    groups: dict[tuple[object, ...], list[Configuration]] = {}
    for configuration in configurations:
        spec = configuration.results[0].spec
        if spec.stop_after_steps is None and any(LEARNING_RATE.of(result) for result in configuration.results):
            groups.setdefault((spec.configuration_class, spec.train.steps, spec.train.epochs), []).append(configuration)
    return list(groups.values())


def _names(series: Sequence[list[Configuration]]) -> list[str]:
    """The method of each line, and what tells it from the other lines of its method."""
    specs = [members[0].results[0].spec for members in series]
    ignored = {"train.learning_rate", "decode", "stage", "scores_dev", "task.test_examples"}  # differ between stages
    return names(specs, ignored=[ignored] * len(specs))


def _first_of_methods(series: Sequence[list[Configuration]]) -> list[list[Configuration]]:
    return list({configurations[0].method: configurations for configurations in reversed(series)}.values())[::-1]


def _mean_by_rate(members: Sequence[Configuration]) -> Points:
    losses: dict[float, list[float]] = {}
    for configuration in members:
        if (found := configuration.estimate("dev_loss")) is not None:
            losses.setdefault(_rate(configuration), []).extend(found.values)
    return [(rate, math.fsum(values) / len(values)) for rate, values in sorted(losses.items())]


def _rate(configuration: Configuration) -> float:
    return float(configuration.results[0].spec.train.learning_rate)


def _mark_diverged(axes: Axes, series: Sequence[list[Configuration]], looks: Mapping[str, Look]) -> Any:
    """A cross at the upper edge for every learning rate at which a trial diverged."""
    from matplotlib.lines import Line2D

    found = False
    for configurations in series:
        for configuration in configurations:
            if any(outcome.reason == "diverged" for _, outcome in failed(configuration.results)):
                found = True
                place: Any = {"transform": axes.get_xaxis_transform(), "clip_on": False}
                axes.plot(
                    [_rate(configuration)],
                    [1.0],
                    marker="x",
                    markersize=7,
                    color=looks[configuration.method].color,
                    **place,
                )
    return Line2D([], [], linestyle="none", marker="x", color=INK, label="diverged") if found else None


def line(axes: Axes, points: Points, look: Look, mark: str, marked: bool) -> None:
    """Draw a line with its method's look; ``mark`` is the id that a pointer finds."""
    style: dict[str, Any] = {**look.mark, "markersize": 4.5} if marked else {"color": look.color}
    (shown,) = axes.plot([x for x, _ in points], [y for _, y in points], linestyle=look.dash, **style)
    shown.set_gid(mark)


def handle(label: str, look: Look) -> Any:
    """A line's entry in the legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle=look.dash, label=drawable_text(label), **{**look.mark, "markersize": 4.5})


def _limit(axes: Axes, lines: Sequence[Points]) -> None:
    """Show all ends and most of the rest: a spike or a diverged start must not flatten what is compared."""
    values = sorted(y for points in lines for _, y in points if math.isfinite(y))
    if len(values) < 2:
        return
    ends = [points[-1][1] for points in lines if points]
    high = max(values[int(0.95 * (len(values) - 1))], *ends)
    spread = (high - values[0]) or 1.0
    axes.set_ylim(values[0] - 0.06 * spread, high + 0.08 * spread)


def _mean_curve(curves: Iterable[Iterable[tuple[float, float]]]) -> Points:
    """Mean over seeds by step, then over neighbouring steps until few enough points are left to draw."""
    by_step: dict[float, list[float]] = {}
    for curve in curves:
        for step, loss in curve:
            if math.isfinite(loss):
                by_step.setdefault(step, []).append(loss)
    points = [(step, math.fsum(losses) / len(losses)) for step, losses in sorted(by_step.items())]
    width = -(-len(points) // MOST_POINTS)
    chunks = [points[at : at + width] for at in range(0, len(points), width)] if width > 1 else [[p] for p in points]
    return [
        (math.fsum(step for step, _ in chunk) / len(chunk), math.fsum(loss for _, loss in chunk) / len(chunk))
        for chunk in chunks
    ]
