"""Commands on methods: list them, show settings, check the contract, begin a plugin."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.table import Table
from rich.text import Text

from bench.commands.options import AsJson, PluginsDir, console
from bench.commands.projects import Into, NewName, announce_project
from bench.config.load import setting_value
from bench.schema.validation import ConfigError, validated

if TYPE_CHECKING:
    from bench.conformance import Verdict
    from bench.method import Method

MethodName = Annotated[str, typer.Argument(help="a name that 'tuneoff methods' lists, or module:Class", metavar="NAME")]


def methods(
    name: Annotated[str | None, typer.Argument(help="show this method's settings", metavar="[NAME]")] = None,
    plugins_dir: PluginsDir = None,
    as_json: AsJson = False,
) -> None:
    """List the methods that sweeps can name, or show the settings of one."""
    if name is not None:
        _show(name, plugins_dir, as_json)
        return
    from bench.commands.catalogue import print_listing

    print_listing("method", as_json, plugins_dir)


def check_method(
    name: MethodName,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value of the method's own settings")] = None,
    families: Annotated[
        list[str] | None,
        typer.Option("--family", help="family of tiny models, instead of gpt2, llama and t5; may repeat"),
    ] = None,
    plugins_dir: PluginsDir = None,
    as_json: AsJson = False,
) -> None:
    """Check on tiny models that a method keeps the contract.

    Exit code 1: a check failed, or every family refused the method; 2: the method, its settings or a family is unknown.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # tiny models draw advice about models of real size
    from bench.conformance import keeps_contract, verdicts
    from bench.conformance.tiny_models import CORE_FAMILIES, FAMILIES

    if unknown := sorted(set(families or ()) - FAMILIES.keys()):
        raise ConfigError(f"--family {unknown[0]}: there are {', '.join(FAMILIES)}")
    method_class = _load(name, plugins_dir)[1]
    config = validated(method_class.Config, dict(map(setting_value, settings or ())), f"method {name}: config")
    found = list(verdicts(method_class, config, families or CORE_FAMILIES))
    if as_json:
        console.print_json(json.dumps([vars(verdict) for verdict in found]))
    else:
        _print_verdicts(name, found)
    raise typer.Exit(0 if keeps_contract(found) else 1)


def new_method(name: NewName, into: Into = Path()) -> None:
    """Write a plugin project that works: entry point, method and test, to be changed into your method."""
    announce_project("method", name, into)


def _load(name: str, plugins_dir: Path | None) -> tuple[str, type[Method]]:
    """The target and class of a method.

    Raises:
        ConfigError: It is not known or cannot be loaded.
    """
    from bench.plugins.registry import load_method, resolve

    try:
        target = resolve("method", name, plugins_dir)
        return target, load_method(target)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _print_verdicts(name: str, found: list[Verdict]) -> None:
    families = list(dict.fromkeys(verdict.family for verdict in found))
    cells = {(verdict.check, verdict.family): verdict for verdict in found}
    styles = {"pass": "green", "fail": "bold red", "refused": "yellow"}
    table = Table(title=f"the contract of methods: {name}")
    for heading in ("check", *families):
        table.add_column(heading)
    for check in dict.fromkeys(verdict.check for verdict in found):
        row = [cells[check, family] for family in families]
        table.add_row(check, *(Text(verdict.outcome, style=styles[verdict.outcome]) for verdict in row))
    console.print(table)
    for line in _reasons(found, families):
        console.print(f"- {line}", markup=False, highlight=False, soft_wrap=True)
    console.print(_summary(name, found), markup=False, highlight=False, soft_wrap=True)


def _summary(name: str, found: list[Verdict]) -> str:
    """The last line: the number of verdicts of each kind. Small screens show it."""
    from bench.conformance import keeps_contract

    counts = Counter(verdict.outcome for verdict in found)
    counted = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("pass", "fail", "refused") if counts[outcome])
    return (
        f"{name} {'keeps' if keeps_contract(found) else 'does not keep'} the contract: of {len(found)} checks {counted}"
    )


def _reasons(found: list[Verdict], families: list[str]) -> list[str]:
    """One line for each thing that is wrong or refused, with the checks and families that tell the same."""
    where: dict[tuple[str, str], dict[str, list[str]]] = {}
    for verdict in found:
        if verdict.outcome != "pass":
            where.setdefault((verdict.outcome, verdict.reason), {}).setdefault(verdict.family, []).append(verdict.check)
    lines = []
    for (outcome, reason), checks in where.items():
        names = list(dict.fromkeys(check for of_family in checks.values() for check in of_family))
        what = names[0] if len(names) == 1 else f"{len(names)} checks ({names[0]}, ...)"
        on = ", ".join(checks)
        whole = outcome == "refused" and len(names) > 1
        lines.append(f"refused on {on}: {reason}" if whole else f"{what}: {outcome} on {on}: {reason}")
    if all(verdict.outcome == "refused" for verdict in found):
        lines.append(
            f"nothing was checked: {', '.join(families)} refuse it; name the families that it is for with --family"
        )
    return lines


def _show(name: str, plugins_dir: Path | None, as_json: bool) -> None:
    from bench.commands.catalogue import settings_table
    from bench.plugins.registry import BUILT_IN, summary
    from bench.plugins.settings import settings_of
    from bench.plugins.source import plugin_source
    from bench.report.searches import space_text

    target, method_class = _load(name, plugins_dir)
    source = plugin_source(target)
    settings = settings_of(method_class.Config)
    about = {
        "name": name,
        "description": summary(method_class),
        "paper": method_class.paper,
        "target": target,
        "origin": BUILT_IN if source is None else source.origin,
    }
    space = method_class.search_space if method_class.trains else {}
    example = _example(name, {setting.name: setting.example for setting in settings if setting.example is not None})
    if as_json:
        rows = [vars(setting) for setting in settings]
        searched = {key: dimension.model_dump(mode="json") for key, dimension in space.items()}
        console.print_json(json.dumps({**about, "settings": rows, "search_space": searched, "example": example}))
        return
    console.print(Text(f"{name}: {about['description']}"))
    for key in ("paper", "target", "origin"):
        if about[key]:
            console.print(Text(f"{key}: {about[key]}", style="dim"))
    console.print(settings_table(settings))
    if space:
        console.print(Text(f"stages.tune searches: {space_text(space)}", style="dim"))
    console.print(Text(f"in a sweep:\n\n{example}"))


def _example(name: str, config: dict[str, Any]) -> str:
    """An entry of a sweep with the settings at their defaults, or at examples where there are none."""
    entry: dict[str, Any] = {"name": name, **({"config": config} if config else {})}
    return yaml.safe_dump({"methods": [entry]}, sort_keys=False, allow_unicode=True, width=110)
