"""Names of the rows of a table: the method, and a label that tells rows of one method apart.

A label names the settings that differ between the rows of its method, shortest first, and no others. Enough of them are
named to make every label unique; of what differs beside these, as much as keeps it short. The rest is returned, for a
remark: rows that differ in more than their label says would mislead otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.schema.digests import sha256_of_json
from bench.schema.same_answer import answer
from bench.schema.trial import TrialSpec, on_base, titled

# What every label says by itself, whatever the other rows are: on which base.
SAID_OF_ALL = ("model.quantization", "model.checkpoint_quantization")
# A label names at most so many settings, unless more are needed to tell rows apart.
MOST_SETTINGS = 3
# Of a longer text value, the middle is left out, unless that makes it ambiguous.
MOST_CHARACTERS = 28
# Keys whose values are hashes, with the name that people know instead, if it tells rows apart too.
OPAQUE: Mapping[str, Callable[[TrialSpec], object]] = {
    "model.weights_sha256": lambda spec: spec.model.path,
    "model.commit": lambda spec: spec.model.revision,
    "task.data_sha256": lambda spec: spec.task.config.get("path"),
    "method.source_sha256": lambda spec: spec.method.origin,
    "task.source_sha256": lambda spec: spec.task.origin,
    "task.plugin_metrics": lambda spec: ", ".join(metric.origin or "" for metric in spec.task.plugin_metrics),
}
# Keys with another title than their last part.
TITLES = {
    "model.path": "model",
    "model.weights_sha256": "model",
    "task.name": "task",
    "task.data_sha256": "data",
    "method.source_sha256": "code",
    "task.source_sha256": "task.code",
    "task.plugin_metrics": "metrics.code",
}
NULL = "null"
LENGTHS = {"train.steps", "train.epochs"}
PLAIN = re.compile(r"[A-Za-z_./~][\w./:@~+-]*")


@dataclass(frozen=True)
class Label:
    """The label of one row.

    Attributes:
        text: Empty where the method says enough.
        unsaid: Keys of the sweep file in which rows of the method differ and that no label names.
    """

    text: str
    unsaid: tuple[str, ...] = ()


def labels(
    specs: Sequence[TrialSpec], untrained: Collection[str] = (), ignored: Sequence[Collection[str]] = ()
) -> list[Label]:
    """A label for each row of a table; those of equal answers get the same.

    Args:
        specs: A trial of each row. The seed is not looked at.
        untrained: Classes of the methods that train nothing, whose rows training settings do not tell apart.
        ignored: For each row, keys of the sweep file that do not count.
    """
    keys = [(spec.without_seed, frozenset(ignored[place]) if ignored else None) for place, spec in enumerate(specs)]
    first: dict[object, int] = {}
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    places = list(first.values())
    made = _of_rows([specs[place] for place in places], untrained, [ignored[place] for place in places if ignored])
    by_key = dict(zip(first, made, strict=True))
    return [by_key[key] for key in keys]


def _of_rows(specs: Sequence[TrialSpec], untrained: Collection[str], ignored: Sequence[Collection[str]]) -> list[Label]:
    """Labels of trials that differ in more than their seed."""
    found: list[Label] = [Label("")] * len(specs)
    by_method: dict[str, list[int]] = {}
    for place, spec in enumerate(specs):
        by_method.setdefault(spec.method.name, []).append(place)
    for places in by_method.values():
        rows = {
            place: settings_of(
                specs[place],
                specs[place].method.target not in untrained,
                (*SAID_OF_ALL, *(ignored[place] if ignored else ())),
            )
            for place in places
        }
        # An adapter or model that was trained elsewhere has its label from the command that scores it.
        given = {place: specs[place].label for place in places if specs[place].loaded or specs[place].few_shot}
        others = [place for place in places if not given.get(place)]
        made = _of_one_method([rows[place] for place in others], [specs[place] for place in others])
        called = {**{place: Label(text) for place, text in given.items()}, **dict(zip(others, made, strict=True))}
        texts = _unique([called[place].text for place in places], [rows[place] for place in places])
        for place, text in zip(places, texts, strict=True):
            found[place] = replace(called[place], text=on_base(text, specs[place].model.stored_in))
    return found


def names(
    specs: Sequence[TrialSpec], untrained: Collection[str] = (), ignored: Sequence[Collection[str]] = ()
) -> list[str]:
    """The name of each row of a table: its method with its label, see :func:`labels`."""
    texts = [label.text for label in labels(specs, untrained, ignored)]
    return [titled(spec.method.name, text) for spec, text in zip(specs, texts, strict=True)]


def settings_of(spec: TrialSpec, trains: bool, ignored: Collection[str] = ()) -> dict[str, str]:
    """Key of the sweep file to value as JSON, of all that changes the answer but the seed.

    Args:
        spec: The trial.
        trains: Whether its method trains anything; else training settings are no part of it.
        ignored: Keys that are left out, with all that is below them.
    """
    content = answer(spec, trains, without=("seed", "version"))
    found: dict[str, str] = {}
    for part, value in content.items():
        if part in ("method", "task"):
            value = dict(value)
            config = value.pop("config")
            found.update(_leaves("config" if part == "method" else "task", config))
        found.update(_leaves(part, value))
    places = tuple(f"{key}." for key in ignored)
    return {key: text for key, text in found.items() if not f"{key}.".startswith(places)} if places else found


def _leaves(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    """All values nested in mappings, with their dotted keys."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{prefix}.{key}", inner)
    else:
        yield prefix, json.dumps(value, sort_keys=True, ensure_ascii=False)


def _of_one_method(rows: Sequence[Mapping[str, str]], specs: Sequence[TrialSpec]) -> list[Label]:
    keys = dict.fromkeys(key for row in rows for key in row)
    differing = [key for key in keys if len({row.get(key) for row in rows}) > 1]
    titles = {key: _title(key, keys) for key in differing}
    written = {key: _texts(key, rows, specs) for key in differing}
    parts = {
        key: ["" if text in (None, NULL) else f"{titles[key]}={text}" for text in texts]
        for key, texts in written.items()
    }
    needed = _needed(rows, differing, parts)
    fitting = [key for key in differing if key not in needed and key not in OPAQUE and all(parts[key])]
    more = sorted(fitting, key=lambda key: _length(key, parts))[: max(0, MOST_SETTINGS - len(needed))]
    if LENGTHS & {*needed, *more} and set(differing) >= LENGTHS:  # each row has one of the two
        more += [key for key in sorted(LENGTHS) if key not in (*needed, *more)]
    shown = sorted([*needed, *more], key=lambda key: _length(key, parts))
    unsaid = tuple(key for key in differing if key not in shown)
    texts = [", ".join(parts[key][place] for key in shown if parts[key][place]) for place in range(len(rows))]
    return [Label(text, unsaid) for text in texts]


def _unique(texts: Sequence[str], rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The texts, with a hash where equal texts stand for different settings, such as null and none."""
    known: dict[str, set[str]] = {}
    hashes = [sha256_of_json(row)[:8] for row in rows]
    for text, digest in zip(texts, hashes, strict=True):
        known.setdefault(text, set()).add(digest)
    return [
        text if len(known[text]) == 1 else ", ".join(filter(None, [text, f"settings={digest}"]))
        for text, digest in zip(texts, hashes, strict=True)
    ]


def _needed(rows: Sequence[Mapping[str, str]], differing: Sequence[str], parts: Mapping[str, list[str]]) -> list[str]:
    """A small set of keys that tells apart all rows that the differing keys tell apart, found greedily."""

    def told_apart(keys: Sequence[str]) -> int:
        return len({tuple(row.get(key) for key in keys) for row in rows})

    chosen: list[str] = []
    while told_apart(chosen) < told_apart(differing):
        chosen.append(
            min(
                (key for key in differing if key not in chosen),
                key=lambda key: (
                    -told_apart([*chosen, key]),
                    key in OPAQUE,
                    sum(not part for part in parts[key]),
                    _length(key, parts),
                ),
            )
        )
    for key in list(chosen):
        rest = [other for other in chosen if other != key]
        if told_apart(rest) == told_apart(chosen):
            chosen = rest
    return chosen


def _length(key: str, parts: Mapping[str, list[str]]) -> tuple[int, str]:
    return max(map(len, parts[key])), key


def _title(key: str, known: Collection[str]) -> str:
    """The last parts of a key that say which one of the known keys it is."""
    if key in TITLES:
        return TITLES[key]
    parts = key.split(".")
    for count in range(1, len(parts)):
        short = ".".join(parts[-count:])
        if sum(other == key or other.endswith(f".{short}") for other in known) == 1:
            return short
    return key


def _texts(key: str, rows: Sequence[Mapping[str, str]], specs: Sequence[TrialSpec]) -> list[str | None]:
    """Each row's value as text; None if it has none. Unequal values get unequal texts."""
    values = [row.get(key) for row in rows]
    writings: list[Callable[[int, str], str]] = [lambda _, value: _short(value), lambda _, value: _plain(value)]
    if key in OPAQUE:
        called = [OPAQUE[key](spec) for spec in specs]
        writings = [
            lambda place, value: _short(json.dumps(called[place])) if called[place] else value,
            lambda _, value: json.loads(value)[:8] if value.startswith('"') else value,
            *writings,
        ]
    for write in writings:
        texts = [None if value is None else write(place, value) for place, value in enumerate(values)]
        if len(set(zip(values, texts, strict=True))) == len(set(values)) == len(set(texts)):
            return texts
    return values


def _short(value: str) -> str:
    text = _plain(value)
    if len(text) <= MOST_CHARACTERS:
        return text
    half = (MOST_CHARACTERS - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def _plain(value: str) -> str:
    """A value of JSON in YAML's form: a text has no quotes if it can be nothing else."""
    content = json.loads(value)
    if isinstance(content, str) and PLAIN.fullmatch(content) and content.lower() not in ("true", "false", "null"):
        return content
    return value
