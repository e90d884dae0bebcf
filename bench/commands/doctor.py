"""The command doctor."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from bench.commands.options import AsJson, PluginsDir, ResultsDir, Settings, console
from bench.config.shipped import sweep_path
from bench.schema.validation import ConfigError

if TYPE_CHECKING:
    from bench.doctor.finding import Finding
    from bench.tools.self_check.verdicts import Shown

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    sweep_file: Annotated[
        Path | None,
        typer.Argument(
            help="also look whether this sweep's base models can say its tasks",
            metavar="[SWEEP.yaml]",
            callback=lambda path: path and sweep_path(path),
        ),
    ] = None,
    settings: Settings = None,
    address: Annotated[
        str | None, typer.Option(help="of a Ray cluster: auto, host:port or ray://host:port; default: a local one")
    ] = None,
    results: ResultsDir = Path("results"),
    plugins_dir: PluginsDir = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="instead run small trials on this machine's device; table in RESULTS/measure-<device>"
        ),
    ] = False,
    device: Annotated[str | None, typer.Option(help="of --measure: auto (the default), cuda or cpu")] = None,
    as_json: AsJson = False,
) -> None:
    """Look whether trials can run here, and on a cluster. Exit code 1 if there is a problem; warnings leave it 0."""
    from bench.doctor.finding import worst
    from bench.launch.cluster_access import parse_address

    if measure:
        if sweep_file is not None or address is not None:
            raise ConfigError("--measure looks at this machine alone; leave SWEEP.yaml and --address out")
        raise typer.Exit(0 if _measured(device or "auto", results, as_json) else 1)
    if device is not None:
        raise ConfigError("--device has no effect without --measure")
    if settings and sweep_file is None:
        raise ConfigError("--set has no effect without SWEEP.yaml; name the file, or leave it out")
    if address not in (None, "auto"):
        parse_address(address)
    found = []
    for finding in chain(_findings(address, results), _of_tokens(sweep_file, settings, plugins_dir)):
        found.append(finding)
        if not as_json:
            console.print(_line(finding), soft_wrap=True)
    if as_json:
        console.print_json(
            json.dumps({"status": worst(found), "findings": [finding.model_dump() for finding in found]})
        )
    else:
        counts = {status: sum(finding.status == status for finding in found) for status in STYLES}
        console.print(", ".join(f"{number} {status}" for status, number in counts.items()), highlight=False)
    raise typer.Exit(1 if worst(found) == "problem" else 0)


def _measured(device: str, results: Path, as_json: bool) -> bool:
    """Run the self-check and print what it shows. Returns whether all is as it should be."""
    from bench.tools.self_check.page import folder_name, kind_of
    from bench.tools.self_check.page import measure as run_trials

    kind = kind_of(device)
    folder = results / folder_name(kind)

    def tell(line: Shown) -> None:
        if not as_json:
            style = "red" if line.is_bad else "yellow" if line.verdict == "not tried" else "green"
            console.print(Text.assemble((f"{line.verdict:14} ", style), f"{line.what}: {line.found}"), soft_wrap=True)

    fine = run_trials(kind, folder, tell)
    if as_json:
        console.print_json((folder / "measure.json").read_text(encoding="utf-8"))
    else:
        console.print(f"written: {folder / 'measure.md'} and measure.json", highlight=False)
    return fine


def _findings(address: str | None, results: Path) -> Iterator[Finding]:
    from bench.doctor.finding import warning
    from bench.doctor.machine import look_at_machine
    from bench.doctor.packages import expected

    wanted = expected()
    yield from look_at_machine(wanted, results)
    if not has_ray():
        yield warning("Ray", "not installed: trials run as local processes, on this machine alone", "pip install ray")
        return
    from bench.doctor.cluster import look_at_cluster

    yield from look_at_cluster(address, wanted)


def _of_tokens(sweep_file: Path | None, settings: list[str] | None, plugins_dir: Path | None) -> Iterator[Finding]:
    """Check the tokens of a sweep's base models on its tasks."""
    if sweep_file is None:
        return
    from bench.commands.options import read_stages
    from bench.doctor.tokens import check_tokens_of

    yield from check_tokens_of(read_stages(sweep_file, settings, plugins_dir)[1].known_trials())


def has_ray() -> bool:
    """Whether ray is installed."""
    return importlib.util.find_spec("ray") is not None


def _line(finding: Finding) -> Text:
    line = Text.assemble((f"{finding.status:8}", STYLES[finding.status]))
    line.append(f"{finding.check}{'' if finding.node is None else f' on {finding.node}'}: {finding.found}")
    if finding.remedy is not None:
        line.append(f"\n         -> {finding.remedy}", style=STYLES[finding.status])
    return line
