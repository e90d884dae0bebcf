"""A method that a stranger writes from the README alone, in a folder of their own, in sweeps through Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Done
from test_metric_plugins import WORD_RECALL
from test_readme import block
from test_run import SWEEP, Bench, wait_for

NEEDS_A_LIBRARY = '''
import only_where_the_sweep_was_started
from norm_scales import NormScales


class Needy(NormScales):
    """Imports what other nodes do not have."""
'''


@pytest.fixture
def bench(tmp_path: Path, tiny_models: dict[str, Path], tiny_task: Path) -> Bench:
    bench = Bench(tmp_path, tiny_models["llama"], tiny_task)
    bench.environment["COLUMNS"] = "300"
    return bench


@pytest.fixture
def methods_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / "norm_scales.py").write_text(block("python"))
    return folder


@pytest.mark.full
def test_a_method_from_the_readme_takes_part_in_a_sweep_through_ray(
    bench: Bench, methods_dir: Path, tuneoff: Callable[..., Done]
) -> None:
    where = ("--methods-dir", str(methods_dir))
    listed = {entry["name"]: entry["origin"] for entry in json.loads(tuneoff("methods", "--json", *where).stdout)}
    assert listed["norm_scales"] == str(methods_dir / "norm_scales.py")
    checked = tuneoff("check-method", "norm_scales", *where)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    done = bench.run("  - none\n  - norm_scales", "--launcher", "ray", *where)
    assert done.returncode == 0, done.stdout + done.stderr
    table = bench.table().set_index("method")
    assert table["status"].to_dict() == {"none": "completed", "norm_scales": "completed"}
    assert table.loc["norm_scales", "trained_parameters"] == 5 * 32
    record = next(r for r in bench.records().values() if r["spec"]["method"]["name"] == "norm_scales")
    assert record["spec"]["method"]["origin"] == str(methods_dir / "norm_scales.py")
    assert len(record["spec"]["method"]["source_sha256"]) == 64


def test_plugins_travel_to_a_running_cluster_and_what_is_missing_there_is_named(
    bench: Bench, methods_dir: Path, cluster: str, tmp_path: Path
) -> None:
    (methods_dir / "needy.py").write_text(NEEDS_A_LIBRARY)
    (methods_dir / "word_recall.py").write_text(WORD_RECALL)
    site = tmp_path / "site"
    site.mkdir()
    (site / "only_where_the_sweep_was_started.py").write_text("")
    bench.environment["PYTHONPATH"] += os.pathsep + str(site)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        bench.environment[name] = os.environ[name]
    arguments = ("--launcher", "ray", "--address", cluster, "--methods-dir", str(methods_dir))
    scored_by_words = SWEEP.replace("path: {task}", "path: {task}, metrics: [word_recall]")
    done = bench.run("  - norm_scales\n  - needy", *arguments, sweep=scored_by_words)
    assert done.returncode == 1, done.stdout + done.stderr
    table = bench.table().set_index("method")
    assert table["status"].to_dict() == {"norm_scales": "completed", "needy": "failed"}
    assert table.loc["norm_scales", "word_recall"] >= 0, "a metric travels too"
    assert table.loc["needy", "reason"] == "error"
    message = str(table.loc["needy", "message"])
    assert f"node {os.uname().nodename}: the method 'needy' of {methods_dir / 'needy.py'} is missing here" in message
    assert "it and what it imports must be on all nodes" in message
    assert "No module named 'only_where_the_sweep_was_started'" in message
    wait_for(lambda: not bench.processes(), 60, "processes are left over")
