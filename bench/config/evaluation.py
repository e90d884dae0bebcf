"""Trials that train nothing: they score an adapter, a model or the base model like the trials of a sweep."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from bench.config.load import configure
from bench.config.resolver import RegistryResolver
from bench.method import MethodError
from bench.models import base as models
from bench.models.adapter import read_card
from bench.models.adapter_files import AdapterError, tensors_files
from bench.models.few_shot import require_room, with_examples
from bench.models.loaded import recognise, require_fit
from bench.models.model_files import packed_as, quantized_by
from bench.models.peft_folder import bridge_settings, format_of_base, peft_settings
from bench.plugins.registry import RegistryError
from bench.plugins.source import PluginError, plugin_source
from bench.schema.digests import sha256_of
from bench.schema.home import with_home
from bench.schema.sweep import MethodEntry, Sweep
from bench.schema.trial import JsonDict, LoadedSpec, MethodSpec, ModelSpec, ResourceSpec, TrialSpec
from bench.schema.validation import ConfigError, validated
from bench.store.records import RECORD_FILE, read_record

# Parts of a sweep that a grid may vary, and of which an evaluation needs one value.
SHARED_PARTS = ("model", "task", "decode", "resources")
# The settings of a base model that say in which format its weights are stored and multiplied.
WEIGHT_FORMAT = ("quantization", "double_quantization", "quantization_compute")


class Evaluations:
    """Makes trials that score adapters and models.

    Args:
        sweep: Whose task, base model and decoding they have.
        resolver: Of names.
        set_keys: Dotted keys that the command line has set.
    """

    def __init__(self, sweep: Sweep, resolver: RegistryResolver, set_keys: Sequence[str] = ()) -> None:
        self._sweep, self._resolver, self._set_keys = sweep, resolver, set_keys
        stages = sweep.stages
        seeds = sweep.seeds if stages is None or stages.final is None else stages.final.seeds
        self._seed = seeds[0]

    def base_trial(self, shots: int, seed: int | None) -> TrialSpec:
        """The untouched base model, as the method none has it; with training pairs in its prompt.

        Raises:
            ConfigError: Something is asked for that cannot be.
        """
        return _prompted(self._untouched(seed), shots)

    def stored_trial(self, path: Path, shots: int, seed: int | None, label: str | None) -> TrialSpec:
        """What lies at a path, in the base model of the sweep.

        Raises:
            ConfigError: It does not belong to this base model, is damaged, or no adapter or model at all.
        """
        try:
            loaded = recognise(path, label)
            known = self._format_in_training(loaded)
            trial = self._untouched(seed, known)
            model = validated(ModelSpec, {**trial.model.model_dump(), **known}, f"{loaded.path}: model")
            trial = trial.model_copy(update={"model": model})
            if loaded.form == "tuneoff":
                trial = self._ours(trial, loaded, seed)
            elif loaded.form == "peft":
                trial = self._of_peft(trial, loaded)
            else:
                trial = _of_whole_model(trial, loaded)
            trial = trial.model_copy(
                update={
                    "loaded": loaded,
                    "resources": _without_training(trial.resources),
                    "label": f"evaluated={loaded.name}",
                }
            )
            require_fit(loaded, trial.method, trial.model)
        except (AdapterError, MethodError, RegistryError, PluginError, models.ModelError) as error:
            raise ConfigError(str(error)) from error
        return _prompted(trial, shots)

    def _untouched(self, seed: int | None, known: Collection[str] = ()) -> TrialSpec:
        """The base model, in which an adapter is scored whose files say these settings of the model."""
        unasked = {f"model.{name}" for name in known}
        shared = {
            key: self._only(key, values)
            for key, values in self._sweep.grid.items()
            if self._is_shared(key) and key not in unasked
        }
        where = "the base model"
        trial = configure(self._sweep, MethodEntry(name="none"), where, shared, {}, self._resolver)
        return trial.model_copy(update={"seed": self._seed if seed is None else seed, "label": ""})

    def _is_shared(self, key: str) -> bool:
        return key.partition(".")[0] in SHARED_PARTS and key not in self._set_keys

    def _only(self, key: str, values: Sequence[object]) -> object:
        if len(values) != 1:
            listed = ", ".join(map(str, values))
            raise ConfigError(f"grid.{key}: the sweep has {listed}; say with which to score, --set {key}=...")
        return values[0]

    def _format_in_training(self, loaded: LoadedSpec) -> JsonDict:
        """The settings of the weights' format that an adapter's files say, as the command line does not."""
        if "model.quantization" in self._set_keys:  # the other two have no effect without it
            return {}
        said: JsonDict = {}
        if loaded.form == "tuneoff":
            said = read_card(Path(loaded.path)).model.model_dump(include=set(WEIGHT_FORMAT))
        elif loaded.form == "peft":
            said = format_of_base(Path(loaded.path))
        else:  # a whole model is scored in the format of its files
            said = ModelSpec().model_dump(include=set(WEIGHT_FORMAT))
        return {name: value for name, value in said.items() if f"model.{name}" not in self._set_keys}

    def _ours(self, trial: TrialSpec, loaded: LoadedSpec, seed: int | None) -> TrialSpec:
        """With the adapter's method, precision and way to read sources, and its seed if its record lies beside it."""
        folder = Path(loaded.path)
        card = read_card(folder)
        _require_base(folder, card.model, trial.model)
        _require_same_code(folder, card.method)
        if (folder / RECORD_FILE).is_file():
            record = read_record(folder / RECORD_FILE)
            for path in tensors_files(folder):
                if path.name in record.files and sha256_of(path) != record.files[path.name]:
                    raise AdapterError(f"{folder}: {path.name} is damaged: it is not the file that was recorded")
            trial = trial.model_copy(update={"seed": record.spec.seed if seed is None else seed})
        reading = {key: value for key, value in card.reading.items() if f"task.{key}" not in self._set_keys}
        task = trial.task.model_copy(update={"config": {**trial.task.config, **reading}})
        precision = {} if "resources.precision" in self._set_keys else {"precision": card.precision}
        return trial.model_copy(
            update={
                "method": card.method,
                "task": task,
                "model": trial.model.model_copy(update={"beginning_token": card.model.beginning_token}),
                "resources": trial.resources.model_copy(update=precision),
            }
        )

    def _of_peft(self, trial: TrialSpec, loaded: LoadedSpec) -> TrialSpec:
        """The method hf_peft with the settings of the adapter's configuration.

        Its files always say in which dtype weights in four bits are multiplied; a sweep only where that is another one.
        """
        folder = Path(loaded.path)
        settings = peft_settings(folder)
        _require_named_base(folder, settings.get("base_model_name_or_path"), trial.model)
        config = bridge_settings(settings, trial.decode.padded_batch_size)
        trial = trial.model_copy(update={"method": self._resolver.method("hf_peft", config)})
        if trial.model.quantization_compute != trial.resources.precision:
            return trial
        return trial.model_copy(update={"model": trial.model.model_copy(update={"quantization_compute": None})})


def _of_whole_model(trial: TrialSpec, loaded: LoadedSpec) -> TrialSpec:
    """With the format in which the model's own files are stored, in place of that of the base model."""
    stored = packed_as(quantized_by(Path(loaded.path)))
    return trial.model_copy(
        update={
            "method": trial.method.model_copy(update={"name": "model"}),
            "model": trial.model.model_copy(update={"checkpoint_quantization": stored}),
        }
    )


def _without_training(resources: ResourceSpec) -> ResourceSpec:
    """Without what is for training, and has no effect, or no meaning, where nothing is divided over ranks."""
    plain = {
        "zero_stage": 0,
        "compile": False,
        "fuse": "off",
        "checkpoint_every_steps": None,
        "offload": None,
        "deepspeed": {key: value for key, value in resources.deepspeed.items() if key != "zero_optimization"},
    }
    return resources.model_copy(update=plain)


def _prompted(trial: TrialSpec, shots: int) -> TrialSpec:
    if not shots:
        return trial
    trial = with_examples(trial, shots)
    require_room(trial, shots)
    return trial


def _require_base(folder: Path, trained_on: ModelSpec, base: ModelSpec) -> None:
    """An adapter goes with the weights that it was trained on, wherever they lie now.

    Raises:
        AdapterError: The sweep has others.
    """
    if trained_on.weights_sha256 is not None or base.weights_sha256 is not None:
        same = trained_on.weights_sha256 == base.weights_sha256
    else:
        same = (trained_on.path, trained_on.commit) == (base.path, base.commit)
    if not same:
        raise _of_another_base(folder, _named(trained_on), base)


def _named(model: ModelSpec) -> str:
    """A model for people: its path, and which of several states of it."""
    if model.weights_sha256 is not None:
        return f"{model.path!r} (weights {model.weights_sha256[:12]})"
    return f"{model.path!r} (commit {model.commit[:12]})" if model.commit is not None else repr(model.path)


def _of_another_base(folder: Path, trained_on: str, base: ModelSpec) -> AdapterError:
    return AdapterError(
        f"{folder}: the adapter was trained on {trained_on}, and the sweep's base model is {_named(base)}; name that "
        "base model in the sweep, or with --set model.path=..."
    )


def _require_named_base(folder: Path, named: object, base: ModelSpec) -> None:
    """The configuration of peft names its base model, by a path that may be gone; shapes are looked at anyway.

    Raises:
        AdapterError: It surely is another one.
    """
    if not isinstance(named, str) or named == base.path:
        return
    there = with_home(named)
    if (there / "config.json").is_file():
        same = base.weights_sha256 is not None and models.weights_sha256(ModelSpec(path=named)) == base.weights_sha256
    else:  # a hub id here and another one there; a folder may hold a copy of either
        same = base.weights_sha256 is not None or there.is_absolute()
    if not same:
        raise _of_another_base(folder, repr(named), base)


def _require_same_code(folder: Path, method: MethodSpec) -> None:
    """A method that is a plugin is the one that trained the adapter.

    Raises:
        AdapterError: Its code has changed.
        PluginError: It is not there.
    """
    source = plugin_source(method.target)
    now = None if source is None else source.sha256()
    if now != method.source_sha256:
        raise AdapterError(
            f"{folder}: the code of the method {method.name!r} is not that of the training (of {method.origin}); "
            "install that version again, or train anew"
        )
