"""The loss of target tokens. Logits are computed only at their positions, and never all at once.

B batch, T tokens, N target tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from bench.models.architecture import Batch, accepted_inputs

# So many logits exist at a time: 32 MiB in fp32, for any size of batch and vocabulary.
LOGITS_PER_CHUNK = 2**23


class TargetLoss(nn.Module):
    """Negative log-likelihood, summed over the target tokens of a batch.

    Logits are computed only at the positions that predict a target token: the input of the output projection is reduced
    to these rows.

    If the output projection is a plain linear layer whose output is the model's (which the first batch shows), the
    model stops before it and :func:`chunked_nll` computes the loss.

    Args:
        model: A patched language model.
        label_smoothing: As in ``torch.nn.functional.cross_entropy``.
        chunked: False computes all logits of a batch at once. The loss is the same; tests compare the two.
    """

    def __init__(self, model: Any, label_smoothing: float = 0.0, chunked: bool = True) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self._chunked, self._tried = chunked, False

    def forward(
        self,
        inputs: dict[str, torch.Tensor],
        predicting: torch.Tensor,
        target_ids: torch.Tensor,
        shares: Sequence[int] = (),
    ) -> torch.Tensor:
        """The sum over all target tokens. With the ``shares`` of K lanes, ``(K,)`` sums over so many tokens each."""
        parts: list[int] = list(shares) or [len(target_ids)]
        smoothing = self.label_smoothing if self.training else 0.0
        head = self.model.get_output_embeddings()
        if self._chunked and is_plain_linear(head):
            random_states = None if self._tried else RandomStates(predicting.device)
            hidden_states = self._in_front_of(head, inputs, predicting)
            self._tried = True
            if hidden_states is not None:
                losses = [
                    chunked_nll(hidden, head.weight, head.bias, targets, smoothing, LOGITS_PER_CHUNK)
                    for hidden, targets in zip(
                        torch.split(hidden_states, parts), torch.split(target_ids, parts), strict=True
                    )
                ]
                return torch.stack(losses) if shares else losses[0]
            self._chunked = False
            if random_states is not None:
                random_states.restore()  # the same dropout once more: under ZeRO 3 nothing is tried
        logits = at_least_fp32(self._behind(head, inputs, predicting))
        losses = [
            nn.functional.cross_entropy(of_part, targets, label_smoothing=smoothing, reduction="sum")
            for of_part, targets in zip(torch.split(logits, parts), torch.split(target_ids, parts), strict=True)
        ]
        return torch.stack(losses) if shares else losses[0]

    def _in_front_of(
        self, head: nn.Module, inputs: dict[str, torch.Tensor], predicting: torch.Tensor
    ) -> torch.Tensor | None:
        """The input ``(N, D)`` of the output projection; None if its output is not the model's logits.

        BART, for example, adds a bias to it.
        """
        head_inputs: list[torch.Tensor] = []
        head_outputs: list[torch.Tensor] = []

        def take(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            head_inputs.append(args[0].flatten(0, 1)[predicting])  # (B, T, D) to (N, D)
            return (head_inputs[0][:0], *args[1:])

        def keep(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            head_outputs.append(output)

        logits = self._logits(inputs, head.register_forward_pre_hook(take), head.register_forward_hook(keep))
        return head_inputs[0] if logits is head_outputs[0] else None

    def _behind(self, head: nn.Module, inputs: dict[str, torch.Tensor], predicting: torch.Tensor) -> torch.Tensor:
        """The logits ``(N, V)``."""

        def select(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (args[0].flatten(0, 1)[predicting], *args[1:])

        return self._logits(inputs, head.register_forward_pre_hook(select))

    def _logits(self, inputs: dict[str, torch.Tensor], *hooks: RemovableHandle) -> torch.Tensor:
        try:
            logits: torch.Tensor = self.model(**accepted_inputs(self.model, inputs), use_cache=False).logits
        finally:
            for hook in hooks:
                hook.remove()
        return logits

    def of(self, batch: Batch) -> torch.Tensor:
        """The loss of a batch, for callers without an engine."""
        loss: torch.Tensor = self(**vars(batch))
        return loss


class RandomStates:
    """What random numbers of the CPU and of a device come next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Have the same ones come again."""
        torch.set_rng_state(self._cpu)
        if self._own is not None:
            torch.cuda.set_rng_state(self._own, self._device)


def is_plain_linear(head: nn.Module) -> bool:
    """Whether an output projection is ``x @ weight.T + bias`` and can be computed without calling its module.

    A layer that a method has replaced or hooked is not. Nor is one under ZeRO-3, whose hooks gather the weight when the
    layer is called.
    """
    return type(head) is nn.Linear and not (head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))


def chunked_nll(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target_ids: torch.Tensor,
    label_smoothing: float,
    logits_per_chunk: int,
) -> torch.Tensor:
    """Cross-entropy of a linear layer's output, summed, with no more than so many logits at a time.

    Gradients are computed in the forward pass, while the logits of a chunk exist. The backward pass keeps ``(N, D)`` of
    them, and ``(V, D)`` if the layer is trained. No gradient of a frozen weight is computed.

    Args:
        hidden_states: ``(N, D)``.
        weight: ``(V, D)``.
        bias: ``(V,)`` or None.
        target_ids: ``(N,)`` int64.
        label_smoothing: As in ``torch.nn.functional.cross_entropy``.
        logits_per_chunk: Elements; at least one row is computed at a time.

    Returns:
        A scalar in fp32, or in fp64 if the model is.
    """
    rows = max(1, logits_per_chunk // len(weight))
    chunks = max(1, -(-len(hidden_states) // rows))
    # ctx.needs_input_grad does not know about torch.no_grad.
    wanted = [
        torch.is_grad_enabled() and part is not None and part.requires_grad for part in (hidden_states, weight, bias)
    ]
    loss: torch.Tensor = _ChunkedNLL.apply(  # type: ignore[no-untyped-call]
        hidden_states, weight, bias, target_ids, label_smoothing, chunks, wanted
    )
    return loss


class _ChunkedNLL(torch.autograd.Function):
    """See :func:`chunked_nll`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        target_ids: torch.Tensor,
        label_smoothing: float,
        chunks: int,
        wanted: list[bool],
    ) -> torch.Tensor:
        exact = at_least_fp32(hidden_states[:0]).dtype
        loss = hidden_states.new_zeros((), dtype=exact)
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(part, dtype=exact) if want and part is not None else None
            for part, want in zip((hidden_states, weight, bias), wanted, strict=True)
        )
        size = -(-len(hidden_states) // chunks)
        for start in range(0, len(hidden_states), size):
            rows = slice(start, start + size)
            hidden, targets = hidden_states[rows], target_ids[rows, None]
            log_p = torch.log_softmax(nn.functional.linear(hidden, weight, bias), dim=-1, dtype=exact)  # (n, V)
            loss -= (1.0 - label_smoothing) * log_p.gather(1, targets).sum()
            if label_smoothing:
                loss -= label_smoothing * log_p.mean(-1).sum()
            if not any(wanted):
                continue
            of_logits = log_p.exp_()
            if label_smoothing:
                of_logits -= label_smoothing / len(weight)
            of_logits.scatter_add_(1, targets, torch.full_like(targets, label_smoothing - 1.0, dtype=exact))
            if of_bias is not None:
                of_bias += of_logits.sum(0)
            of_logits = of_logits.to(hidden.dtype)
            if of_hidden is not None:
                of_hidden[rows] = of_logits @ weight
            if of_weight is not None:
                of_weight += of_logits.T @ hidden
        parts = (hidden_states, weight, bias)
        ctx.gradients = [
            None if gradient is None or part is None else gradient.to(part.dtype)
            for gradient, part in zip((of_hidden, of_weight, of_bias), parts, strict=True)
        ]
        return loss

    @staticmethod
    def backward(ctx: Any, of_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place, and therefore only once
        if gradients is None:
            raise RuntimeError("chunked_nll keeps its gradients for one backward pass")
        return *(gradient if gradient is None else gradient.mul_(of_loss) for gradient in gradients), *(None,) * 4


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in fp32, or unchanged if it is in fp64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
