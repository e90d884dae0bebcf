"""Under ZeRO 3 no rank holds the model: loaded in slices, patched, trained, stored, scored and decoded so, and equal.

Two ranks do all of it once; tests/train/test_zero_parity.py trains every method in shards.
"""

from __future__ import annotations

import gc
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_ranks import run_ranks
from safetensors.torch import load_file, save_file

from bench.decode.generate import generate
from bench.method import Method, whole
from bench.models import adapter_files
from bench.models.adapter_files import INDEX_FILE, AdapterError, StreamedState, read_tensors, tensors_files
from bench.models.architecture import Pair, architecture_of
from bench.models.base import ModelError, load_model, load_tokenizer
from bench.plugins.registry import load_method, targets
from bench.schema.trial import DecodeSpec, ModelSpec, ResourceSpec, TrainSpec
from bench.shards.slices import gather_in_forward, misread, place, sharded
from bench.train import deepspeed_engine, lane

CPU = torch.device("cpu")
SOURCES = [[5, 6, 7], [9, 8], [4, 7, 5, 6], [6, 5], [8, 9, 4]]
PAIRS = [Pair(source, [*source[:2], 1]) for source in SOURCES[:4]]
FAMILIES = ("llama", "t5")


@pytest.fixture(scope="module")
def results_folder(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have left what they found."""
    folder = tmp_path_factory.mktemp("shards")
    for family in FAMILIES:
        (folder / family).symlink_to(tiny_models[family])
    lacking = folder / "lacking"
    shutil.copytree(tiny_models["llama"], lacking)
    weights = load_file(lacking / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    for name, change in (("twice", 0.0), ("apart", 1.0)):
        tied = shutil.copytree(tiny_models["llama"], folder / name)
        weights = load_file(tied / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["lm_head.weight"][0, 0] += change  # of rank 0's slice alone
        save_file(weights, tied / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((tied / "config.json").read_text())
        (tied / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_ranks(rank_main, (str(folder), port), ranks=2)
    return folder


def rank_main(rank: int, folder: str, port: int) -> None:
    from torch.distributed import TCPStore

    from bench.rank.context import RankContext, join_process_group

    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)
    join_process_group(RankContext(rank, 2, 0, store, Path(folder), "", 1), CPU)
    results = {
        "texts": {family: texts(Path(folder) / family, rank) for family in FAMILIES},
        "held": held_elements(Path(folder) / "llama"),
        "lacking": refusal(lambda: load_model(ModelSpec(path=f"{folder}/lacking"), torch.float32, shards_on=CPU)),
        "tied": [is_tied(Path(folder) / name) for name in ("twice", "apart")],
        "misread": misread_weights(Path(folder) / "llama"),
        "stored": trained_and_stored(Path(folder), rank),
    }
    (Path(folder) / f"results-{rank}.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def in_shards(folder: Path) -> Any:
    return load_model(ModelSpec(path=str(folder)), torch.float32, shards_on=CPU)


def texts(folder: Path, rank: int) -> list[dict[str, str]]:
    """Decoded by this rank greedily and with beams, in shards; with more ranks than batches at times."""
    model, tokenizer = in_shards(folder), load_tokenizer(ModelSpec(path=str(folder)))
    architecture = architecture_of(model.config)
    answers = []
    for beams, batch_size in ((1, 2), (2, 4)):
        decode = DecodeSpec(max_new_tokens=6, beams=beams, batch_size=batch_size)
        decoded = generate(model, tokenizer, architecture, SOURCES, decode, CPU, rank=rank, ranks=2, in_step=True)
        answers.append({str(index): text for index, text in decoded.texts.items()})
    return answers


def held_elements(folder: Path) -> dict[str, int]:
    """What a model in shards holds, how large it looks, and whether a block holds its weights after its forward."""
    model = in_shards(folder)
    parameters = list(model.parameters())
    return {
        "shards": sum(parameter.shard.own.numel() for parameter in parameters),
        "looks": sum(parameter.numel() for parameter in parameters),
        "memory": sum(parameter.untyped_storage().nbytes() // parameter.element_size() for parameter in parameters),
        "number": len(parameters),
    }


def is_tied(folder: Path) -> bool:
    model = in_shards(folder)
    return model.lm_head.weight is model.model.embed_tokens.weight


def misread_weights(folder: Path) -> list[str | None]:
    """What is noticed of weights that a method reads, or changes, without asking for them; and with asking."""
    answers = []
    for read in (lambda weight: weight.norm(), lambda weight: asked(weight)):
        model = in_shards(folder)
        model.scale = torch.nn.Parameter(read(model.lm_head.weight).detach())
        answers.append(misread(model))
    model.lm_head.weight.data = torch.zeros(model.lm_head.weight.shape)
    return [*answers, misread(model)]


def asked(weight: torch.Tensor) -> torch.Tensor:
    with whole([weight]):
        return weight.norm()


def refusal(call: Any) -> str:
    try:
        call()
    except ModelError as error:
        return str(error)
    return ""


def trained_and_stored(folder: Path, rank: int) -> dict[str, Any]:
    """Full fine-tuning whose state goes tensor by tensor into several files and from there into a fresh model."""
    from bench.measure.phases import PhaseMeter
    from bench.train.loop import Training, mean_losses
    from bench.train.loss import TargetLoss

    lane.LARGE_BYTES = 0
    adapter_files.LARGEST_FILE_BYTES = 20_000
    deepspeed_engine.WHOLE_ANYWAY = 0
    name = load_method(targets("method")["full"])
    method: Method = name(name.Config())
    model = in_shards(folder / "llama")
    architecture = architecture_of(model.config)
    train = TrainSpec(learning_rate=1e-2, steps=4, batch_size=4, micro_batch_size=1, evaluate_every_steps=2)
    training = Training(
        lanes=[lane.Lane(method, method.patch(model), train, 0, print, state_folder=folder / f".state-{rank}")],
        architecture=architecture,
        resources=ResourceSpec(ranks=2, zero_stage=3),
        rank=rank,
        device=CPU,
        pad_token_id=0,
        meter=PhaseMeter(CPU),
    )
    (trained,) = training.run(PAIRS, PAIRS)
    assert isinstance(trained.state, StreamedState)
    del training, model
    gc.collect()
    elements = sum(
        each.numel()
        for each in gc.get_objects()
        if isinstance(each, torch.Tensor) and each.is_floating_point() and each.untyped_storage().nbytes() > 4
    )
    (folder / "adapter").mkdir(exist_ok=True)
    if rank == 0:
        trained.state.put_into(folder / "adapter")
    fresh = method.patch(in_shards(folder / "llama"))
    method.load_adapter_state(fresh, trained.state)
    place(fresh, CPU)
    gather_in_forward(fresh)
    loss = TargetLoss(fresh).eval()
    (again,) = mean_losses(lambda chosen: loss.of(architecture.batch(chosen, 0))[None], PAIRS, 4, CPU)
    held = sum(parameter.numel() for parameter in sharded(fresh.parameters()))
    return {"loss": trained.best.loss, "again": again, "left": elements, "model": held}


def results_of_ranks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"results-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_decode_in_step_what_a_whole_model_decodes(family: str, results_folder: Path) -> None:
    spec = ModelSpec(path=str(results_folder / family))
    model, tokenizer = load_model(spec, torch.float32), load_tokenizer(spec)
    for number, (beams, batch_size) in enumerate(((1, 2), (2, 4))):
        decode = DecodeSpec(max_new_tokens=6, beams=beams, batch_size=batch_size)
        expected = generate(model, tokenizer, architecture_of(model.config), SOURCES, decode, CPU, 0, 1).texts
        shares = [rank["texts"][family][number] for rank in results_of_ranks(results_folder)]
        assert {int(index): text for share in shares for index, text in share.items()} == expected


def test_a_rank_holds_slices_and_sees_shapes(results_folder: Path) -> None:
    first, second = (rank["held"] for rank in results_of_ranks(results_folder))
    assert first == second
    assert first["shards"] == pytest.approx(first["looks"] / 2, abs=first["number"])
    assert first["memory"] == first["number"], "what stands for a weight has the memory of one element"


def test_weights_that_files_lack_are_not_drawn_at_random(results_folder: Path) -> None:
    for rank in results_of_ranks(results_folder):
        assert "lack 1 weights, among them 'model.norm.weight'" in rank["lacking"]


def test_tied_weights_that_files_have_twice_are_tied_if_all_slices_are_equal(results_folder: Path) -> None:
    for rank in results_of_ranks(results_folder):
        assert rank["tied"] == [True, False]
    model = load_model(ModelSpec(path=str(results_folder / "twice")), torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_weights_that_were_not_there_are_noticed(results_folder: Path) -> None:
    for rank in results_of_ranks(results_folder):
        assert rank["misread"] == ["scale", None, "lm_head.weight"]


def test_full_is_stored_tensor_by_tensor_and_scored_from_its_files(results_folder: Path) -> None:
    for rank in results_of_ranks(results_folder):
        assert rank["stored"]["again"] == pytest.approx(rank["stored"]["loss"], abs=1e-6)
        assert rank["stored"]["left"] < rank["stored"]["model"] / 10, "the engine has given back what it held"
    files = tensors_files(results_folder / "adapter")
    assert len(files) > 1
    state = read_tensors(files)
    model = load_model(ModelSpec(path=str(results_folder / "llama")), torch.float32)
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: parameter.shape for name, parameter in model.named_parameters()
    }
    files[0].unlink()
    with pytest.raises(AdapterError, match=rf"{INDEX_FILE}: it names {files[0].name}, and"):
        tensors_files(results_folder / "adapter")
