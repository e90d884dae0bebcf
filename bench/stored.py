"""Whether what a trial has stored is what it has trained: one dev loss, twice."""

from __future__ import annotations

from typing import Literal

from bench.record import DevPoint

# Of the loss, relative to one nat or to the loss if that is more. What training sees and the stored state in a fresh
# model are the same function; they differ in how sums are cut: in the company of other lanes, through compiled layers,
# and under ZeRO 3. Measured over all methods of tests/test_zero_parity.py: at most FP32 in fp32 and BF16 in bf16.
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}


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
