#!/usr/bin/env python
"""Two hosts in one: network namespaces joined by a virtual cable, one with Ray's head, the other with a worker node.

A trial of two DeepSpeed ranks runs across them. Then, while another one trains, the cable is cut. Needs Linux, iproute2
and the rights of root. From the top of the repository:

    python tests/programs/multihost/two_hosts.py

Exit codes: 0 all as expected, 1 something was not, 3 this system does not let us make namespaces.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
REFUSED = 3
PORT = 6379
# Ray declares a node dead that has not answered for some 30 s; then the driver waits two minutes for nodes to return.
CUT_TIMEOUT_SECONDS = 400.0

SWEEP = """
name: {name}
model: {model}
task: {{name: jsonl, path: {task}}}
train: {{steps: {steps}, batch_size: 4, learning_rate: 1e-3, evaluate_every_steps: {steps}}}
decode: {{max_new_tokens: 8, batch_size: 4}}
resources: {{ranks: 2, cpus_per_rank: 1, zero_stage: 2, device: cpu}}
methods: [full]
"""


class Refused(Exception):
    """The system does not let us make namespaces."""


class Host:
    """A network namespace with a hostname of its own and one end of the cable."""

    def __init__(self, name: str, namespace: str, cable: str, address: str) -> None:
        self.name, self.namespace, self.cable, self.address = name, namespace, cable, address

    def popen(self, command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--", "sh", "-c"]
        script = f'hostname {self.name} && exec "$@"'
        own = {**environment, "GLOO_SOCKET_IFNAME": self.cable}
        with log.open("ab") as file:
            return subprocess.Popen(
                [*inside, script, "sh", *command], env=own, cwd=ROOT, stdout=file, stderr=file, start_new_session=True
            )

    def processes(self) -> dict[int, str]:
        """Command lines of all processes here, by their ids."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        found = {}
        for pid in map(int, listed.stdout.split()):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if line:
                found[pid] = line
        return found


def ip(*arguments: str) -> None:
    """Run ip; what it refuses is refused by the kernel."""
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Refused(f"no program ip (package iproute2): {error.strerror}") from error
    if done.returncode != 0:
        raise Refused(f"ip {' '.join(arguments)}: {done.stderr.strip() or f'exit code {done.returncode}'}")


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nobody else."""
    tag = secrets.token_hex(2)
    one = Host("host-one", f"tuneoff-{tag}-one", f"to{tag}a", "10.77.0.1")
    two = Host("host-two", f"tuneoff-{tag}-two", f"to{tag}b", "10.77.0.2")
    made: list[Host] = []
    try:
        for host in (one, two):
            ip("netns", "add", host.namespace)
            made.append(host)
        ip("link", "add", one.cable, "netns", one.namespace, "type", "veth", "peer", two.cable, "netns", two.namespace)
        for host in (one, two):
            ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.cable)
            ip("-n", host.namespace, "link", "set", "lo", "up")
            ip("-n", host.namespace, "link", "set", host.cable, "up")
        probe = ["ip", "netns", "exec", one.namespace, "unshare", "--uts", "--", "hostname", one.name]
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Refused(f"{' '.join(probe)}: {done.stderr.strip()}")
        yield one, two
    finally:
        for host in made:
            for pid in host.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", host.namespace], check=False)


def wait_for(what: str, condition: Callable[[], Any], seconds: float) -> Any:
    """The first true value of a condition.

    Raises:
        AssertionError: There was none in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds:g} s: {what}")


class Experiment:
    """The two hosts with a Ray cluster across them."""

    def __init__(self, one: Host, two: Host, folder: Path) -> None:
        self.one, self.two, self.folder = one, two, folder
        token = folder / "auth_token"
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
        }
        self.model, self.task = folder / "model", folder / "task"

    def prepare(self) -> None:
        """Write a tiny model and a tiny task, which both hosts see: they share the file system."""
        sys.path.insert(0, str(ROOT / "tests" / "support"))
        sys.path.insert(0, str(ROOT))
        from tiny_sweep import write_model_and_task

        write_model_and_task(self.model, self.task)

    def start_ray(self) -> None:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
        small = "--object-store-memory=100000000"
        for host, options in (
            (self.one, ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={self.folder / 'r1'}"]),
            (self.two, [f"--address={self.one.address}:{PORT}"]),
        ):
            host.popen(
                [*ray, small, f"--node-ip-address={host.address}", *options],
                self.environment,
                self.folder / f"{host.name}.log",
            )
            wait_for(f"raylet of {host.name}", lambda host=host: self._has_raylet(host), 60)

    def _has_raylet(self, host: Host) -> bool:
        return any("raylet/raylet" in line for line in host.processes().values())

    def tuneoff(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "bench.cli", *arguments, "--address", f"{self.one.address}:{PORT}"]
        return self.one.popen(command, self.environment, self.folder / f"{arguments[0]}.log")

    def run(self, name: str, steps: int) -> subprocess.Popen[bytes]:
        sweep = self.folder / f"{name}.yaml"
        sweep.write_text(SWEEP.format(name=name, model=self.model, task=self.task, steps=steps))
        return self.tuneoff("run", str(sweep), "--results", str(self.folder / "results"))

    def has_record(self, name: str) -> bool:
        """Whether a trial of a sweep has one."""
        return any((self.folder / "results" / name / "trials").glob("*/result.json"))

    def record(self, name: str) -> dict[str, Any]:
        """The one record of a sweep."""
        (path,) = (self.folder / "results" / name / "trials").glob("*/result.json")
        document: dict[str, Any] = json.loads(path.read_text())
        return document

    def status(self, name: str) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads((self.folder / "results" / name / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return document


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a script that reports to its terminal


def across(experiment: Experiment) -> None:
    """The doctor, then a trial of two ranks, one on each host."""
    doctor = experiment.tuneoff("doctor")
    wait_for("the doctor", lambda: doctor.poll() is not None, 180)
    printed = (experiment.folder / "doctor.log").read_text()
    assert "gloo: 2 ranks on host-one (10.77.0.1) and host-two (10.77.0.2) reduced a number" in printed, printed
    say("ok: doctor: gloo between host-one and host-two")
    driver = experiment.run("across", 6)
    wait_for("the trial across both hosts", lambda: driver.poll() is not None, 240)
    printed = (experiment.folder / "run.log").read_text()
    assert driver.returncode == 0, printed
    record = experiment.record("across")
    nodes = record["placement"]["nodes"]
    assert len(set(nodes)) == 2, nodes
    losses = [round(point["loss"], 4) for point in record["outcome"]["train_curve"]]
    say(f"ok: one trial, ranks on {len(set(nodes))} nodes, losses {losses}, {record['total_seconds']:.0f} s")


def cut(experiment: Experiment) -> None:
    """The cable is cut while two ranks train."""
    driver = experiment.run("cut", 1_000_000)

    def step() -> int | None:
        running = experiment.status("cut").get("running") or [{}]
        found: int | None = running[0].get("step")
        return found

    wait_for("a step of the long trial", lambda: driver.poll() is not None or step(), 180)
    assert driver.poll() is None, (experiment.folder / "run.log").read_text()
    say(f"ok: trains, step {step()}; now the cable is cut")
    started = time.monotonic()
    ip("-n", experiment.two.namespace, "link", "set", experiment.two.cable, "down")
    wait_for("the driver gives up the trial", lambda: driver.poll() is not None, CUT_TIMEOUT_SECONDS)
    seconds = time.monotonic() - started
    printed = (experiment.folder / "run.log").read_text()
    assert driver.returncode == 1, printed
    assert "node_lost" in printed, printed
    (error_line,) = [
        line for line in printed.splitlines() if line.startswith("error: no machines: 2 ranks need 2 CPU cores")
    ]
    assert not experiment.has_record("cut"), "machines that are lost are no result of a trial"
    say(f"ok: after {seconds:.0f} s: the attempt was lost with its node (node_lost); {error_line}")
    for host in (experiment.one, experiment.two):

        def ranks(host: Host = host) -> list[str]:
            return [line for line in host.processes().values() if "bench." in line]

        wait_for(f"no rank is left on {host.name}", lambda ranks=ranks: not ranks(), 180)
        say(f"ok: no process of the trial is left on {host.name}, {time.monotonic() - started:.0f} s after the cut")


def main() -> int:
    """Run it all; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that the namespaces are removed
    with tempfile.TemporaryDirectory(prefix="to-", dir="/tmp") as folder, ExitStack() as stack:
        try:
            one, two = stack.enter_context(two_hosts())
        except Refused as error:
            say(f"refused: this system does not let us make network namespaces: {error}")
            return REFUSED
        say(f"ok: two namespaces, {one.address} and {two.address}")
        experiment = Experiment(one, two, Path(folder))
        try:
            experiment.prepare()
            experiment.start_ray()
            say("ok: Ray's head on one, a worker node on the other")
            across(experiment)
            cut(experiment)
        except (AssertionError, Refused) as error:  # Who may make namespaces may cut a cable.
            say(f"failed: {error}")
            return 1
    say("all as expected")
    return 0


if __name__ == "__main__":
    sys.exit(main())
