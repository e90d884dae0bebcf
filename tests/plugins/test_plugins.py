"""Methods of plugins: three ways to name them, errors, and their entries in records."""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import Done
from typer.testing import CliRunner

from bench.cli import app
from bench.config.load import expand, load_sweep
from bench.config.resolver import RegistryResolver
from bench.conformance import verdicts
from bench.conformance.method_checks import CHECKS
from bench.conformance.project_template import write_project
from bench.conformance.tiny_models import CORE_FAMILIES
from bench.plan.plan import planned_parameters
from bench.plugins.offers import Kind
from bench.plugins.registry import RegistryError, describe, load_method, resolve, targets
from bench.plugins.source import PluginError, plugin_source
from bench.rank.trial import require_plugins
from bench.schema.trial import ModelSpec, TrialSpec

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tests" / "data" / "plugin_package"

pytestmark = pytest.mark.usefixtures("imports_forgotten")

NORM_SCALES = '''
from bench.method import Method
from _names import PART


class NormScales(Method):
    """The weights of all norm layers are trained."""

    def patch(self, model):
        for module in model.modules():
            if PART in type(module).__name__:
                module.requires_grad_(True)
        return model
'''


@pytest.fixture
def methods_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "my_methods"
    folder.mkdir()
    (folder / "norm_scales.py").write_text(NORM_SCALES)
    (folder / "_names.py").write_text('PART = "Norm"\n')
    return folder


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, installed by pip into a folder of its own, without network."""
    source = tmp_path_factory.mktemp("source") / "plugin_package"
    shutil.copytree(PACKAGE, source)
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, capture_output=True, timeout=120)
    return target


def metadata(folder: Path, distribution: str, entry_points: str) -> None:
    """What an installed distribution leaves for ``importlib.metadata``."""
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tuneoff.methods]\n{entry_points}\n")


def trial(method: str, folder: Path, methods_dir: Path | None = None) -> TrialSpec:
    sweep = folder / "sweep.yaml"
    sweep.write_text(f"name: x\ntask: facts\nmethods: [{method!r}]\n")
    return expand(load_sweep(sweep), RegistryResolver(methods_dir))[0]


def test_an_installed_package_is_found_by_its_name(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    assert resolve("method", "embedding_offset") == "embedding_offset.method:EmbeddingOffset"
    entry = next(entry for entry in describe("method") if entry.name == "embedding_offset")
    assert (entry.origin, entry.problem) == ("tuneoff-embedding-offset 0.3.0", None)
    assert entry.description == "One trained vector is added to every input embedding."


def test_the_package_keeps_the_contract(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    method_class = load_method("embedding_offset.method:EmbeddingOffset")
    # On Llama, and in another process: test_check_method_passes_a_sound_one.
    all_verdicts = list(verdicts(method_class, method_class.Config(init_std=0.1), ("gpt2", "t5"), processes=0))
    assert [verdict for verdict in all_verdicts if verdict.outcome != "pass"] == []


def test_a_file_of_a_folder_is_a_method(methods_dir: Path, tmp_path: Path) -> None:
    found = trial("norm_scales", tmp_path, methods_dir).method
    assert (found.name, found.target) == ("norm_scales", "norm_scales:NormScales")
    assert found.origin == str(methods_dir / "norm_scales.py")
    listed = {entry.name: entry for entry in describe("method", methods_dir)}
    assert listed["norm_scales"].problem is None
    assert "_names" not in listed
    assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == str(methods_dir), "ranks on this machine find it too"


def test_a_class_by_its_module(methods_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(methods_dir)
    found = trial("norm_scales:NormScales", tmp_path).method
    assert (found.name, found.target) == ("NormScales", "norm_scales:NormScales")
    assert found.source_sha256 is not None


def test_other_code_is_another_trial(methods_dir: Path, tmp_path: Path) -> None:
    first = trial("norm_scales", tmp_path, methods_dir)
    assert trial("norm_scales", tmp_path, methods_dir).trial_id == first.trial_id
    (methods_dir / "unrelated.py").write_text("print('not part of it')\n")
    assert trial("norm_scales", tmp_path, methods_dir).trial_id == first.trial_id
    (methods_dir / "_names.py").write_text('PART = "LayerNorm"\n')
    assert trial("norm_scales", tmp_path, methods_dir).trial_id != first.trial_id, "a module that it imports counts"
    moved = first.model_copy(update={"method": first.method.model_copy(update={"origin": "elsewhere"})})
    assert moved.trial_id == first.trial_id


def test_a_rank_refuses_another_version_and_says_what_it_lacks(methods_dir: Path, tmp_path: Path) -> None:
    spec = trial("norm_scales", tmp_path, methods_dir)
    require_plugins(spec)
    other = spec.model_copy(update={"method": spec.method.model_copy(update={"source_sha256": "0" * 64})})
    with pytest.raises(RegistryError, match=rf"node {platform.node()}: the method 'norm_scales' .* is another version"):
        require_plugins(other)
    gone = spec.model_copy(update={"method": spec.method.model_copy(update={"target": "not_there_at_all:X"})})
    with pytest.raises(RegistryError, match=r"is missing here, it and what it imports must be on all nodes: .*install"):
        require_plugins(gone)


def test_what_tuneoff_ships_has_no_source_of_its_own(tmp_path: Path) -> None:
    found = trial("full", tmp_path).method
    assert (found.origin, found.source_sha256) == (None, None)
    assert plugin_source("methods.full:FullFineTuning") is None


def test_an_installed_module_does_not_draw_in_its_site(
    installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = plugin_source("peft.peft_model:PeftModel")
    assert source is not None
    assert [top.name for top in source.tops] == ["peft"], "torch and transformers lie beside it"


def test_a_broken_plugin_is_a_line_of_the_list(methods_dir: Path, tmp_path: Path) -> None:
    (methods_dir / "broken.py").write_text("import no_such_library\n")
    (methods_dir / "two.py").write_text(NORM_SCALES + NORM_SCALES.replace("NormScales", "Again"))
    (methods_dir / "plain.py").write_text("X = 1\n")
    listed = {entry.name: entry.problem or "" for entry in describe("method", methods_dir)}
    assert listed["full"] == listed["norm_scales"] == ""
    assert "No module named 'no_such_library'; repair the plugin, install what it needs" in listed["broken"]
    assert "two.py defines NormScales, Again; a file gives one method" in listed["two"]
    assert "plain.py defines no subclass of Method" in listed["plain"]
    for name in ("broken", "two", "plain"):
        with pytest.raises(RegistryError, match=name):
            trial(name, tmp_path, methods_dir)


IT = "from bench.method import Method\n\n\nclass It(Method):\n    def patch(self, model):\n        return None\n\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "it_leaves",
            "import sys\nsys.exit(3)\n",
            "methods.0: the method 'it_leaves' cannot be loaded: SystemExit: 3; ",
        ),
        (
            "its_config",
            IT + "    Config = 3\n",
            "methods.0: .*: its Config is 3; it must be a subclass of MethodConfig",
        ),
        ("it_trains", IT + "    trains = 'no'\n", "methods.0: .*: its trains is 'no'; it must be True or False"),
        ("its_space", IT + "    search_space = 7\n", "methods.0: .*: its search_space is 7; it must map keys to Range"),
        ("it_is_made", IT + "    def __init__(self): ...\n", r"its __init__ takes \(self, config, tokenizer\)"),
        ("it_patches", IT, "patch of It returned None; it has to return the patched model"),
    ],
)
def test_a_class_that_no_sweep_can_use_is_told_by_what_is_wrong(
    name: str, content: str, message: str, methods_dir: Path, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    (methods_dir / f"{name}.py").write_text(content)
    model = ModelSpec(path=str(tiny_models["llama"]))
    with pytest.raises(ValueError, match=message):
        planned_parameters(trial(name, tmp_path, methods_dir).method, model)


def test_a_broken_entry_point_is_a_line_of_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata(tmp_path, "half-installed", "halved = not_there_at_all:Method")
    monkeypatch.syspath_prepend(tmp_path)
    listed = {entry.name: entry for entry in describe("method")}
    assert listed["full"].problem is None
    assert listed["halved"].origin == "half-installed 1.0"
    assert "no module 'not_there_at_all' can be found; install the package" in str(listed["halved"].problem)


def test_a_clash_is_an_error_only_for_its_name(methods_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    metadata(tmp_path, "first-plugin", "clever = first:Clever\nfull = first:Full")
    metadata(tmp_path, "second-plugin", "clever = second:Clever")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("method", "norm_scales", methods_dir) == "norm_scales:NormScales"
    with pytest.raises(RegistryError, match=r"'clever' is given by (first|second)-plugin 1.0 .*uninstall one of them"):
        resolve("method", "clever")
    with pytest.raises(RegistryError, match=r"'full' is given by tuneoff .* and by first-plugin 1.0"):
        resolve("method", "full")
    assert "is given by" in str({entry.name: entry for entry in describe("method")}["clever"].problem)


def test_an_unknown_name_offers_close_ones(methods_dir: Path) -> None:
    with pytest.raises(RegistryError, match=r"no method 'norm_scale'; did you mean 'norm_scales'\?"):
        resolve("method", "norm_scale", methods_dir)
    with pytest.raises(RegistryError, match=r"norm_scales has no 'NormScale'; it has .*NormScales"):
        load_method("norm_scales:NormScale")


def test_a_folder_that_would_hide_modules_is_refused(methods_dir: Path) -> None:
    (methods_dir / "json.py").write_text("")
    with pytest.raises(PluginError, match=r"json.py would hide the module 'json'.*give it another name"):
        resolve("method", "full", methods_dir)
    with pytest.raises(PluginError, match="there is no folder"):
        resolve("method", "full", methods_dir / "nowhere")


def test_a_project_is_used_from_the_folder_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_project("beside", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as Python has the folder that it is started in
    assert resolve("method", "beside", tmp_path / "beside") == "beside:Beside"
    with pytest.raises(RegistryError, match=r"there is no method 'quite_else'\. Known: none, full"):
        resolve("method", "quite_else", tmp_path / "beside")


def test_the_command_lists_all_and_names_what_is_broken(
    methods_dir: Path, installed: Path, tuneoff: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed)
    (methods_dir / "broken.py").write_text("import no_such_library\n")
    done = tuneoff("methods", "--json", "--methods-dir", str(methods_dir))
    assert done.returncode == 0, done.stderr
    listed = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert {"full", "norm_scales", "embedding_offset", "broken"} <= listed.keys()
    assert "no_such_library" in listed["broken"]["problem"]


def test_a_method_is_explained_with_an_example_that_works(
    installed: Path, tmp_path: Path, tuneoff: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed)
    done = tuneoff("methods", "embedding_offset", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["origin"] == "tuneoff-embedding-offset 0.3.0"
    assert shown["settings"] == [
        {
            "name": "init_std",
            "type": "number >= 0",
            "required": False,
            "default": 0.0,
            "example": 0.0,
            "description": "standard deviation of the vector at the start",
        }
    ]
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"name: x\ntask: facts\n{shown['example']}")
    assert load_sweep(sweep).methods[0].config == {"init_std": 0.0}
    shown_to_people = tuneoff("methods", "prefix_tuning").stdout
    assert "num_prompt_tokens" in shown_to_people
    assert "Li & Liang 2021" in shown_to_people
    assert "stages.tune searches: learning_rate 0.001 to 0.1 (2 decades)" in shown_to_people


@pytest.mark.parametrize("name", targets("method"))
def test_every_method_is_explained(name: str) -> None:
    done = CliRunner().invoke(app, ["methods", name, "--json"], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["description"].endswith(".")
    assert bool(shown["paper"]) == (name not in ("none", "full"))
    assert all(setting["type"] and setting["description"] for setting in shown["settings"])
    (entry,) = yaml.safe_load(shown["example"])["methods"]
    load_method(shown["target"]).Config(**entry.get("config", {}))


@pytest.fixture
def one_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """check-method compares with one other process instead of two, each of which imports torch."""
    monkeypatch.setattr("bench.conformance.process.HASH_SEEDS", ("1",))


@pytest.mark.usefixtures("one_other_process")
def test_check_method_passes_a_sound_one(
    installed: Path, tuneoff: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed)
    done = tuneoff("check-method", "embedding_offset", "--family", "llama", "--set", "init_std=0.1")
    assert done.returncode == 0, done.stdout + done.stderr
    *table, last_line = done.stdout.splitlines()
    assert sum(line.count("pass") for line in table) == len(CHECKS)
    assert last_line == f"embedding_offset keeps the contract: of {len(CHECKS)} checks {len(CHECKS)} pass"


def test_check_method_fails_a_broken_one_with_the_reasons(methods_dir: Path, tuneoff: Callable[..., Done]) -> None:
    (methods_dir / "broken.py").write_text(
        NORM_SCALES.replace("requires_grad_(True)", "register_forward_hook(lambda m, a, o: o * o.mean())")
    )
    done = tuneoff("check-method", "broken", "--family", "llama", "--json", "--methods-dir", str(methods_dir))
    assert done.returncode == 1, done.stderr
    reasons = {verdict["check"]: verdict["reason"] for verdict in json.loads(done.stdout)}
    assert "later tokens changed" in reasons["causal"]
    assert "it trains nothing" in reasons["only what is declared is trained"]


def test_check_method_tells_a_refusal_from_a_failure(
    methods_dir: Path, tuneoff: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.conformance.method_verdicts.verdicts", partial(verdicts, processes=0))
    (methods_dir / "broken.py").write_text(
        NORM_SCALES.replace("import Method", "import Method, MethodError").replace(
            "        for module",
            "        if 'GPT2' in type(model).__name__:\n            raise MethodError('no')\n        for module",
        )
    )
    command = ("check-method", "broken", "--methods-dir", str(methods_dir))
    done = tuneoff(*command, "--family", "llama", "--family", "gpt2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused on gpt2: no" in done.stdout
    assert tuneoff(*command, "--family", "gpt2").returncode == 1, "refused everywhere"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check-method", "promt_tuning"), "no method 'promt_tuning'; did you mean 'prompt_tuning'"),
        (("check-method", "prompt_tuning", "--set", "inti=text"), "inti: unknown key"),
        (("check-method", "prompt_tuning", "--set", "init"), "--set init: expected key.path=value"),
        (("check-method", "prompt_tuning", "--family", "bert"), "--family bert: there are gpt2, llama"),
        (("methods", "prompt_tunin"), "did you mean 'prompt_tuning'"),
        (("methods", "--methods-dir", "/nowhere"), "--plugins-dir: there is no folder '/nowhere'"),
    ],
)
def test_bad_input_exits_with_2(arguments: tuple[str, ...], message: str, tuneoff: Callable[..., Done]) -> None:
    done = tuneoff(*arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("one_other_process")
def test_a_new_project_keeps_the_contract_as_it_is_written(
    tmp_path: Path, tuneoff: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tuneoff("new-method", "gentle_offset", "--into", str(tmp_path / "work"))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "work" / "gentle_offset"
    assert f"tuneoff check-method gentle_offset --plugins-dir {folder}" in done.stdout
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["tuneoff.methods"] == {"gentle_offset": "gentle_offset:GentleOffset"}
    checked = tuneoff("check-method", "gentle_offset", "--methods-dir", str(folder))
    assert checked.returncode == 0, checked.stdout
    checks = len(CHECKS) * len(CORE_FAMILIES)
    assert checked.stdout.splitlines()[-1] == f"gentle_offset keeps the contract: of {checks} checks {checks} pass"
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("bench.conformance.process.HASH_SEEDS", ())  # check-method has had one
    its_own_test: Any = importlib.import_module("test_gentle_offset")
    its_own_test.test_contract("llama")


@pytest.mark.parametrize(
    ("kind", "name", "class_name"),
    [
        ("method", "offset", "OffsetMethod"),
        ("method", "method_error", "MethodErrorMethod"),
        ("task", "task_config", "TaskConfigTask"),
        ("task", "path", "PathTask"),
        ("task", "rome", "Rome"),
        ("metric", "none", "NoneMetric"),
        ("metric", "texts", "TextsMetric"),
    ],
)
def test_the_class_of_a_new_project_hides_no_name_that_its_files_use(
    kind: Kind, name: str, class_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_project(name, tmp_path, kind)
    monkeypatch.syspath_prepend(folder)
    for path in folder.rglob("*.py"):
        compile(path.read_text(), str(path), "exec")
    made = getattr(importlib.import_module(name), class_name)
    assert made.__mro__[1].__name__ == kind.capitalize()
    assert f'"{name}:{class_name}"' in (folder / "pyproject.toml").read_text()
    if kind == "task":
        assert made(made.Config()).load("dev")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Method", "cannot name a Python module"),
        ("lora", "there is a method 'lora' already"),
        ("json", "the name of a module that is installed"),
        ("class", "cannot name a Python module"),
    ],
)
def test_a_new_project_needs_a_free_name(name: str, message: str, tmp_path: Path, tuneoff: Callable[..., Done]) -> None:
    done = tuneoff("new-method", name, "--into", str(tmp_path))
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
