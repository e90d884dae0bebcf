"""Ray Tune over the function of race.trainer_trial: ``python -m race.tune TRIALS.json``, one core for each trial.

Its actors are fresh for each trial, which is the default, or reused, which saves all starts but the first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Run all trials of the file."""
    import ray
    from ray import tune
    from ray.tune import RunConfig, TuneConfig, Tuner

    path = Path(sys.argv[1])
    job = json.loads(path.read_text())
    ray.init(address="local", num_cpus=job["workers"], include_dashboard=False)

    def trainable(config: dict[str, Any]) -> dict[str, Any]:
        from race.trainer_trial import run_trial

        return run_trial(config["trial"])

    tuner = Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={"trial": tune.grid_search(job["trials"])},
        tune_config=TuneConfig(metric="bleu", mode="max", reuse_actors=job["reuse_actors"]),
        run_config=RunConfig(storage_path=str(path.parent / "tune"), verbose=0),
    )
    found = tuner.fit()
    ray.shutdown()
    if found.errors:
        raise found.errors[0]


if __name__ == "__main__":
    main()
