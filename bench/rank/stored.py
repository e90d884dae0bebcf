"""Whether what a trial has stored is what it has trained: one dev loss, twice."""

from __future__ import annotations

from typing import Literal

from bench.schema.record import DevPoint

# Of the loss, or of one nat if that is more. Training and a fresh model with the stored state compute one function.
# What differs is how sums are cut, in the company of other lanes, through compiled layers and under ZeRO 3, and in
# bf16 the rounding of what an adapter makes of its masters (keys and values of a prefix's MLP). Over methods,
# families and stages of tests/train/test_zero_parity.py it was at most 2e-7 in fp32 and 1.4e-4 in bf16. Allowed are
# 1e-4, for devices with other kernels, and one unit in the last place of bf16.
TOLERANCE = {"fp32": 1e-4, "bf16": 2**-8}


class StoredStateError(RuntimeError):
    """What is stored of a trial is something else than what it trained."""


def require_what_was_trained(
    stored_loss: float, best: DevPoint, precision: Literal["fp32", "bf16"], method: str
) -> None:
    """Hold the dev loss of a stored state against that of training.

    Args:
        stored_loss: Of the stored state in a fresh base model.
        best: What training saw when it kept the state.
        precision: Of both.
        method: Its name, for the message.

    Raises:
        StoredStateError: They differ by more than rounding, or the stored one is not a number.
    """
    allowed = TOLERANCE[precision] * max(1.0, abs(best.loss))
    if not abs(stored_loss - best.loss) <= allowed:
        raise StoredStateError(
            f"what {method} has stored is not what was trained: in a fresh base model its dev loss is "
            f"{stored_loss:.6g}, and after step {best.step} of the training it was {best.loss:.6g}; rounding in "
            f"{precision} explains {allowed:.1g}. Whatever the method changes in training and in the model that it "
            "computes with has to be in adapter_state, and load_adapter_state has to put it back"
        )
