"""``make race``: run what has not been run, write results/race/report after every part."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.schema.trial import DecodeSpec
from race import decoding, machine, sweep, training, workload
from race.contender import Contender, Job
from race.render import markdown

Result = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is run."""

    model: str = "smollm2-135m"
    second_model: str = "gpt2-6-layers"
    batch_size: int = 8
    bursts: tuple[int, ...] = (1, 2, 2, 2, 2, 2)
    short_bursts: tuple[int, ...] = (1, 1, 1, 1, 1, 1)  # of all but prefix tuning on the first model
    lever_bursts: tuple[int, ...] = (6, 2, 2, 2, 2, 2)  # one lever compiles in its first steps
    turns: int = 5
    greedy_sources: int = 64  # of a turn
    greedy_batches: tuple[int, ...] = (10, 32)  # of generate
    beam_sources: int = 30
    beam_batches: tuple[int, ...] = (10,)
    one_by_one: int = 3
    line_turns: int = 1
    max_new_tokens: int = 40
    sweep_steps: int = 20
    sweep_repetitions: int = 5


SIZES = {
    "cpu": Size(),
    "smoke": Size(
        model="tiny",
        batch_size=2,
        bursts=(1, 1),
        short_bursts=(1, 1),
        lever_bursts=(1, 1),
        turns=1,
        greedy_sources=3,
        greedy_batches=(2, 3),
        beam_sources=2,
        beam_batches=(2,),
        one_by_one=1,
        line_turns=1,
        max_new_tokens=4,
        sweep_steps=2,
        sweep_repetitions=1,
    ),
}


LEVERS_OF_LLAMA = (
    "logits at targets only",
    "logits a chunk at a time",
    "lean modules",
    "heads that share keys",
    "an engine that sees what is trained",
)


class Race:
    """All parts, on one machine.

    Args:
        size: How much is run.
        e2e: Folder of the E2E data; None downloads the public release.
        threads: Of every contender.
        scratch: For models, adapters, batches and logs.
    """

    def __init__(self, size: Size, e2e: str | None, threads: int, scratch: Path) -> None:
        self.size, self.threads, self.scratch = size, threads, scratch
        self.task = workload.e2e(e2e)
        self.log = scratch / "log.txt"

    def parts(self) -> dict[str, Callable[[], Result]]:
        """Name to what runs it, the most important ones first."""
        size = self.size
        return {
            "machine": lambda: {**machine.description(self.threads), "ceilings": machine.ceilings()},
            "training prefix_tuning": partial(self.train, size.model, "prefix_tuning"),
            "decoding beam 5": partial(self.decode, 5),
            "training lora": partial(self.train, size.model, "lora"),
            "training prompt_tuning": partial(self.train, size.model, "prompt_tuning"),
            "training full": partial(self.train, size.model, "full"),
            "sweep": self.sweep,
            "decoding greedy": partial(self.decode, 1),
            "training lora bf16": partial(self.in_bf16, "lora"),
            "training prefix_tuning bf16": partial(self.in_bf16, "prefix_tuning"),
            "levers": self.levers,
            f"training prefix_tuning {size.second_model}": self.second,
        }

    def train(self, model: str, method: str) -> Result:
        """Ours and the peers; ours on batches at random too.

        Memory has no room for a fifth contender that trains all weights. There it runs by itself, and is no row: its
        losses are those that the peers' have to be equal to.
        """
        job = self._jobs(model, method)
        jobs = [job("tuneoff", "grouped"), job("trainer", "random"), job("trainer_best", "grouped")]
        jobs.append(job("accelerate", "random"))
        at_random = job("tuneoff", "random")
        if method != "full":
            return self._compared(training.race([*jobs, at_random], self.log), model, method)
        rows = training.race(jobs, self.log)
        return self._compared(rows, model, method, training.race([at_random], self.log))

    def in_bf16(self, method: str) -> Result:
        """Ours and Trainer's in bf16, ours on batches at random too, and ours in fp32."""
        job = self._jobs(self.size.model, method)
        fp32 = job("tuneoff", "grouped")
        jobs = [fp32, job("trainer", "random"), job("trainer_best", "grouped"), job("tuneoff", "random")]
        jobs = [*(replace(each, precision="bf16") for each in jobs), fp32]
        return self._compared(training.race(jobs, self.log), self.size.model, method)

    def second(self) -> Result:
        """The GPT-2-shaped model, and the lever that only it has."""
        job = self._jobs(self.size.second_model, "prefix_tuning")
        jobs = [job("tuneoff", "grouped"), job("trainer", "random"), job("trainer_best", "grouped")]
        jobs += [job("tuneoff", "random"), job("tuneoff", "grouped", "lean modules")]
        return self._compared(training.race(jobs, self.log), self.size.second_model, "prefix_tuning")

    def levers(self) -> Result:
        """Each lever of training switched off by itself, and the one that is off by default on; prefix tuning."""
        job = self._jobs(self.size.model, "prefix_tuning")
        ours = replace(job("tuneoff", "grouped"), bursts=list(self.size.lever_bursts))
        off = [replace(ours, lever_off=name) for name in LEVERS_OF_LLAMA]
        rows = training.race([ours, *off, replace(ours, compile=True)], self.log)
        return self._compared(rows, self.size.model, "prefix_tuning")

    def decode(self, beams: int) -> Result:
        """Our decoder and ``generate`` with the same adapter of LoRA."""
        model, _ = self._model(self.size.model)
        adapter = self._start(self.size.model, "lora")
        torch.set_num_threads(self.threads)
        decoders = decoding.Decoders(
            str(model),
            ("lora", workload.METHODS["lora"][0], adapter),
            DecodeSpec(beams=beams, max_new_tokens=self.size.max_new_tokens),
        )
        greedy = (self.size.greedy_sources, self.size.greedy_batches)
        per_turn, batch_sizes = greedy if beams == 1 else (self.size.beam_sources, self.size.beam_batches)
        sources = workload.sampled_sources(self.task, model, self.size.turns * per_turn)
        turns = [sources[at : at + per_turn] for at in range(0, len(sources), per_turn)]
        return decoding.race(decoders, turns, batch_sizes, self.size.one_by_one, self.size.line_turns)

    def sweep(self) -> Result:
        """Twelve trials end to end."""
        data = self.scratch / "sweep"
        if not data.is_dir():
            workload.write_sweep_data(data, self.task)
        model = workload.model_folder("tiny", self.scratch)
        repetitions = self.size.sweep_repetitions
        return sweep.race(model, data, self.scratch, self.size.sweep_steps, self.threads, repetitions, self.log)

    def _compared(self, rows: list[Result], model: str, method: str, for_the_gate: Sequence[Result] = ()) -> Result:
        """The gate, then ratios to ours, the first row, in the order of batches that each contender is best in."""
        gate, ours = training.check_losses([*rows, *for_the_gate]), rows[0]
        for row in rows:
            rates = machine.ratios(ours["tokens_per_second"], row["tokens_per_second"])
            row["ratio"] = machine.median(rates)
            row["memory_ratio"] = row["memory_over_baseline_bytes"] / ours["memory_over_baseline_bytes"]
        return {"model": model, "method": method, "batches": self._model(model)[1], "gate": gate, "rows": rows}

    def _jobs(self, model: str, method: str) -> Callable[..., Job]:
        config, learning_rate = workload.METHODS[method]
        folder, _ = self._model(model)
        adapter = None if method == "full" else str(self._start(model, method))
        long = (model, method) == (self.size.model, "prefix_tuning")
        bursts = list(self.size.bursts if long else self.size.short_bursts)

        def job(contender: Contender, order: Any, lever_off: str | None = None) -> Job:
            return Job(
                contender=contender,
                model=str(folder),
                method=method,
                config=config,
                adapter=adapter,
                batches=str(self.scratch / f"{model}.json"),
                order=order,
                batch_size=self.size.batch_size,
                learning_rate=learning_rate,
                bursts=bursts,
                threads=self.threads,
                lever_off=lever_off,
            )

        return job

    def _model(self, name: str) -> tuple[Path, Result]:
        folder, batches = workload.model_folder(name, self.scratch), self.scratch / f"{name}.json"
        if not batches.is_file():
            steps = max(map(sum, (self.size.bursts, self.size.short_bursts, self.size.lever_bursts)))
            workload.write_batches(batches, self.task, folder, self.size.batch_size, steps)
        return folder, json.loads(batches.read_text())["summary"]

    def _start(self, model: str, method: str) -> Path:
        folder = self.scratch / f"{model}-{method}"
        if not folder.is_dir():
            workload.write_start(folder, method, self._model(model)[0])
        return folder


def main() -> None:
    """Run all parts that results/race/report/race.json does not hold of this kind of machine yet."""
    parser = argparse.ArgumentParser(prog="python -m race", description="race Tuneoff against peft, Trainer, Ray Tune")
    parser.add_argument("--e2e", help="folder of the E2E data; without it the public release is downloaded")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--minutes", type=float, default=90.0, help="no part begins after so many minutes")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path("results/race/report"))
    parser.add_argument("--again", action="store_true", help="run parts that are there already")
    parser.add_argument("--part", action="append", help="only this part; may be repeated")
    arguments = parser.parse_args()
    begun, size = time.monotonic(), SIZES[arguments.size]
    record = _earlier(arguments.out, size)
    if record is None:
        parser.error(f"--out {arguments.out}: there is a race of another size, or an older one; name another folder")
    block = record["machines"].setdefault(machine.kind(arguments.threads), {"parts": {}, "left_out": {}})
    lacking: list[str] = []
    scratch = Path(tempfile.mkdtemp(prefix="race-"))
    race = Race(size, arguments.e2e, arguments.threads, scratch)
    try:
        parts = race.parts()
        if unknown := [name for name in arguments.part or () if name not in parts]:
            parser.error(f"--part {unknown[0]!r}: there is no such part; there are {', '.join(map(repr, parts))}")
        for name, run in parts.items():
            if arguments.part and name not in arguments.part:
                continue
            if name in block["parts"] and not arguments.again:
                print(f"{name}: is there already")  # noqa: T201 - a script's output
                continue
            if time.monotonic() - begun > 60 * arguments.minutes:
                block["left_out"][name] = f"out of time after {arguments.minutes:g} minutes"
                lacking.append(name)
                continue
            if not _run(block, name, run, race.log):
                lacking.append(name)
            _write(arguments.out, record)
    finally:
        if race.log.is_file() and lacking:
            shutil.copy(race.log, arguments.out.parent / "log.txt")
        shutil.rmtree(scratch, ignore_errors=True)
    _write(arguments.out, record)
    print((arguments.out / "race.md").read_text())  # noqa: T201 - a script's output
    sys.exit(1 if lacking else 0)


def _run(block: Result, name: str, run: Callable[[], Result], log: Path) -> bool:
    """Whether a part came to its end; the block of this machine has its numbers, or why there are none."""
    started, busy = time.monotonic(), machine.busy_fraction()
    at = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        output = run()
    except Exception as error:  # noqa: BLE001 - the other parts are worth having
        with log.open("a") as file:
            traceback.print_exc(file=file)
        block["left_out"][name] = f"{type(error).__name__}: {error}"
        print(f"{name}: {block['left_out'][name]}", flush=True)  # noqa: T201 - a script's output
        return False
    block["left_out"].pop(name, None)
    seconds = time.monotonic() - started
    block["parts"][name] = {"at": at, "seconds": seconds, "others_busy_fraction": busy, **output}
    print(f"{name}: {seconds:.0f} s", flush=True)  # noqa: T201 - a script's output
    return True


def _earlier(folder: Path, size: Size) -> Result | None:
    """The record of a folder, an empty one where there is none yet; None where it is no record of such races."""
    path = folder / "race.json"
    if not path.is_file():
        return {"size": asdict(size), "machines": {}}
    record: Result = json.loads(path.read_text())
    fits = "machines" in record and record["size"] == json.loads(json.dumps(asdict(size)))
    return record if fits else None


def _write(folder: Path, record: Result) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial_file = folder / ".race.json.partial"
    partial_file.write_text(json.dumps(record, indent=1) + "\n")
    partial_file.rename(folder / "race.json")
    (folder / "race.md").write_text(markdown(record))


if __name__ == "__main__":
    main()
