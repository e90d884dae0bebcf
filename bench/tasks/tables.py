"""The tasks csv and parquet: any data in CSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field, field_validator

from bench.task import TaskError
from bench.tasks.arrow_values import exact, has_short_floats
from bench.tasks.records import FileTask, Record, RecordConfig
from bench.tasks.rows import read_csv


class Csv(FileTask):
    """Your own data: CSV with a header; columns or a template of columns make the source."""

    endings = (".csv", ".tsv", ".tab", ".txt")

    class Config(RecordConfig):
        """Settings of the task csv."""

        path: str = Field(description="folder with a file for each split, or one file that is divided 80 : 10 : 10")
        train: str = Field("train.csv", description="file of the training split, within path")
        dev: str = Field("dev.csv", description="file of the dev split, within path")
        test: str = Field("test.csv", description="file of the test split, within path")
        delimiter: str | None = Field(
            None,
            description="what stands between cells; null: the comma, semicolon, tab or bar under which the header has "
            "the columns",
        )

        @field_validator("delimiter")
        @classmethod
        def _is_one_character(cls, delimiter: str | None) -> str | None:
            named = "\t" if delimiter in ("tab", "\\t") else delimiter
            if named is not None and (len(named) != 1 or named in '"\r\n'):
                raise ValueError("a delimiter is one character, and neither a quote nor the end of a line; tab is one")
            return named

    config: Config

    def read(self, location: str) -> Iterator[Record]:
        for number, values in read_csv(location, self.columns, delimiter=self.config.delimiter):
            yield Record(f"{location}: line {number}", values)


class Parquet(FileTask):
    """Your own data: Parquet; columns may hold texts, lists of texts, lists of facts, records."""

    class Config(RecordConfig):
        """Settings of the task parquet."""

        path: str = Field(description="folder with a file for each split, or one file that is divided 80 : 10 : 10")
        train: str = Field("train.parquet", description="file of the training split, within path")
        dev: str = Field("dev.parquet", description="file of the dev split, within path")
        test: str = Field("test.parquet", description="file of the test split, within path")

    def read(self, location: str) -> Iterator[Record]:
        return read_parquet(location, self.columns)


def read_parquet(location: str, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Record]:
    """These columns of a Parquet file, and of the optional ones those that it has.

    Raises:
        TaskError: It cannot be read, or lacks one.
    """
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        with parquet.ParquetFile(location) as file:
            schema = file.schema_arrow
            read = _columns_of(schema.names, columns, optional, location)
            unread = [name for name in schema.names if name not in read]
            kinds = {name: schema.field(name).type for name in read}
            short = {name: kind for name, kind in kinds.items() if has_short_floats(kind)}
            for batch in file.iter_batches(columns=read):
                for values in batch.to_pylist():
                    number += 1
                    corrected = {name: exact(values[name], kind) for name, kind in short.items()}
                    yield Record(f"{location}: row {number}", {**values, **corrected}, unread)
    except TaskError:
        raise
    except (ArrowException, OSError, ValueError, OverflowError) as error:  # a date that Python has not, too
        hint = "; CSV and JSON lines are read with the tasks csv and jsonl"
        raise TaskError(f"{location}: cannot be read as Parquet: {error}{hint}") from error


def _columns_of(there: Sequence[str], columns: Sequence[str], optional: Sequence[str], location: str) -> list[str]:
    """The columns that are read of a table that has these.

    Raises:
        TaskError: One is missing, or there twice.
    """
    for column in columns:
        if column not in there:
            raise TaskError(f"{location}: no column {column!r}; the columns are {', '.join(there)}")
    read = [*columns, *(column for column in optional if column in there and column not in columns)]
    if twice := next((name for name in read if there.count(name) > 1), None):
        raise TaskError(f"{location}: two columns are called {twice!r}")
    return read
