"""Whether a trial fits into a device's memory, and which settings would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.plan.devices import Device
from bench.plan.trace import TraceError
from bench.plugins.registry import load_optimizer, make_method
from bench.schema.trial import JsonDict, OffloadSpec, ResourceSpec, TrialSpec
from bench.schema.validation import ConfigError, check_batches, validated
from bench.train.order import rows_trained_at_once

MOST_RANKS = 8


def remedies(spec: TrialSpec, peak_bytes: Callable[[TrialSpec], int], device: Device) -> Iterator[str]:
    """Settings under which the trial would fit, the mildest of each kind first; what is left if none would.

    A smaller micro-batch costs launches, checkpointing a second forward pass, ZeRO devices and messages, offloading
    traffic to the host's memory.

    Args:
        spec: A trial that does not fit.
        peak_bytes: Of a trial with other settings, in its largest phase.
        device: Of every rank.
    """
    smallest: tuple[int, str] | None = None
    lean = spec.model_copy(update={"decode": spec.decode.model_copy(update={"batch_size": 1})})
    # What takes too much in two phases needs two settings.
    for base, beside in ((spec, ""), (lean, ", decode.batch_size: 1")):
        found = False
        kinds = [_smaller_micro_batches, _smaller_decode_batches, _checkpointing, _zero]
        for kind in kinds if device.kind == "cpu" else [*kinds, _offloading]:
            if found and kind in (_zero, _offloading):
                return  # One device is enough, or the devices are.
            for changed, text in kind(base):
                try:
                    peak = peak_bytes(changed)
                except TraceError:
                    continue
                if peak <= device.share_bytes(changed):
                    found = True
                    yield f"{text}{beside} ({peak / 2**30:.1f} GiB)"
                    break
                if smallest is None or peak < smallest[0]:
                    smallest = (peak, f"{text}{beside}")
        if found:
            return
    if smallest is not None:
        yield f"nothing tried fits; least memory with {smallest[1]} ({smallest[0] / 2**30:.1f} GiB)"


def _smaller_micro_batches(spec: TrialSpec) -> Iterator[tuple[TrialSpec, str]]:
    size = rows_trained_at_once(spec.train, spec.resources.ranks) // 2
    while size >= 1:
        if (changed := _changed(spec, train={"micro_batch_size": size})) is not None:
            yield changed, f"train.micro_batch_size: {size}"
        size //= 2


def _smaller_decode_batches(spec: TrialSpec) -> Iterator[tuple[TrialSpec, str]]:
    size = spec.decode.padded_batch_size // 2
    while size >= 1:
        changed = spec.model_copy(update={"decode": spec.decode.model_copy(update={"batch_size": size})})
        yield changed, f"decode.batch_size: {size}"
        size //= 2


def _checkpointing(spec: TrialSpec) -> Iterator[tuple[TrialSpec, str]]:
    if spec.train.gradient_checkpointing:
        return
    for train in ({"gradient_checkpointing": True}, {"gradient_checkpointing": True, "micro_batch_size": 1}):
        if (changed := _changed(spec, train=train)) is not None:
            yield changed, ", ".join(f"train.{name}: {str(value).lower()}" for name, value in train.items())


def _zero(spec: TrialSpec) -> Iterator[tuple[TrialSpec, str]]:
    """On more ranks and higher stages, with the smallest micro-batch and checkpointing at the end."""
    lean: JsonDict = {"micro_batch_size": 1, "gradient_checkpointing": True}
    for train in ({"micro_batch_size": None}, lean):
        ranks = 2
        while ranks <= MOST_RANKS:
            for stage in (1, 2, 3):
                resources = {"ranks": ranks, "zero_stage": stage}
                if (changed := _changed(spec, train, resources)) is not None:
                    extra = ", train.micro_batch_size: 1, train.gradient_checkpointing: true" if train is lean else ""
                    yield changed, f"resources.ranks: {ranks}, resources.zero_stage: {stage}{extra}"
            ranks *= 2


def _offloading(spec: TrialSpec) -> Iterator[tuple[TrialSpec, str]]:
    """With what ZeRO 3 has cut in the host's memory while it is not needed, on as many ranks as it has or on all."""
    if spec.resources.offload is not None:
        return
    lean: JsonDict = {"micro_batch_size": 1, "gradient_checkpointing": True}
    for ranks in sorted({max(2, spec.resources.ranks), MOST_RANKS}):
        for offload in (OffloadSpec(optimizer="cpu"), OffloadSpec(optimizer="cpu", parameters="cpu")):
            resources = {"ranks": ranks, "zero_stage": 3, "offload": offload}
            if (changed := _changed(spec, lean, resources)) is not None:
                moved = ", ".join(f"{what}: cpu" for what in offload.model_dump(exclude_none=True))
                yield (
                    changed,
                    f"resources.ranks: {ranks}, resources.zero_stage: 3, resources.offload: {{{moved}}}, "
                    "train.micro_batch_size: 1, train.gradient_checkpointing: true",
                )


def _changed(spec: TrialSpec, train: JsonDict | None = None, resources: JsonDict | None = None) -> TrialSpec | None:
    """The trial with other settings; None if a sweep with them would be refused."""
    if (resources or {}).get("zero_stage") and not _takes_zero(spec):
        return None
    changed = spec.model_copy(
        update={
            "train": spec.train.model_copy(update=train or {}),
            "resources": spec.resources.model_copy(update=resources or {}),
        }
    )
    if changed.evaluations and changed.resources.zero_stage == 3:
        return None
    try:
        validated(ResourceSpec, changed.resources.model_dump(), "trial")
        check_batches(changed.train, changed.resources, "trial")
    except ConfigError:
        return None
    return changed


def _takes_zero(spec: TrialSpec) -> bool:
    """Whether optimiser and method of a trial can be had under ZeRO 1 to 3."""
    method = make_method(spec.method)
    in_own_way = method.adapts_in_training or method.trains_in_turns
    return not in_own_way and not load_optimizer(spec.train.optimizer).needs_zero_0()
