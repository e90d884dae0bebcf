"""The record of a race as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

NAMES = {
    "tuneoff": "Tuneoff",
    "trainer": "peft + Trainer, default flags",
    "trainer_best": "peft + Trainer, best flags",
    "accelerate": "peft + accelerate loop",
}
ORDERS = {"random": "at random", "grouped": "by length"}
# Other programs than the race use so much of the machine before a part: a reader should know.
QUIET_BELOW = 0.1


def markdown(record: dict[str, Any]) -> str:
    """A block for each kind of machine: all parts that are there, and what is missing."""
    size = record["size"]
    lines = [
        "# The race",
        "",
        f"`make race`, batches of {size['batch_size']} E2E pairs, fp32 unless a row says bf16, "
        f"{len(size['bursts']) - 1} turns of every contender; numbers are medians over turns, and a ratio is the "
        "median of the ratios of the turns. "
        "Above 1.00 Tuneoff is faster or smaller.",
        "",
    ]
    for kind, block in record["machines"].items():
        lines += _block(kind, block)
    return "\n".join(lines)


def _block(kind: str, block: dict[str, Any]) -> list[str]:
    parts: dict[str, Any] = block["parts"]
    lines = [f"## {kind}", "", *_machine(parts.get("machine"))]
    for name, part in parts.items():
        if "rows" in part:
            lines += _training(name, part)
    if decoded := [part for part in parts.values() if "beams" in part]:
        lines += _decoding(decoded)
    if "sweep" in parts:
        lines += _sweep(parts["sweep"])
    if block["left_out"]:
        lines += ["### Left out", "", *(f"- {name}: {why}" for name, why in block["left_out"].items()), ""]
    loud = [name for name, part in parts.items() if part["others_busy_fraction"] >= QUIET_BELOW]
    if loud:
        lines += [f"Other programs used over {QUIET_BELOW:.0%} of the machine right before: {', '.join(loud)}.", ""]
    return lines


def _machine(part: dict[str, Any] | None) -> list[str]:
    if part is None:
        return []
    ceilings = part["ceilings"]
    versions = ", ".join(f"{name} {text}" for name, text in part["versions"].items())
    return [
        f"{part['cpu']}, {part['cores']} cores, {part['threads']} threads for everyone, "
        f"{part['memory_bytes'] / 2**30:.0f} GiB; "
        f"at {part['at']}, commit {part['provenance']['git_revision'] or 'unknown'}. "
        f"Ceilings: {ceilings['square_matmul_flops'] / 1e9:.0f} GFLOP/s in square products, "
        f"{ceilings['model_shaped_matmul_flops'] / 1e9:.0f} in the model's shapes, "
        f"{ceilings['copy_bytes_per_second'] / 1e9:.1f} GB/s in copies. {versions}.",
        "",
    ]


def _training(name: str, part: dict[str, Any]) -> list[str]:
    rows = [
        (
            _label(row["contender"], row["order"]),
            ORDERS[row["order"]],
            f"{row['tokens_per_second_median']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['step_seconds_p50']:.2f}",
            f"{row['step_seconds_p90']:.2f}",
            f"{row['memory_over_baseline_bytes'] / 2**20:,.0f}",
            f"{row['memory_ratio']:.2f}",
            f"{row['first_step_seconds']:.1f}",
        )
        for row in part["rows"]
    ]
    worst = max(check["largest_difference"] for check in part["gate"])
    shares = part["batches"]["useful_share"]
    return [
        f"### {name[0].upper()}{name[1:]}",
        "",
        f"{part['method']} on {part['model']}. Useful share of tokens: {shares['random']:.3f} at random, "
        f"{shares['grouped']:.3f} by length. Losses of the same batches differ by at most {worst:.1g} "
        f"over {part['gate'][0]['steps']} steps.",
        "",
        *_table(
            (
                "contender",
                "batches",
                "useful tok/s",
                "ratio",
                "step p50 s",
                "p90 s",
                "MiB over the model",
                "ratio",
                "launch to first step s",
            ),
            rows,
        ),
    ]


def _label(contender: str, order: str) -> str:
    if contender == "tuneoff" and order == "random":
        return "Tuneoff, without batches by length"
    name, _, lever = contender.partition(" ")
    return f"{NAMES[name]}, {lever}" if lever else NAMES[name]


def _decoding(parts: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        (
            str(part["beams"]),
            "Tuneoff" if name == "tuneoff" else name,
            f"{seconds:.2f}",
            "1.00" if name == "tuneoff" else f"{part['ratios'][name]:.2f}",
        )
        for part in parts
        for name, seconds in part["median_seconds_per_source"].items()
    ]
    same = ", ".join(f"{part['same_texts']:.1%} with {part['beams']} beams" for part in parts)
    sources = ", ".join(f"{part['sources']} with {part['beams']} beams" for part in parts)
    return [
        "### Decoding",
        "",
        f"E2E test sources: {sources}; {parts[0]['max_new_tokens']} new tokens at most, LoRA at its start. Texts "
        f"that are the same: {same}.",
        "",
        *_table(("beams", "contender", "s per unique source", "ratio"), rows),
    ]


def _sweep(part: dict[str, Any]) -> list[str]:
    busy = part["median_training_and_decoding_seconds"]
    rows = [
        (
            name,
            f"{seconds:.0f}",
            f"{part['ratios'].get(name, 1.0):.2f}",
            f"{busy[name]:.0f}",
        )
        for name, seconds in part["median_wall_seconds"].items()
    ]
    return [
        "### Sweep",
        "",
        f"{part['trials']} trials (3 methods, 2 learning rates, 2 seeds) of {part['steps']} steps on a tiny model, so "
        f"that what counts is what surrounds training and decoding; repetitions: {part['repetitions']}.",
        "",
        *_table(("contender", "wall s", "ratio", "of it training and decoding, summed over trials, s"), rows),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    line = "| " + " | ".join(head) + " |"
    rule = "| " + " | ".join(["---", *["---:"] * (len(head) - 1)]) + " |"
    return [line, rule, *("| " + " | ".join(row) + " |" for row in rows), ""]
