"""A plain loop over the trials of a sweep in one process: ``python -m race.one_process TRIALS.json``.

Nothing is started or imported twice, and model, tokenizer and rows are read once (race.trainer_trial keeps them): the
fastest thing that one could write around Trainer, with nothing between one trial and the next.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Run all trials of the file, one after the other, each on all cores."""
    from race.trainer_trial import run_trial

    for trial in json.loads(Path(sys.argv[1]).read_text())["trials"]:
        run_trial(trial)


if __name__ == "__main__":
    main()
