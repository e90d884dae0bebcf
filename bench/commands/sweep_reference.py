"""Every key of a sweep file in one place: as a page for people, and as a JSON schema for editors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench.config.load import SHORT_FORMS
from bench.plugins.registry import load_method, load_task, targets
from bench.plugins.settings import Setting, settings_of
from bench.schema.sweep import CostStageSpec, FinalStageSpec, HalvingSpec, MethodEntry, StagesSpec, Sweep, TuneSpec
from bench.schema.trial import DecodeSpec, EvaluationSpec, JsonDict, ModelSpec, OffloadSpec, ResourceSpec, TrainSpec
from bench.task import TaskConfig

INTRODUCTION = """# Every key of a sweep file

This page lists every key that a sweep file may have, with type, default and meaning. `tuneoff init DATA` writes a
sweep to begin with. `--set key.path=value` sets any key on the command line:
`--set train.steps=10`, `--set methods.1.train.learning_rate=1e-3` (methods are counted from 0). A default that is
left empty here is `null`, no entry, or what the meaning says.

For completion and checks in VS Code with the YAML extension, save what `tuneoff schema` prints as sweep.schema.json,
and begin the sweep with the line `# yaml-language-server: $schema=sweep.schema.json`.

`make docs` makes this page from the classes that read sweeps.
"""


@dataclass(frozen=True)
class Section:
    """A mapping of a sweep file."""

    path: str  # where it stands; empty for the top of the file
    about: str
    settings: tuple[Setting, ...]


def sections() -> Iterator[Section]:
    """All sections, in the order in which a sweep is written."""
    classes: tuple[tuple[str, type[BaseModel]], ...] = (
        ("", Sweep),
        ("model", ModelSpec),
        ("task", TaskConfig),
        ("train", TrainSpec),
        ("decode", DecodeSpec),
        ("evaluations", EvaluationSpec),
        ("resources", ResourceSpec),
        ("resources.offload", OffloadSpec),
        ("methods[]", MethodEntry),
        ("stages", StagesSpec),
        ("stages.tune", TuneSpec),
        ("stages.tune.halving", HalvingSpec),
        ("stages.final", FinalStageSpec),
        ("stages.cost", CostStageSpec),
    )
    for path, of_section in classes:
        left_out: tuple[str, ...] = getattr(of_section, "FILLED_IN", ())
        found = tuple(setting for setting in settings_of(of_section) if setting.name not in left_out)
        yield Section(path, " ".join((of_section.__doc__ or "").split("\n\n")[0].split()), found)


def page() -> str:
    """The page of all keys, in Markdown."""
    lines = [INTRODUCTION]
    for section in sections():
        lines += [f"## {f'`{section.path}`' if section.path else 'The top of the file'}", "", section.about, ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for setting in section.settings:
            cells = (f"`{setting.name}`", setting.type, _default(setting), setting.description)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _default(setting: Setting) -> str:
    text = setting.default_text
    return "" if text in ("null", "") else text if len(text) <= 40 else "see below"


def sweep_schema() -> JsonDict:
    """A JSON schema (draft 2020-12) of sweep files, with the settings of all tasks and methods that are known here."""
    schema: JsonDict = Sweep.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Tuneoff sweep"
    definitions: JsonDict = schema["$defs"]
    properties: JsonDict = schema["properties"]
    for part in SHORT_FORMS:
        properties[part] = {"anyOf": [{"type": "string"}, _long_form(properties[part])]}
    tasks, methods = targets("task"), targets("method")
    properties["task"]["anyOf"] = [
        {"type": "string", "examples": sorted(tasks)},
        _named("task", {name: _settings_schema(load_task(target).Config) for name, target in tasks.items()}),
    ]
    entry = definitions["MethodEntry"]
    for part, of_part in (("train", "TrainSpec"), ("resources", "ResourceSpec")):
        # A method entry overrides single fields.
        entry["properties"][part] = {key: value for key, value in definitions[of_part].items() if key != "required"}
    entry["allOf"] = [
        _when(name, {"properties": {"config": _settings_schema(load_method(target).Config)}})
        for name, target in methods.items()
    ]
    entry["properties"]["name"]["examples"] = sorted(methods)
    properties["methods"]["items"] = {
        "anyOf": [{"type": "string", "examples": sorted(methods)}, {"$ref": "#/$defs/MethodEntry"}]
    }
    return schema


def _long_form(schema: JsonDict) -> JsonDict:
    return {key: value for key, value in schema.items() if key != "default"}


def _named(what: str, of_each: dict[str, JsonDict]) -> JsonDict:
    """An object with a name, whose other keys are the settings of what it names."""
    return {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string", "description": f"of the {what}", "examples": sorted(of_each)}},
        "allOf": [_when(name, _with_name(schema)) for name, schema in of_each.items()],
    }


def _when(name: str, then: JsonDict) -> JsonDict:
    return {"if": {"properties": {"name": {"const": name}}, "required": ["name"]}, "then": then}


def _with_name(schema: JsonDict) -> JsonDict:
    return {**schema, "properties": {"name": {"type": "string"}, **schema.get("properties", {})}}


def _settings_schema(config_class: type[BaseModel]) -> JsonDict:
    """The schema of a class, with what it refers to inside: it becomes a part of another one."""
    schema = config_class.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                return inlined(definitions[part["$ref"].rpartition("/")[2]])
            return {key: inlined(value) for key, value in part.items()}
        return [inlined(value) for value in part] if isinstance(part, list) else part

    found: JsonDict = inlined(schema)
    found.pop("required", None)  # a grid may give it
    return found


def main() -> None:
    """Write the page that is named on the command line."""
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
