"""The contract's checks fail where they should: one broken method for each."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from broken_methods import computes_twice
from torch import nn

from bench.conformance import method_checks
from bench.conformance.method_checks import ContractError, Subject
from bench.method import Method
from methods.full import FullFineTuning
from methods.prompt_tuning import PromptTuning


class AddsToEmbeddings(Method):
    """Adds a trained vector to every input embedding. It is correct, and the base class of broken methods."""

    def patch(self, model: Any) -> nn.Module:
        model.offset = nn.Parameter(torch.zeros(model.config.hidden_size, dtype=torch.float64, device=model.device))
        model.get_input_embeddings().register_forward_hook(self.change)
        self.model = model
        return model

    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + self.model.offset


class SeesTheFuture(AddsToEmbeddings):
    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + self.model.offset * output.mean(dim=1, keepdim=True)


class SeesTheFutureInTraining(AddsToEmbeddings):
    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        ahead = torch.cat([output[:, 1:], output[:, :1]], dim=1) if self.model.training else 0
        return output + self.model.offset * ahead


class CountsPadding(AddsToEmbeddings):
    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + self.model.offset * output.shape[1]


class CountsFromTheLeft(AddsToEmbeddings):
    """Positions that count padding in front."""

    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + self.model.offset * torch.arange(output.shape[1])[None, :, None]


class MixesRows(AddsToEmbeddings):
    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + self.model.offset * output[:, :1].mean(dim=0, keepdim=True)


class RemembersRowsOfBeams(AddsToEmbeddings):
    """Each token also sees the one before it, which is stored by row. It is correct until beams change their rows."""

    before: torch.Tensor

    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        (ids,) = args
        seen = output * (ids != 0)[..., None]  # padding is no token
        first = self.before if ids.shape[1] == 1 else torch.zeros_like(seen[:, :1])
        self.before = seen[:, -1:]
        return output + 20 * (1 + self.model.offset) * torch.cat([first, seen[:, :-1]], dim=1)


class DependsOnTheCache(AddsToEmbeddings):
    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + (50 if output.shape[1] == 1 else 0) * torch.linspace(-1, 1, output.shape[-1])


class TrainsNothing(Method):
    def patch(self, model: Any) -> nn.Module:
        return model


class SaysItTrainsNothing(AddsToEmbeddings):
    trains: ClassVar[bool] = False


class HasADeadTensor(AddsToEmbeddings):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        model.dead = nn.Parameter(torch.zeros(3, dtype=torch.float64, device=model.device))
        return model


class MovesTheBase(AddsToEmbeddings):
    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        if self.model.training:
            self.model.get_input_embeddings().weight.data += 1e-3
        return output + self.model.offset


class MovesTheBaseWhenItPatches(AddsToEmbeddings):
    def patch(self, model: Any) -> nn.Module:
        model.get_output_embeddings().weight.data *= 1.01
        return super().patch(model)


class MovesABuffer(AddsToEmbeddings):
    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        if self.model.training:
            self.model.base_model.rotary_emb.inv_freq *= 1.01
        return output + self.model.offset


class ReplacesABaseWeight(AddsToEmbeddings):
    def patch(self, model: Any) -> nn.Module:
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach() * 1.01, requires_grad=False)
        return super().patch(model)


class DrawsWhatItDoesNotStore(AddsToEmbeddings):
    """A random projection that belongs to the function and is not part of the state."""

    def patch(self, model: Any) -> nn.Module:
        self.direction = torch.randn(model.config.hidden_size, dtype=torch.float64)
        return super().patch(model)

    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + self.model.offset * self.direction


class StoresTooLittle(AddsToEmbeddings):
    def adapter_state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return {}

    def load_adapter_state(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        pass


class SetsASeed(AddsToEmbeddings):
    def patch(self, model: Any) -> nn.Module:
        torch.manual_seed(0)
        return super().patch(model)


class SeedsPython(AddsToEmbeddings):
    def patch(self, model: Any) -> nn.Module:
        random.seed(0)
        return super().patch(model)


class DropsTheFirstLogits(AddsToEmbeddings):
    def patch(self, model: Any) -> nn.Module:
        super().patch(model)
        model.get_output_embeddings().register_forward_hook(lambda module, args, logits: logits[:, 1:])
        return model


class KeepsThePromptPositions(Method):
    """As Hugging Face peft's prompt tuning: logits for P + T positions."""

    def patch(self, model: Any) -> nn.Module:
        width = model.config.hidden_size
        model.prompt = nn.Parameter(torch.zeros(2, width, dtype=torch.float64))
        forward = model.forward

        def longer(input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> Any:
            embeddings = model.get_input_embeddings()(input_ids)
            embeddings = torch.cat([model.prompt.expand(len(embeddings), -1, -1), embeddings], dim=1)
            return forward(inputs_embeds=embeddings)

        model.forward = longer
        return model


class DetachesWhenCheckpointed(AddsToEmbeddings):
    def change(self, _: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + self.model.offset * (2 if computes_twice(self.model) else 1)


class StaysMerged(AddsToEmbeddings):
    share: ClassVar[float] = 1.0

    @property
    def mergeable(self) -> bool:
        return True

    def merge(self, model: Any) -> None:
        model.get_input_embeddings().weight.data += self.share * model.offset.data
        model.offset.data = torch.zeros_like(model.offset)

    def unmerge(self, model: Any) -> None:
        """Forgotten."""


class MergesByHalf(StaysMerged):
    share = 0.5


class AllReduces(AddsToEmbeddings):
    def patch(self, model: Any) -> nn.Module:
        torch.distributed.barrier()
        return super().patch(model)


class GrowsWithItsWeights(AddsToEmbeddings):
    def adapter_state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return {} if next(model.parameters()).is_meta else super().adapter_state(model)


def subject(method_class: type[Method]) -> Subject:
    return Subject(method_class, method_class.Config(), "llama")


@pytest.mark.parametrize(
    ("method_class", "check", "reason"),
    [
        (KeepsThePromptPositions, method_checks.check_logits_are_aligned, "logits have shape|loss"),
        (DropsTheFirstLogits, method_checks.check_logits_are_aligned, "logits have shape|Expected input batch_size"),
        (SeesTheFuture, method_checks.check_is_causal, "later tokens changed"),
        (SeesTheFutureInTraining, method_checks.check_is_causal, "in training mode"),
        (CountsPadding, method_checks.check_padding_changes_nothing, "padding on the right changed"),
        (CountsFromTheLeft, method_checks.check_padding_changes_nothing, "padding on the left changed"),
        (MixesRows, method_checks.check_padding_changes_nothing, "padding on the right changed"),
        (RemembersRowsOfBeams, method_checks.check_cache_changes_nothing, "generation with 3 beams"),
        (DependsOnTheCache, method_checks.check_cache_changes_nothing, "depends on the cache"),
        (DependsOnTheCache, method_checks.check_beams_share_a_row, "another text than generate with 3 beams"),
        (TrainsNothing, method_checks.check_only_declared_is_trained, "it trains nothing"),
        (
            SaysItTrainsNothing,
            method_checks.check_only_declared_is_trained,
            "says that it trains nothing, and 1 tensors",
        ),
        (HasADeadTensor, method_checks.check_only_declared_is_trained, "dead requires grad and did not move"),
        (MovesTheBase, method_checks.check_only_declared_is_trained, "not among what the method trains"),
        (MovesTheBaseWhenItPatches, method_checks.check_only_declared_is_trained, "patch changed lm_head.weight"),
        (MovesABuffer, method_checks.check_only_declared_is_trained, "training changed model.rotary_emb.inv_freq"),
        (
            ReplacesABaseWeight,
            method_checks.check_only_declared_is_trained,
            "patch took lm_head.weight out of the model",
        ),
        (DrawsWhatItDoesNotStore, method_checks.check_state_reloads, "a reloaded state gives other logits"),
        (StoresTooLittle, method_checks.check_state_reloads, "a reloaded state gives other logits"),
        (SetsASeed, method_checks.check_minds_its_own_business, "it sets a seed"),
        (SeedsPython, method_checks.check_minds_its_own_business, "it sets a seed"),
        (AllReduces, method_checks.check_minds_its_own_business, "makes a distributed call"),
        (DetachesWhenCheckpointed, method_checks.check_gradient_checkpointing, "changed the gradient of offset"),
        (MergesByHalf, method_checks.check_merging_changes_nothing, "merging changed the logits"),
        (StaysMerged, method_checks.check_merging_changes_nothing, "unmerging does not put .* back as it was"),
        (GrowsWithItsWeights, method_checks.check_counts, "other stored tensors"),
    ],
)
def test_check_fails(method_class: type[Method], check: Any, reason: str) -> None:
    with pytest.raises((ContractError, ValueError), match=reason):
        check(subject(method_class))


@pytest.mark.parametrize("check", method_checks.CHECKS.values(), ids=method_checks.CHECKS)
@pytest.mark.parametrize("method_class", [FullFineTuning, PromptTuning])
def test_sound_methods_pass(method_class: type[Method], check: Any) -> None:
    check(subject(method_class))
