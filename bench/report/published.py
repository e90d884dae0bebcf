"""Published numbers, as data files beside the sweeps that reproduce them, for reports to show next to ours.

Imports neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from bench.schema.strict_yaml import YamlError, parse_yaml
from bench.schema.sweep import Sweep
from bench.schema.trial import JsonDict, Spec, TrialSpec
from bench.schema.validation import ConfigError, validated
from bench.store.files import make_folder, write_atomically

# Below the results of a sweep.
FOLDER = "published"
ANOTHER_MODEL = "another model"


class PublishedRow(Spec):
    """One row of a published table, values as printed."""

    model: str = Field(description="hub id of the base model")
    method: str = Field(description="name of the method here")
    config: JsonDict = Field(default_factory=dict, description="settings of the method that tell rows apart")
    label: str = Field(description="what the publication calls the row")
    tag: str = Field("all", description="part of the test sources, e.g. seen or unseen")
    values: Annotated[list[float | None], Field(min_length=1)] = Field(description="one for each metric of the table")
    spread: list[float | None] | None = Field(None, description="what the publication prints after ±")
    parameters: PositiveInt | None = Field(None, description="trained parameters as printed")
    shots: NonNegativeInt = Field(0, description="training pairs in the prompt")


class PublishedTable(Spec):
    """One table of a publication, or the part of it on one task."""

    table: str = Field(description="number of the table, with the version of the publication where they differ")
    task: str
    split: Literal["dev", "test"] = "test"
    metrics: dict[str, float] = Field(description="metric to the factor that brings its values to our unit")
    spread: str | None = Field(None, description="what ± is")
    note: str = Field("", description="what a reader has to know before comparing")
    rows: Annotated[list[PublishedRow], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_value_for_each_metric(self) -> Self:
        for row in self.rows:
            for name, values in (("values", row.values), ("spread", row.spread)):
                if values is not None and len(values) != len(self.metrics):
                    raise ValueError(
                        f"{self.table}: {row.label} ({row.tag}): {len(values)} {name} for {len(self.metrics)} metrics"
                    )
            if row.spread is not None and self.spread is None:
                raise ValueError(f"{self.table}: {row.label}: a spread, and the table does not say what it is")
        return self


class Published(Spec):
    """The numbers of one publication."""

    schema_version: Literal[1]
    key: str = Field(description="short name, as a report prints it")
    citation: str
    url: str
    read_in: str = Field(description="where the numbers were read")
    tables: Annotated[list[PublishedTable], Field(min_length=1)]


class Quoted(Spec):
    """One published row in our units, with where it comes from."""

    key: str
    table: str
    note: str
    task: str
    split: str
    tag: str
    model: str
    method: str
    config: JsonDict
    label: str
    values: dict[str, float] = Field(description="metric to value; what was not printed is left out")
    spread: dict[str, float]
    parameters: int | None
    shots: int = 0


def load_published(path: Path) -> Published:
    """Read a file of published numbers.

    Raises:
        ConfigError: It cannot be read, or breaks the schema.
    """
    try:
        raw: Any = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (YamlError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return validated(Published, raw, str(path))


def quoted(published: Published) -> Iterator[Quoted]:
    """All rows of all tables, in order, in our units: percent for all but NIST and CIDEr."""
    for table in published.tables:
        for row in table.rows:
            yield Quoted(
                key=published.key,
                table=table.table,
                note=table.note,
                task=table.task,
                split=table.split,
                tag=row.tag,
                model=row.model,
                method=row.method,
                config=row.config,
                label=row.label,
                values=_in_our_units(table.metrics, row.values),
                spread=_in_our_units(table.metrics, row.spread or [None] * len(table.metrics)),
                parameters=row.parameters,
                shots=row.shots,
            )


def published_files(sweep_file: Path, sweep: Sweep) -> list[Path]:
    """The files of published numbers that a sweep names, each of which can be read.

    Raises:
        ConfigError: One cannot, or two have the same name.
    """
    files = [sweep_file.parent / name for name in sweep.published]
    try:
        for path in files:
            load_published(path)
    except ConfigError as error:
        raise ConfigError(f"{sweep_file}: published: {error}") from error
    names = [path.name for path in files]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{sweep_file}: published: two files are called {twice}; give one of them another name")
    return files


def keep_published(root: Path, files: Sequence[Path]) -> None:
    """Copy files of published numbers to a sweep's results, where every report of it finds them."""
    for path in files:
        make_folder(root / FOLDER)
        write_atomically(root / FOLDER / path.name, path.read_text(encoding="utf-8"))


def kept_published(root: Path) -> tuple[Quoted, ...]:
    """All rows of the files that lie beside a sweep's results.

    Raises:
        ConfigError: One breaks the schema.
    """
    return tuple(row for path in sorted((root / FOLDER).glob("*.yaml")) for row in quoted(load_published(path)))


def fits(row: Quoted, spec: TrialSpec) -> bool:
    """Whether a row is about the task, the method, the shots and the settings of a trial, on whatever base model."""
    settings = spec.method.config
    return (
        row.task == spec.task.name
        and row.split == "test"
        and row.method == spec.method.name
        and row.shots == (0 if spec.few_shot is None else len(spec.few_shot.examples))
        and all(settings.get(key) == value for key, value in row.config.items())
    )


def other_base(row: Quoted, spec: TrialSpec) -> str | None:
    """What a trial's base model is beside that of a row, which may lie in a folder of that name; None: the same.

    Weights that are quantised here, or by somebody else under the model's name, are not those of the publication.
    """
    path, stored_in = spec.model.path.rstrip("/"), spec.model.stored_in
    if path.rsplit("/", 1)[-1] != row.model.rsplit("/", 1)[-1]:
        return ANOTHER_MODEL
    quantised_as_published = spec.model.quantization is None and path == row.model
    return None if stored_in is None or quantised_as_published else f"its weights in {stored_in}"


def _in_our_units(factors: dict[str, float], values: list[float | None]) -> dict[str, float]:
    return {
        metric: round(value * factor, 6)
        for (metric, factor), value in zip(factors.items(), values, strict=True)
        if value is not None
    }
