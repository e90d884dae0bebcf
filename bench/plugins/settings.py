"""Lists the settings of a method or task for people: names, types, defaults, meaning, read from the pydantic class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

# JSON schema's words for the bounds of a number.
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


@dataclass(frozen=True)
class Setting:
    """One field. ``default`` has no meaning if ``required``; ``example`` is a value to begin with."""

    name: str
    type: str
    required: bool
    default: Any
    example: Any
    description: str

    @property
    def default_text(self) -> str:
        return "required" if self.required else as_yaml(self.default)


def settings_of(config_class: type[BaseModel]) -> list[Setting]:
    """All settings of a class, in order of definition."""
    schema = config_class.model_json_schema()
    definitions = schema.get("$defs", {})
    required = set(schema.get("required", ()))
    return [
        Setting(
            name=name,
            type=_type(field, definitions),
            required=name in required,
            default=field.get("default"),
            example=next(iter(field.get("examples", ())), field.get("default")),
            description=field.get("description", ""),
        )
        for name, field in schema.get("properties", {}).items()
    ]


def as_yaml(value: Any) -> str:
    """A value in YAML's flow style, which for JSON values is JSON."""
    return value if isinstance(value, str) and value.isidentifier() else json.dumps(value, ensure_ascii=False)


def _type(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return _type(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " | ".join(_type(option, definitions) for option in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array" and "items" in schema:
        return f"list of {_type(schema['items'], definitions)}"
    if isinstance(kinds := schema.get("type", "any"), list):
        return " | ".join(kinds)
    bounds = [f"{sign} {_bound(schema[key])}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([kinds, *bounds])


def _bound(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
