"""``python -m false_calls FOLDER``: simulate, print, and write FOLDER/false_calls.md.

Exit code 1 if the procedure that reports use calls equal methods different too often.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from false_calls.simulation import simulate
from false_calls.table import page, too_often


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m false_calls")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experiments", type=int, default=600, help="without a difference, of each design")
    arguments = parser.parse_args()
    found = simulate(arguments.experiments, lambda line: sys.stderr.write(f"{line}\n"))
    text = page(found, arguments.experiments)
    sys.stdout.write(text)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "false_calls.md").write_text(text, encoding="utf-8")
    return 1 if too_often(found) else 0


if __name__ == "__main__":
    sys.exit(main())
