"""What the finished trials of a sweep were made with that has moved on the hub since. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from bench.hub import DEFAULT_BRANCH
from bench.record import TrialResult
from bench.spec import TrialSpec


def moved(results: Iterable[TrialResult], trials: Iterable[TrialSpec]) -> list[str]:
    """A sentence for each model and data set of which finished trials have another commit than trials of now.

    Args:
        results: The records of the sweep.
        trials: That are asked for.
    """
    now = {place: commit for trial in trials for place, commit in _commits(trial)}
    before = Counter((place, commit) for result in results for place, commit in _commits(result.spec))
    return [
        f"{key}: {name} is at commit {now[key, name]} now, and at {commit} when {number} finished trials of this sweep "
        f"were made: they stay, and those of now are others. To go on with the old ones set {key}.revision: {commit}"
        for ((key, name), commit), number in before.items()
        if now.get((key, name), commit) != commit
    ]


def _commits(trial: TrialSpec) -> Iterator[tuple[tuple[str, str], str]]:
    """Key of the sweep and name, and the commit, of what a trial takes from the hub."""
    if trial.model.commit is not None:
        yield ("model", f"{trial.model.path} ({trial.model.revision or DEFAULT_BRANCH})"), trial.model.commit
    config = trial.task.config
    if trial.task.target == "bench.tasks.hub:Hub" and config.get("revision"):
        yield ("task", str(config["path"])), str(config["revision"])
