"""``python -m overhead FOLDER``: measure, print, and write FOLDER/overhead.md; exit code 1 if a target is missed."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from overhead import between_trials, driver, scale

FINISHED = [500, 5_000, 50_000]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m overhead")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=8, help="real ones, one after the other")
    parser.add_argument("--planned", type=int, default=10_000, help="fake ones")
    parser.add_argument("--finished", type=int, nargs="*", default=FINISHED, help="sizes of finished sweeps")
    parser.add_argument("--pending", type=int, default=2_000, help="trials of a sweep that is resolved and planned")
    parser.add_argument("--only-scale", action="store_true", help="print the table of finished sweeps, and no page")
    arguments = parser.parse_args()
    if arguments.only_scale:
        with tempfile.TemporaryDirectory(prefix="tuneoff-overhead-") as folder:
            costs = [*scale.measure(Path(folder), arguments.finished), *scale.pending(Path(folder), arguments.pending)]
        sys.stdout.write("\n".join(scale_lines(costs)) + "\n")
        return 0
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tuneoff-overhead-") as folder:
        gaps = between_trials.measure(Path(folder), arguments.trials)
        long = driver.measure(Path(folder), arguments.planned)
        costs = [*scale.measure(Path(folder), arguments.finished), *scale.pending(Path(folder), arguments.pending)]
    sizes = f" OVERHEAD='--finished {' '.join(map(str, arguments.finished))}'"
    command = "make overhead" + (sizes if arguments.finished != FINISHED else "")
    text = report(command, gaps, long, load) + "\n".join(scale_lines(costs)) + "\n"
    sys.stdout.write(text)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "overhead.md").write_text(text, encoding="utf-8")
    warm = [each for each in gaps if "imports" not in each.launcher]
    met = (
        all(each.median <= between_trials.TARGET_SECONDS for each in warm)
        and long.seconds / long.trials <= driver.TARGET_SECONDS
        and long.growth_bytes <= driver.TARGET_GROWTH_BYTES
    )
    return 0 if met else 1


def report(command: str, gaps: list[between_trials.Gaps], long: driver.Long, load: float) -> str:
    """The page."""
    lines = [
        "# What the harness itself costs",
        "",
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({platform.machine()}), "
        f"Python {platform.python_version()}, load average before: {load:.1f}.",
        "",
        "From the end of a trial (its rank has handed over its report) to the end of the first step of the next one,",
        f"on a model of a few thousand parameters; target: a median of at most {between_trials.TARGET_SECONDS:g} s:",
        "",
        "| launcher | gaps | median s | least s | most s |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for each in gaps:
        numbers = f"{each.median:.2f} | {min(each.seconds):.2f} | {max(each.seconds):.2f}"
        lines.append(f"| {each.launcher} | {len(each.seconds)} | {numbers} |")
    per_trial = 1000 * long.seconds / long.trials
    part = 1000 * driver.PARTS / long.trials
    megabytes = [size / 2**20 for size in (long.memory_bytes[0], long.memory_bytes[-1])]
    lines += [
        "",
        f"The driver with {long.trials:,} planned trials that take no time (fake launcher); records are on disk:",
        "",
        "| | measured | target |",
        "| --- | ---: | ---: |",
        f"| wall time for each trial, ms | {per_trial:.1f} | {1000 * driver.TARGET_SECONDS:g} |",
        f"| of that CPU time, ms | {1000 * long.cpu_seconds / long.trials:.1f} | |",
        f"| first and last tenth, ms for each trial | {part * long.part_seconds[0]:.1f}, "
        f"{part * long.part_seconds[-1]:.1f} | equal |",
        f"| resident memory after the first and the last tenth, MiB | {megabytes[0]:.1f}, {megabytes[1]:.1f} | "
        f"growth up to {driver.TARGET_GROWTH_BYTES / 2**20:g} |",
        f"| taking the finished sweep up again, s | {long.resume_seconds:.1f} | |",
        "",
    ]
    return "\n".join(lines)


def scale_lines(costs: list[scale.Cost]) -> list[str]:
    """The table of what commands take on sweeps of many trials."""
    return [
        "",
        "Commands on sweeps of many trials, each in a process of its own. Targets: with 5,000 finished trials `run`",
        "with nothing to do takes 5 s of CPU time and 200 MiB, `status` 1 s; 2,000 pending trials are planned in 30 s.",
        "",
        "| command | trials | CPU s | wall s | peak MiB |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {cost.what} | {cost.trials:,} | {cost.cpu_seconds:.1f} | {cost.wall_seconds:.1f} | "
            f"{cost.memory_bytes / 2**20:,.0f} |"
            for cost in costs
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
