"""What the finished trials of a sweep were made with that has moved on the hub since. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from bench.schema.record import TrialResult, hub_commits
from bench.schema.trial import TrialSpec
from bench.store.record_index import Known


def moved(finished: Iterable[Known | TrialResult], trials: Iterable[TrialSpec]) -> list[str]:
    """A sentence for each model and data set of which finished trials have another commit than trials of now.

    Args:
        finished: Of the sweep.
        trials: That are asked for.
    """
    now = {(key, name): commit for trial in trials for key, name, commit in hub_commits(trial)}
    if not now:
        return []
    before = Counter(found for one in finished for found in one.hub_commits)
    return [
        f"{key}: {name} is at commit {now[key, name]} now, and at {commit} when {number} finished trials of this sweep "
        f"were made: they stay, and those of now are others. To go on with the old ones set {key}.revision: {commit}"
        for (key, name, commit), number in before.items()
        if now.get((key, name), commit) != commit
    ]
