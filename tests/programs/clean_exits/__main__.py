"""``python -m clean_exits FOLDER``: 200 drivers run and end; prints a table and writes FOLDER/exits.md.

Exit code 1 if one of them ended badly or left something behind.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from clean_exits.drivers import KINDS, Exit, exits


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m clean_exits")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--exits", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="go on at this one: earlier ones are in FOLDER already")
    parser.add_argument("--at-once", type=int, default=6)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    kept = arguments.folder / "exits.jsonl"
    lines = kept.read_text(encoding="utf-8").splitlines()[: arguments.first] if arguments.first else []
    for each in exits(arguments.first, arguments.exits, arguments.at_once, lambda line: sys.stderr.write(f"{line}\n")):
        lines.append(json.dumps(dataclasses.asdict(each)))
        kept.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    found = [Exit(**json.loads(line)) for line in lines]
    text = page(found, arguments.at_once)
    sys.stdout.write(text)
    (arguments.folder / "exits.md").write_text(text, encoding="utf-8")
    return 1 if any(map(is_bad, found)) else 0


def is_bad(exit_: Exit) -> bool:
    return exit_.code != exit_.wanted or bool(exit_.left_processes or exit_.left_files)


def page(found: list[Exit], at_once: int) -> str:
    """The table, and the output of each driver that ended badly."""
    lines = [
        "# How drivers end",
        "",
        f"`make exits`: {len(found)} drivers, {at_once} at a time on {os.cpu_count()} cores. Each starts ranks on a",
        "Ray cluster, watches them to their end or is asked to end (SIGTERM) while they run, and leaves. Light drivers",
        "run the scheduler and the Ray launcher with ranks that train nothing.",
        "",
        "| driver | exits | by a signal | hung | another code | left processes | left files | seconds each |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    rows = [(kind.name, [each for each in found if each.kind == kind.name]) for kind in KINDS]
    for name, exits_ in [*rows, ("**all**", found)]:
        if not exits_:
            continue
        lines.append(
            f"| {name} | {len(exits_)} | {sum(each.code is not None and each.code < 0 for each in exits_)} "
            f"| {sum(each.code is None for each in exits_)} "
            f"| {sum(each.code is not None and each.code >= 0 and each.code != each.wanted for each in exits_)} "
            f"| {sum(each.left_processes for each in exits_)} | {sum(each.left_files for each in exits_)} "
            f"| {sum(each.ran_seconds for each in exits_) / len(exits_):.0f} |"
        )
    for each in filter(is_bad, found):
        lines += ["", f"{each.kind}: exit code {each.code}", "", "```", each.errors.strip(), "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
