"""The command line: puts all commands together.

Exit codes: 0 all trials completed, 1 some failed or could not run, 2 bad input, 130 stopped.
"""

from __future__ import annotations

import contextlib
import traceback
from typing import Annotated, NoReturn

import typer

from bench.commands import (
    adapters,
    compare,
    doctor,
    evaluate,
    methods,
    metrics,
    operate,
    optimizers,
    planning,
    scores,
    sweeps,
    tasks,
    writing,
)
from bench.commands.console import PlainConsole
from bench.launch.launcher import NoMachinesError
from bench.measure.leaving import leave
from bench.measure.provenance import installed_version
from bench.schema.validation import ConfigError
from bench.store.records import StorageError, StoreError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (
    writing.init,
    writing.schema,
    sweeps.run,
    planning.plan,
    planning.check_plan,
    sweeps.report,
    evaluate.evaluate,
    compare.compare,
    methods.methods,
    methods.check_method,
    methods.new_method,
    adapters.generate,
    adapters.export,
    tasks.tasks,
    tasks.check_task,
    tasks.new_task,
    metrics.metrics,
    metrics.check_metric,
    metrics.new_metric,
    optimizers.optimizers,
    scores.score,
    scores.samples,
    operate.status,
    operate.cancel,
    doctor.doctor,
):
    app.command()(command)


def _print_version(asked_for: bool) -> None:
    if asked_for:
        typer.echo(f"tuneoff {installed_version('tuneoff') or '(not installed)'}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Compare ways of fine-tuning on the same model, data and budget, and believe the table."""


def main() -> NoReturn:
    """Entry of the command ``tuneoff``."""
    leave(exit_code())


def exit_code() -> int:
    """Run the command, and turn every error into a message on standard error and an exit code."""
    try:
        app()
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            _complain(leaving.code)
            return 1
        return leaving.code or 0
    except (NoMachinesError, StorageError) as error:
        _complain(str(error))
        return 1
    except (ConfigError, StoreError) as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1  # the reader of our output has closed it
    except OSError as error:
        # The system refuses (disk full, no rights, storage gone), so that a traceback would not help.
        where = f"{error.filename}: " if error.filename is not None else ""
        _complain(f"{where}{error.strerror or error}. What was finished before is kept")
        return 1
    except BaseException:  # noqa: BLE001 - a fault of the program, shown with its traceback
        traceback.print_exc()
        return 1
    return 0


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):
        PlainConsole(stderr=True).print(f"error: {message}", style="red", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
