"""Conversations in JSON lines, in Parquet, or of the Hugging Face hub."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from bench.task import CHAT, Example, Split, TaskConfig, TaskError, Turn
from bench.tasks.conversations import DataTurn, Reply, replies_in, turns_in
from bench.tasks.file_forms import PACKED_ENDINGS
from bench.tasks.hub_rows import commit_sha256, hub_records, no_examples, pinned_revision
from bench.tasks.records import NO_TAG, Record, SplitFiles, cell, column_error, names_of, omissions_text
from bench.tasks.rows import read_json_lines
from bench.tasks.tables import read_parquet
from bench.tasks.values import CellError, is_missing, text_of

# What is left out of the data, as it is counted.
WITHOUT_REPLY = "conversations without a turn of the assistant to learn"
EMPTY_REPLIES = "empty turns of the assistant"
# A column that says whether a conversation has tools.
TOOLS = "tools"
# Splits of the hub, where a sweep names none.
HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
ENDINGS = (".jsonl", ".json", ".ndjson", ".parquet")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_on_hub(path: str) -> bool:
    """Whether a path is the name of a data set of the hub: ``owner/name``, and nothing of that name is here."""
    if not _HUB_NAME.fullmatch(path) or path.endswith((*ENDINGS, *PACKED_ENDINGS)):
        return False
    return not Path(path).exists()


class Chat(SplitFiles):
    """Conversations, in files or of the hub: turns of the assistant are written behind all that was said before.

    A column holds a list of turns with ``role`` and ``content``, or ``from`` and ``value`` (ShareGPT). Each turn of the
    assistant is an example of its own, read and written in the chat template of the model's tokenizer.
    """

    class Config(TaskConfig):
        """Settings of the task chat."""

        path: str = Field(
            description="folder with a file for each split, or one file that is divided 80 : 10 : 10, or a name on the "
            "hub, e.g. HuggingFaceH4/no_robots"
        )
        revision: str | None = Field(
            None, description="of a data set of the hub: branch, tag or commit; null: its main"
        )
        subset: str | None = Field(None, description="of a data set of the hub: its configuration, if it has several")
        train: str = Field(
            "train.jsonl",
            description="file of the training split, within path; .parquet too. Of the hub: the split's name, or a "
            "slice such as train[:90%]; train without this setting",
        )
        dev: str = Field(
            "dev.jsonl", description="file of the dev split, within path. Of the hub: its name, else validation"
        )
        test: str = Field(
            "test.jsonl", description="file of the test split, within path. Of the hub: its name, else test"
        )
        messages: str = Field("messages", description="column with the turns; conversations in ShareGPT's files")
        turns: Literal["all", "last"] = Field(
            "all", description="which turns of the assistant are learned and scored; all before them are read"
        )
        id: str | None = Field(None, description="column with an id; null: conversations are numbered")
        tags: str | tuple[str, ...] = Field((), description="column or columns with tags, from coarse to fine")
        template: str = Field(CHAT, description=TaskConfig.model_fields["template"].description)
        max_source_tokens: PositiveInt = Field(
            1024,
            description="of longer conversations turns behind the first exchange are left out, the oldest first, and "
            "counted; what the user said last is cut only where nothing else is left",
        )
        max_target_tokens: PositiveInt = Field(512, description="longer turns are cut at the end, and counted")

        @model_validator(mode="before")
        @classmethod
        def _splits_of_the_hub(cls, values: Any) -> Any:
            if isinstance(values, dict) and is_on_hub(str(values.get("path", ""))):
                return {**HUB_SPLITS, **values}
            return values

        @model_validator(mode="after")
        def _hub_settings_have_effect(self) -> Chat.Config:
            for name in ("revision", "subset"):
                if getattr(self, name) is not None and not self.on_hub:
                    raise ValueError(
                        f"{name}: {getattr(self, name)!r} has no effect with {self.path!r}, which is no name on the "
                        "hub (owner/name) or is here; leave it out"
                    )
            return self

        @model_serializer(mode="wrap")
        def _without_settings_of_the_hub(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
            """Data in files have no commit, and are named as before there was one."""
            content: dict[str, Any] = serialise(self)
            return {k: v for k, v in content.items() if v is not None or k not in ("revision", "subset")}

        @property
        def on_hub(self) -> bool:
            """Whether the data are of the hub."""
            return is_on_hub(self.path)

    config: Config
    licence: ClassVar[str] = "yours"
    endings = ENDINGS

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.template != CHAT:
            raise TaskError(f"task.template: conversations are read in the chat template; got {config.template!r}")
        self._left_out: dict[Split, Counter[str]] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the settings name, each once."""
        config = self.config
        return tuple(dict.fromkeys([config.messages, *names_of(config.id), *names_of(config.tags)]))

    @classmethod
    def pinned(cls, config: Chat.Config) -> Chat.Config:
        """The settings with the present commit of the revision."""
        if not config.on_hub:
            return config
        return config.model_copy(update={"revision": pinned_revision(config.path, config.revision)})

    def data_files(self) -> Mapping[Split, str]:
        """None of the hub, because ``datasets`` finds them."""
        return {} if self.config.on_hub else super().data_files()

    def data_sha256(self) -> str | None:
        if self.config.on_hub:
            return commit_sha256(self.config.path, self.config.revision)
        return super().data_sha256()

    def records(self, split: Split) -> Iterator[Record]:
        config = self.config
        if not config.on_hub:
            return super().records(split)
        name = {"train": config.train, "dev": config.dev, "test": config.test}[split]
        return hub_records(config.path, config.revision, config.subset, name, self.columns, [TOOLS])

    def require_some(self, examples: Sequence[Example], split: Split) -> None:
        if self.config.on_hub and not examples:
            raise no_examples(self.config.path, split, omissions_text(self.skipped(split)))
        super().require_some(examples, split)

    def read(self, location: str) -> Iterator[Record]:
        plain = location
        for packed in PACKED_ENDINGS:
            plain = plain.removesuffix(packed)
        if Path(plain).suffix == ".parquet":
            yield from read_parquet(location, self.columns, [TOOLS])
            return
        for number, values in read_json_lines(location):
            yield Record(f"{location}: line {number}", values)

    def load(self, split: Split) -> list[Example]:
        found: dict[tuple[Turn, ...], Example] = {}
        left_out: Counter[str] = Counter()
        for number, record in enumerate(self.records(split), start=1):
            turns = self._turns_of(record)
            first_request = next((text for role, text, _ in turns if role == "user"), None)
            # All turns of a conversation are in one split.
            if not self.belongs(first_request, split):
                continue
            for example in self._examples(record, turns, f"{split}-{number}", left_out):
                if (earlier := found.get(example.turns)) is not None:
                    example = replace(earlier, references=(*earlier.references, *example.references))
                found[example.turns] = example
        self._left_out[split] = left_out
        examples = list(found.values())
        self.require_some(examples, split)
        return examples

    def skipped(self, split: Split) -> Mapping[str, int]:
        return dict(self._left_out.get(split, {}))

    def _turns_of(self, record: Record) -> list[DataTurn]:
        column = self.config.messages
        if not is_missing(record.values.get(TOOLS)):
            raise TaskError(f"{record.where}: has tools, and conversations with tools are not supported; leave it out")
        try:
            return turns_in(cell(record, column))
        except CellError as error:
            raise column_error(record, column, error) from error

    def _examples(
        self, record: Record, turns: list[DataTurn], default_id: str, left_out: Counter[str]
    ) -> Iterator[Example]:
        replies = list(replies_in(turns))
        chosen = list(enumerate(replies, start=1))[-1 if self.config.turns == "last" else 0 :]
        chosen = [(number, reply) for number, reply in chosen if self._is_whole(reply, left_out)]
        if not chosen:
            left_out[WITHOUT_REPLY] += 1
        name = default_id if self.config.id is None else self._text(record, self.config.id) or default_id
        tags = tuple(self._text(record, column) or NO_TAG for column in names_of(self.config.tags))
        for number, reply in chosen:
            yield Example(
                id=name if self.config.turns == "last" else f"{name}.{number}",
                facts=(),
                source="\n".join(f"{role}: {text}" for role, text in reply.history),
                references=(reply.text,),
                tags=tags,
                turns=reply.history,
            )

    def _is_whole(self, reply: Reply, left_out: Counter[str]) -> bool:
        left_out.update([EMPTY_REPLIES] if not reply.text.strip() else [])
        return bool(reply.text.strip())

    def _text(self, record: Record, column: str) -> str | None:
        value: Any = cell(record, column)
        try:
            return None if is_missing(value) else text_of(value)
        except CellError as error:
            raise column_error(record, column, error) from error
