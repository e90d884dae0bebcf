"""The class that authors of an optimiser write: a name's settings become an optimiser of torch.

Nearly always it wraps one of a well-kept package, and says what the harness has to know of it: whether it looks at
whole matrices, whether what is scored are other weights than those that are trained, and how much it remembers.
"""

from __future__ import annotations

import difflib
import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from bench.schema.trial import ADAM_FIELDS, TrainSpec

# Arguments of optimisers that settings of their own decide, and those settings.
OWN_SETTINGS = {"lr": "train.learning_rate", "weight_decay": "train.weight_decay", "params": "the method"}
ADAM_SETTINGS = {"betas": "train.adam_beta1 and train.adam_beta2", "eps": "train.adam_epsilon"}
# Rows and columns of what an unknown optimiser is tried on: large enough for those that treat small tensors apart.
TRIED = 64


class OptimizerError(ValueError):
    """An optimiser cannot be had, or not with these settings. The message says why and what would be right."""


class Optimizer(ABC):
    """How gradients become steps: ``train.optimizer`` of a sweep.

    The first line of the docstring is the description that ``tuneoff optimizers`` prints.

    Args:
        train: All settings of training; ``optimizer_options`` are further arguments of :meth:`torch_class`.
    """

    paper: ClassVar[str] = ""
    """Authors, year and identifier of the source."""

    package: ClassVar[str | None] = None
    """What has to be installed for it beside Tuneoff, as pip calls it."""

    extra: ClassVar[str | None] = None
    """The extra of Tuneoff that installs the package."""

    whole_matrices: ClassVar[bool] = False
    """Whether it looks at rows and columns. ZeRO 1 to 3 cut tensors up and flatten them, and are refused."""

    scores_other_weights: ClassVar[bool] = False
    """Whether what is validated, stored and scored are other weights than those that gradients are taken at.

    The optimiser then has ``train()`` and ``eval()``, which switch between the two. Under ZeRO 1 to 3 neither would
    reach the model, and they are refused.
    """

    scales_rate: ClassVar[bool] = True
    """False: the learning rate is to stay where it is after the warm-up, because the optimiser needs no schedule."""

    checkpoints: ClassVar[bool] = True
    """Whether its state is tensors and numbers, which a checkpoint can hold."""

    own_settings: ClassVar[Mapping[str, str]] = OWN_SETTINGS
    """Arguments of :meth:`torch_class` that are no options, and the settings that decide them.

    With some of :data:`ADAM_SETTINGS` it is of Adam's family. Others are refused where ``train.adam_...`` are set.
    """

    def __init__(self, train: TrainSpec) -> None:
        self.train = train

    @classmethod
    @abstractmethod
    def torch_class(cls) -> type[torch.optim.Optimizer]:
        """The class behind it. What only this optimiser needs is imported here."""

    def arguments(self) -> dict[str, Any]:
        """Further arguments of :meth:`torch_class`: by default what the sweep's options say."""
        return dict(self.train.optimizer_options)

    def make(self, groups: Sequence[dict[str, Any]], model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser.

        It makes no state before its first step, so that masters in fp32 can still take the place of what is trained.

        Args:
            groups: Parameters with their ``lr`` and ``weight_decay``, which the schedule changes later.
            model: What they are part of.
        """
        kind: Any = self.torch_class()
        made: torch.optim.Optimizer = kind(list(groups), lr=self.train.learning_rate, **self.arguments())
        return made

    def period(self) -> int:
        """Steps from one round of its rare work to the next, such as GaLore's decompositions; 1: all steps are alike.

        Reports say where fewer were measured, because the time of a step is then not that of a long training.
        """
        return 1

    def state_bytes(self, model: nn.Module) -> float:
        """What it remembers of the trained tensors of a model, which may be on the meta device.

        By default a step on small tensors tells how many bytes there are for an element.
        """
        per_element = [self._bytes_per_element((TRIED, TRIED)), self._bytes_per_element((TRIED * TRIED,))]
        return sum(parameter.numel() * per_element[parameter.ndim < 2] for parameter in trained(model))

    def _bytes_per_element(self, shape: tuple[int, ...]) -> float:
        optimizer = self._tried([torch.zeros(shape)])
        kept = (value for state in optimizer.state.values() for value in state.values())
        return sum(value.nbytes for value in kept if isinstance(value, torch.Tensor)) / math.prod(shape)

    def _tried(self, tensors: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
        """The optimiser after a step on tensors of its own."""
        holder = nn.Module()
        for number, tensor in enumerate(tensors):
            holder.register_parameter(f"tried_{number}", nn.Parameter(tensor))
        parameters = list(holder.parameters())
        optimizer = self.make([{"params": parameters, "lr": 1e-3, "weight_decay": 0.0}], holder)
        if held := sorted({key for state in optimizer.state.values() for key in state}):
            raise OptimizerError(
                f"{type(optimizer).__name__} has state before its first step ({', '.join(held)}), which belongs to "
                "other tensors as soon as masters in fp32 take the place of what is trained; make it in step"
            )
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        return optimizer

    def check(self) -> None:
        """See that it can be had with these settings, by two steps on small tensors, with scores between them.

        Raises:
            OptimizerError: It cannot.
        """
        try:
            accepted = inspect.signature(self.torch_class().__init__).parameters
        except ImportError as error:
            extra = f": pip install 'tuneoff[{self.extra}]'" if self.extra else ""
            raise OptimizerError(f"needs the package {self.package or error.name}{extra} ({error})") from error
        named = {
            name
            for name, parameter in accepted.items()
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        }
        known = sorted(named - {"self", "params"} - self.own_settings.keys() | self.further_options().keys())
        any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        for name in self.train.optimizer_options:
            if name in self.own_settings:
                raise OptimizerError(f"optimizer_options.{name}: set {self.own_settings[name]} instead")
            if name not in known and not any_name:
                close = difflib.get_close_matches(name, known, n=1)
                meant = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
                raise OptimizerError(
                    f"optimizer_options.{name}: {self.torch_class().__name__} has no such option; {meant}"
                )
        if not self.own_settings.keys() & ADAM_SETTINGS.keys():
            for field in filter(self.train.differs, ADAM_FIELDS):
                raise OptimizerError(f"does not read {field}, so that it has no effect; leave it out")
        if self.train.weight_decay and "weight_decay" not in named and not any_name:
            raise OptimizerError(
                f"{self.torch_class().__name__} has no weight decay, so that weight_decay: {self.train.weight_decay:g} "
                "has no effect; leave it out"
            )
        try:
            optimizer = self._tried([torch.zeros(TRIED, TRIED), torch.zeros(TRIED)])
            with torch.no_grad(), scored_weights(optimizer):
                pass
            optimizer.step()
        except OptimizerError:
            raise
        except Exception as error:
            raise OptimizerError(
                f"cannot step{' and score' * self.scores_other_weights} with optimizer_options: "
                f"{self.train.optimizer_options}: {type(error).__name__}: {error}"
            ) from error

    def check_checkpoints(self) -> None:
        """See that a checkpoint holds what it remembers after two steps on small tensors, where :meth:`check` passes.

        Raises:
            OptimizerError: It does not.
        """
        optimizer = self._tried([torch.zeros(TRIED, TRIED), torch.zeros(TRIED)])
        optimizer.step()
        if (unheld := _what_no_checkpoint_holds(optimizer)) is not None:
            raise OptimizerError(
                f"keeps what no checkpoint holds ({unheld}); leave resources.checkpoint_every_steps out"
            )

    @classmethod
    def needs_zero_0(cls) -> str | None:
        """Why ZeRO 1 to 3 would train something else; None where they do not."""
        if cls.whole_matrices:
            return "needs whole matrices, which ZeRO 1 to 3 cut up and flatten"
        if cls.scores_other_weights:
            return "scores other weights than it trains, which under ZeRO 1 to 3 never reach the model"
        return None

    @classmethod
    def further_options(cls) -> Mapping[str, Any]:
        """Options that are no arguments of :meth:`torch_class`, with their defaults."""
        return {}


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The trained tensors of a model."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _what_no_checkpoint_holds(optimizer: torch.optim.Optimizer) -> str | None:
    """What an optimiser remembers that does not come back from a checkpoint; None if all of it does."""
    for key, entries in optimizer.state_dict()["state"].items():
        if not isinstance(key, int) or not isinstance(entries, dict):
            return f"a state of no tensor, {key!r}"
        for name, value in entries.items():
            if not (isinstance(name, str) and _comes_back(value)):
                return f"the state {name!r}, a {type(value).__name__}"
    for group in optimizer.param_groups:
        for name, value in group.items():
            # A checkpoint has the numbers of groups. Others come from the settings again, as the pair of betas does.
            if name != "params" and not _is_constant(value):
                return f"{name!r} of its groups, a {type(value).__name__}"
    return None


def _comes_back(value: Any) -> bool:
    """Whether a value of a state does, see :func:`bench.train.checkpoint.training_state`."""
    if isinstance(value, torch.Tensor):
        return True
    if isinstance(value, dict):
        return bool(value) and all(isinstance(part, torch.Tensor) for part in value.values())
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_constant, value))
    return value is None or isinstance(value, bool | int | float | str)


@contextmanager
def scored_weights(optimizer: torch.optim.Optimizer) -> Iterator[bool]:
    """Inside the block a model has the weights that are to be validated, stored and scored.

    Yields:
        Whether these are others than those that are trained. Rounded copies of them have to be made anew, then and
        after the block.
    """
    switches = callable(getattr(optimizer, "eval", None)) and callable(getattr(optimizer, "train", None))
    if switches:
        optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield switches
    finally:
        if switches:
            optimizer.train()  # type: ignore[attr-defined]


def optimizer_of_torch_class(kind: type[torch.optim.Optimizer]) -> type[Optimizer]:
    """A class of torch's as an optimiser of a sweep.

    Of those that are not known to step each element by itself, ``whole_matrices = False`` of the class says so.
    ``checkpoints = False`` says that its state is more than tensors and numbers.
    """

    class Wrapped(Optimizer):
        whole_matrices = bool(getattr(kind, "whole_matrices", kind not in ELEMENTWISE))
        checkpoints = bool(getattr(kind, "checkpoints", True))
        scores_other_weights = callable(getattr(kind, "eval", None)) and callable(getattr(kind, "train", None))

        @classmethod
        def torch_class(cls) -> type[torch.optim.Optimizer]:
            return kind

        def make(self, groups: Sequence[dict[str, Any]], model: nn.Module) -> torch.optim.Optimizer:
            optimizer = super().make(groups, model)
            if self.scores_other_weights:
                optimizer.train()  # type: ignore[attr-defined]
            return optimizer

    Wrapped.__name__ = Wrapped.__qualname__ = kind.__name__
    Wrapped.__doc__ = (kind.__doc__ or "").strip()
    return Wrapped


ELEMENTWISE = frozenset(
    {
        torch.optim.ASGD,
        torch.optim.Adadelta,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adamax,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.RMSprop,
        torch.optim.Rprop,
        torch.optim.SGD,
    }
)
