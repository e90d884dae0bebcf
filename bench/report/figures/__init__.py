"""All pictures of a report."""

from __future__ import annotations

from bench.report.configurations import Comparison, Configuration, configurations
from bench.report.content import Content
from bench.report.figures.bars import memory_bars, planned_memory_bars, time_bars
from bench.report.figures.budget import budget_curves
from bench.report.figures.curves import learning_rate_curves, training_curves
from bench.report.figures.fonts import fonts_folder
from bench.report.figures.pareto_plot import pareto_plot
from bench.report.figures.picture import Picture
from bench.report.figures.style import looks
from bench.report.row_labels import TableModels
from bench.report.significance_table import letters_of

__all__ = ["Picture", "pictures"]


def pictures(content: Content) -> list[list[Picture]]:
    """The pictures of each comparison, in the order in which a page shows them."""
    with fonts_folder():
        return _drawable_text(content)


def _drawable_text(content: Content) -> list[list[Picture]]:
    styles = looks(result.spec.method.name for result in content.records)
    found: list[list[Picture]] = []
    compared = zip(content.comparisons, content.significances, strict=True)
    for number, (comparison, tested) in enumerate(compared, start=1):
        suffix = f"-{number}" if len(content.comparisons) > 1 else ""
        drawn = [
            *(
                pareto_plot(
                    *(comparison, comparison.metrics[0], cost, styles, f"pareto-{cost.picture}{suffix}"),
                    letters=letters_of(tested),
                )
                for cost in comparison.columns
                if cost.picture and comparison.metrics
            ),
            learning_rate_curves(_of_all_stages(content, comparison), styles, f"learning-rates{suffix}"),
            budget_curves(content.tunings, styles, "budget") if number == 1 else None,
            training_curves(comparison.scored, styles, f"training{suffix}"),
            memory_bars(comparison.scored, f"memory{suffix}"),
            planned_memory_bars(comparison.scored, f"planned-memory{suffix}"),
            time_bars(comparison.scored, f"time{suffix}"),
        ]
        found.append([picture for picture in drawn if picture is not None])
    return found


def _of_all_stages(content: Content, comparison: Comparison) -> list[Configuration]:
    """Final trials and those of searches. Trials of the stage cost are left out: their learning rate means nothing."""
    finals = [result for configuration in comparison.configurations for result in configuration.results]
    models = TableModels(content.records)
    tables = {models.table(result.spec) for result in finals}
    return configurations(
        record for record in content.records if models.table(record.spec) in tables and record.spec.stage != "cost"
    )
