"""What docs/inside/security.md promises, default by default."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from command import Done
from fakes import provenance, trial

from bench.config.load import load_sweep
from bench.doctor import cluster as doctor_cluster
from bench.launch import cluster_access
from bench.launch.cluster_access import Address, ask_for_token, check_reachable, parse_address, probe
from bench.launch.embedded_cluster import EmbeddedCluster, _start_command
from bench.measure import provenance as provenance_module
from bench.models import base
from bench.models.base import ModelError
from bench.schema.trial import ModelSpec
from bench.schema.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = Address("198.51.100.7:6379", "198.51.100.7", 6379)  # an address for documentation, never one of ours
HERE = Address("127.0.0.1:6379", "127.0.0.1", 6379)
SOURCES = [path for package in ("bench", "methods") for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, Path, EmbeddedCluster]]:
    """An embedded cluster, started by a user who has switched tokens off: its address and the file of its token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_AUTH_TOKEN_PATH", "")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = EmbeddedCluster()
        try:
            yield started.address(), Path(os.environ["RAY_AUTH_TOKEN_PATH"]), started
        finally:
            started.end()


def test_a_cluster_that_we_start_takes_in_nobody_without_its_token(
    cluster: tuple[str, Path, EmbeddedCluster],
) -> None:
    address, token, _ = cluster
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert re.fullmatch(r"[0-9a-f]{64}", token.read_text())
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    place = parse_address(address)
    assert probe(place, {**clean, "RAY_AUTH_MODE": "disabled"}) == "refused"
    assert probe(place, {**clean, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}) == "refused"
    assert probe(place, {**clean, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}) == "accepted"
    (finding,) = doctor_cluster.check_openness(place)
    assert (finding.status, finding.found) == ("ok", "strangers are refused")


def test_its_token_is_on_no_command_line_and_in_no_log(cluster: tuple[str, Path, EmbeddedCluster]) -> None:
    _, token, _ = cluster
    secret = token.read_text()
    processes = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert any(str(token.parent) in line for line in processes), "its processes are seen"
    assert not [line for line in processes if secret in line]
    logs = [
        path for path in token.parent.rglob("*") if path.is_file() and path != token and path.stat().st_size < 2**24
    ]
    assert any(path.name == "start.log" for path in logs)
    assert not [path for path in logs if secret.encode() in path.read_bytes()]


def test_it_has_no_dashboard(cluster: tuple[str, Path, EmbeddedCluster]) -> None:
    """Ray keeps a process of that name even then; it has no pages and listens nowhere."""
    _, token, _ = cluster
    assert "--include-dashboard=false" in _start_command(token.parent)
    ours = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(token.parent) in word for word in process.info["cmdline"] or [])
    ]
    assert any("gcs_server" in " ".join(process.info["cmdline"]) for process in ours)
    for process in ours:
        if any(word.endswith("dashboard/dashboard.py") for word in process.info["cmdline"]):
            assert "--disable-frontend" in process.info["cmdline"]
            assert not [one for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]


def test_a_token_is_asked_for_before_a_remote_cluster_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for environment in ({}, {"RAY_AUTH_TOKEN": " "}, {"RAY_AUTH_MODE": "token"}):
        with pytest.raises(
            ConfigError, match=r"198\.51\.100\.7:6379: no token for this cluster; set RAY_AUTH_TOKEN_PATH"
        ):
            ask_for_token(ELSEWHERE, environment)
    open_here: dict[str, str] = {}
    ask_for_token(HERE, open_here)
    assert open_here == {}, "a cluster of this machine may be open"
    meant = {"RAY_AUTH_MODE": "disabled"}
    ask_for_token(ELSEWHERE, meant)
    assert meant == {"RAY_AUTH_MODE": "disabled"}
    file = tmp_path / "token"
    file.write_text("secret\n")
    for environment in ({"RAY_AUTH_TOKEN": "secret"}, {"RAY_AUTH_TOKEN_PATH": str(file)}):
        ask_for_token(ELSEWHERE, environment)
        assert environment["RAY_AUTH_MODE"] == "token"
    (tmp_path / ".ray").mkdir()
    file.rename(tmp_path / ".ray" / "auth_token")
    found: dict[str, str] = {}
    ask_for_token(ELSEWHERE, found)
    assert found == {"RAY_AUTH_MODE": "token"}


def test_which_machines_are_remote() -> None:
    assert HERE.is_local and Address("localhost:1", "localhost", 1).is_local
    assert not ELSEWHERE.is_local
    assert not Address("no.such.host.invalid:1", "no.such.host.invalid", 1).is_local


@pytest.mark.parametrize(
    ("text", "host", "port", "through_client"),
    [
        ("10.0.0.1:6379", "10.0.0.1", 6379, False),
        ("ray://head.example:10001", "head.example", 10001, True),
        ("[::1]:6379", "::1", 6379, False),
    ],
)
def test_addresses(text: str, host: str, port: int, through_client: bool) -> None:
    address = parse_address(text)
    assert (address.host, address.port, address.through_client) == (host, port, through_client)


def test_auto_is_the_cluster_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ConfigError, match="--address auto: RAY_ADDRESS is not set and no cluster was started"):
        parse_address("auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    assert parse_address("auto").host == "10.0.0.1"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert parse_address("auto").host == "10.0.0.2"


def test_a_wrong_token_or_address_is_one_line_within_seconds(
    cluster: tuple[str, Path, EmbeddedCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ConfigError, match=rf"--address {nobody}: nothing answers there"):
        check_reachable(parse_address(nobody))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    with pytest.raises(ConfigError, match="the cluster refuses the token") as refused:
        check_reachable(parse_address(cluster[0]))
    assert "f" * 64 not in str(refused.value)
    monkeypatch.setattr(cluster_access, "has_client", lambda: False)
    with pytest.raises(ConfigError, match=r"needs Ray's client: pip install 'ray\[client\]'"):
        check_reachable(parse_address("ray://127.0.0.1:10001"))


def test_open_clusters_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def accepts(address: Address, environment: dict[str, str]) -> str:
        seen.append(environment["RAY_AUTH_TOKEN"])
        return "accepted"

    monkeypatch.setenv("RAY_AUTH_TOKEN", "the real one")
    monkeypatch.setattr(doctor_cluster, "probe", accepts)
    for place, status in ((ELSEWHERE, "problem"), (HERE, "warning")):
        (finding,) = doctor_cluster.check_openness(place)
        assert finding.status == status
        assert "anyone who reaches the cluster can run code on it" in finding.found
    assert "the real one" not in seen, "what strangers would present is made up"
    monkeypatch.setattr(doctor_cluster, "probe", lambda address, environment: "failed")
    (finding,) = doctor_cluster.check_openness(HERE)
    assert finding.status == "warning"


def test_tokens_that_others_can_read_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "auth_token"
    file.write_text("secret")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    for mode, status in ((0o644, "warning"), (0o640, "warning"), (0o600, "ok")):
        file.chmod(mode)
        (finding,) = doctor_cluster.check_token_file()
        assert finding.status == status
        assert "secret" not in finding.model_dump_json()
    file.unlink()
    assert doctor_cluster.check_token_file() == []


def test_run_refuses_a_remote_cluster_without_a_token(
    tuneoff: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_models: dict[str, Path],
    tiny_task: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"name: tiny\nmodel: {tiny_models['llama']}\ntask: {{name: jsonl, path: {tiny_task}}}\n"
        "train: {steps: 2, batch_size: 2, learning_rate: 1e-2}\nmethods: [full]\n"
    )
    done = tuneoff("run", str(sweep), "--results", str(tmp_path / "results"), "--address", ELSEWHERE.text)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"error: --address {ELSEWHERE.text}: no token for this cluster" in done.stderr


def test_code_of_a_models_repository_is_not_run(tmp_path: Path) -> None:
    assert ModelSpec(path="x").trust_remote_code is False
    folder = tmp_path / "model"
    folder.mkdir()
    mark = tmp_path / "it ran"
    (folder / "configuration_strange.py").write_text(f"open({str(mark)!r}, 'w')\nclass StrangeConfig: pass\n")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "strange", "auto_map": {"AutoConfig": "configuration_strange.StrangeConfig"}})
    )
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="no usable configuration"):
        base.load_config(ModelSpec(path=str(folder)))
    assert not mark.exists()


def test_every_model_is_loaded_from_safetensors_and_without_foreign_code() -> None:
    """What loads a model, a configuration or a tokenizer says whether to trust it; weights are never pickles."""
    calls = []
    others = {
        "learned.py",  # a metric's own library loads what the user has put into its folder
        "export_to_peft.py",  # reads back the folder that it has just written
    }
    for path in SOURCES:
        if path.name in others:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "from_pretrained"
                and ast.unparse(node.func.value) != "GenerationConfig"  # JSON that names no code
            ):
                names = {keyword.arg for keyword in node.keywords}
                calls.append((path, node.lineno, names))
                assert "gguf_file" in names or "trust_remote_code" in names, f"{path}:{node.lineno}"
    weights = [call for call in calls if "dtype" in call[2] and "gguf_file" not in call[2]]
    assert weights and all("use_safetensors" in names for _, _, names in weights)


# Name of a call, and the keyword that makes it harmless, if any does.
DANGEROUS = {
    "torch.load": None,
    "torch.save": None,
    "pickle.load": None,
    "pickle.loads": None,
    "pickle.dumps": None,
    "cloudpickle.dumps": None,
    "dill.loads": None,
    "joblib.load": None,
    "pd.read_pickle": None,
    "dist.all_gather_object": None,
    "dist.broadcast_object_list": None,
    "dist.gather_object": None,
    "yaml.unsafe_load": None,
    "yaml.full_load": None,
    "yaml.load": "Loader",
    "np.load": None,
    "eval": None,
    "exec": None,
    "os.system": None,
}


def dangers(source: str) -> list[str]:
    """Calls in a source that could run what was meant to be read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name, keywords = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
            if name in DANGEROUS and DANGEROUS[name] not in keywords:
                found.append(f"{name} in line {node.lineno}")
            if any(keyword.arg == "shell" for keyword in node.keywords):
                found.append(f"{name} through a shell in line {node.lineno}")
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None)]
            found += [
                f"import of {module}" for module in modules if module in ("pickle", "dill", "cloudpickle", "marshal")
            ]
    return found


def test_nothing_that_is_read_is_run() -> None:
    assert {str(path): found for path in SOURCES if (found := dangers(path.read_text(encoding="utf-8")))} == {}
    bad = "import pickle\ntorch.load(x)\nyaml.load(x)\nyaml.load(x, Loader=Y)\nsubprocess.run(x, shell=True)\neval('1')"
    assert len(dangers(bad)) == 5


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("name: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load_sweep(path, ())


@pytest.mark.parametrize("name", ["../up", "/etc", "a/b", ".hidden", "a b", "a\n", "", "x" * 101, "é"])
def test_a_sweeps_name_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"name: {json.dumps(name)}\nmodel: x\ntask: {{name: facts}}\nmethods: [none]\n")
    with pytest.raises(ConfigError, match="name"):
        load_sweep(path, ())


@pytest.mark.parametrize("name", ["../../up", "/etc/passwd", "a b\nc", "$(reboot)", "-rf", "é" * 200])
def test_a_trials_folder_is_a_plain_name(name: str) -> None:
    trial_id = trial(name, label=name).trial_id
    assert re.fullmatch(r"[A-Za-z0-9._=-]+", trial_id)
    assert not trial_id.startswith((".", "-")) and len(trial_id) < 120


def test_records_name_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record holds what a list names: of the packages, versions; of the environment, what cannot be a secret."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a secret token")
    monkeypatch.setenv("HF_TOKEN", "a secret token")
    for name in provenance_module.ENVIRONMENT:
        monkeypatch.setenv(name, f"value of {name}")
    made = provenance_module.collect("cpu", 1)
    assert made.environment == {name: f"value of {name}" for name in provenance_module.ENVIRONMENT}
    assert not [name for name in made.environment if re.search("TOKEN$|KEY|SECRET|PASS|PROXY", name)]
    assert "a secret token" not in made.model_dump_json()
    assert set(made.package_versions) <= set(provenance_module.PACKAGES)
    assert provenance().environment == {}, "older records have none"


def test_the_files_for_clusters_make_tokens_for_their_owner_alone(tmp_path: Path) -> None:
    """start_head.sh with a stand-in for ray: a token of mode 0600, never printed, and no dashboard."""
    ray = tmp_path / "bin" / "ray"
    ray.parent.mkdir()
    ray.write_text('#!/bin/sh\necho "ray $*"\necho "mode=$RAY_AUTH_MODE path=$RAY_AUTH_TOKEN_PATH"\n')
    ray.chmod(0o755)
    environment = {"PATH": f"{ray.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = ROOT / "configs" / "cluster" / "static" / "start_head.sh"
    done = subprocess.run(
        ["bash", str(script), "10.0.0.1"], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text().strip() not in done.stdout + done.stderr
    assert "ray start --head --node-ip-address=10.0.0.1 --port=6379 --include-dashboard=false" in done.stdout
    assert f"mode=token path={token}" in done.stdout
    again = token.read_text()
    subprocess.run(["bash", str(script), "10.0.0.1"], env=environment, capture_output=True, check=True, timeout=60)
    assert token.read_text() == again, "a token that is there is kept"
