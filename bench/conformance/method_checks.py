"""The contract of methods, as checks that run on tiny models. Tests and plugin authors use the same code.

Each check takes a :class:`Subject` and raises :class:`ContractError` with the reason. Models are in float64, so that
equal functions give results that differ only by rounding.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.conformance.business import (
    check_leaves_settings,
    check_leaves_shared_code,
    check_leaves_tokenizer_and_configs,
    check_minds_its_own_business,
)
from bench.conformance.calls import (
    check_calls_do_not_meet,
    check_evaluation_draws_nothing,
    check_is_causal,
    check_logits_are_aligned,
    check_mask_and_positions,
    check_models_do_not_meet,
    check_padding_changes_nothing,
    check_padding_token_does_not_matter,
    check_precisions,
    check_rows_do_not_meet,
    check_training_computes_what_evaluation_does,
)
from bench.conformance.decoding import (
    check_beams_share_a_row,
    check_cache_changes_nothing,
    check_cache_holds_the_tokens,
    check_cached_logits,
)
from bench.conformance.gradients import (
    check_every_tensor_gets_a_gradient,
    check_gradient_checkpointing,
    check_gradients_are_derivatives,
    check_loop_loss,
    check_trained_tensors_are_registered,
)
from bench.conformance.lanes import check_lanes_do_not_meet
from bench.conformance.layers import check_equal_layers_are_adapted_alike
from bench.conformance.process import CHECK as PROCESS_CHECK
from bench.conformance.process import check_is_the_same_in_another_process
from bench.conformance.starts import check_start_from_examples
from bench.conformance.state import (
    check_counts,
    check_loading_is_strict,
    check_merging_changes_nothing,
    check_state_is_the_methods_own,
    check_state_reloads,
)
from bench.conformance.subject import PAIRS, ContractError, Subject, batch_of, logits_of, target_logits
from bench.conformance.training import (
    check_declares_itself,
    check_hooks,
    check_only_declared_is_trained,
    check_parameter_groups,
    check_turns,
)

__all__ = ["CHECKS", "PAIRS", "PROCESS_CHECK", "ContractError", "Subject", "batch_of", "logits_of", "target_logits"]

CHECKS: dict[str, Callable[[Subject], None]] = {
    "logits are aligned": check_logits_are_aligned,
    "precisions": check_precisions,
    "causal": check_is_causal,
    "padding changes nothing": check_padding_changes_nothing,
    "padding token does not matter": check_padding_token_does_not_matter,
    "rows do not meet": check_rows_do_not_meet,
    "mask and positions": check_mask_and_positions,
    "evaluation draws nothing": check_evaluation_draws_nothing,
    "training computes what evaluation does": check_training_computes_what_evaluation_does,
    "calls do not meet": check_calls_do_not_meet,
    "models do not meet": check_models_do_not_meet,
    "cache changes nothing": check_cache_changes_nothing,
    "cached logits": check_cached_logits,
    "cache holds the tokens": check_cache_holds_the_tokens,
    "beams share a row": check_beams_share_a_row,
    "declares itself": check_declares_itself,
    "only what is declared is trained": check_only_declared_is_trained,
    "parameter groups": check_parameter_groups,
    "hooks": check_hooks,
    "turns": check_turns,
    "the loop's loss": check_loop_loss,
    "every tensor gets a gradient": check_every_tensor_gets_a_gradient,
    "trained tensors are registered": check_trained_tensors_are_registered,
    "gradients are derivatives": check_gradients_are_derivatives,
    "gradient checkpointing": check_gradient_checkpointing,
    "equal layers are adapted alike": check_equal_layers_are_adapted_alike,
    "start from examples": check_start_from_examples,
    "state reloads": check_state_reloads,
    "state is the method's own": check_state_is_the_methods_own,
    "loading is strict": check_loading_is_strict,
    "merging changes nothing": check_merging_changes_nothing,
    "lanes do not meet": check_lanes_do_not_meet,
    "minds its own business": check_minds_its_own_business,
    "leaves shared code": check_leaves_shared_code,
    "leaves settings": check_leaves_settings,
    "leaves tokenizer and configs": check_leaves_tokenizer_and_configs,
    "counts": check_counts,
    PROCESS_CHECK: check_is_the_same_in_another_process,
}
