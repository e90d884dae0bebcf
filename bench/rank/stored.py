"""Checks that the stored adapter is the one that was trained: both have the same dev loss."""

from __future__ import annotations

from bench.schema.record import DevPoint
from bench.schema.trial import Precision

# The allowed difference, as a fraction of the loss, or of one nat if the loss is less. Training and a fresh model with
# the stored state compute the same function, but sum in another order (in fused passes, in compiled layers, under
# ZeRO 3), and below fp32 round what an adapter computes from its masters (keys and values of a prefix's MLP). Over the
# methods, families and stages of tests/train/test_zero_parity.py, the difference was at most 2e-7 in fp32 and 1.4e-4 in
# bf16. The limits are 1e-4, for devices with other kernels, and one unit in the last place of bf16 or fp16.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 2**-8, "fp16": 2**-10}


class StoredStateError(RuntimeError):
    """The stored adapter of a trial is not the one that it trained."""


def require_what_was_trained(stored_loss: float, best: DevPoint, precision: Precision, method: str) -> None:
    """Compare the dev loss of the stored state with that of the training.

    Args:
        stored_loss: Dev loss of a fresh base model with the stored state.
        best: Dev loss that training had when it kept the state.
        precision: Of both models.
        method: Its name, for the message.

    Raises:
        StoredStateError: They differ by more than rounding, or the stored state's loss is not a number.
    """
    allowed = TOLERANCE[precision] * max(1.0, abs(best.loss))
    if not abs(stored_loss - best.loss) <= allowed:
        raise StoredStateError(
            f"what {method} has stored is not what was trained: in a fresh base model its dev loss is "
            f"{stored_loss:.6g}, and after step {best.step} of the training it was {best.loss:.6g}; rounding in "
            f"{precision} explains {allowed:.1g}. Whatever the method changes in training and in the model that it "
            "computes with has to be in adapter_state, and load_adapter_state has to put it back"
        )
