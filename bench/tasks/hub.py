"""Any data set of the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from bench.task import Example, Split, TaskError
from bench.tasks.records import Record, RecordConfig, RecordTask
from bench.tasks.rows import file_sha256


class Hub(RecordTask):
    """Any data set of the Hugging Face hub: by name, revision, splits and columns.

    Summarisation, e.g. XSum as in Li & Liang 2021: ``path: EdinburghNLP/xsum``, ``source: document``, ``references:
    summary``. Instructions: ``source: "{instruction} {input}"``, ``references: output``.
    """

    class Config(RecordConfig):
        """Settings of the task hub."""

        path: str = Field(description="name on the hub, e.g. EdinburghNLP/xsum, or a folder of that form")
        revision: str | None = Field(
            None, description="commit or tag; a name alone may stand for other data tomorrow, so that the hub needs one"
        )
        subset: str | None = Field(None, description="configuration of the data set, where it has several")
        train: str = Field("train", description="name of the training split; slices such as train[:90%] work too")
        dev: str = Field("validation", description="name of the dev split")
        test: str = Field("test", description="name of the test split")

        @model_validator(mode="after")
        def _revision_is_needed(self) -> Hub.Config:
            is_folder = Path(self.path).expanduser().is_dir()
            if self.revision is None and not is_folder:
                raise ValueError(
                    f"revision: missing for {self.path!r}, which is no folder here and so a name on the hub; give the "
                    "commit that its page shows"
                )
            if self.revision is not None and is_folder:
                raise ValueError(
                    f"revision: {self.revision!r} has no effect with the folder {self.path!r}; leave it out"
                )
            return self

    config: Config
    licence: ClassVar[str] = "see the page of the data set"

    def data_files(self) -> Mapping[Split, str]:
        """Nothing: ``datasets`` finds the files."""
        return {}

    def data_sha256(self) -> str | None:
        """Of the files of a folder; of a data set on the hub, of its name and revision, which stand for its bytes."""
        folder = Path(self.config.path).expanduser()
        digest = hashlib.sha256()
        if folder.is_dir():
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                digest.update(f"{file.relative_to(folder)} {file_sha256(file)}\n".encode())
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
        for number, values in enumerate(rows, start=1):
            yield Record(f"{where}: row {number}", values)

    def load(self, split: Split) -> list[Example]:
        examples = super().load(split)
        if not examples:
            raise TaskError(f"{self.config.path}: no examples in the {split} split")
        return examples
