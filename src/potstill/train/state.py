"""A model in training: its weights, the optimizer's moments, the running average, and how far it is.

All of it goes into a checkpoint and comes back to the bit; so do buffers that are saved with the model, such as running
means of batches. Weights that are not trained are in neither. With several
processes all tensors are parts (DTensor): torch's arithmetic on them is the same.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from potstill.errors import DiskError
from potstill.recipe.train import Loop
from potstill.store.checkpoints import Checkpoints
from potstill.train.data import Data
from potstill.train.guards import Memory
from potstill.train.world import ALONE, World

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


M = TypeVar("M", bound=nn.Module)

_PLAIN: Data[Any] = Data(())  # nothing of it is kept


class TrainState(Generic[M]):
    """Make it when the model lies where `world` placed it. What the student wrote for steps to come is kept with it."""

    def __init__(self, model: M, settings: Loop, world: World = ALONE, data: Data[Any] = _PLAIN) -> None:
        self.model = model
        self._world, self._data = world, data
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.scores: list[tuple[int, float]] = []  # of the validations so far, by step
        self.memory = Memory()
        self._clip_norm = settings.clip_norm
        self._average: dict[str, Tensor] = {}
        self._averaged = 0
        self._lookups = _Lookups(model, cut=world.size == 1)
        self._trained: dict[str, Parameter] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        saved = model.state_dict().keys()
        self._buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
        self._optimizer = torch.optim.AdamW(
            self._trained.values(),
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def update(self, *, rate: float) -> float:
        """One clipped AdamW step at learning rate `rate` from the gradients at hand; returns their norm. Where that is
        not finite, nothing is changed."""
        self._lookups.add_gradients()
        found: Any = torch.nn.utils.clip_grad_norm_(self._trained.values(), self._clip_norm)
        norm: Tensor = found if self._world.size == 1 else found.full_tensor()
        if not norm.isfinite():
            return norm.item()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm.item()

    @torch.no_grad()
    def take_into_average(self) -> None:
        """Equal-weight mean of the weights so far (Polyak and Juditsky 1992; Izmailov et al. 2018)."""
        self._averaged += 1
        for name, parameter in self._trained.items():
            if name in self._average:
                self._average[name].lerp_(parameter, 1 / self._averaged)
            else:
                self._average[name] = parameter.clone()

    @torch.no_grad()
    def settle(self) -> None:
        """Put the average in place of the last weights, if one was taken."""
        for name, value in self._average.items():
            self._trained[name].copy_(value)

    def release(self) -> None:
        """Leave the model as anyone may train it: its embeddings take their own gradient again."""
        self._lookups.release()

    def save(self, checkpoints: Checkpoints, *, fingerprint: str, score: float | None = None) -> None:
        progress = {"tokens": self.tokens, "seconds": self.seconds, "averaged": self._averaged}
        state = {**progress, "scores": self.scores, "guards": self.memory.as_dict(), "fingerprint": fingerprint}
        state |= self._data.state()
        self._world.save(checkpoints.draft(self.step, state, score=score), self._tensors())

    @torch.no_grad()
    def restore(self, checkpoints: Checkpoints, *, fingerprint: str) -> None:
        """Go on from the newest checkpoint; one that was made under another fingerprint is dropped."""
        found = self._world.told(checkpoints.newest_unread)
        if found is None or found[1]["fingerprint"] != fingerprint:
            if self._world.first:
                checkpoints.clear()
            return
        place, state = found
        if state["averaged"]:
            self._average = {name: torch.empty_like(parameter) for name, parameter in self._trained.items()}
        self._world.read(place, into=self._tensors())
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self._averaged = state["averaged"]
        self.scores = [(step, score) for step, score in state["scores"]]
        self.memory = Memory.from_dict(state["guards"])
        self._data.restore(state)

    @torch.no_grad()
    def go_back(self, checkpoints: Checkpoints, *, step: int) -> None:
        """Take the weights of `step`, which has the best score. Raises DiskError where they were damaged since."""
        found = self._world.told(checkpoints.best_unread)
        if found is None or found[1]["step"] != step:
            raise DiskError(
                f"the best weights, those of step {step}, are lost: {'; '.join(checkpoints.damage)}",
                way_out="delete that folder of checkpoints and train again",
            )
        self._world.read(found[0], into=self._model())

    def _model(self) -> dict[str, Tensor]:
        """What training changes of the model, by its names in a checkpoint."""
        return {f"model.{name}": value.detach() for name, value in {**self._trained, **self._buffers}.items()}

    def _tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, by name. Before the first step the moments are zero."""
        tensors = {**{f"average.{name}": value for name, value in self._average.items()}, **self._model()}
        for name, parameter in self._trained.items():
            state = self._optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state |= {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            tensors |= {f"optimizer.{name}.{key}": state[key] for key in _MOMENTS}
        return tensors


class _Lookups:
    """Tied embeddings have a dense gradient from the head already. Autograd would add to it a second matrix of the
    whole vocabulary (or, of a sparse one, a copy); what looking up adds are the rows of the tokens that were read, and
    those are added in place: a fifth of a small student's step. Where more is done than to look up (Gemma multiplies;
    a hook, an adapter or a parametrisation may do anything), autograd is left alone. `cut`: not where the gradient
    leaves for other processes before an update."""

    def __init__(self, model: nn.Module, *, cut: bool) -> None:
        self._read: list[tuple[Tensor, int, Tensor]] = []
        self._hook: RemovableHandle | None = None
        if not cut or not isinstance(model, PreTrainedModel):
            return
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        weight = getattr(embeddings, "weight", None)
        if isinstance(weight, Parameter) and weight is getattr(head, "weight", None):
            self._weight = weight
            self._hook = embeddings.register_forward_hook(self._cut)

    def release(self) -> None:
        if self._hook is not None:
            self._hook.remove()

    def add_gradients(self) -> None:
        for ids_BL, padding, looked_up_BLD in self._read:
            if looked_up_BLD.grad is None:
                continue
            if self._weight.grad is None:
                self._weight.grad = torch.zeros_like(self._weight)
            rows_BL = ids_BL != min(padding, len(self._weight))  # without padding it is -1, read as unsigned
            self._weight.grad.index_add_(0, ids_BL[rows_BL], looked_up_BLD.grad[rows_BL])
        self._read.clear()

    def _cut(self, _: nn.Module, __: tuple[Any, ...], made: object) -> object:
        node: Any = made.grad_fn if isinstance(made, Tensor) else None
        if not isinstance(made, Tensor) or not self._looks_up(node):
            return made
        looked_up_BLD = made.detach().requires_grad_()
        self._read.append((node._saved_indices, node._saved_padding_idx, looked_up_BLD))
        return looked_up_BLD

    def _looks_up(self, node: Any) -> bool:
        """Whether autograd has nothing between the weight and what came of it but a plain lookup."""
        if node is None or node.name() != "EmbeddingBackward0" or node._saved_sparse:
            return False
        before: Any = node.next_functions[0][0]
        return getattr(before, "variable", None) is self._weight and not node._saved_scale_grad_by_freq
