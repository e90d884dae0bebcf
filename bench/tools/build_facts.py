"""Builds the ``facts`` data-to-text set from the YAML knowledge base, always byte for byte the same.

Run ``python -m bench.tools.build_facts`` to write ``data/*.jsonl.gz`` and add ``--check`` to only compare the
committed files with what the builder makes. The vocabulary of the YAML files is described in ``data/README.md``.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.tools import shipped_rows
from bench.tools.shipped_rows import write_or_check

HERE = Path(__file__).resolve().parents[1] / "tasks" / "facts"
COUNTS = {"train": 2400, "dev": 300, "test": 400}
UNSEEN_ROWS = 100
SIZE_SHARES = ((1, 0.25), (2, 0.30), (3, 0.25), (4, 0.20))
MIXED_SHARE = 0.45
MAX_PER_FOCAL = {"train": 12, "dev": 14, "test": 14}
PARTITIONS: dict[int, list[tuple[int, ...]]] = {
    1: [(1,)],
    2: [(2,), (1, 1)],
    3: [(3,), (2, 1), (1, 2)],
    4: [(2, 2), (3, 1), (1, 3), (2, 1, 1)],
}
POSSESSIVES = {"it": "its", "he": "his", "she": "her"}
# A phrase with one of these words already has a clause, so that no further one may follow it.
CLAUSE = re.compile(r" (?:that|which|who|whose|where|with|about|named|written|founded|discovered|climbed) ")
# Verbs that need not be repeated: "was born in Ulm and educated in Zurich", but not "was born in Ulm and a chemist".
SHARES = re.compile(r"has (?!\w+ed )|(?:is|was) (?:in|part|based|born|written|\w+ed) ")
META = ("name", "noun", "pron", "short")

Fact = tuple[str, str]
Triple = tuple[str, str, str]


@dataclass(frozen=True)
class Relation:
    """Phrase templates of one relation, by kind of phrase, and how it may combine with others."""

    forms: dict[str, list[str]]
    tails: dict[str, str]
    unseen: bool
    anchor: bool
    rank: int
    rival: bool


@dataclass
class Entity:
    """A subject of facts, with what is needed to refer to it again."""

    name: str
    domain: str
    noun: str
    pron: str
    short: str
    copula: str
    facts: list[Fact]
    split: str = ""


@dataclass
class Knowledge:
    """All relations and entities, and the surface form of each name that is not written as it stands."""

    relations: dict[str, Relation] = field(default_factory=dict)
    entities: dict[str, Entity] = field(default_factory=dict)
    surfaces: dict[str, str] = field(default_factory=dict)

    def say(self, name: str) -> str:
        """Returns the form of a name inside a sentence, such as "the Nile" for "Nile"."""
        return self.surfaces.get(name, name)


@dataclass(frozen=True)
class Source:
    """What one row says: facts of the focal entity, and perhaps facts of one of its objects (the helper)."""

    focal: str
    facts: tuple[Fact, ...]
    helper: str = ""
    helper_facts: tuple[Fact, ...] = ()

    def triples(self) -> list[Triple]:
        """Returns the triples of the source in a fixed order."""
        return [(self.focal, *fact) for fact in self.facts] + [(self.helper, *fact) for fact in self.helper_facts]


@dataclass(frozen=True)
class Unit:
    """One or two facts that one phrase expresses, with a relative clause about the object if there is one."""

    facts: tuple[Fact, ...]
    clause: str = ""


def seeded(*parts: object) -> random.Random:
    """Returns a generator that depends on nothing but the given parts."""
    return shipped_rows.seeded("tuneoff facts 1", *parts)


def _read_cell(kb: Knowledge, cell: str) -> str:
    # "^" before a name says that running text puts "the" in front of it.
    if not cell.startswith("^"):
        return cell
    kb.surfaces[cell[1:]] = "the " + cell[1:]
    return cell[1:]


def _read_domain(kb: Knowledge, domain: str, spec: dict[str, Any]) -> None:
    for name, raw in spec.get("relations", {}).items():
        if name in kb.relations:
            raise ValueError(f"relation {name!r} is defined twice")
        forms = {kind: raw.get(kind, []) for kind in ("vp", "mod", "np", "poss", "full")}
        flags = (raw.get("unseen", False), raw.get("anchor", False), raw.get("rank", 0), raw.get("rival", False))
        kb.relations[name] = Relation(forms, raw.get("tails", {}), *flags)
    for line in spec["rows"].strip().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != len(spec["columns"]):
            raise ValueError(f"{domain}: wrong number of cells in {line!r}")
        row = {key: _read_cell(kb, cell) for key, cell in zip(spec["columns"], cells, strict=True) if cell != "-"}
        name = row["name"]
        if name in kb.entities:
            raise ValueError(f"entity {name!r} is described twice")
        if "surface" in spec:
            kb.surfaces[name] = spec["surface"].format(name=name, lower=name[0].lower() + name[1:])
        noun, pron = row.get("noun", spec.get("noun", "")), row.get("pron", spec.get("pron", "it"))
        short = row.get("short", spec.get("short", name.split()[-1] if pron != "it" else ""))
        facts = [(key, value) for key, value in row.items() if key not in META]
        kb.entities[name] = Entity(
            name, domain, noun, pron, short, spec.get("copula", "is"), facts, spec.get("split", "")
        )


def load_knowledge() -> Knowledge:
    """Reads every file of ``knowledge/`` and gives each entity its split."""
    kb = Knowledge()
    for path in sorted((HERE / "knowledge").glob("*.yaml")):
        _read_domain(kb, path.stem, yaml.safe_load(path.read_text(encoding="utf-8")))
    for entity in kb.entities.values():
        for relation, _ in entity.facts:
            if relation not in kb.relations:
                raise ValueError(f"{entity.name}: no templates for relation {relation!r}")
    _assign_splits(kb)
    return kb


def _root(kb: Knowledge, name: str) -> str:
    # A book follows its author, a city its country: so chains stay inside one split.
    for relation, value in kb.entities[name].facts:
        if kb.relations[relation].anchor and value in kb.entities:
            return _root(kb, value)
    return name


def _assign_splits(kb: Knowledge) -> None:
    groups: dict[str, list[str]] = {}
    for name in sorted(kb.entities):
        if _root(kb, name) == name and not kb.entities[name].split:
            groups.setdefault(kb.entities[name].domain, []).append(name)
    chosen: dict[str, str] = {}
    for domain, names in sorted(groups.items()):
        seeded("split", domain).shuffle(names)
        tests, devs = max(1, round(0.13 * len(names))), max(1, round(0.10 * len(names)))
        for place, name in enumerate(names):
            chosen[name] = "test" if place < tests else "dev" if place < tests + devs else "train"
    for name, entity in kb.entities.items():
        entity.split = entity.split or chosen[_root(kb, name)]
    for entity in kb.entities.values():
        if entity.split != "test":
            entity.facts = [fact for fact in entity.facts if not kb.relations[fact[0]].unseen]


def _fill(kb: Knowledge, entity: Entity, unit: Unit, kind: str) -> list[str]:
    """Returns the phrases of a kind for a unit; only "{s}" is left open in them."""
    (relation, value), tail = unit.facts[0], ""
    templates = kb.relations[relation].forms[kind]
    if len(unit.facts) == 2:
        templates = [t for t in templates if "{+}" in t]
        tail = kb.relations[unit.facts[1][0]].tails[relation].replace("{o}", kb.say(unit.facts[1][1]))
        tail = tail if tail.startswith(",") else " " + tail
    if unit.clause:
        # A relative clause reads well only where its noun ends or opens the sentence.
        templates = [t for t in templates if t.replace("{+}", "").endswith("{o}") or t.startswith(("{o} ", "!{o} "))]
    value = kb.say(value) + unit.clause
    return [t.replace("{+}", tail).replace("{n}", entity.noun).replace("{o}", value) for t in templates]


def _conjoin(phrases: list[str], rng: random.Random) -> str:
    heads = {phrase.split()[0] for phrase in phrases}
    if len(phrases) > 1 and len(heads) == 1 and all(map(SHARES.match, phrases)) and rng.random() < 0.75:
        phrases = [phrases[0], *(phrase.split(" ", 1)[1] for phrase in phrases[1:])]
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _mention(kb: Knowledge, entity: Entity, how: str) -> tuple[str, str]:
    if how == "pron":
        return entity.pron, POSSESSIVES[entity.pron]
    text = {"name": kb.say(entity.name), "noun": "the " + entity.noun, "short": entity.short}[how]
    return text, text + ("'" if entity.pron == "it" and text.endswith("s") else "'s")


def _pick(rng: random.Random, options: list[tuple[float, list[str]]]) -> str:
    usable = [(weight, texts) for weight, texts in options if texts]
    return rng.choice(rng.choices([texts for _, texts in usable], [weight for weight, _ in usable])[0])


def _single(kb: Knowledge, entity: Entity, unit: Unit, how: str, rng: random.Random) -> tuple[str, bool]:
    subject, owner = _mention(kb, entity, how)
    # A "!" marks what only reads well with the name in it.
    full = [] if how == "pron" else _fill(kb, entity, unit, "full")
    full = [t.lstrip("!").replace("{s}", subject) for t in full if how == "name" or t[0] != "!"]
    naming = _fill(kb, entity, unit, "np") if how == "name" else []
    # "The Sorrows of Young Werther's author" reads badly.
    long = entity.pron == "it" and subject.removeprefix("the ").count(" ") > 1
    owned = [] if long else _fill(kb, entity, unit, "poss")
    text = _pick(
        rng,
        [
            (3, [f"{subject} {t}" for t in _fill(kb, entity, unit, "vp")]),
            (1.5, [f"{owner} {t}" for t in owned]),
            (2.5, full),
            (1.5, [f"{subject} {entity.copula} {t}" for t in naming]),
        ],
    )
    return text, not text.startswith(subject + " ")


def _sentence(kb: Knowledge, entity: Entity, units: list[Unit], how: str, rng: random.Random) -> tuple[str, bool]:
    """Returns one sentence about the entity, and whether something else than the entity opens it."""
    if len(units) == 1:
        return _single(kb, entity, units[0], how, rng)
    subject, _ = _mention(kb, entity, how)
    who, that = ("which", "that") if entity.pron == "it" else ("who", "who")
    phrases = [_fill(kb, entity, unit, "vp") for unit in units]
    verbs = [rng.choice(options) for options in phrases]
    rest, mods = _conjoin(verbs[1:], rng), _fill(kb, entity, units[0], "mod")
    named = _fill(kb, entity, units[0], "np") if how == "name" else []
    ending = [f", and {POSSESSIVES[entity.pron]} {t}" for t in _fill(kb, entity, units[-1], "poss")]
    options = [
        (3.0, [f"{subject} {_conjoin(verbs, rng)}"]),
        (1.2, [f"{t}, {subject} {rest}" for t in mods]),
        (1.5, [f"{subject} {_conjoin(verbs[:-1], rng)}{t}" for t in ending]),
        (1.5, [f"{subject}, {t}, {rest}" for t in named]),
        (2.0, [f"{subject} {entity.copula} {t} {that} {rest}" for t in named if not CLAUSE.search(t)]),
    ]
    if how != "pron":
        options.append((2.0, [f"{subject}, {t}, {rest}" for t in mods]))
        options.append((1.0, [f"{subject}, {who} {verbs[0]}, {rest}"]))
        options.append((1.0, [f"{subject}, whose {t}, {rest}" for t in _fill(kb, entity, units[0], "poss")]))
    text = _pick(rng, options)
    return text, any(text.endswith(t) for t in ending)


def _units(kb: Knowledge, facts: list[Fact], rng: random.Random) -> list[Unit]:
    """Shuffles facts and merges those that belong in one phrase, such as place and year of birth."""
    left = sorted(facts)
    rng.shuffle(left)
    units: list[Unit] = []
    while left:
        fact = left.pop(0)
        pairs = [(fact, other) for other in left] + [(other, fact) for other in left]
        joined = [pair for pair in pairs if pair[0][0] in kb.relations[pair[1][0]].tails]
        if joined:
            pair = rng.choice(joined)
            left.remove(pair[1] if pair[0] == fact else pair[0])
            units.append(Unit(pair))
        else:
            units.append(Unit((fact,)))
    # Birth comes before all else and death after it, whatever the shuffle says.
    return sorted(units, key=lambda unit: kb.relations[unit.facts[0][0]].rank)


def _helper_clause(kb: Knowledge, helper: Entity, units: list[Unit], rng: random.Random) -> str:
    who = "which" if helper.pron == "it" else "who"
    verbs = _conjoin([rng.choice(_fill(kb, helper, unit, "vp")) for unit in units], rng)
    owned = [f", whose {t}," for t in _fill(kb, helper, units[0], "poss")] if len(units) == 1 else []
    return _pick(rng, [(2, [f", {who} {verbs},"]), (1, owned)])


def _plan(kb: Knowledge, source: Source, rng: random.Random) -> tuple[list[list[Unit]], list[Unit]]:
    """Returns the units of each sentence about the focal entity and those of a last sentence about the helper."""
    entity = kb.entities[source.focal]
    link = [fact for fact in source.facts if fact[1] == source.helper]
    units = _units(kb, [fact for fact in source.facts if fact not in link], rng)
    after: list[Unit] = []
    tied: list[Unit] = []
    if link:
        after = _units(kb, list(source.helper_facts), rng)
        if len(after) == 1 and rng.random() < 0.65:
            tied, after = [Unit((link[0],), _helper_clause(kb, kb.entities[source.helper], after, rng))], []
        else:
            tied = [Unit((link[0],))]
    # The helper's clause must close the last sentence, so that a pronoun after it cannot point the wrong way.
    units += tied
    sizes = list(rng.choice(PARTITIONS[len(units)]))
    if tied and sizes[-1] > 1 and not _fill(kb, entity, units[-1], "vp"):
        sizes = [*sizes[:-1], sizes[-1] - 1, 1]
    ends = list(itertools.accumulate(sizes))
    return [units[end - size : end] for size, end in zip(sizes, ends, strict=True)], after


def _again(entity: Entity, helper: Entity, alone: bool) -> str:
    """Returns how to mention the helper again, right after the sentence that names it, so that nobody is confused."""
    if helper.pron != "it":
        return "pron" if entity.pron == "it" and alone else "short" if helper.short != entity.short else "name"
    return "noun" if helper.noun and helper.noun != entity.noun else "name"


def _realise(kb: Knowledge, source: Source, rng: random.Random) -> str:
    entity = kb.entities[source.focal]
    chunks, after = _plan(kb, source, rng)
    sentences: list[str] = []
    inverted = rivals = False
    for place, chunk in enumerate(chunks):
        again = "short" if entity.short else "noun"
        how = "name" if place == 0 else again if inverted or rivals else rng.choice(["pron", "pron", again])
        text, inverted = _sentence(kb, entity, chunk, how, rng)
        sentences.append(text)
        # "Holmes was created by Conan Doyle. He ...": a pronoun would leave it open who is meant.
        rivals = any(kb.relations[relation].rival for unit in chunk for relation, _ in unit.facts)
    if after:
        helper = kb.entities[source.helper]
        how = rng.choice(["name", *2 * [_again(entity, helper, len(chunks[-1]) == 1)]])
        sentences.append(_sentence(kb, helper, after, how, rng)[0])
    return " ".join(_polish(text) for text in sentences)


def _polish(text: str) -> str:
    """Turns a raw sentence into a written one: articles, commas, capital and full stop."""
    text = re.sub(r",\s*,", ",", text + ".")
    text = re.sub(r",?\.+$", ".", text)
    vowel = r"(?=[aeiouAEIOU])(?!uni|Uni|eu|Eu|one|use|Ur|Uk|Ug)"
    text = re.sub(r"\ba\(n\) " + vowel, "an ", text).replace("a(n) ", "a ")
    return text[0].upper() + text[1:]


def _pairs(text: str) -> set[str]:
    words = ["^", *text.split()]
    return {f"{a} {b}" for a, b in itertools.pairwise(words)}


def references(kb: Knowledge, source: Source, count: int, rng: random.Random) -> list[str]:
    """Returns three references, or more when asked for and possible, that differ as much as they can."""
    drawn = list(dict.fromkeys(_realise(kb, source, rng) for _ in range(24)))
    picked = [drawn.pop(0)]
    while len(picked) < count and drawn:

        def novelty(text: str) -> float:
            return min(1 - len(_pairs(text) & _pairs(p)) / len(_pairs(text) | _pairs(p)) for p in picked)

        # Any draw that differs enough will do: always taking the most distant one would favour odd sentences.
        far = [text for text in drawn if novelty(text) > 0.5]
        best = far[0] if far else max(drawn, key=novelty)
        drawn.remove(best)
        picked.append(best)
    if len(picked) < 3:
        raise ValueError(f"too few ways to say {source}")
    return picked


def candidates(kb: Knowledge, name: str) -> list[Source]:
    """Returns every source of one to four triples that has the named entity at its centre."""
    entity = kb.entities[name]
    subsets = [facts for size in range(1, 5) for facts in itertools.combinations(entity.facts, size)]
    found = [Source(name, facts) for facts in subsets]
    for facts in (facts for facts in subsets if len(facts) < 4):
        for _, value in facts:
            helper = kb.entities.get(value)
            if helper is None or helper.split != entity.split or value == name:
                continue
            known_names = {name, *(fact[1] for fact in facts)}
            fresh = [fact for fact in helper.facts if fact[1] not in known_names]
            for size in range(1, min(2, 4 - len(facts)) + 1):
                found += [Source(name, facts, value, more) for more in itertools.combinations(fresh, size)]
    return found


def _is_unseen(kb: Knowledge, source: Source) -> bool:
    return any(kb.relations[relation].unseen for _, relation, _ in source.triples())


def _draw(kb: Knowledge, split: str, count: int, unseen: bool) -> list[Source]:
    rng = seeded("draw", split, unseen)
    pools: dict[tuple[str, int, bool], list[Source]] = {}
    names = sorted(name for name, entity in kb.entities.items() if entity.split == split)
    for name in names:
        for source in candidates(kb, name):
            if _is_unseen(kb, source) == unseen:
                pools.setdefault((name, len(source.triples()), bool(source.helper)), []).append(source)
    sizes = [size for size, share in SIZE_SHARES for _ in range(round(share * count))]
    rng.shuffle(sizes)
    used = dict.fromkeys(names, 0)
    drawn: list[Source] = []
    seen: set[frozenset[Triple]] = set()
    for size in sizes:
        mixed = size > 1 and rng.random() < MIXED_SHARE
        keys = [key for key in pools if key[1] == size and pools[key] and used[key[0]] < MAX_PER_FOCAL[split]]
        keys = [key for key in keys if key[2] == mixed] or keys
        least = min(used[key[0]] for key in keys)
        pool = pools[rng.choice([key for key in keys if used[key[0]] <= least + 1])]
        source = pool.pop(rng.randrange(len(pool)))
        if frozenset(source.triples()) in seen:
            raise ValueError(f"drawn twice: {source}")
        seen.add(frozenset(source.triples()))
        drawn.append(source)
        used[source.focal] += 1
    return drawn


def build() -> dict[str, str]:
    """Returns the JSON Lines text of each split."""
    kb = load_knowledge()
    texts: dict[str, str] = {}
    for split, count in COUNTS.items():
        hidden = UNSEEN_ROWS if split == "test" else 0
        sources = _draw(kb, split, count - hidden, False) + (_draw(kb, split, hidden, True) if hidden else [])
        seeded("order", split).shuffle(sources)
        lines = []
        for number, source in enumerate(sources, 1):
            rng = seeded("row", split, source.focal, source.triples())
            triples = [list(triple) for triple in source.triples()]
            rng.shuffle(triples)
            size = f"{len(triples)} triple" + ("s" if len(triples) > 1 else "")
            row = {
                "id": f"facts-{split}-{number:04d}",
                "triples": triples,
                "references": references(kb, source, 3 + (split == "test" and rng.random() < 0.5), rng),
                "tags": ["unseen" if _is_unseen(kb, source) else "seen", kb.entities[source.focal].domain, size],
            }
            lines.append(json.dumps(row, ensure_ascii=False))
        texts[split] = "\n".join(lines) + "\n"
    return texts


def main(argv: list[str] | None = None) -> int:
    """Writes or checks the data files and returns the exit code."""
    return write_or_check(HERE / "data", build(), "bench.tools.build_facts", argv)


if __name__ == "__main__":
    sys.exit(main())
