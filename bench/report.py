"""Records -> tables. A pure function of the records; imports neither torch nor ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bench.record import Completed, Failed, PhaseCost, TrialResult
from bench.spec import JsonDict
from bench.store import Store, write_atomically

ABSENT = "–"  # noqa: RUF001 - an en dash, as tables print what is absent

# Column, heading, whether higher is better (None: neither), how to print.
Column = tuple[str, str, bool | None, Callable[[float], str]]


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:,.0f}"


def _decimals(places: int) -> Callable[[float], str]:
    return lambda value: f"{value:,.{places}f}"


TABLE: tuple[Column, ...] = (
    ("bleu", "BLEU", True, _decimals(1)),
    ("chrf", "chrF++", True, _decimals(1)),
    ("ter", "TER", False, _decimals(1)),
    ("rouge_l", "ROUGE-L", True, _decimals(1)),
    ("test_loss", "test loss", False, _decimals(3)),
    ("trained_parameters", "trained", False, _count),
    ("trained_percent", "trained %", False, _decimals(3)),
    ("peak_memory_bytes", "peak MiB", False, _mebibytes),
    ("train_tokens_per_second", "train tok/s", True, _decimals(0)),
    ("decode_tokens_per_second", "decode tok/s", True, _decimals(0)),
    ("train_seconds", "train s", False, _decimals(1)),
    ("total_seconds", "total s", None, _decimals(1)),
)

# These do not vary over seeds, so that they need no spread.
PARAMETER_COLUMNS = ("trained_parameters", "trained_percent")


def load(root: Path) -> pd.DataFrame:
    """One row per trial of a results folder, failed ones included; the columns of results.csv."""
    return frame(Store(root).read_all())


def frame(results: Sequence[TrialResult]) -> pd.DataFrame:
    """One row per trial. Absent values are missing, never zero."""
    return pd.DataFrame([row(result) for result in results], columns=list(row_columns()))


def row_columns() -> Sequence[str]:
    """Names of the columns of results.csv, in order."""
    return (
        *("trial_id", "method", "model", "task", "seed", "status", "reason"),
        *("bleu", "chrf", "ter", "rouge_l"),
        *("trained_parameters", "stored_parameters", "total_parameters", "trained_fraction"),
        *("peak_memory_bytes", "train_tokens_per_second", "decode_tokens_per_second", "train_seconds"),
        *("total_seconds", "label", "learning_rate", "steps", "best_step", "dev_loss", "test_loss"),
        *("memory_over_baseline_bytes", "decode_peak_memory_bytes", "memory_method", "adapter_bytes"),
        *("step_seconds_p50", "step_seconds_p90", "step_seconds_p99", "useful_token_fraction"),
        *("ranks", "zero_stage", "precision", "device", "launcher", "message"),
    )


def row(result: TrialResult) -> JsonDict:
    """A record as a flat row."""
    spec, outcome = result.spec, result.outcome
    values: JsonDict = {
        "trial_id": result.trial_id,
        "method": spec.method.name,
        "model": spec.model.path,
        "task": spec.task.name,
        "seed": spec.seed,
        "status": outcome.status,
        "total_seconds": result.total_seconds,
        "label": spec.label,
        "learning_rate": spec.train.learning_rate,
        "ranks": spec.resources.ranks,
        "zero_stage": spec.resources.zero_stage,
        "precision": spec.resources.precision,
        "device": result.provenance.device if result.provenance else None,
        "launcher": result.launcher,
    }
    if isinstance(outcome, Failed):
        return {**values, "reason": outcome.reason, "message": outcome.message}
    return {**values, **_completed(outcome)}


def _completed(outcome: Completed) -> JsonDict:
    values: JsonDict = {
        **outcome.scores.values,
        "trained_parameters": outcome.parameters.trained,
        "stored_parameters": outcome.parameters.stored,
        "total_parameters": outcome.parameters.total,
        "trained_fraction": outcome.parameters.trained_fraction,
        "decode_tokens_per_second": outcome.decode.tokens_per_second,
        "best_step": outcome.best_step,
        "dev_loss": outcome.dev_loss,
        "test_loss": outcome.test_loss,
        "memory_method": outcome.ranks[0].memory_method,
        "adapter_bytes": outcome.adapter_bytes,
        "decode_peak_memory_bytes": _peak(outcome, "decode"),
    }
    if outcome.train is None:
        return values | {"learning_rate": None}
    training = [(cost, cost.phases["train"]) for cost in outcome.ranks]
    return values | {
        "peak_memory_bytes": _peak(outcome, "train"),
        "memory_over_baseline_bytes": max(
            phase.peak_memory_bytes - cost.baseline_memory_bytes for cost, phase in training
        ),
        "train_seconds": max(phase.seconds for _, phase in training),
        "steps": outcome.train.steps,
        "train_tokens_per_second": outcome.train.tokens_per_second,
        "step_seconds_p50": outcome.train.step_seconds_p50,
        "step_seconds_p90": outcome.train.step_seconds_p90,
        "step_seconds_p99": outcome.train.step_seconds_p99,
        "useful_token_fraction": outcome.train.useful_token_fraction,
    }


def _peak(outcome: Completed, phase: str) -> int | None:
    found: list[PhaseCost] = [cost.phases[phase] for cost in outcome.ranks if phase in cost.phases]
    return max((cost.peak_memory_bytes for cost in found), default=None)


def write(root: Path, command: str | None = None) -> Path:
    """Render all records below ``root`` into ``root/report``; returns that folder."""
    results = Store(root).read_all()
    folder = root / "report"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.csv", csv_text(results))
    write_atomically(folder / "report.md", markdown(root.name, results, command))
    return folder


def csv_text(results: Sequence[TrialResult]) -> str:
    """results.csv. A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    table = frame(results)
    for column in ("trial_id", "method", "model", "task", "label", "message"):
        table[column] = table[column].map(_no_formula)
    return str(table.to_csv(index=False, lineterminator="\n"))


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def markdown(sweep: str, results: Sequence[TrialResult], command: str | None = None) -> str:
    """report.md: the same rows as results.csv, seeds of one configuration together."""
    parts = [f"# {sweep}", _summary(results)]
    completed = [result for result in results if isinstance(result.outcome, Completed)]
    if completed:
        parts += [_main_table(results), _legend(completed), _tags_table(completed)]
    parts += [_failures(results), _caveats(completed), _provenance(results)]
    if command:
        parts.append(f"## Again\n\n```\n{command}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(results: Sequence[TrialResult]) -> str:
    failed = sum(isinstance(result.outcome, Failed) for result in results)
    tasks = sorted({result.spec.task.name for result in results})
    models = sorted({result.spec.model.path for result in results})
    return f"{len(results)} trials, {failed} failed. Model: {', '.join(models)}. Task: {', '.join(tasks)}."


def _cells(results: Sequence[TrialResult]) -> dict[str, list[TrialResult]]:
    """Records by everything but the seed, in order of first appearance by method and label."""
    groups: dict[str, list[TrialResult]] = {}
    for result in sorted(results, key=lambda result: (result.spec.method.name, result.spec.label, result.spec.seed)):
        identity = {key: value for key, value in result.spec.identity.items() if key != "seed"}
        groups.setdefault(json.dumps(identity, sort_keys=True), []).append(result)
    return groups


def cell_name(result: TrialResult) -> str:
    """Method and, where a grid varies them, its settings."""
    return f"{result.spec.method.name} ({result.spec.label})" if result.spec.label else result.spec.method.name


def _main_table(results: Sequence[TrialResult]) -> str:
    several_seeds = len({result.spec.seed for result in results}) > 1
    rows: list[tuple[str, pd.DataFrame]] = []
    for members in _cells(results).values():
        values = frame(members)
        values["trained_percent"] = values["trained_fraction"].astype(float) * 100
        rows.append((cell_name(members[0]), values))
    rows.sort(key=lambda row: -_mean(row[1], "bleu"))
    heading = ["method", *(["seeds"] if several_seeds else []), *(title for _, title, _, _ in TABLE)]
    body = [
        [
            name,
            *([_seed_count(values)] if several_seeds else []),
            *(_cell(values, column, [other for _, other in rows]) for column in TABLE),
        ]
        for name, values in rows
    ]
    return "\n".join(_markdown_row(cells) for cells in [heading, ["---", *["---:"] * (len(heading) - 1)], *body])


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _seed_count(values: pd.DataFrame) -> str:
    done = int((values["status"] == "completed").sum())
    return str(done) if done == len(values) else f"{done} of {len(values)}"


def _mean(values: pd.DataFrame, column: str) -> float:
    mean = float(values[column].astype(float).mean())
    return mean if mean == mean else float("-inf")


def _cell(values: pd.DataFrame, column: Column, rivals: Sequence[pd.DataFrame]) -> str:
    name, _, higher_is_better, text = column
    numbers = values[name].astype(float).dropna()
    if numbers.empty:
        return ABSENT
    shown = text(float(numbers.mean()))
    if len(numbers) > 1 and name not in PARAMETER_COLUMNS:
        shown += f" ± {text(float(numbers.std(ddof=1)))}"
    if higher_is_better is None:
        return shown
    means = [float(mean) for rival in rivals if (mean := rival[name].astype(float).mean()) == mean]
    if name in PARAMETER_COLUMNS:
        means = [mean for mean in means if mean > 0]  # What trains nothing is no method with few parameters.
    best = max(means, default=None) if higher_is_better else min(means, default=None)
    return f"**{shown}**" if len(rivals) > 1 and float(numbers.mean()) == best else shown


def _legend(completed: Sequence[TrialResult]) -> str:
    outcome = completed[0].outcome
    if not isinstance(outcome, Completed):
        raise TypeError("a legend needs a completed trial")
    signatures = "; ".join(f"{name}: `{text}`" for name, text in sorted(outcome.scores.signatures.items()))
    return (
        "Best value of each column in bold; ± is the standard deviation (n-1) over seeds. Scores are over the test "
        f"sources ({outcome.decode.sources}). Peak memory is that of the training phase on the worst rank "
        f"({outcome.ranks[0].memory_method}); train tok/s are useful (non-padding) tokens in the steady window; "
        f"total s includes start-up. Signatures: {signatures}."
    )


def _tags_table(completed: Sequence[TrialResult]) -> str:
    tags: dict[str, int] = {}
    for result in completed:
        if isinstance(result.outcome, Completed):
            tags |= result.outcome.scores.sources_by_tag
    shown = [tag for tag in ("seen", "unseen") if tag in tags]
    if not shown:
        return ""
    lines = [
        _markdown_row(["BLEU", *(f"{tag} ({tags[tag]})" for tag in shown)]),
        _markdown_row(["---", *["---:"] * len(shown)]),
    ]
    for members in _cells(completed).values():
        scores = [result.outcome.scores.by_tag for result in members if isinstance(result.outcome, Completed)]
        means = [pd.Series([by_tag[tag]["bleu"] for by_tag in scores]).mean() for tag in shown]
        lines.append(_markdown_row([cell_name(members[0]), *(f"{mean:.1f}" for mean in means)]))
    return "\n".join(lines)


def _failures(results: Sequence[TrialResult]) -> str:
    lines = [
        f"- `{result.trial_id}`: **{result.outcome.reason}**"
        + (f" in {result.outcome.phase}" if result.outcome.phase else "")
        + (f" on rank {result.outcome.rank}" if result.outcome.rank is not None else "")
        + f": {' '.join(result.outcome.message.split())[:500]}"
        for result in results
        if isinstance(result.outcome, Failed)
    ]
    return "\n".join(["## Failed trials", "", *lines]) if lines else ""


def _caveats(completed: Sequence[TrialResult]) -> str:
    """What would make the rows incomparable or the scores doubtful."""
    found: list[str] = []
    made = [result.provenance for result in completed if result.provenance is not None]
    for what, values in (
        ("sources of Tuneoff", {provenance.code_sha256 for provenance in made}),
        ("devices", {provenance.device for provenance in made}),
        ("package versions", {json.dumps(provenance.package_versions, sort_keys=True) for provenance in made}),
        ("test data", {result.spec.task.data_sha256 for result in completed}),
    ):
        if len(values) > 1:
            found.append(f"Rows were made with different {what}.")
    if any(provenance.git_dirty for provenance in made):
        found.append("Some rows were made with sources that were not committed.")
    if len({result.spec.seed for result in completed}) == 1:
        found.append("One seed: differences between methods may be chance.")
    for key, what in (("truncated_sources", "sources"), ("truncated_targets", "references")):
        if any(isinstance(r.outcome, Completed) and r.outcome.data[key] for r in completed):
            found.append(f"Some {what} were longer than the limit and were cut.")
    return "\n".join(["## Mind", "", *(f"- {line}" for line in found)]) if found else ""


def _provenance(results: Sequence[TrialResult]) -> str:
    made = [result.provenance for result in results if result.provenance is not None]
    if not made:
        return ""
    first = made[0]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(first.package_versions.items()))
    threads = f", {first.threads_per_rank} threads per rank" if first.threads_per_rank else ""
    return (
        f"## Made with\n\nTuneoff {first.tuneoff_version}, sources {first.code_sha256[:12]}; Python "
        f"{first.python_version}; {versions}. Device: {first.device}, {first.cpu_cores} CPU cores{threads}."
    )
