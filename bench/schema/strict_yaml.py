"""YAML as a person reads it, within bounds: the core schema of YAML 1.2, over PyYAML's safe loader.

PyYAML follows YAML 1.1, in which ``1:30`` is 90, ``010`` is 8, ``off`` is false and ``1e-3`` is a text. It also keeps
the last of two equal keys, and follows anchors however large they make a few lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from bench.schema.printable import in_one_line

# The limit on a text: a sweep has a few kilobytes, and PyYAML takes about a second for so many.
MAX_CHARACTERS = 500_000
MAX_VALUES = 200_000  # once anchors are followed
MAX_DEPTH = 50
MAX_DIGITS = 4000  # of a whole number; Python does not show many more
MERGE = "tag:yaml.org,2002:merge"


class YamlError(ValueError):
    """A text is no YAML, or larger than anybody would write by hand."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as PyYAML has it
    depth = 0

    def compose_sequence_node(self, anchor: Any) -> Any:
        return self._within(super().compose_sequence_node, anchor)

    def compose_mapping_node(self, anchor: Any) -> Any:
        return self._within(super().compose_mapping_node, anchor)

    def _within(self, compose: Callable[[Any], Any], anchor: Any) -> Any:
        """Read a list or mapping with all that is in it."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise YamlError(f"nested more than {MAX_DEPTH} deep")
        node = compose(anchor)
        self.depth -= 1
        return node


# Section 10.3.2 of the specification, and underscores between digits, which YAML 1.1 has.
for tag, pattern, first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
):
    characters = ["" if character == "\0" else character for character in first]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), characters)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    if len(text) > MAX_DIGITS and text.startswith(("0o", "0x")):  # Python itself refuses decimal ones
        what = f"a number of {len(text):,} digits, and at most {MAX_DIGITS:,} are read"
        raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
    if text.startswith(("0o", "0x")):
        return int(text, 0)
    return int(text)


def _unknown(loader: _Loader, node: yaml.Node) -> Any:
    return loader.construct_undefined(node)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key_node.start_mark)
        if key_node.value in seen:
            what = f"the key {key_node.value!r} occurs twice"
            raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
        seen.add(key_node.value)
        if key_node.tag != MERGE:
            key_node.tag = yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG  # A key is a text, also 1 and true.
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
for tag in ("binary", "omap", "pairs", "set", "timestamp"):  # of YAML 1.1; JSON has no such values
    _Loader.add_constructor(f"tag:yaml.org,2002:{tag}", _unknown)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        YamlError: It is none, or larger or deeper than :data:`MAX_CHARACTERS`, :data:`MAX_VALUES`, :data:`MAX_DEPTH`.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(f"{len(text):,} characters, and at most {MAX_CHARACTERS:,} are read")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise YamlError(f"not valid YAML: {_in_one_line(error)}") from error
    except ValueError as error:  # e.g. an integer of thousands of digits
        raise YamlError(f"not valid YAML: {error}") from error


def _in_one_line(error: yaml.YAMLError) -> str:
    """What is wrong, behind line and column, without the excerpt that PyYAML shows."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return in_one_line(str(error))
    parts = (getattr(error, part, None) for part in ("context", "problem", "note"))
    return f"line {mark.line + 1}, column {mark.column + 1}: {', '.join(in_one_line(part) for part in parts if part)}"


def _count(node: yaml.Node, counted: dict[int, int | None]) -> int:
    """Values that a node stands for once anchors are followed. ``counted`` has None for nodes that are being counted.

    Raises:
        YamlError: Too many, or a node that holds itself.
    """
    if id(node) in counted:
        known = counted[id(node)]
        if known is None:
            raise YamlError(f"line {node.start_mark.line + 1}: an anchor that holds itself")
        return known
    counted[id(node)] = None
    total = 1
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            total += sum(_count(part, counted) for part in (child if isinstance(child, tuple) else (child,)))
            if total > MAX_VALUES:
                raise YamlError(f"line {node.start_mark.line + 1}: more than {MAX_VALUES:,} values")
    counted[id(node)] = total
    return total
