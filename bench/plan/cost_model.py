"""What a trial will cost: FLOPs, bytes by part, seconds. From traces of its step, its sizes and a device's rates."""

from __future__ import annotations

import functools
from typing import Any

from bench.decode.merged import MOST_SOURCES
from bench.decode.rows import decode_bytes, layers_of, rows_at_once
from bench.models import base
from bench.plan.devices import Device
from bench.plan.kernels import Kernels
from bench.plan.patched import patched_without_weights
from bench.plan.step_costs import StepCosts, step_costs
from bench.plan.workload import MicroBatch, Workload
from bench.plugins.registry import make_method
from bench.schema.record import Forecast
from bench.schema.trial import ModelSpec, ResourceSpec, TrialSpec
from bench.train.lane import LARGE_BYTES
from bench.train.order import rows_evaluated_at_once

# There is a copy of the trained parameters in fp32 where training is in bf16, and under ZeRO in any case.
COPY_BYTES = 4
# Of an element of a gradient that is added up over micro-batches and ranks, and of what is stored.
SUMMED_BYTES = 4
# DeepSpeed's limit on elements of a bucket, as bench.train.loop sets it.
MOST_BUCKET_ELEMENTS = 500_000_000
# On a CPU: pages of libraries that are touched after their import, threads' stacks, Python's objects. Measured with
# torch 2.13 and DeepSpeed, whatever the model: 60 to 80 MiB.
PROCESS_BYTES = 70 * 2**20
# On a CPU: what glibc keeps of freed blocks between those in use, as a share of what comes and goes within a step.
# Trials of LoRA and full fine-tuning on 135M parameters kept 12 to 43 %.
HEAP_FRACTION = 0.3
# What the cores that belong to one GPU read and write of the host's memory: an assumption.
HOST_BYTES_PER_SECOND = 2e10
# An optimiser step reads a gradient and reads and writes a parameter, beside what the optimiser keeps of it.
STEP_TRAFFIC_BYTES = 12
# A hypothesis is longer than the mean target before the last of a batch has ended.
LONGEST_OVER_MEAN = 1.5


def forecast_of(
    spec: TrialSpec, work: Workload, device: Device | None, name: str, costs: StepCosts | None = None
) -> Forecast:
    """What a trial that trains something will cost.

    Args:
        spec: Of the trial.
        work: Its sizes.
        device: Of every rank; None is one whose rates are not known.
        name: Of the device.
        costs: Of its steps; None: from traces of them.

    Raises:
        TraceError: The method's step looks at values, so that there is no forecast.
    """
    costs = costs or step_costs(spec, work)
    flops = sum(costs.flops(micro) for micro in work.micro_batches)
    step_seconds: float | None = None
    train_seconds: float | None = None
    total_seconds: float | None = None
    if device is not None:
        spec = with_decoded_at_once(spec, work, device)
        step_seconds = _step_seconds(spec, work, costs, flops, device)
        train_seconds = step_seconds * work.steps
        total_seconds = device.start_seconds + train_seconds + _evaluation_seconds(spec, work, costs, device)
    on_cpu = device is not None and device.kind == "cpu"
    phases = phase_memory(spec, work, costs, on_cpu)
    return Forecast(
        device=name,
        flops=flops,
        step_seconds=step_seconds,
        train_seconds=train_seconds,
        total_seconds=total_seconds,
        memory_bytes=training_memory(spec, work, costs, on_cpu),
        decode_memory_bytes=phases.get("decode", 0),
        phase_memory_bytes=phases,
    )


def phase_memory(spec: TrialSpec, work: Workload, costs: StepCosts, on_cpu: bool) -> dict[str, int]:
    """Bytes on one rank at the peak of each phase of a trial that trains, in order of the flow.

    Under ZeRO 3 several ranks hold slices of the model from the first byte on, in scoring too, and gather a layer at a
    time. Elsewhere a model is whole on every rank. On a CPU the stored state is in the same memory, unless it is large
    and in slices, and then in files.
    """
    trace = costs.large
    held, layer = float(trace.weight_bytes), 0.0
    if in_shards := _in_shards(spec):
        held, layer = held / spec.resources.ranks, float(trace.largest_layer_bytes)
    hosted = _hosted(spec, on_cpu)
    process = float(PROCESS_BYTES) if on_cpu else 0.0
    kernels = Kernels(spec, work, costs) if on_cpu else None
    after_training = 0.0 if kernels is None else kernels.after_training
    stored = _kept_bytes(spec, costs) if on_cpu else 0.0
    training = training_memory(spec, work, costs, on_cpu)
    lasting = sum(training.get(part, 0) for part in ("weights", "buffers", "kept state")) + _optimizer_bytes(
        spec, costs
    )
    lasting -= _optimizer_bytes(spec, costs) if "optimizer" in hosted else 0.0
    copies = 0.0 if "optimizer" in hosted else _copies_bytes(spec, costs)
    gathered = float(trace.gradient_bytes) if in_shards and stored else 0.0
    evaluating = _evaluation_bytes(spec, work, costs)
    phases = {
        "load": held,
        "initialise": held + copies + layer,
        "train": float(sum(training.values())),
        "validate": lasting + evaluating + after_training,
        "gather": lasting + gathered + stored + after_training,
    }
    if spec.scored_split is not None:
        with_test_loss, in_scoring = (0.0, 0.0) if kernels is None else (kernels.with_test_loss, kernels.in_scoring)
        phases |= _scoring_phases(spec, work, held + layer, stored + in_scoring)
        phases["load"] = held + stored + after_training
        phases["validate"] = max(phases["validate"], held + layer + stored + evaluating + with_test_loss)
    beyond = {phase: 0.0 if phase == "train" else process for phase in phases}  # which training has as a part
    return {phase: round(size + beyond[phase]) for phase, size in phases.items()}


def untrained_memory(spec: TrialSpec, work: Workload, weight_bytes: int, on_cpu: bool) -> dict[str, int]:
    """The same of a trial that trains nothing, without what ZeRO 3 gathers."""
    shared_by = spec.resources.ranks if _in_shards(spec) else 1
    whole = float(weight_bytes / shared_by + PROCESS_BYTES * on_cpu)
    phases = {"load": whole, **(_scoring_phases(spec, work, whole, 0.0) if spec.scored_split is not None else {})}
    return {phase: round(size) for phase, size in phases.items()}


def _scoring_phases(spec: TrialSpec, work: Workload, whole: float, stored: float) -> dict[str, float]:
    return {"decode": whole + stored + _decode_bytes(spec, work), "score": whole + stored}


def _evaluation_bytes(spec: TrialSpec, work: Workload, costs: StepCosts) -> float:
    """Of a forward pass over dev pairs as long as the longest of training: one layer's activations, and the logits."""
    longest = max(work.micro_batches, key=lambda micro: micro.length)
    at_once = rows_evaluated_at_once(spec.train, spec.resources.ranks)
    rows = min(at_once, max(1, round(work.dev_tokens / longest.length)))
    targets = rows * longest.target_tokens / longest.rows
    batch = MicroBatch(rows, round(rows * longest.length), round(targets))
    return costs.activation_bytes(batch) / layers_of(_config(spec.model)) + costs.logits_bytes(batch)


def training_memory(spec: TrialSpec, work: Workload, costs: StepCosts, on_cpu: bool) -> dict[str, int]:
    """Bytes on one rank at the peak of training, by part.

    What is offloaded is in the memory of the host, which is that of the device on a CPU.

    In bf16 and fp16, too, gradients are added up and states are stored in fp32. Under stage 0 DeepSpeed reduces the
    gradients of several ranks through a flat copy; under stages 1 and 2 through a bucket that is always there. Stage 3
    gathers layer by layer what it has shared out, and its buckets are no larger than a layer.
    """
    resources, trace = spec.resources, costs.large
    summed = float(SUMMED_BYTES * trace.trained_elements)
    largest, optimizer = _fullest(spec, work, costs)
    parts = {
        "weights": float(trace.weight_bytes),
        "optimizer": optimizer,
        **_transient(resources, work.accumulation, costs, largest),
    }
    if resources.zero_stage >= 1:
        parts["buffers"] = _bucket_bytes(costs)
    if resources.zero_stage >= 2:
        parts["gradients"] = summed / resources.ranks
    if resources.zero_stage == 3:
        parts["weights"] = trace.weight_bytes / resources.ranks + trace.largest_layer_bytes
        parts["buffers"] = min(parts["buffers"], float(trace.largest_layer_bytes))
    hosted = _hosted(spec, on_cpu)
    if "optimizer" in hosted:
        parts["optimizer"] = 0.0
        if resources.zero_stage >= 2:
            parts["gradients"] = 0.0  # go there as they arise
    if "parameters" in hosted:
        parts["weights"] = float(trace.largest_layer_bytes)
    if on_cpu and work.evaluations > 1:
        # The best state so far is kept in host memory, which on a CPU is the memory that is measured.
        parts["kept state"] = _kept_bytes(spec, costs)
    if on_cpu:
        passing = (parts.get(part, 0.0) for part in ("activations", "logits", "gradients"))
        parts["heap"] = HEAP_FRACTION * sum(passing)
        parts["kernels"] = Kernels(spec, work, costs).in_training
        parts["process"] = float(PROCESS_BYTES)
    return {part: round(size) for part, size in parts.items() if size >= 0.5}


def _fullest(spec: TrialSpec, work: Workload, costs: StepCosts) -> tuple[MicroBatch, float]:
    """The micro-batch at the peak of training, and what the optimiser has then: moments come with the first step."""

    def passing(micro: MicroBatch) -> float:
        return costs.activation_bytes(micro) + costs.logits_bytes(micro)

    of_first_step = len(work.micro_batches) // max(1, work.steps)
    later = max(work.micro_batches[of_first_step:], key=passing, default=None)
    first = max(work.micro_batches[:of_first_step], key=passing)
    whole = _optimizer_bytes(spec, costs)
    copies = _copies_bytes(spec, costs)
    if later is None or passing(first) + copies > passing(later) + whole:
        return first, copies
    return later, whole


def _transient(resources: ResourceSpec, accumulation: int, costs: StepCosts, micro: MicroBatch) -> dict[str, float]:
    """Activations, logits and gradients at the moment when they are most together.

    Where one backward pass makes all gradients of a step, they grow while activations go. In half precision
    bench.models.masters keeps each in fp32 from then on: at the end all are there, and the last one twice.
    """
    trace = costs.large
    gradients = float(SUMMED_BYTES * trace.trained_elements)
    passing = {"activations": costs.activation_bytes(micro), "logits": costs.logits_bytes(micro)}
    if accumulation > 1 or resources.zero_stage > 0:
        moments = [{**passing, "gradients": gradients}]
    else:
        widened = gradients / trace.gradient_bytes
        moments = [{**passing, "gradients": widened * costs.growing_gradient_bytes(micro)}]
        if widened > 1:
            moments.append({"gradients": gradients + trace.largest_gradient_bytes})
    if resources.zero_stage == 0 and resources.ranks > 1:  # make_engine tells DeepSpeed not to with itself
        moments.append({"gradients": gradients, "buffers": gradients})
    return max(moments, key=lambda parts: sum(parts.values()))


def _optimizer_bytes(spec: TrialSpec, costs: StepCosts) -> float:
    resources, trace = spec.resources, costs.large
    copy = COPY_BYTES if _has_copies(resources) else 0
    return (trace.state_bytes + copy * trace.trained_elements) / _shared_by(resources)


def _in_shards(spec: TrialSpec) -> bool:
    return spec.resources.zero_stage == 3 and spec.resources.ranks > 1 and spec.model.stored_in is None


def _hosted(spec: TrialSpec, on_cpu: bool) -> frozenset[str]:
    """What of a trial lies in the memory of the host while it trains, and not in the device's."""
    offload = spec.resources.offload
    settings = {} if offload is None or on_cpu else offload.model_dump(exclude_none=True)
    return frozenset(settings)


def _kept_bytes(spec: TrialSpec, costs: StepCosts) -> float:
    """Of a stored state in memory."""
    size = float(SUMMED_BYTES * costs.large.stored_elements)
    return 0.0 if _in_shards(spec) and size > LARGE_BYTES else size


def _has_copies(resources: ResourceSpec) -> bool:
    """Whether there are fp32 copies of what is trained."""
    return resources.zero_stage > 0 or resources.precision != "fp32"


def _copies_bytes(spec: TrialSpec, costs: StepCosts) -> float:
    shared = _shared_by(spec.resources)
    return COPY_BYTES * costs.large.trained_elements / shared if _has_copies(spec.resources) else 0.0


def _shared_by(resources: ResourceSpec) -> int:
    return resources.ranks if resources.zero_stage > 0 else 1


def _bucket_bytes(costs: StepCosts) -> float:
    trace = costs.large
    element = trace.gradient_bytes / trace.trained_elements
    return min(max(trace.trained_elements, 2**16), MOST_BUCKET_ELEMENTS) * element


def _decode_bytes(spec: TrialSpec, work: Workload) -> float:
    """Of the sources that are decoded at once."""
    rows = min(spec.decode.padded_batch_size, work.decoded_sources)
    element = base.weights_dtype(spec.resources.precision).itemsize
    return decode_bytes(spec.decode, _config(spec.model), element, rows, work.source_tokens)


def with_decoded_at_once(spec: TrialSpec, work: Workload, device: Device) -> TrialSpec:
    """The trial with the number of sources that a device will decode at once, where its sweep leaves that open."""
    if spec.decode.batch_size is not None or not work.decoded_sources:
        return spec
    config, element = _config(spec.model), base.weights_dtype(spec.resources.precision).itemsize
    rows = rows_at_once(spec.decode, config, element, work.source_tokens, device.memory_bytes, device.kind == "cpu")
    if patched_without_weights(spec.method, spec.model).decoded_in_batches:
        rows = min(rows, spec.decode.padded_batch_size)
    return spec.model_copy(update={"decode": spec.decode.model_copy(update={"batch_size": rows})})


@functools.lru_cache(maxsize=8)
def _config(model: ModelSpec) -> Any:
    """Of the part that writes texts, as models that see pictures have several; read once for all trials of a sweep."""
    return base.load_config(model).get_text_config(decoder=True)


def passes_seconds(spec: TrialSpec, costs: StepCosts, flops: float, passes: int, device: Device) -> float:
    """Of so many forward and backward passes on one rank, which compute so many FLOPs together."""
    arithmetic = flops / _rate(spec, device)
    host = passes * costs.large.kernels * device.kernel_seconds
    # A GPU computes while the host prepares what comes next; a CPU does one after the other.
    return max(arithmetic, host) if device.kind == "cuda" else arithmetic + host


def _step_seconds(spec: TrialSpec, work: Workload, costs: StepCosts, flops: float, device: Device) -> float:
    """Mean of an optimiser step."""
    passes = passes_seconds(spec, costs, flops / (work.steps * spec.resources.ranks), work.accumulation, device)
    traffic = _step_traffic(costs) / _shared_by(spec.resources) / device.bytes_per_second
    gathering, reducing = _message_bytes(spec, work, costs)
    gathering_seconds = gathering / device.link_bytes_per_second
    # DeepSpeed gathers the next layer while a GPU computes one (bench.train.deepspeed_engine).
    passes = max(passes, gathering_seconds) if device.kind == "cuda" else passes + gathering_seconds
    messages = reducing / device.link_bytes_per_second
    return passes + messages + traffic + _hosting_seconds(spec, work, costs, device) + device.step_seconds


def _step_traffic(costs: StepCosts) -> float:
    """Bytes that an optimiser step reads and writes."""
    return STEP_TRAFFIC_BYTES * costs.large.trained_elements + 2 * costs.large.state_bytes


def _message_bytes(spec: TrialSpec, work: Workload, costs: StepCosts) -> tuple[float, float]:
    """What a rank sends in an optimiser step, and receives as much: to gather weights, and to add up gradients.

    Rings of R ranks send (R - 1) / R of a tensor to gather it or to reduce it to shares, twice that to add it up
    everywhere. Stage 3 gathers each weight for the forward pass and again for the backward pass, and for the forward
    pass that checkpointed activations make within it.
    """
    resources, trace = spec.resources, costs.large
    share = (resources.ranks - 1) / resources.ranks
    gradients = float(SUMMED_BYTES * trace.trained_elements)
    if resources.zero_stage == 3:
        times = work.accumulation * (3 if spec.train.gradient_checkpointing else 2)
        return share * times * trace.weight_bytes, share * work.accumulation * gradients
    passes = work.accumulation if resources.zero_stage == 2 else 1
    updated = trace.gradient_bytes if resources.zero_stage else gradients
    return 0.0, share * (passes * gradients + updated)


def _hosting_seconds(spec: TrialSpec, work: Workload, costs: StepCosts, device: Device) -> float:
    """Of an optimiser step, for what lies in the host's memory: its way, and the step that the host's CPU makes."""
    hosted, trace = _hosted(spec, device.kind == "cpu"), costs.large
    moved = 0.0
    if "parameters" in hosted:
        moved += 2 * work.accumulation * trace.weight_bytes / _shared_by(spec.resources)
    seconds = 0.0
    if "optimizer" in hosted:
        own = trace.trained_elements / _shared_by(spec.resources)
        moved += SUMMED_BYTES * own + trace.gradient_bytes / _shared_by(spec.resources)
        seconds = _step_traffic(costs) / _shared_by(spec.resources) / HOST_BYTES_PER_SECOND
    return seconds + moved / device.host_bytes_per_second


def _rate(spec: TrialSpec, device: Device) -> float:
    return device.flops_per_second[spec.resources.precision] * device.efficiency


def _evaluation_seconds(spec: TrialSpec, work: Workload, costs: StepCosts, device: Device) -> float:
    """Losses of dev and test pairs, and decoding token by token, or choices as losses are taken.

    The dev loss is taken at every evaluation, and once more of the stored adapter where that is scored.
    """
    trace = costs.large
    per_token = trace.forward_fraction * trace.flops / trace.padded_tokens
    kernels = trace.kernels * trace.forward_fraction * device.kernel_seconds
    times = work.evaluations + (spec.scored_split is not None)
    read_tokens = times * work.dev_tokens + work.test_tokens + work.chosen_tokens
    losses = read_tokens * per_token / _rate(spec, device) / spec.resources.ranks
    decode, at_once = spec.decode, spec.decode.padded_batch_size
    token_steps = min(decode.max_new_tokens, LONGEST_OVER_MEAN * work.target_tokens)

    def decoding(sources: int) -> float:
        rows = min(at_once, sources) * decode.beams
        one = max(rows * per_token / _rate(spec, device), trace.weight_bytes / device.bytes_per_second)
        return -(-sources // (at_once * spec.resources.ranks)) * token_steps * (one + kernels)

    again = min(MOST_SOURCES, work.decoded_sources) if _compares_merged(spec) else 0
    return losses + decoding(work.decoded_sources) + 2 * decoding(again)


def _compares_merged(spec: TrialSpec) -> bool:
    """Whether the first sources are decoded twice more, with the adapter merged and without."""
    possible = spec.compares_merged and spec.stage != "tune" and not _in_shards(spec) and spec.model.stored_in is None
    return possible and make_method(spec.method).mergeable
