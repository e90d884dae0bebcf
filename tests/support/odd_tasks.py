"""A task whose test split must not be read, named in sweeps as ``odd_tasks:Sealed``."""

from __future__ import annotations

from bench.task import Example, Split
from bench.tasks.jsonl import JsonLines


class Sealed(JsonLines):
    """JSON lines whose test split raises when it is read."""

    def load(self, split: Split) -> list[Example]:
        if split == "test":
            raise RuntimeError("the seal of the test split is broken")
        return super().load(split)
