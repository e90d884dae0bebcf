"""YAML is read as people mean it, within limits of size and depth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from bench.config.load import load_sweep, setting_value
from bench.schema.strict_yaml import YamlError, parse_yaml
from bench.schema.validation import ConfigError

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + level)}: &{chr(98 + level)} [{', '.join(['*' + chr(97 + level)] * 10)}]\n" for level in range(8)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", 1000),
        ("1e-3", 0.001),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("off", "off"),
        ("yes", "yes"),
        ("True", True),
        ("~", None),
        ("2026-11-29", "2026-11-29"),
        ("1.2.3", "1.2.3"),
        ("{1: a, true: b}", {"1": "a", "true": "b"}),
        ("{x: &x {a: 1}, y: {<<: *x, b: 2}}", {"x": {"a": 1}, "y": {"a": 1, "b": 2}}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    parsed_value = parse_yaml(text)
    assert parsed_value == value
    assert type(parsed_value) is type(value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LAUGHS, "more than 200,000 values"),
        ("a: &a [*a]", "an anchor that holds itself"),
        ("[" * 5000 + "]" * 5000, "nested more than 50 deep"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("? [a, b]\n: c", "a key is a list or a mapping"),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' occurs twice$"),
        ("a: [0", "line 1, column 6: while parsing a flow sequence, expected .* but got '<stream end>'$"),
        ("a: 0x" + "f" * 5000, "line 1, column 4: a number of 5,002 digits"),
        ("a: !!set {b}", "line 1, column 4: could not determine a constructor for the tag"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("x: 1\n" * 200_000, "1,000,000 characters"),
    ],
)
def test_what_nobody_writes_is_one_error_at_once(text: str, why: str, tmp_path: Path) -> None:
    started = time.process_time()
    with pytest.raises(YamlError, match=why):
        parse_yaml(text)
    assert time.process_time() - started < 10
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=why) as raised:
        load_sweep(path)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("train.learning_rate=.inf", "train.learning_rate"),
        ("train.steps=true", "true and false are no numbers"),
        ("seeds=[true]", "true and false are no numbers"),
        ("train.steps=1:30", "train.steps"),
    ],
)
def test_numbers_of_a_sweep_are_numbers(setting: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("{name: x, task: facts, methods: [none]}")
    with pytest.raises(ConfigError, match=why):
        load_sweep(path, [setting])


def test_a_setting_is_read_by_the_same_rules() -> None:
    assert setting_value("train.learning_rate=1e-3") == ("train.learning_rate", 0.001)
    assert setting_value("resources.fuse=off") == ("resources.fuse", "off")
