"""Every private name of a library that our code uses still exists, and is listed here with its users.

If an upgrade removes one, a test fails here, with a readable message.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.conformance.tiny_models import tiny_llama, tiny_t5

ROOT = Path(__file__).resolve().parents[2]


def _of_sacrebleu() -> Any:
    """The road that our statistics for each source take, and the private methods that a subclass of ours overrides."""
    from sacrebleu.metrics import BLEU

    statistics = BLEU()._extract_corpus_statistics(["a b c d e"], [["a b c d e"]])
    assert BLEU()._aggregate_and_compute(statistics).score == pytest.approx(100)
    metric = BLEU()
    metric._ref_cache = metric._cache_references([["a b c d e"]])
    assert metric._extract_corpus_statistics(["a b c d e"], None) == statistics
    return BLEU._compute_segment_statistics, BLEU._compute_score_from_stats, BLEU._get_closest_ref_len


def _of_tercom() -> Any:
    from sacrebleu.metrics import lib_ter

    return lib_ter._MAX_SHIFT_CANDIDATES, lib_ter._shift


def _of_torch_c() -> Any:
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    return PrefixStore, TCPStore


def _of_torch_compile() -> Any:
    from torch._dynamo.callback import callback_handler
    from torch._inductor import config

    return callback_handler.register_start_callback, config.cpp_wrapper, nn.Linear(1, 1)._compiled_call_impl


def _of_torch_tracing() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    add = torch.ops.aten.add.Tensor
    kernels = torch.ops.aten
    return (
        (FakeTensorMode, unset_fake_temporarily, TorchDispatchMode, tree_leaves([1])),
        (add._schema.returns, add._overloadpacket, torch.zeros(1).untyped_storage()._cdata, torch.zeros(1)._version),
        kernels._scaled_dot_product_flash_attention_for_cpu,
        kernels._scaled_dot_product_flash_attention_for_cpu_backward,
        kernels._grouped_mm,
        (torch.ops.mkldnn._is_mkldnn_bf16_supported, torch.ops.mkldnn._is_mkldnn_fp16_supported),
    )


def _of_modules() -> Any:
    module = nn.Linear(1, 1)
    return module._modules, module._buffers, module._parameters, module._forward_hooks, module._forward_pre_hooks


def _of_transformers() -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = tiny_llama()
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    assert config._attn_implementation == "eager"
    return ALL_ATTENTION_FUNCTIONS._global_mapping, model._supports_attention_backend


def _of_dtypes() -> Any:
    plan = tiny_t5()._get_dtype_plan(torch.float16)
    assert plan == {"wo": torch.float32}
    return plan


def _of_experts() -> Any:
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    return MixtralExperts._apply_gate


def _of_state_space_layers() -> Any:
    """Without mamba-ssm a layer goes on by itself. Where these names are gone, its kernel reads past projections."""
    import inspect

    from transformers.models.mamba import modeling_mamba as first
    from transformers.models.mamba2 import modeling_mamba2 as second

    functions = first.mamba_inner_fn, second.mamba2_split_conv1d_scan_combined
    for function in functions:
        plain = inspect.unwrap(function)
        named = [one for one in inspect.signature(plain).parameters.values() if one.kind is not one.VAR_KEYWORD]
        assert plain(*[None] * len(named)) is None
    return functions


def _of_tokenizers() -> Any:
    from transformers import MBart50Tokenizer

    return MBart50Tokenizer._switch_to_target_mode


def _of_ray() -> Any:
    import ray
    from ray._raylet import GcsClient

    return GcsClient, ray._private.state.state.get_cluster_config


# Who uses it; what has to be there; the names that our code says.
def _of_quantisation() -> Any:
    import bitsandbytes  # noqa: F401 - it registers its operators
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    operators = torch.ops.bitsandbytes
    assert "lm_head" in HfQuantizer.get_modules_to_not_convert(tiny_llama(), None, tiny_llama()._keep_in_fp32_modules)
    return operators.dequantize_4bit, operators.dequantize_blockwise, should_convert_module


def _of_zero_3() -> Any:
    import inspect

    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partition_parameters import Init
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    to_release: Any = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release  # type: ignore[attr-defined]
    assert inspect.getclosurevars(to_release).nonlocals["func"].cache_clear
    return FWD_MODULE_STACK.clear, Init._convert_to_deepspeed_param


def _of_checkpoints() -> Any:
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.engine import DeepSpeedEngine

    return TorchCheckpointEngine.save, DeepSpeedEngine._copy_recovery_script


def _of_peft() -> Any:
    from peft import LoraModel
    from peft.tuners.psoft.layer import PsoftLayer
    from peft.tuners.tinylora.layer import TinyLoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    assert {"_psoft_A_cache", "_psoft_B_cache"} <= {*PsoftLayer.other_param_names}
    assert {"tinylora_A", "tinylora_B"} <= {*TinyLoraLayer.other_param_names}
    return LoraModel._create_and_replace, BaseTunerLayer.frozen_peft_weight_names


SEAMS: dict[str, tuple[str, Callable[[], Any], tuple[str, ...]]] = {
    "sacrebleu's statistics": (
        "bench/metrics/overlap.py, bench/metrics/remarks.py",
        _of_sacrebleu,
        (
            "_extract_corpus_statistics",
            "_aggregate_and_compute",
            "_get_closest_ref_len",
            "_cache_references",
            "_ref_cache",
        ),
    ),
    "tercom's shifts": ("bench/metrics/edit_rate.py", _of_tercom, ("_MAX_SHIFT_CANDIDATES", "_shift")),
    "stores of torch.distributed": (
        "bench/rank/context.py, bench/rank/rendezvous.py",
        _of_torch_c,
        ("_C", "_distributed_c10d"),
    ),
    "torch.compile": (
        "bench/train/compiled.py",
        _of_torch_compile,
        ("_dynamo", "_inductor", "_compiled_call_impl"),
    ),
    "torch's tracing": (
        "bench/plan/trace.py, bench/plan/kernels.py, bench/models/lean_modules.py, methods/parts/attention_prefix.py",
        _of_torch_tracing,
        (
            *("_subclasses", "_python_dispatch", "_pytree", "_schema", "_overloadpacket", "_cdata", "_version"),
            *(
                "_scaled_dot_product_flash_attention_for_cpu",
                "_scaled_dot_product_flash_attention_for_cpu_backward",
                "_grouped_mm",
            ),
            *("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"),
        ),
    ),
    "torch's modules": (
        "bench/models/lean_modules.py, bench/train/loss.py, bench/plan/trace.py, methods/parts/prefix_layers.py",
        _of_modules,
        ("_modules", "_buffers", "_parameters", "_forward_hooks", "_forward_pre_hooks"),
    ),
    "transformers' attention": (
        "bench/decode/batched.py, bench/models/shared_heads.py, bench/conformance/surroundings.py, "
        "methods/parts/attention_prefix.py",
        _of_transformers,
        ("_attn_implementation", "_supports_attention_backend", "_global_mapping"),
    ),
    "quantisation by transformers and bitsandbytes": (
        "bench/models/quantization.py, bench/quantized/linear.py",
        _of_quantisation,
        ("_keep_in_fp32_modules",),
    ),
    "transformers' dtypes": ("bench/models/base.py", _of_dtypes, ("_get_dtype_plan",)),
    "DeepSpeed's ZeRO 3": (
        "bench/train/zero3.py",
        _of_zero_3,
        ("_PartitionedParameterCoordinator__params_to_release", "_convert_to_deepspeed_param"),
    ),
    "DeepSpeed's checkpoints": ("bench/train/engine_checkpoint.py", _of_checkpoints, ("_copy_recovery_script",)),
    "peft's tuners": (
        "methods/hf_peft.py",
        _of_peft,
        ("_create_and_replace", "_psoft_A_cache", "_psoft_B_cache"),
    ),
    "transformers' experts": ("methods/parts/experts.py", _of_experts, ("_apply_gate", "_is_expert_parallel")),
    "transformers' state-space layers": ("bench/models/whole_layers.py", _of_state_space_layers, ()),
    "transformers' tokenizers": ("bench/models/whole_texts.py", _of_tokenizers, ("_switch_to_target_mode",)),
    "Ray's control store": (
        "bench/launch/cluster_access.py, bench/launch/ray_cluster.py",
        _of_ray,
        ("_raylet", "_private"),
    ),
}
# Of Python itself and documented there, or what begins so and is no seam: endings of names, names of our own tensors.
NO_SEAMS = {"_exit", "_abc_impl", "_replace", "_bias", "_lora_A", "_lora_B", "_global_", "_sources_in_train"}


@pytest.mark.parametrize("seam", SEAMS)
def test_what_we_reach_into_is_there(seam: str) -> None:
    users, reach, _ = SEAMS[seam]
    try:
        reach()
    except (AttributeError, ImportError) as error:
        pytest.fail(f"{seam} changed, which {users} use: {error}")


def test_every_seam_is_listed() -> None:
    listed = NO_SEAMS | {name for _, _, names in SEAMS.values() for name in names}
    ours, reached = set(), {}
    for path in (*ROOT.glob("bench/**/*.py"), *ROOT.glob("methods/**/*.py"), ROOT / "tuneoff.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        ours |= set(_defined(tree))
        reached |= {name: str(path.relative_to(ROOT)) for name in _reached(tree)}
    unknown = {name: path for name, path in reached.items() if name not in ours | listed}
    assert unknown == {}, "add what has to be there to SEAMS"


def _defined(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _reached(tree: ast.AST) -> Iterator[str]:
    """Private names: attributes, parts of imports, and texts that getattr may be given."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] not in ("bench", "methods"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            names = [text.value for text in node.args if isinstance(text, ast.Constant) and isinstance(text.value, str)]
        yield from (name for name in names if name.startswith("_") and not name.startswith("__"))
