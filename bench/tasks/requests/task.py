"""Requests to a shop with the desk that answers them, written for this project and shipped with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from bench.task import ChoicesConfig, Example, TaskConfig
from bench.tasks.shipped import ShippedTask

DESKS = ChoicesConfig(labels=("delivery", "payment", "returns", "account", "advice"))


class Requests(ShippedTask):
    """Requests to a shop, each of which one of five desks answers: delivery, payment, returns, account or advice.

    The likeliest desk is the prediction; nothing is written. A part of the test split asks for things that nobody asks
    for in training; it is tagged ``unseen``.
    """

    class Config(TaskConfig):
        """Settings of the task requests."""

        choices: ChoicesConfig | None = Field(DESKS, description=TaskConfig.model_fields["choices"].description)
        template: str = Field("Request: {source}\nDesk:", description=TaskConfig.model_fields["template"].description)

    citation: ClassVar[str] = "shipped with Tuneoff; built by bench/tools/build_requests.py"
    folder = Path(__file__).parent / "data"

    def example(self, row: Mapping[str, Any]) -> Example:
        return Example(row["id"], (), row["text"], (row["desk"],), tuple(row["tags"]))
