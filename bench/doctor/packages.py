"""Compares installed versions with those that the tests passed with."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from bench.doctor.finding import Finding, ok, problem, warning
from bench.measure.provenance import SOURCE_ROOT, installed_version
from bench.schema.trial import Spec

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
OLDEST_PYTHON = (3, 11)
# The extra of this name in pyproject.toml.
QUANTIZATION = "bitsandbytes>=0.50,<0.51"


class Expected(Spec):
    """The versions that all machines of a sweep should have. The driver sends them to the nodes."""

    python: tuple[int, int]
    requirements: tuple[str, ...]  # of our distribution, with the bounds that were tried
    tested: dict[str, str]  # exact versions of the last complete test


def expected() -> Expected:
    """The versions of this installation."""
    return Expected(
        python=(sys.version_info.major, sys.version_info.minor),
        requirements=tuple(_requirements()),
        tested=tested_versions(),
    )


def tested_versions() -> dict[str, str]:
    """Versions that all tests passed with last, by normalised name: constraints.txt, which travels in the package."""
    lines = [line.partition("#")[0].strip() for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines()]
    pairs = (line.partition("==") for line in lines if line)
    return {canonicalize_name(name): version for name, _, version in pairs}


def _requirements() -> list[str]:
    pyproject = SOURCE_ROOT / "pyproject.toml"
    if pyproject.is_file():  # a checkout: the metadata of an editable installation may be older
        return list(tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"])
    try:
        return [text for text in requires("tuneoff") or [] if "extra ==" not in text]
    except PackageNotFoundError:
        return []


def check_python(expected: Expected, version: Sequence[int] = sys.version_info[:3]) -> list[Finding]:
    """The interpreter: new enough, and on a node the same as the driver's."""
    here = ".".join(str(part) for part in version)
    if tuple(version[:2]) < OLDEST_PYTHON:
        return [problem("Python", here, "install Python 3.11 or newer and make the environment again with it")]
    if tuple(version[:2]) != expected.python:
        wanted = ".".join(map(str, expected.python))
        found = f"{here}, and the driver has {wanted}"
        return [problem("Python", found, f"Ray joins equal versions only: use Python {wanted} here")]
    return [ok("Python", here)]


def check_packages(expected: Expected, installed: Callable[[str], str | None] = installed_version) -> list[Finding]:
    """Direct dependencies: outside the bounds that were tried is a problem, another version than tested a warning."""
    if not expected.requirements:
        return [
            warning(
                "packages",
                "nothing tells which versions tuneoff needs",
                "install it with 'pip install --constraint constraints.txt --editable .' in its folder",
            )
        ]
    findings, tested = [], 0
    for requirement in map(Requirement, expected.requirements):
        found = _package(requirement, expected.tested, installed(requirement.name))
        tested += found is None
        findings.extend([] if found is None else [found])
    if tested:
        of = "" if tested == len(expected.requirements) else f" of {len(expected.requirements)}"
        findings.insert(0, ok("packages", f"{tested}{of} in the versions the tests passed with"))
    return findings


def check_quantization(
    tested: Mapping[str, str], installed: Callable[[str], str | None] = installed_version
) -> list[Finding]:
    """What ``model.quantization`` needs, and no other sweep does."""
    requirement = Requirement(QUANTIZATION)
    if installed(requirement.name) is None:
        return [ok("quantization", f"{requirement.name} is not installed: model.quantization needs '{QUANTIZATION}'")]
    found = _package(requirement, tested, installed(requirement.name))
    return [found or ok("quantization", f"{requirement.name} {installed(requirement.name)}")]


def _package(requirement: Requirement, tested: Mapping[str, str], version: str | None) -> Finding | None:
    name = f"package {requirement.name}"
    wanted = tested.get(canonicalize_name(requirement.name))
    install = f"pip install '{requirement.name}=={wanted}'" if wanted else f"pip install '{requirement}'"
    if version is None:
        return problem(name, "not installed", install)
    if not requirement.specifier.contains(version, prereleases=True):
        return problem(name, f"{version}, outside {requirement.specifier}, which was tried", install)
    # A local part names a build, as in 2.13.0+cpu.
    if wanted is not None and Version(version).public != Version(wanted).public:
        return warning(name, f"{version}; the tests passed with {wanted}", install)
    return None
