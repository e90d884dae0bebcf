"""Live view of a sweep on a terminal; plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bench.launch import Progress
from bench.plan import PlannedTrial
from bench.record import Failed, TrialResult
from bench.report.terminal import headline
from bench.spec import JsonDict, TrialSpec

# Without a terminal, progress within training is one line in so many seconds.
LINE_SECONDS = 10.0


@dataclass
class _Shown:
    started_at: float = field(default_factory=time.monotonic)
    phase: str = "start"
    step: JsonDict = field(default_factory=dict)
    last_line_at: float = 0.0


class Display:
    """Shows which trials run, their phase, step, loss, tokens/s and time left, and what is done."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self.console = console
        self.total = total
        self.done = done
        self.failed = 0
        self._running: dict[str, _Shown] = {}
        self._started_at = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=True)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def start(self, spec: TrialSpec) -> None:
        """A trial has started."""
        self._running[spec.trial_id] = _Shown()
        self.console.print(f"[bold]start[/]  {spec.trial_id}", highlight=False)

    def progress(self, event: Progress) -> None:
        """A rank has told where it is; rank 0 speaks for the trial."""
        shown = self._running.get(event.trial_id)
        if shown is None or event.rank != 0:
            return
        if "phase" in event.data:
            shown.phase = str(event.data["phase"])
        else:
            shown.step = {**shown.step, **event.data}
        now = time.monotonic()
        if not self.console.is_terminal and "step" in event.data and now - shown.last_line_at > LINE_SECONDS:
            shown.last_line_at = now
            self.console.print(f"       {event.trial_id}  {'  '.join(_step_cells(shown))}", highlight=False)

    def result(self, result: TrialResult) -> None:
        """A record was committed."""
        self._running.pop(result.trial_id, None)
        self.done += 1
        outcome = result.outcome
        if not isinstance(outcome, Failed):
            self.console.print(
                f"[bold green]done[/]   {result.trial_id}  {headline(outcome)}  {result.total_seconds:.0f} s",
                highlight=False,
            )
            return
        self.failed += 1
        self.console.print(f"[bold red]failed[/] {result.trial_id}  {outcome.reason}: ", end="", highlight=False)
        self.console.print(outcome.message, markup=False, highlight=False)
        if outcome.reason not in ("infeasible", "cancelled") and outcome.log_tail:
            self.console.print(_indented(outcome.log_tail.splitlines()[-8:]), markup=False, highlight=False)

    def _render(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("trial", "phase", "step", "loss", "tokens/s", "left", "running"):
            table.add_column(heading, overflow="fold" if heading == "trial" else "ellipsis")
        for trial_id, shown in self._running.items():
            running = f"{time.monotonic() - shown.started_at:.0f} s"
            table.add_row(Text(trial_id), shown.phase, *_step_cells(shown), running)
        elapsed = time.monotonic() - self._started_at
        failed = f", {self.failed} failed" if self.failed else ""
        return Group(table, Text(f"{self.done} of {self.total} trials done{failed}, {elapsed:.0f} s", style="dim"))


def _step_cells(shown: _Shown) -> tuple[str, str, str, str]:
    step = shown.step
    if shown.phase == "decode" and "decoded" in step:
        return f"{step['decoded']}/{step['of']}", "", "", ""
    if "step" not in step:
        return "", "", "", ""
    return (
        f"{step['step']}/{step['steps']}",
        f"{step['loss']:.3f}",
        f"{step['tokens_per_second']:.0f}",
        f"{step['remaining_seconds']:.0f} s",
    )


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"         {line}" for line in lines)


def planned_table(sweep: str, trials: Sequence[PlannedTrial]) -> Table:
    """What a sweep would run, for a terminal."""
    table = Table(title=f"{sweep}: {len(trials)} trials", padding=(0, 1), collapse_padding=True)
    table.add_column("trial and settings", overflow="fold")
    for heading in ("trained", "%", "stored"):
        table.add_column(heading, justify="right", no_wrap=True)
    for trial in trials:
        parameters = trial.parameters
        table.add_row(
            Text(trial.spec.trial_id).append("\n" + "\n".join(_settings(trial)), style="dim"),
            f"{parameters.trained:,}",
            f"{100 * parameters.trained_fraction:.3f}",
            f"{parameters.stored:,}",
        )
    return table


def _settings(trial: PlannedTrial) -> list[str]:
    spec = trial.spec
    lines = []
    if config := {key: value for key, value in spec.method.config.items() if value is not None}:
        lines.append(", ".join(f"{key}={value}" for key, value in config.items()))
    if trial.parameters.trained:
        length = f"{spec.train.steps} steps" if spec.train.steps else f"{spec.train.epochs or 1:g} epochs"
        lines.append(f"{length}, batch {spec.train.batch_size}, learning rate {spec.train.learning_rate:g}")
    ranks = "1 rank" if spec.resources.ranks == 1 else f"{spec.resources.ranks} ranks"
    lines.append(f"{ranks}, ZeRO {spec.resources.zero_stage}, {spec.resources.precision}")
    return lines
