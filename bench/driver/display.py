"""A live view of the sweep on a terminal, and plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, ConsoleOptions, OverflowMethod, RenderableType, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bench.driver import stray_output
from bench.driver.observer import Observer
from bench.driver.status import RunningTrial, StatusBoard, SweepStatus
from bench.launch.launcher import Progress
from bench.report.terminal import headline
from bench.schema.printable import printable
from bench.schema.record import Failed, TrialResult
from bench.store.outbox import StartedAttempt

# Without a terminal, a trial in training writes a line at most this often.
LINE_SECONDS = 10.0
HEADINGS = ("trial", "phase", "step", "loss", "tokens/s", "left", "memory", "running")
# Characters at the end of an id that are shown when it is wider than the terminal: its hash tells it from all others.
ID_END = 11


class Display(Observer):
    """Shows which trials run, with phase, step, loss, tokens/s, memory and time left, and how many are done.

    Each event is one call of ``print``, because the live view draws over anything that is printed past it. Lines with
    ids are broken by the terminal and not by rich, so that people can copy an id as a whole.

    Args:
        console: Of the terminal.
        board: Knows the status.
    """

    def __init__(self, console: Console, board: StatusBoard) -> None:
        self.console = console
        self.board = board
        self._last_line_at: dict[str, float] = {}
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(
            console=console,
            refresh_per_second=4,
            get_renderable=self._render,
            transient=True,
            redirect_stderr=False,  # the descriptor is caught instead, because libraries in C write to it
        )
        self._caught = contextlib.ExitStack()

    def __enter__(self) -> Display:
        if self._is_live:
            self._live.start()
            if _is_terminal(stray_output.STANDARD_ERROR):  # else it cannot disturb the view
                self._caught.enter_context(stray_output.caught(self._pass_on))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_live:
            self._caught.close()
            self._live.stop()

    def started(self, attempt: StartedAttempt) -> None:
        again = f"  (attempt {attempt.attempt.number})" if attempt.attempt.number > 1 else ""
        self._print(("start", "bold"), f"  {attempt.spec.trial_id}{again}")

    def progressed(self, progress: Progress) -> None:
        if self._is_live or progress.rank != 0 or not progress.data.keys() & {"step", "downloaded_bytes"}:
            return
        now = time.monotonic()
        if now - self._last_line_at.get(progress.trial_id, 0.0) > LINE_SECONDS:
            self._last_line_at[progress.trial_id] = now
            trial = next(trial for trial in self.board.now().running if trial.trial_id == progress.trial_id)
            self._print(f"       {trial.trial_id}  {'  '.join(_facts(trial))}")

    def lost(self, result: TrialResult, again_in_seconds: float) -> None:
        if isinstance(result.outcome, Failed):
            what = f"{result.outcome.reason}: {result.outcome.message}; again in {again_in_seconds:.0f} s"
            self._print(("lost", "bold yellow"), f"   {result.trial_id}  {what}")

    def committed(self, result: TrialResult) -> None:
        self._last_line_at.pop(result.trial_id, None)
        outcome = result.outcome
        if not isinstance(outcome, Failed):
            ending = f"  {result.trial_id}  {headline(outcome)}  {result.total_seconds:.0f} s{self._so_far()}"
            self._print(("done", "bold green"), f" {ending}")
            return
        lines = []
        if outcome.reason not in ("infeasible", "cancelled") and outcome.log_tail:
            lines = [f"\n         {line}" for line in outcome.log_tail.splitlines()[-8:]]
        sentence = f" {result.trial_id}  {outcome.reason}: {outcome.message}{self._so_far()}"
        self._print(("failed", "bold red"), sentence, *lines)

    def _so_far(self) -> str:
        """How much is done and left, where no live view shows it."""
        if self._is_live:
            return ""
        status = self.board.now()
        left = "" if status.remaining_seconds is None else f", about {duration(status.remaining_seconds)} left"
        return f"  ({status.completed + status.failed} of {status.total}{left})"

    def _print(self, *parts: str | tuple[str, str]) -> None:
        """Print one event. Long lines are left for the terminal to break."""
        safe = [printable(part) if isinstance(part, str) else part for part in parts]
        self.console.print(Text.assemble(*safe), highlight=False, soft_wrap=True)

    def _pass_on(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        return _View(self.board.now(), self.console.height - 1)


def status_view(status: SweepStatus, remaining_seconds: float | None) -> RenderableType:
    """The status of a sweep for a terminal. Print it with ``soft_wrap``, so that every id stays on one line."""
    return _View(status.model_copy(update={"remaining_seconds": remaining_seconds}), None)


def duration(seconds: float) -> str:
    """As people say it: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class _View:
    """Shows a table if the terminal is wide enough for its ids; else two lines for each trial, the id on the first.

    Args:
        status: Of the sweep.
        most_lines: If there are more, the last trials are only counted, and wide ids are cut. None: all are shown, and
            a wide id goes on behind the right edge.
    """

    def __init__(self, status: SweepStatus, most_lines: int | None) -> None:
        self.status = status
        self.most_lines = most_lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        running = self.status.running
        table = self._table(running)
        whole = Measurement.get(console, options.update(width=10_000), table).maximum
        if running and whole <= options.max_width and self._room(1) >= len(running) + 1:
            yield table
        elif running:
            yield from self._lines(options.max_width)
        yield Text(_totals(self.status), style="dim")

    def _room(self, lines_each: int) -> int:
        """How many trials of so many lines each fit above the totals."""
        return 10_000 if self.most_lines is None else max(1, (self.most_lines - 2) // lines_each)

    def _table(self, running: Sequence[RunningTrial]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in HEADINGS:
            table.add_column(heading, no_wrap=True)
        for trial in running:
            memory, elapsed = _memory(trial), f"{self.status.updated_at - trial.started_at:.0f} s"
            table.add_row(Text(trial.trial_id), trial.phase, *_step_cells(trial), memory, elapsed)
        return table

    def _lines(self, width: int) -> RenderResult:
        running = self.status.running
        overflow: OverflowMethod = "ignore" if self.most_lines is None else "ellipsis"
        shown = running[: self._room(2)] if len(running) > self._room(2) else running
        for trial in shown:
            cut = self.most_lines is not None and len(trial.trial_id) > width
            name = trial.trial_id if not cut else f"{trial.trial_id[: width - ID_END - 1]}…{trial.trial_id[-ID_END:]}"
            elapsed = f"for {duration(self.status.updated_at - trial.started_at)}"
            yield Text(name, no_wrap=True, overflow=overflow)
            facts = "  ".join([trial.phase, *_facts(trial), *filter(None, [_memory(trial)]), elapsed])
            yield Text(f"  {facts}", no_wrap=True, overflow=overflow)
        if len(shown) < len(running):
            yield Text(f"and {len(running) - len(shown)} more", style="dim")


def _totals(status: SweepStatus) -> str:
    parts = [f"{status.completed + status.failed} of {status.total} trials done"]
    for count, what in ((status.failed, "failed"), (status.queued, "wait"), (status.lost_attempts, "attempts lost")):
        if count:
            parts.append(f"{count} {what}")
    parts.append(duration(status.updated_at - status.started_at))
    if status.remaining_seconds is not None:
        parts.append(f"about {duration(status.remaining_seconds)} left")
    return ", ".join(parts)


def _memory(trial: RunningTrial) -> str:
    return "" if trial.memory_bytes is None else f"{trial.memory_bytes / 2**20:,.0f} MiB"


def _facts(trial: RunningTrial) -> list[str]:
    """The progress of a trial, each number with its unit."""
    step, loss, rate, left = _step_cells(trial)
    of_phase = {"decode": f"{step} sources", "download": f"{step} downloaded"}
    wording = (
        of_phase.get(trial.phase, f"step {step}"),
        f"loss {loss}",
        f"{rate} tokens/s",
        f"{left} left",
    )
    return [text for cell, text in zip((step, loss, rate, left), wording, strict=True) if cell]


def _step_cells(trial: RunningTrial) -> tuple[str, str, str, str]:
    """Step, loss, tokens/s, time left; empty where there is none."""
    left = "" if trial.remaining_seconds is None else duration(trial.remaining_seconds)
    if trial.phase == "decode" and trial.decoded is not None:
        return f"{trial.decoded}/{trial.of}", "", "", left
    if trial.phase == "download" and trial.downloaded_bytes is not None:
        of_all = "" if trial.download_bytes is None else f"/{trial.download_bytes / 1e9:.1f}"
        return f"{trial.downloaded_bytes / 1e9:.1f}{of_all} GB", "", "", left
    if trial.step is None or trial.loss is None or trial.tokens_per_second is None:
        return "", "", "", left
    if trial.phase != "train":
        return f"{trial.step}/{trial.steps}", "", "", left
    return f"{trial.step}/{trial.steps}", f"{trial.loss:.3f}", f"{trial.tokens_per_second:.0f}", left


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False
