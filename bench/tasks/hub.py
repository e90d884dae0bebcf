"""Any data set of the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from bench.schema.digests import sha256_of
from bench.task import Example, Split, TaskError
from bench.tasks.arrow_values import exact, has_short_floats
from bench.tasks.hub_commits import HubError, commit_of
from bench.tasks.records import Record, RecordConfig, RecordTask, omissions_text


class Hub(RecordTask):
    """Any data set of the Hugging Face hub: by name, revision, splits and columns.

    Summarisation, e.g. XSum as in Li & Liang 2021: ``path: EdinburghNLP/xsum``, ``source: document``, ``references:
    summary``. Instructions: ``source: "{instruction} {input}"``, ``references: output``.
    """

    class Config(RecordConfig):
        """Settings of the task hub."""

        path: str = Field(description="name on the hub, e.g. EdinburghNLP/xsum, or a folder of that form")
        revision: str | None = Field(
            None, description="branch, tag or commit; None is the hub's main. The record holds the commit it was at"
        )
        subset: str | None = Field(None, description="configuration of the data set, where it has several")
        train: str = Field("train", description="name of the training split; slices such as train[:90%] work too")
        dev: str = Field("validation", description="name of the dev split")
        test: str = Field("test", description="name of the test split")

        @model_validator(mode="after")
        def _revision_has_effect(self) -> Hub.Config:
            if self.revision is not None and Path(self.path).expanduser().is_dir():
                raise ValueError(
                    f"revision: {self.revision!r} has no effect with the folder {self.path!r}; leave it out"
                )
            return self

    config: Config
    licence: ClassVar[str] = "see the page of the data set"

    @classmethod
    def pinned(cls, config: Hub.Config) -> Hub.Config:
        """The settings with the present commit of the revision."""
        if Path(config.path).expanduser().is_dir():
            return config
        try:
            commit = commit_of(config.path, config.revision, "dataset").sha
        except HubError as error:
            raise TaskError(f"revision: {config.revision or 'missing'} for {config.path!r}: {error}") from error
        return config.model_copy(update={"revision": commit})

    def data_files(self) -> Mapping[Split, str]:
        """No files, because ``datasets`` finds them."""
        return {}

    def data_sha256(self) -> str | None:
        """Hash over the files of a folder, or over name and commit of a data set on the hub, which fix its content."""
        folder = Path(self.config.path).expanduser()
        digest = hashlib.sha256()
        if folder.is_dir():
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                digest.update(f"{file.relative_to(folder)} {sha256_of(file)}\n".encode())
        else:
            digest.update(f"{self.config.path}@{self.config.revision}".encode())
        return digest.hexdigest()

    def records(self, split: Split) -> Iterator[Record]:
        import datasets

        datasets.disable_progress_bars()
        name = {"train": self.config.train, "dev": self.config.dev, "test": self.config.test}[split]
        where = f"{self.config.path}: {name}"
        options: dict[str, Any] = {} if self.config.revision is None else {"revision": self.config.revision}
        try:
            rows = datasets.load_dataset(
                str(Path(self.config.path).expanduser()) if self.config.revision is None else self.config.path,
                self.config.subset,
                split=name,
                **options,
            )
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            raise TaskError(f"{where}: cannot be loaded: {error.__cause__ or error}") from error
        for column in self.columns:
            if column not in rows.column_names:
                raise TaskError(f"{where}: no column {column!r}; the columns are {', '.join(rows.column_names)}")
        # Other columns may hold pictures and sounds, which would be decoded.
        rows = rows.select_columns(list(self.columns))
        kinds = {name: rows.features.arrow_schema.field(name).type for name in self.columns}
        short = {name: kind for name, kind in kinds.items() if has_short_floats(kind)}
        for number, values in enumerate(rows, start=1):
            corrected = {name: exact(values[name], kind) for name, kind in short.items()}
            named = {name: _with_class_names(value, rows.features[name]) for name, value in values.items()}
            yield Record(f"{where}: row {number}", {**named, **corrected})

    def load(self, split: Split) -> list[Example]:
        examples = super().load(split)
        if not examples:
            left_out = omissions_text(self.skipped(split))
            raise TaskError(f"{self.config.path}: no examples in the {split} split{left_out}")
        return examples


def _with_class_names(value: Any, feature: Any) -> Any:
    """The value with the names of classes in place of their numbers; None for an unknown class."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return None if value is None or value < 0 else feature.int2str(value)
    if isinstance(feature, datasets.List | datasets.LargeList) and isinstance(value, list):
        return [_with_class_names(item, feature.feature) for item in value]
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _with_class_names(inner, feature[key]) for key, inner in value.items()}
    return value
