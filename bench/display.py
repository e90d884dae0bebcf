"""Live view of a sweep on a terminal; plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bench.launch import Progress
from bench.observe import Observer
from bench.outbox import StartedAttempt
from bench.record import Failed, TrialResult
from bench.report.terminal import headline
from bench.status import RunningTrial, StatusBoard, SweepStatus

# Without a terminal, progress within training is one line in so many seconds.
LINE_SECONDS = 10.0


class Display(Observer):
    """Shows which trials run, their phase, step, loss, tokens/s, memory and time left, and what is done.

    Args:
        console: Where.
        board: What it shows.
    """

    def __init__(self, console: Console, board: StatusBoard) -> None:
        self.console = console
        self.board = board
        self._last_line_at: dict[str, float] = {}
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

    def started(self, attempt: StartedAttempt) -> None:
        again = f"  (attempt {attempt.attempt.number})" if attempt.attempt.number > 1 else ""
        self.console.print(f"[bold]start[/]  {attempt.spec.trial_id}{again}", highlight=False)

    def progressed(self, progress: Progress) -> None:
        if self.console.is_terminal or progress.rank != 0 or "step" not in progress.data:
            return
        now = time.monotonic()
        if now - self._last_line_at.get(progress.trial_id, 0.0) > LINE_SECONDS:
            self._last_line_at[progress.trial_id] = now
            trial = next(trial for trial in self.board.now().running if trial.trial_id == progress.trial_id)
            step, loss, rate, left = _step_cells(trial)
            line = f"step {step}  loss {loss}  {rate} tokens/s  {left} left"
            self.console.print(f"       {trial.trial_id}  {line}", highlight=False, soft_wrap=True)

    def lost(self, result: TrialResult, again_in_seconds: float) -> None:
        if isinstance(result.outcome, Failed):
            what = f"{result.outcome.reason}: {result.outcome.message}; again in {again_in_seconds:.0f} s"
            self.console.print(f"[bold yellow]lost[/]   {result.trial_id}  ", end="", highlight=False)
            self.console.print(what, markup=False, highlight=False)

    def committed(self, result: TrialResult) -> None:
        self._last_line_at.pop(result.trial_id, None)
        outcome = result.outcome
        if not isinstance(outcome, Failed):
            self.console.print(
                f"[bold green]done[/]   {result.trial_id}  {headline(outcome)}  {result.total_seconds:.0f} s",
                highlight=False,
            )
            return
        self.console.print(f"[bold red]failed[/] {result.trial_id}  {outcome.reason}: ", end="", highlight=False)
        self.console.print(outcome.message, markup=False, highlight=False)
        if outcome.reason not in ("infeasible", "cancelled") and outcome.log_tail:
            self.console.print(_indented(outcome.log_tail.splitlines()[-8:]), markup=False, highlight=False)

    def _render(self) -> Group:
        return status_view(self.board.now(), self.board.remaining_seconds())


def status_view(status: SweepStatus, remaining_seconds: float | None) -> Group:
    """What runs and what is done, for a terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("trial", "phase", "step", "loss", "tokens/s", "left", "memory", "running"):
        table.add_column(heading, overflow="fold" if heading == "trial" else "ellipsis")
    for trial in status.running:
        memory = "" if trial.memory_bytes is None else f"{trial.memory_bytes / 2**20:,.0f} MiB"
        running = f"{status.updated_at - trial.started_at:.0f} s"
        table.add_row(Text(trial.trial_id), trial.phase, *_step_cells(trial), memory, running)
    parts = [f"{status.completed + status.failed} of {status.total} trials done"]
    for count, what in ((status.failed, "failed"), (status.queued, "wait"), (status.lost_attempts, "attempts lost")):
        if count:
            parts.append(f"{count} {what}")
    parts.append(f"{status.updated_at - status.started_at:.0f} s")
    if remaining_seconds is not None:
        parts.append(f"about {remaining_seconds:.0f} s left")
    return Group(table, Text(", ".join(parts), style="dim"))


def _step_cells(trial: RunningTrial) -> tuple[str, str, str, str]:
    if trial.phase == "decode" and trial.decoded is not None:
        return f"{trial.decoded}/{trial.of}", "", "", ""
    if trial.step is None:
        return "", "", "", ""
    return (
        f"{trial.step}/{trial.steps}",
        f"{trial.loss:.3f}",
        f"{trial.tokens_per_second:.0f}",
        f"{trial.remaining_seconds:.0f} s",
    )


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"         {line}" for line in lines)
