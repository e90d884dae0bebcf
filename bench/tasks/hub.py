"""Any data set of the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import ClassVar

from pydantic import Field, model_validator

from bench.schema.digests import sha256_of
from bench.schema.home import with_home
from bench.task import Example, Split
from bench.tasks.hub_rows import commit_sha256, hub_records, no_examples, pinned_revision
from bench.tasks.records import Record, RecordConfig, RecordTask, names_of, omissions_text


class Hub(RecordTask):
    """Any data set of the Hugging Face hub: by name, revision, splits and columns.

    Summarisation, e.g. XSum as in Li & Liang 2021: ``path: EdinburghNLP/xsum``, ``source: document``, ``references:
    summary``. Instructions: ``source: "{instruction} {input}"``, ``references: output``.
    """

    class Config(RecordConfig):
        """Settings of the task hub."""

        path: str = Field(description="name on the hub, e.g. EdinburghNLP/xsum, or a folder of that form")
        revision: str | None = Field(
            None, description="branch, tag or commit; null: main. The record holds the commit it was at"
        )
        subset: str | None = Field(None, description="configuration of the data set, where it has several")
        train: str = Field("train", description="name of the training split; slices such as train[:90%] work too")
        dev: str = Field("validation", description="name of the dev split")
        test: str = Field("test", description="name of the test split")

        @model_validator(mode="after")
        def _revision_has_effect(self) -> Hub.Config:
            if self.revision is not None and with_home(self.path).is_dir():
                raise ValueError(
                    f"revision: {self.revision!r} has no effect with the folder {self.path!r}; leave it out"
                )
            return self

    config: Config
    licence: ClassVar[str] = "see the page of the data set"

    @classmethod
    def pinned(cls, config: Hub.Config) -> Hub.Config:
        """The settings with the present commit of the revision."""
        if with_home(config.path).is_dir():
            return config
        return config.model_copy(update={"revision": pinned_revision(config.path, config.revision)})

    def data_files(self) -> Mapping[Split, str]:
        """No files, because ``datasets`` finds them."""
        return {}

    def data_sha256(self) -> str | None:
        """Hash over the files of a folder, or over name and commit of a data set on the hub."""
        folder = with_home(self.config.path)
        if not folder.is_dir():
            return commit_sha256(self.config.path, self.config.revision)
        digest = hashlib.sha256()
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{file.relative_to(folder)} {sha256_of(file)}\n".encode())
        return digest.hexdigest()

    def records(self, split: Split) -> Iterator[Record]:
        config = self.config
        name = {"train": config.train, "dev": config.dev, "test": config.test}[split]
        # Numbers of classes are the places of choices; their names may be other words than the choices are.
        are_places = config.choices is not None and config.choices.reference == "place"
        places = names_of(config.references) if are_places else ()
        return hub_records(config.path, config.revision, config.subset, name, self.columns, by_number=places)

    def load(self, split: Split) -> list[Example]:
        examples = super().load(split)
        if not examples:
            raise no_examples(self.config.path, split, omissions_text(self.skipped(split)))
        return examples
