"""The command line: the composition root.

Exit codes: 0 all trials completed, 1 some failed, 2 bad input, 130 stopped.
"""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from bench.commands import adapters, compare, doctor, methods, operate, planning, scores, sweeps, tasks
from bench.config import ConfigError
from bench.store import StoreError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

for command in (
    sweeps.run,
    planning.plan,
    planning.check_plan,
    sweeps.report,
    compare.compare,
    methods.methods,
    methods.check_method,
    methods.new_method,
    adapters.generate,
    adapters.export,
    tasks.tasks,
    tasks.check_task,
    scores.score,
    scores.samples,
    operate.status,
    operate.cancel,
    doctor.doctor,
):
    app.command()(command)


def main() -> None:
    """Entry of the command ``tuneoff``."""
    try:
        app()
    except (ConfigError, StoreError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
