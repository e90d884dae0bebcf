"""Costs of one table are those of trials on one kind of device, because means over two kinds are costs of neither."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from bench.schema.record import TrialResult

# Names of the devices that a trial's ranks had, each once.
Devices = tuple[str, ...]


def chosen_kind(rows: Sequence[Sequence[TrialResult]]) -> Devices | None:
    """The devices on which most rows have a trial, of equals those with most trials; None if there is one kind.

    Args:
        rows: Of each row, the trials that have costs of their own.
    """
    with_trial = Counter(devices for row in rows for devices in {result.devices for result in row})
    if len(with_trial) < 2:
        return None
    trials = Counter(result.devices for row in rows for result in row)
    return max(sorted(with_trial), key=lambda devices: (with_trial[devices], trials[devices]))


def kind_name(devices: Devices) -> str:
    """The devices of a trial, for people."""
    return " and ".join(devices) or "an unknown device"


def kinds_text(results: Iterable[TrialResult]) -> str:
    """The devices of trials with the number of trials on each, those of most trials first."""
    counted = Counter({result.trial_id: result.devices for result in results}.values())
    ordered = sorted(counted, key=lambda devices: (-counted[devices], devices))
    return ", ".join(f"{kind_name(devices)}: {counted[devices]}" for devices in ordered)
