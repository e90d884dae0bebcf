"""Which models and data sets have moved on the hub since trials of a sweep were made. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from bench.schema.record import TrialResult, hub_commits
from bench.schema.trial import TrialSpec
from bench.store.record_index import Known


def moved_commits(finished: Iterable[Known | TrialResult], trials: Iterable[TrialSpec]) -> list[str]:
    """A sentence for each model and data set of which finished trials took another commit than new ones would.

    Args:
        finished: Records of the sweep.
        trials: The trials that the sweep asks for now.
    """
    now = {(key, name): commit for trial in trials for key, name, commit in hub_commits(trial)}
    if not now:
        return []
    before = Counter(commit for record in finished for commit in record.hub_commits)
    return [
        f"{key}: {name} is at commit {now[key, name]} now, and was at {commit} when {number} finished trials of this "
        f"sweep were made. Their records stay, and new trials run. To keep the old trials, set {key}.revision: {commit}"
        for (key, name, commit), number in before.items()
        if now.get((key, name), commit) != commit
    ]
