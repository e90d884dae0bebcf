"""Which modules get faults, and which tests have to notice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Target:
    """A package, or the part of it that numbers and behaviour depend on."""

    name: str
    modules: tuple[str, ...]  # files, or folders with all their files
    tests: tuple[str, ...]  # quick ones that run in one process
    imports: tuple[str, ...] = ()  # large libraries, imported once
    sample: int = 12  # of each module, unless the command says otherwise; 0: all
    longest_seconds: float = 20.0  # tests that take longer are left out, unless the command says otherwise

    @property
    def files(self) -> Iterator[str]:
        """The files, relative to the repository."""
        for module in self.modules:
            path = ROOT / module
            for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
                yield str(file.relative_to(ROOT))


_TORCH = ("torch", "transformers", "deepspeed")
TARGETS = {
    target.name: target
    for target in (
        Target(
            "schedule",
            ("bench/driver/schedule.py", "bench/driver/stages.py", "bench/store/retry.py"),
            (
                "tests/driver/test_schedule_and_store.py",
                *(
                    f"tests/driver/test_fused_sweeps.py::test_{name}"
                    for name in (
                        "trials_share_launches_and_each_has_its_record",
                        "work_is_left_for_every_machine",
                        "what_fails_in_company_is_tried_again_alone",
                        "a_lost_launch_is_lost_for_all_and_made_again_one_by_one",
                        "a_trial_that_an_earlier_driver_lost_is_tried_again_alone",
                        "only_the_trial_that_is_meant_is_cancelled",
                    )
                ),
                "tests/driver/test_stages.py",
                "tests/store/test_retry.py",
            ),
            ("pydantic", "rich.console", "scipy.special"),
            8,
        ),
        Target(
            "store",
            ("bench/store",),
            ("tests/store", "tests/driver/test_schedule_and_store.py"),
            ("pydantic", "rich.console", "scipy.special"),
            sample=6,
        ),
        Target(
            "statistics",
            ("bench/statistics",),
            (
                "tests/statistics/test_exact_values.py",
                "tests/statistics/test_significance.py",
                *(
                    f"tests/statistics/test_statistics.py::test_{name}"
                    for name in (
                        "scores_of_hardly_anything_are_those_of_sacrebleu",
                        "estimates_over_seeds",
                        "holm_adjusts_as_published",
                        "the_base_model_has_one_seed_and_stands_against_all",
                        "seeds_are_paired_across_methods",
                        "few_seeds_conclude_nothing_about_methods",
                        "a_method_does_not_differ_from_itself",
                        "intervals_and_p_values_carry_the_same_correction",
                        "a_half_width_is_that_of_each_part_at_its_own_degrees_of_freedom",
                        "more_pairs_may_be_equal_only_as_far_as_the_others_allow",
                        "the_jackknife_of_a_mean_is_its_textbook_variance",
                        "a_method_whose_seeds_spread_far_more_is_kept_out_of_the_pool",
                        "a_pool_is_the_mean_square_of_methods_and_seeds",
                        "seeds_that_all_have_are_counted_where_they_are_enough",
                        "pairs_with_seeds_of_their_own_stand_by_themselves",
                        "groups_are_the_largest_sets_that_cannot_be_told_apart",
                        "groups_hold_no_pair_that_differs_and_every_pair_that_does_not",
                    )
                ),
                "tests/metrics/test_answers.py::test_one_seed_of_right_and_wrong_is_tested_exactly",
                "tests/plugins/test_metric_plugins.py::test_differences_in_it_are_tested",
            ),
            ("scipy.stats", "sacrebleu", "pandas"),
            4,
            6.0,
        ),
        Target(
            "tuning",
            ("bench/tuning",),
            (
                "tests/tuning",
                "tests/driver/test_stages.py::test_every_method_gets_the_same_budget_and_its_border_is_extended",
                "tests/driver/test_stages.py::test_a_space_of_choices_is_trained_once_through",
                "tests/driver/test_stages.py::test_a_sweep_that_is_taken_up_again_asks_exactly_the_same",
                "tests/driver/test_stages.py::test_halving_cuts_within_each_method_and_audits",
            ),
            ("scipy.special", "optuna", "matplotlib.figure"),
            8,
        ),
        Target("metrics", ("bench/metrics",), ("tests/metrics",), ("sacrebleu", "nltk", "scipy.special"), 4, 6.0),
        Target(
            "loss",
            ("bench/train/loss.py", "bench/train/optimizer.py", "bench/train/order.py"),
            (
                *(
                    f"tests/train/test_training_levers.py::test_{name}"
                    for name in (
                        "the_chunked_loss_is_the_loss",
                        "labels_are_smoothed_in_training_only",
                        "a_model_that_changes_its_logits_is_tried_once",
                        "half_precision_sums_in_fp32",
                        "logits_exist_for_targets_only_and_a_chunk_at_a_time",
                        "a_loss_is_backpropagated_once",
                        "what_is_no_plain_output_projection_is_left_alone",
                        "an_engine_sees_what_is_trained_and_nothing_else",
                    )
                ),
                "tests/train/test_optimize.py",
                "tests/train/test_order_and_rates.py",
                "tests/models/test_data_and_tasks.py",
            ),
            _TORCH,
            8,
            6.0,
        ),
        Target("decode", ("bench/decode",), ("tests/decode",), _TORCH, 4, 3.0),
        Target(
            "prefix",
            (
                "methods/prefix_tuning.py",
                "methods/parts/attention_prefix.py",
                "methods/parts/prefix_layers.py",
                "methods/parts/prefix_literal.py",
                "methods/parts/trained_prefix.py",
            ),
            (
                "tests/methods/test_prefix_numerics.py",
                "tests/methods/test_prefix_parts.py",
                "tests/methods/test_prefix_paths.py",
                "tests/methods/test_soft_prompt_families.py"
                "::test_layers_that_share_keys_see_the_prefix_of_the_layer_that_makes_them",
                "tests/train/test_fusion.py::test_a_trial_that_diverges_takes_nothing_from_the_others",
                "tests/train/test_fusion.py::test_trials_in_one_pass_train_to_what_each_trains_to_alone[gpt2-prefix]",
            ),
            _TORCH,
            12,
            6.0,
        ),
    )
}
