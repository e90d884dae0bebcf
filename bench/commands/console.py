"""A console that removes everything from texts that would control the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.highlighter import JSONHighlighter
from rich.segment import Segment
from rich.text import Text

from bench.schema.finite import strict_json
from bench.schema.printable import escaped_controls, printable

# Unicode's own line breaks: where Rich has laid out lines, they would add some.
SEPARATORS = dict.fromkeys((0x85, 0x2028, 0x2029), " ")


class PlainConsole(Console):
    """Rich's console; labels, names of models, texts, errors and logs pass it without control sequences.

    What stands between two colons stays: ``module:X:`` names a class and no emoji.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As in the base class; what Rich itself sends to control the terminal stays."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else printable(segment.text.translate(SEPARATORS))
            yield segment if text == segment.text else Segment(text, segment.style)

    def render_str(self, text: str, **options: Any) -> Text:
        """As in the base class; whole sequences are gone before highlighting takes them apart."""
        return super().render_str(printable(text), **options)

    def print_json(self, json_text: str | None = None, *, data: Any = None, **_: Any) -> None:  # type: ignore[override]
        r"""The values as they are; what would control the terminal stands as ``\uXXXX``."""
        value = data if json_text is None else json.loads(json_text)
        self.print(JSONHighlighter()(escaped_controls(strict_json(value, indent=2))), soft_wrap=True)
