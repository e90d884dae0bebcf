"""The page that a measuring program writes: what it says of itself, and a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table_page(title: str, docstring: str | None, head: Sequence[str], rows: Iterable[str], note: str = "") -> str:
    """Markdown.

    Args:
        title: The heading.
        docstring: Of the program. All but its first line stands above the table.
        head: The columns.
        rows: Lines of the table, as Markdown.
        note: Stands between the two.
    """
    parts = [f"# {title}", str(docstring).split("\n\n", 1)[1].strip(), *filter(None, [note])]
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows]
    return "\n\n".join([*parts, "\n".join(table)]) + "\n"
