"""Ranks on hosts that a command reaches: the list of hosts, the command, the wire, and what is left when it breaks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from chaos import host_faults
from chaos.ground import Verdict
from command import Done, processes_with
from fakes import trial
from far_machine import far_machine
from multihost.two_hosts import Refused, two_hosts

from bench.config.resolver import RegistryResolver
from bench.driver.observer import Observer
from bench.driver.schedule import Schedule
from bench.launch import host_program, remote_host
from bench.launch import ssh as ssh_module
from bench.launch.choose import launcher_options, make_launcher
from bench.launch.hosts import HostLost, rank_environment
from bench.launch.launcher import Launcher, NoMachinesError, Progress
from bench.launch.remote_host import RemoteHost
from bench.launch.ssh import ListedHost, SrunOptions, SshOptions, listed_hosts
from bench.launch.wire import WIRE_VERSION, Greeting, Setup
from bench.measure.provenance import SOURCE_ROOT, sources_sha256
from bench.rank.process import RankJob
from bench.schema.record import Completed, TrialResult
from bench.schema.trial import DecodeSpec, ModelSpec, ResourceSpec, TrainSpec, TrialSpec
from bench.schema.validation import ConfigError
from bench.store.records import Store

ROOT = Path(__file__).resolve().parents[2]
# Runs a program here, as a host of any name.
HERE = "sh -c {command} {host}"
LIGHT = Setup(
    name="a", paths=[str(ROOT / "tests" / "support"), str(ROOT / "tests" / "programs")], module="chaos.light_rank"
)


def launcher(folder: Path, **options: str) -> Launcher:
    return make_launcher(launcher_options("ssh", options), folder / ".outbox")


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("a,b:4", {"a": None, "b": 4}),
        ("[fd00::2]:3,me@[::1]", {"fd00::2": 3, "me@::1": None}),
        (" me@node-1.cluster , 10.0.0.2:1 ", {"me@node-1.cluster": None, "10.0.0.2": 1}),
    ],
)
def test_lists_of_hosts(listed: str, found: dict[str, int | None], tmp_path: Path) -> None:
    assert {host.name: host.count for host in listed_hosts(listed.split(","), "x")} == found
    file = tmp_path / "hosts"
    file.write_text("# mine\n" + listed.replace(",", " # a comment\n\n"))
    options = SshOptions(hosts_file=file)
    assert {host.name: host.count for host in options._listed()} == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hosts": "a,b;reboot"}, "--hosts: 'b;reboot' is no host; expected a name, or name:count"),
        ({"hosts": "-oProxyCommand=reboot"}, "'-oProxyCommand=reboot' is no host"),
        ({"hosts": "a:0"}, "'a:0' is no host"),
        ({"hosts": "::1"}, "'::1' is no host"),
        ({"hosts": "[a]"}, "'[a]' is no host"),
        ({"hosts": "a,a"}, "a is named twice; write a:2"),
        ({"hosts": " , "}, "--hosts: names no host; expected e.g. a,b:4"),
        ({"hosts": "a", "hosts_file": "f"}, "--hosts and --hosts-file both name the hosts"),
        ({"hosts_file": "/no/such/file"}, "--hosts-file /no/such/file: "),
        ({"hosts": "a", "host_command": "ssh 'x"}, "--host-command ssh 'x: No closing quotation"),
        ({"hosts": "a", "host_command": " "}, "--host-command is empty"),
        ({"hosts": "a", "host_variables": "NOT_SET_HERE"}, "host_variables: NOT_SET_HERE is not set here"),
        ({}, "it needs hosts: --hosts a,b:4 or --hosts-file FILE. In a Slurm job they are its nodes"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_started(
    options: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    with pytest.raises(ConfigError) as raised:
        launcher_options("ssh", options)
    assert message in str(raised.value)


def test_the_command_of_a_host() -> None:
    python = ["env", f"PYTHONPATH={SOURCE_ROOT}", sys.executable, "-P", "-m", "bench.launch.host_program"]
    assert SshOptions(hosts="a").command("a") == [
        *["ssh", "-T", "-a", "-x", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "a"],
        *python,
    ]
    assert SshOptions(hosts="a", host_command="ssh -p 22").command("a") == ["ssh", "-p", "22", "a", *python]
    assert SshOptions(hosts="a", host_command="on --of={host} sh -c {command}").command("a") == [
        *["on", "--of=a", "sh", "-c"],
        shlex.join(python),
    ]
    spaced = SshOptions(hosts="a", host_python="/my python").command("a")
    assert spaced[-4:] == ["'/my python'", "-P", "-m", "bench.launch.host_program"], "ssh has a shell read it"
    assert SrunOptions(hosts="a").command("a")[:6] == [
        *["srun", "--overlap", "--nodes=1", "--ntasks=1", "--cpu-bind=none", "--nodelist=a"]
    ]


def test_the_hosts_of_a_slurm_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    options = launcher_options("srun", {"host_command": "sh -c 'echo {host} is down >&2; exit 3' {host}"})
    with pytest.raises(ConfigError, match=r"host n1 could not be started: n1 is down .*\n.*n2 is down"):
        make_launcher(options, tmp_path / ".outbox")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[3-4]")
    with pytest.raises(ConfigError, match=r"scontrol show hostnames 'n\[3-4\]'` does not tell the nodes of this job"):
        make_launcher(options, tmp_path / ".outbox")


def test_a_command_that_fails_is_one_error_with_what_it_said(
    tmp_path: Path, tiny_models: dict[str, Path], tiny_task: Path, tuneoff: Callable[..., Done]
) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"{{name: tiny, model: {tiny_models['llama']}, task: {{name: jsonl, path: {tiny_task}}}}}")
    failing = "sh -c 'echo Permission denied. >&2; exit 255' {host}"
    where = ["--set", "methods=[none]", "--launcher", "ssh", "--hosts", "a", "--host-command", failing]
    done = tuneoff("run", str(sweep), "--results", str(tmp_path), *where)
    assert done.returncode == 2
    assert done.stderr.startswith("error: host a could not be started: Permission denied. (`sh -c 'echo Permission")
    assert done.stderr.endswith("ended with exit code 255)\n")
    assert (tmp_path / "tiny" / "hosts" / "a.log").read_text() == "Permission denied.\n"
    with pytest.raises(ConfigError, match=r"there is no program 'no-such-ssh' \(set --host-command\)"):
        launcher(tmp_path, hosts="a", host_command="no-such-ssh")


def greeting(**fields: Any) -> str:
    """The shell command of a host that greets, and then waits for its standard input to close."""
    content = Greeting(sources_sha256=sources_sha256(), hostname="x", python="3", cpus=2).model_dump() | fields
    return f"echo {shlex.quote(json.dumps(content))}; cat > /dev/null"


@pytest.mark.parametrize(
    ("does", "message"),
    [
        (greeting(tuneoff_host=2), "host a speaks version 2 of the wire, this machine 1; install the same version"),
        (greeting(sources_sha256="0" * 64), r"host a has other sources of Tuneoff \(00000000\) than this machine"),
        (greeting(gpus=["0"]), "--hosts: a:4: this host has 1 GPUs"),
        ("echo welcome; exit 4", r"host a could not be started: not a word on standard error \(.* exit code 4"),
    ],
)  # fmt: skip
def test_hosts_that_do_not_fit_are_refused(does: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        launcher(tmp_path, hosts="a:4", host_command=shlex.join(["sh", "-c", does, "{host}"]))


def test_what_may_be_used_of_a_host() -> None:
    plain = Greeting(sources_sha256="", hostname="x", python="3", cpus=8)
    with_gpus = plain.model_copy(update={"gpus": ["4", "5"], "accelerator": "H200"})
    machine = ListedHost("a", 1).machine(with_gpus)
    assert (machine.cpus, machine.gpus, machine.node_id, machine.accelerator) == (8, 1, "a", "H200")
    assert (ListedHost("a").machine(with_gpus).gpus, ListedHost("a").machine(plain).cpus) == (2, 8)
    assert (ListedHost("a", 3).machine(plain).cpus, ListedHost("a", 3).machine(plain).gpus) == (3, 0)


def test_a_rank_over_the_wire_where_no_storage_is_shared(tmp_path: Path) -> None:
    """Noise of a login comes first; then each call once, a file in several pieces, and a call that fails there."""
    program = shlex.join(host_program_here())
    host = RemoteHost("a", ["sh", "-c", f"echo Welcome; echo '{{}}'; exec {program}"], tmp_path / "logs" / "a.log")
    try:
        assert host.greet(LIGHT).sources_sha256 == sources_sha256()
        assert host.missing([str(tmp_path), "/no/such"], ["fakes", "no_such"]) == ["/no/such", "module no_such"]
        assert host.address()
        spec = trial(cpus_per_rank=1)
        job = RankJob(spec=spec, rank=0, outbox="/no/such/folder", threads=1, driver_code_sha256=sources_sha256())
        host.start("x", job.model_dump(mode="json"), rank_environment(1, []))
        heard: list[dict[str, Any]] = []
        deadline = time.monotonic() + 60
        while not any("exit" in message for message in heard):
            assert time.monotonic() < deadline
            heard += host.poll(1.0)
        assert {message["attempt_id"] for message in heard} == {"x"}
        assert [message["report"]["outcome"]["status"] for message in heard if "report" in message] == ["completed"]
        assert heard[-1]["exit"] == 0
        assert host.end("x")
        files = host.files("x")
        assert files.keys() == {"file-0.txt", "file-1.txt", "rank-0.log", "report-0.json"}
        assert host.read("x", "file-1.txt", 0) == f"{spec.trial_id} 1\n".encode()
        assert host.read("x", "file-1.txt", 5) == f"{spec.trial_id} 1\n"[5:].encode()
        host.clear("x")
        assert host.files("x") == {}
        with pytest.raises(RuntimeError, match="on a: KeyError: 'x'"):
            host.read("x", "file-1.txt", 0)
        with pytest.raises(OSError, match="on a: FileNotFoundError: "):
            host.start("no/such/folder", job.model_dump(mode="json"), rank_environment(1, []))
    finally:
        host.close()
    with pytest.raises(HostLost, match="host a was left"):
        host.address()


def host_program_here() -> list[str]:
    return SshOptions(hosts="a", host_command="x").command("a")[2:]


def test_either_end_gives_up_one_that_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = "program.SILENCE_SECONDS = 0.2; program.BEAT_SECONDS = 0.1"
    host = subprocess.Popen(
        [sys.executable, "-c", f"from bench.launch import host_program as program; {short}; program.main()"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert host.stdin is not None
    assert host.stderr is not None
    try:
        assert host.wait(60) == 1
        assert host.stderr.read() == b"the driver has said nothing for 0.2 s; its ranks end\n"
    finally:
        host.kill()
        host.communicate()
    monkeypatch.setattr(remote_host, "SILENCE_SECONDS", 0.2)
    silent = RemoteHost("a", ["sh", "-c", greeting()], tmp_path / "logs" / "a.log")
    try:
        silent.greet(LIGHT)
        time.sleep(0.3)
        assert silent.poll(0.01) == []
        with pytest.raises(HostLost, match=r"host a has said nothing for 0\.2 s") as raised:
            silent.poll(0.01)
        assert raised.value.reason == "node_lost"
    finally:
        silent.close()


def test_a_host_ends_when_it_is_told_nonsense() -> None:
    done = subprocess.run(
        host_program_here(),
        input=b'{"setup": {"wire": 2, "name": "a"}}\n',
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0]["tuneoff_host"] == 1
    assert "Input should be 1" in lines[-1]["refused"]
    assert lines[-1]["refused"].endswith("(version 1 of the wire)")


def test_a_host_that_is_lost_leaves_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there"
    there.touch()
    command = shlex.join(["sh", "-c", f'[ -e {there} ] || {{ echo down >&2; exit 9; }}; exec sh -c "$0"', "{command}"])
    ssh = launcher(tmp_path, hosts="a:1", host_command=f"{command} {{host}}")
    spec = trial(cpus_per_rank=1)
    try:
        with pytest.raises(ConfigError, match=r"^node a lacks module no_such; all nodes need models and data under"):
            ssh.check([spec.model_copy(update={"task": spec.task.model_copy(update={"target": "no_such:Task"})})])
        ssh.await_machines(spec)
        there.unlink()
        (pid,) = _host_programs(tmp_path)
        os.kill(pid, signal.SIGKILL)
        _wait(lambda: ssh.poll(0.05) == [] and not ssh.cluster.machines)
        assert ssh.reserve(spec) is None
        assert ssh.shortage(spec) is None, "it may come back"
        ssh.await_machines(spec)
        monkeypatch.setattr(ssh_module, "HOSTS_RETURN_SECONDS", 0.1)
        _wait(lambda: "down" in (tmp_path / "hosts" / "a.log").read_text())
        _wait(lambda: "could not be started" in ssh._why_lost["a"])  # type: ignore[attr-defined]
        with pytest.raises(
            NoMachinesError, match=r"^no machines: 1 ranks need .* host a could not be started: down \("
        ):
            ssh.await_machines(spec)
        there.touch()
        _wait(lambda: ssh.poll(0.05) == [] and bool(ssh.cluster.machines))
        ssh.await_machines(spec)
        assert ssh.reserve(spec) is not None
    finally:
        ssh.close()


def _host_programs(folder: Path) -> list[int]:
    """Ids of the rank hosts whose standard error is kept in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        with contextlib.suppress(OSError):
            log = Path(f"/proc/{process.pid}/fd/2").readlink()
            if words[-1:] == ["bench.launch.host_program"] and "keeper.py" not in " ".join(words):
                found += [process.pid] if log.is_relative_to(folder) else []
    return found


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "fault", [host_faults.hosts_lost, host_faults.killed_driver_of_hosts], ids=lambda fault: fault.__name__
)
def test_nothing_is_lost_or_left(fault: Callable[[Path], Verdict], tmp_path: Path) -> None:
    verdict = fault(tmp_path)
    assert verdict.good, verdict


@pytest.mark.full
def test_nothing_is_left_of_a_driver_that_is_asked_to_end(tmp_path: Path) -> None:
    verdict = host_faults.driver_of_hosts_asked_to_end(tmp_path)
    assert verdict.good, verdict


def whole_trial(model: Path, task: Path) -> TrialSpec:
    """A short training of two ranks, ZeRO 2."""
    resolver = RegistryResolver()
    return TrialSpec(
        method=resolver.method("full", {}),
        model=resolver.model(ModelSpec(path=str(model))),
        task=resolver.task("jsonl", {"path": str(task)}),
        train=TrainSpec(steps=2, batch_size=4, learning_rate=1e-3),
        decode=DecodeSpec(max_new_tokens=4),
        resources=ResourceSpec(ranks=2, cpus_per_rank=1, zero_stage=2, device="cpu"),
        seed=0,
    )


def run_on_two_hosts(store: Store, spec: TrialSpec, observer: Observer, **options: str) -> TrialResult:
    """The record of a trial whose ranks were on two hosts."""
    ssh = make_launcher(launcher_options("ssh", options), store.outbox)
    try:
        ssh.check([spec])
        Schedule(store, ssh, "demo", [observer]).run([spec])
    finally:
        ssh.close()
    record = store.read(spec.trial_id)
    assert record is not None
    assert isinstance(record.outcome, Completed), record.outcome
    assert record.launcher == "ssh"
    assert record.placement is not None
    assert len(set(record.placement.nodes)) == 2
    assert [cost.rank for cost in record.outcome.ranks] == [0, 1]
    assert {"adapter.safetensors", "rank-0.log", "rank-1.log"} <= record.files.keys()
    return record


class Watch(Observer):
    """Looks at the processes with a tag while their trial runs. No command line may have the secret."""

    def __init__(self, tag: str, secret: str) -> None:
        self.tag, self.secret = tag, secret
        self.variables: set[str] = set()

    def progressed(self, progress: Progress) -> None:
        self.variables |= _variables_of(self.tag)
        assert not any(self.secret in line for line in _command_lines())


def test_a_trial_of_two_ranks_on_two_hosts(
    store: Store, tmp_path: Path, tiny_models: dict[str, Path], tiny_task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hosts in another folder, which have nothing of this process's environment but one variable."""
    monkeypatch.setenv("MY_SECRET", "s3cret")
    (tmp_path / "there").mkdir()
    watch = Watch(f"FAR_TAG={tmp_path}", "s3cret")
    with far_machine(tmp_path / "there", HOME=str(tmp_path / "there"), FAR_TAG=str(tmp_path)) as command:
        spec = whole_trial(tiny_models["llama"], tiny_task)
        run_on_two_hosts(store, spec, watch, hosts="a:1,b:1", host_command=command, host_variables="MY_SECRET")
    assert {"MY_SECRET=s3cret", "FAR_HOST=a", "FAR_HOST=b"} <= watch.variables
    assert not any(variable.startswith("PYTEST_CURRENT_TEST") for variable in watch.variables)
    _wait(lambda: processes_with(watch.tag) == [])


@pytest.mark.full
def test_a_trial_across_two_networks_whose_hosts_do_not_see_the_results(
    store: Store, tmp_path: Path, tiny_models: dict[str, Path], tiny_task: Path
) -> None:
    """Two network namespaces joined by a cable; an empty file system lies over the results folder there."""
    inside = shlex.join(["sh", "-c", f'mount -t tmpfs none {store.root} && exec sh -c "$0"', "{command}"])
    with contextlib.ExitStack() as stack:
        try:
            one, two = stack.enter_context(two_hosts())
        except Refused as refused:
            pytest.skip(str(refused))
        listed = f"{one.namespace}:1,{two.namespace}:1"
        command = f"ip netns exec {{host}} {inside}"
        spec = whole_trial(tiny_models["llama"], tiny_task)
        run_on_two_hosts(store, spec, Observer(), hosts=listed, host_command=command)


def _variables_of(tag: str) -> set[str]:
    """Of all processes that have the tag. Variables that a process has set itself are not among them."""
    found: set[str] = set()
    for pid in processes_with(tag):
        with contextlib.suppress(OSError):
            found.update(Path(f"/proc/{pid}/environ").read_text().split("\0"))
    return found


def _command_lines() -> list[str]:
    return [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]


def test_the_page_of_the_wire_has_every_message_and_call() -> None:
    page = (ROOT / "docs" / "inside" / "wire.md").read_text()
    ends = "".join((SOURCE_ROOT / "bench" / "launch" / f"{end}.py").read_text() for end in ("host_program", "wire"))
    calls = re.findall(r'case "(\w+)":', ends)
    assert len(calls) == 9
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == calls
    shown = [json.loads(text.replace("...", "0")) for text in re.findall(r"^\| `(\{.*?\})` \|", page, re.MULTILINE)]
    assert Greeting.model_fields.keys() == shown[0].keys()
    setup = next(message["setup"] for message in shown if "setup" in message)
    assert Setup.model_fields.keys() == setup.keys()
    assert WIRE_VERSION == shown[0]["tuneoff_host"] == setup["wire"] == Setup(name="").wire
    said = {key for message in shown[1:] for key in message} - {"id", "call", "arguments", "setup", "beat"}
    assert said == set(re.findall(r'_say\(\{(?:"id": message\["id"\], )?"(\w+)"', ends))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GLOO_SOCKET_IFNAME": "ib0", "SSH_CONNECTION": "10.0.0.9 1 10.0.0.1 22"}, "10.1.0.1"),
        ({"SSH_CONNECTION": "10.0.0.9 1 10.0.0.1 22"}, "10.0.0.1"),
        ({"SSH_CONNECTION": "10.0.0.9 1 10.9.9.9 22"}, "10.0.0.2"),  # of another machine, and passed on
        ({}, "10.0.0.2"),
    ],
)  # fmt: skip
def test_the_address_at_which_others_reach_a_host(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    for name in ("GLOO_SOCKET_IFNAME", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    networks = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.1", "10.0.0.2", "fe80::1%eth0"], "ib0": ["10.1.0.1"]}
    found = {name: [SimpleNamespace(address=address) for address in ours] for name, ours in networks.items()}
    monkeypatch.setattr(host_program.psutil, "net_if_addrs", lambda: found)
    resolved = {"node-1": ["127.0.1.1", "10.0.0.2"]}
    monkeypatch.setattr(
        host_program.socket,
        "getaddrinfo",
        lambda name, *_, **__: [(0, 0, 0, "", (address, 0)) for address in resolved.get(name, [])],
    )
    assert host_program.own_address("me@node-1") == expected
    for here, expected in (({"lo", "ib0"}, "10.1.0.1"), ({"lo"}, "127.0.0.1")):
        ours = {name: found[name] for name in here}
        monkeypatch.setattr(host_program.psutil, "net_if_addrs", lambda ours=ours: ours)
        monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
        assert host_program.own_address("me@node-1") == expected
