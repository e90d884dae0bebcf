"""Help for beginners: ``tuneoff init``, the reference of all keys, and messages for keys of other tools."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from command import Done

from bench.commands.sweep_reference import page, sections, sweep_schema
from bench.config.load import expand, load_sweep, setting_value
from bench.config.new_sweep import guess
from bench.config.resolver import RegistryResolver
from bench.plugins.registry import load_task, targets
from bench.schema.familiar_names import FAMILIAR
from bench.schema.strict_yaml import parse_yaml
from bench.schema.sweep import Sweep
from bench.schema.validation import ConfigError, validated

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = sorted(path for pattern in ("", "examples/", "papers/") for path in ROOT.glob(f"configs/{pattern}*.yaml"))


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    schema_document = sweep_schema()
    jsonschema.Draft202012Validator.check_schema(schema_document)
    return jsonschema.Draft202012Validator(schema_document)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_schema_takes_our_own_sweeps(path: Path, schema: jsonschema.Draft202012Validator) -> None:
    assert list(schema.iter_errors(parse_yaml(path.read_text()))) == []


@pytest.mark.parametrize(
    "change",
    [
        {"trian": {}},
        {"task": {"name": "facts", "trian": 1}},
        {"methods": [{"name": "lora", "config": {"r": 4}}]},
        {"methods": [{"name": "lora", "train": {"lr": 1}}]},
        {"train": {"steps": -1}},
        {"resources": {"precision": "fp8"}},
    ],
)
def test_the_schema_refuses_what_sweeps_refuse(
    change: dict[str, object], schema: jsonschema.Draft202012Validator
) -> None:
    sweep = {"name": "a", "task": "facts", "methods": ["none"], **change}
    assert list(schema.iter_errors(sweep)) != []


def test_every_key_has_a_meaning_and_the_page_is_that_of_the_classes() -> None:
    assert [f"{part.path}.{one.name}" for part in sections() for one in part.settings if not one.description] == []
    assert [one.type for part in sections() for one in part.settings if "[" in one.type] == [], "words, not Python"
    assert (ROOT / "docs" / "use" / "sweep.md").read_text() == page(), "make docs"


def test_the_default_of_stop_is_that_of_each_task() -> None:
    decode = next(part for part in sections() if part.path == "decode")
    stop = next(one for one in decode.settings if one.name == "stop")
    assert stop.default is None, "the class has another one, which no sweep gets"
    named = {
        name: load_task(target).stop
        for name, target in targets("task").items()
        if re.search(rf"\b{name}\b", stop.description.partition("line break for")[2].partition(", none for")[0])
    }
    assert set(named.values()) == {("\n",)}
    assert {"word_problems", "chat", "metamath"} <= targets("task").keys() - named.keys()
    others = {name for name, target in targets("task").items() if load_task(target).stop} - named.keys()
    assert others == set(), "a text of these ends at a line break, too"


def test_the_command_prints_the_schema(tuneoff: Callable[..., Done], schema: jsonschema.Draft202012Validator) -> None:
    done = tuneoff("schema")
    assert done.returncode == 0
    assert json.loads(done.stdout) == schema.schema


@pytest.mark.parametrize("name", sorted(FAMILIAR))
def test_names_from_elsewhere_are_told_what_they_are_here(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        validated(Sweep, {"name": "a", "task": "facts", "methods": ["none"], name: 1}, "sweep.yaml")
    assert f"sweep.yaml: {name}: unknown key (value 1); here that is {FAMILIAR[name]}" in str(raised.value)


def test_hints_name_keys_that_exist() -> None:
    known = {f"{part.path}.{one.name}".removeprefix(".") for part in sections() for one in part.settings}
    for name, hint in FAMILIAR.items():
        for word in hint.replace(":", " ").replace(",", " ").replace("(", " ").split():
            if word.split(".")[0] in ("train", "decode", "resources", "task", "model") and "." in word:
                assert word.rstrip(")") in known, f"{name}: {word}"


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        ({"learning_rate": 1}, "it stands in a section: train.learning_rate"),
        ({"beams": 4}, "it stands in a section: decode.beams"),
        (
            {"train": {"num_train_epochs": 3}},
            "num_train_epochs: unknown key (value 3); here that is train.epochs",
        ),
        ({"train": {"batchsize": 3}}, "did you mean 'batch_size'?"),
    ],
)
def test_a_key_in_the_wrong_place_is_told_where_it_stands(raw: dict[str, object], hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        validated(Sweep, {"name": "a", "task": "facts", "methods": ["none"], **raw}, "sweep.yaml")
    assert hint in str(raised.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("name : {name} | home : {home}", "name : {name} | home : {home}"),
        ("Data: {source}\nText:", "Data: {source}\nText:"),
        ("{name}", "{name}"),
        ("{name} lives in {home}", "{name} lives in {home}"),
        ("a: b", "a: b"),
        ("- x", "- x"),
        ("{beams: 4}", {"beams": 4}),
        ("{}", {}),
        ("[0, 1]", [0, 1]),
        ("[none, full]", ["none", "full"]),
        ("3", 3),
        ("'3'", "3"),
        ("", ""),
        ("null", None),
        (" ~ ", None),
        ("Solve it. End with #### and the number.", "Solve it. End with #### and the number."),
        ("### Be brief", "### Be brief"),
        ("### Instruction: {source}", "### Instruction: {source}"),
        ("#### (-?[0-9.,]+)", "#### (-?[0-9.,]+)"),
        ("3 # times", "3 # times"),
        ("Read {source}\nand answer\n", "Read {source}\nand answer\n"),
        ("---", "---"),
        ("'a # b'", "a # b"),
        ("0", 0),
        ("true", True),
    ],
)
def test_set_takes_texts_as_texts(text: str, value: object) -> None:
    assert setting_value(f"task.source={text}") == ("task.source", value)


@pytest.mark.parametrize(
    ("names", "source", "references"),
    [
        (("name", "home", "text"), "name : {name} | home : {home}", "text"),
        (("question", "answer"), "question", "answer"),
        (("id", "Question", "hint", "Answer"), "Question", "Answer"),
        (("id", "a", "b"), "a", "b"),
        (("label", "text"), "label", "text"),
        (("id", "x"), "id", "x"),
        (("instruction", "input", "output"), "{instruction} | {input}", "output"),
        (("instruction", "input", "output", "text"), "{instruction} | {input}", "output"),
        (("instruction", "context", "response", "category"), "{instruction} | {context}", "response"),
        (("id", "Context", "Question", "answer"), "{Context} | {Question}", "answer"),
        (("text", "summary"), "text", "summary"),
        (("text", "label"), "text", "label"),
        (("sentence1", "sentence2", "label", "idx"), "sentence1 : {sentence1} | sentence2 : {sentence2}", "label"),
        (("article", "highlights", "id"), "article", "highlights"),
        (("a", "b", "id"), "a", "b"),
    ],
)
def test_columns_are_guessed_by_their_names(names: tuple[str, ...], source: str, references: str) -> None:
    guesses = guess(names)
    assert (guesses.source, guesses.references) == (source, references)


@pytest.mark.parametrize(
    "form",
    ["people.csv", "people.tsv", "people.jsonl", "people.json", "people.csv.gz", "folder", "0000.csv", "_2024.jsonl"],
)
def test_init_writes_a_sweep_that_is_valid(
    form: str, tuneoff: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"name": f"Ann {n}", "home": f"Rome {n}", "text": f"Ann {n} lives in Rome {n}."} for n in range(40)]
    write_rows(Path(form), rows)
    done = tuneoff("init", form)
    assert done.returncode == 0, done.stderr
    assert "reads name : {name} | home : {home}, writes text" in done.stdout
    sweep = load_sweep(Path("sweep.yaml"))
    assert sweep.name == form.split(".")[0].strip("_")
    trials = expand(sweep, RegistryResolver())
    assert [trial.method.name for trial in trials[::3]] == ["none", "full", "lora", "prefix_tuning"]
    again = tuneoff("init", form)
    assert (again.returncode, again.stderr) == (
        2,
        "error: sweep.yaml is there already; name another file with --output\n",
    )


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    import gzip

    if path.suffix == "":
        path.mkdir()
        for split in ("train", "dev", "test"):
            write_rows(path / f"{split}.jsonl", rows)
        return
    mark = "\t" if path.suffix == ".tsv" else ";"
    table = "\n".join(mark.join(cells) for cells in [list(rows[0]), *(list(row.values()) for row in rows)]) + "\n"
    text = {".jsonl": "".join(json.dumps(row) + "\n" for row in rows), ".json": json.dumps(rows)}.get(
        path.suffix, table
    )
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def test_init_says_what_it_cannot_read(tuneoff: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text\na\n")
    (tmp_path / "x.doc").write_text("a")
    assert (
        "one column (text); a task needs one to read and one to write"
        in tuneoff("init", str(tmp_path / "one.csv")).stderr
    )
    assert "its name ends with none of .csv" in tuneoff("init", str(tmp_path / "x.doc")).stderr
    assert "no such file" in tuneoff("init", str(tmp_path / "nowhere")).stderr


def test_version_and_short_help(tuneoff: Callable[..., Done]) -> None:
    assert tuneoff("--version").stdout.startswith("tuneoff ")
    assert "SWEEP.yaml" in tuneoff("run", "-h").stdout
