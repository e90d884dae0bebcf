"""Any data in CSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from bench.task import TaskError
from bench.tasks.records import FileTask, Record, RecordConfig
from bench.tasks.rows import read_csv


class Csv(FileTask):
    """Your own data: CSV with a header; columns or a template of columns make the source."""

    class Config(RecordConfig):
        """Settings of the task csv."""

        path: str = Field(description="folder with a file for each split, or one file that is divided 80 : 10 : 10")
        train: str = Field("train.csv", description="file of the training split, within path")
        dev: str = Field("dev.csv", description="file of the dev split, within path")
        test: str = Field("test.csv", description="file of the test split, within path")

    def read(self, location: str) -> Iterator[Record]:
        for number, values in read_csv(location, ()):
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
        from pyarrow import ArrowException, parquet

        try:
            rows = parquet.read_table(location).to_pylist()
        except (ArrowException, OSError) as error:
            raise TaskError(f"{location}: cannot be read as Parquet: {error}") from error
        for number, values in enumerate(rows, start=1):
            yield Record(f"{location}: row {number}", values)
